"""The command line of a sweep: whether it continues a sweep that exists already, and with which arguments."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from innerloop.errors import InputError
from innerloop.runs.command import typed_value
from innerloop.runs.locks import LOCK, holder
from innerloop.sweeps.record import (
    CONF,
    FINISHED,
    LAUNCHER,
    RECORD,
    identity,
    key_of,
    quoted,
    read_record,
    refuse_another,
)


def command_line(argv: Sequence[str]) -> list[str]:
    """Return the arguments of a command. If it continues a sweep, they include that sweep's own.

    A sweep is continued if `sweep=<its directory>` names it, or if the same command started it in the default place and
    it is not finished. Raises InputError if the named sweep was started by another command.
    """
    typed = [a for a in argv[1:] if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv):
        if typed_value("sweep", typed):
            raise InputError(
                f"sweep= names a sweep's directory: python train.py -m sweep={typed_value('sweep', typed)}"
            )
        return list(argv)
    if typed_value("resume", typed):
        raise InputError("resume= resumes one run, without -m; a sweep is continued by python train.py -m sweep=SWEEP")
    if [a for a in argv[1:] if a.startswith("-") and a not in ("-m", "--multirun")]:
        return list(argv)  # it only shows something, or it has configuration files of its own
    asked = [a for a in typed if key_of(a) not in ("sweep", "hydra.mode")]
    named = typed_value("sweep", typed) or typed_value("hydra.sweep.dir", typed)
    directory = Path(named) if named else _unfinished(identity(asked))
    if directory is None or not (directory / RECORD).is_file():
        if named and not asked:
            raise InputError(f"sweep={named}: there is no sweep in this directory; to start one, add what it is to try")
        return list(argv)
    if identity(asked):
        refuse_another(directory, asked)
    if not named:
        print(
            f"continuing the same sweep, which is not finished; to start another: sweep=<new directory> ({directory})"
        )
    if "allow" not in map(key_of, asked):
        asked.append(f"allow={own_allow(Path(argv[0]))}")
    return [argv[0], "-m", "--config-path", str((directory / CONF).resolve()), *_merged(directory, asked)]


def own_allow(script: Path) -> str:
    """Return the packages that the user's own conf/allow.yaml allows, as a list for the command line."""
    path = script.resolve().parent / "conf" / "allow.yaml"
    names = (yaml.safe_load(path.read_text()) or {}).get("allow") or [] if path.is_file() else []
    return f"[{','.join(map(str, names))}]"


def _merged(directory: Path, asked: Sequence[str]) -> list[str]:
    """Return the recorded overrides of a sweep, with those replaced that the command line may change."""
    recorded = read_record(directory)["overrides"]
    replaced = {key_of(a) for a in asked}
    if replaced & {"launcher", "hydra/launcher"}:
        replaced |= {key_of(a) for a in recorded if key_of(a).startswith(LAUNCHER)}
    kept = [a for a in recorded if key_of(a) not in replaced]
    place = [] if typed_value("hydra.sweep.dir", kept) else [f"sweep={quoted(directory)}"]
    return [*kept, *asked, *place]


def _unfinished(wanted: list[str]) -> Path | None:
    """Return the newest sweep of this identity in the default place that was stopped before it was finished."""
    for path in sorted(Path("runs/sweeps").glob(f"*/{RECORD}"), reverse=True):
        try:
            same = identity(read_record(path.parent)["overrides"]) == wanted
        except InputError as error:  # a broken record of another sweep is no reason not to start this one
            print(f"left aside: {error}", file=sys.stderr)
            continue
        if same and not (path.parent / FINISHED).exists() and holder(path.parent / LOCK) is None:
            return path.parent
    return None
