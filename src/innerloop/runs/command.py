"""What a command does about errors of its user: one short message, an exit status, and nothing left behind."""

import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.defaults_list import Overrides
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from innerloop.errors import (
    DivergedError,
    FailedRuns,
    InputError,
    NotLearningError,
    RankError,
    Stopped,
    WriteError,
)
from innerloop.runs.signatures import unknown_key

USER_ERRORS = (
    InputError,
    HydraException,
    OmegaConfBaseException,
    DivergedError,
    FailedRuns,
    NotLearningError,
    RankError,
    Stopped,
    WriteError,
)
"""Errors that end a command with a message and without a traceback."""

# The extra in pyproject.toml that installs a launcher.
LAUNCHERS = {"joblib": "sweep", "submitit_local": "sweep", "submitit_slurm": "sweep", "ray": "ray"}


class Reported(SystemExit):
    """The end of a command whose error was reported."""


def command(application: Callable[[], Any]) -> None:
    """Run a Hydra application. An error of the user's ends it with one message, exit status 1 and no new directory.

    traceback=true on the command line shows the traceback instead. Ctrl-C ends with exit status 130.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal or a batch system that takes ASCII only
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Otherwise Hydra prints messages of its own and hides the error; with this it raises every error to its caller.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with reported_errors():
            refuse_dashes(sys.argv[1:])
            application()
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns a Ctrl-C before or after the training steps into an exit with status 1.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        _report("interrupted")
        sys.exit(130)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Report the user's errors that the body raises and end the process.

    The task function of Hydra's application uses it too, because an exception that leaves the task function makes Hydra
    print a line of its own. Jobs of a sweep are exempt: their launcher needs the exception.
    """
    try:
        yield
    except (*USER_ERRORS, AssertionError, AttributeError, ValueError, TypeError, OSError, YAMLError) as error:
        message = explain(error) if isinstance(error, USER_ERRORS) else unexplained(error)
        if message is None or _is_job() or "traceback=true" in [a.lower() for a in sys.argv]:
            raise
        _report(message)
        raise Reported(130 if isinstance(error, Stopped) else 1) from None


HYDRA_FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)


def refuse_dashes(argv: Sequence[str]) -> None:
    """Raise InputError for a setting that is written as other programs' options are, such as --support X."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if re.fullmatch(r"--[A-Za-z][\w.-]*", flag) and not any(known.startswith(flag) for known in HYDRA_FLAGS):
            following = argv[i + 1] if i + 1 < len(argv) and not equals else ""
            value = value or (following if following and not following.startswith("-") else "VALUE")
            key = flag[2:].replace("-", "_")
            raise InputError(f"{argument}: write {key}={value} (settings have no dashes)")


def _is_job() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _report(message: str) -> None:
    print(f"\n{Path(sys.argv[0]).name}: {message}", file=sys.stderr)


def explain(error: BaseException) -> str:
    """Return one short message for an error of the user's."""
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        key = {"evaluate": "run", "adapt": "support"}.get(Path(sys.argv[0]).stem, "algo")
        return f"{error.override}: write KEY=VALUE, such as {key}={error.override}"
    message = str(error).partition("\nConfig search path")[0].rstrip()
    file = re.match(r"In '[^']+': ", message)  # Hydra says this of a mistake in a file
    place = file[0] if file else ""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, InputError):  # perhaps raised by a resolver and wrapped by OmegaConf
            return str(cause)
    for cause in causes:
        if isinstance(cause, InterpolationResolutionError):
            return f"{place}{cause.full_key}: {str(cause).splitlines()[0]}"
        parent, full_key = getattr(cause, "parent_node", None), getattr(cause, "full_key", None)
        if isinstance(cause, OmegaConfBaseException) and isinstance(parent, DictConfig) and full_key:
            if parent._is_none():
                return f"{place}{full_key.rpartition('.')[0]}: a value of this kind is not possible here"
            if full_key.rpartition(".")[2] not in parent:
                return place + unknown_key(full_key, [str(k) for k in parent])
            if not isinstance(cause.__cause__, InputError):
                return f"{place}{full_key}: {str(cause).splitlines()[0]}"
    launcher = re.search(r"hydra/launcher/(\w+)'", message)
    if launcher and launcher[1] in LAUNCHERS:
        return f'launcher={launcher[1]} needs a package: pip install -e ".[{LAUNCHERS[launcher[1]]}]"'
    choice = re.search(r"Could not find '([\w/]+)/([^/']+)'\s+Available options in '[^']+':\s+(.*)", message, re.DOTALL)
    if choice:
        group, name, names = choice[1], choice[2], choice[3].split()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {group}={close[0]}?" if close else ""
        return f"{group}={name}: there is no conf/{group}/{name}.yaml.{hint} Possible here: {', '.join(names)}"
    if isinstance(error, HydraException):  # Hydra writes several lines, with links
        return " ".join(line.strip() for line in message.splitlines() if not line.startswith("See http"))
    return message


def unexplained(error: BaseException) -> str | None:
    """Return the message for errors of the file system, and for mistakes that Hydra does not explain, else None.

    OmegaConf asserts that an overridden key's parent exists and may raise TypeError for a list in the place of a node,
    and Hydra raises ValueError for a group that is no string.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, is no YAML: {error.problem}"
    if isinstance(error, ReaderError | UnicodeDecodeError):
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        files = [frame.f_locals["f"].name for frame in frames if hasattr(frame.f_locals.get("f"), "name")]
        return f"{files[-1]} is no YAML: it has characters that YAML does not allow" if files else None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        applied = isinstance(error, TypeError | AttributeError) and frame.f_code.co_name == "_apply_overrides_to_config"
        if applied and "override" in frame.f_locals:
            return f"{frame.f_locals['override'].input_line}: a value of this kind is not possible here"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_code is OmegaConf.update.__code__:
        key = frame.f_locals["key"]
        return f"{key} cannot be set: this configuration has no {key.rpartition('.')[0]}"
    if frame.f_code is Overrides.__init__.__code__:
        override = frame.f_locals["override"]
        key = override.get_key_element()
        return f"{override.input_line}: {key} chooses a configuration, so it takes the name of a file in conf/{key}"
    return None


def typed_value(key: str, argv: Sequence[str]) -> str | None:
    """Return the value of `key=value` on a command line, None if it is not there."""
    return next((a.partition("=")[2].strip("\"'") for a in argv if a.startswith(f"{key}=")), None)


PLAIN = r"[\w/\\+.$%*@?|: ,=~-]*"
"""What Hydra takes without quotes, a list of values for a sweep included; of letters, ASCII's only."""


def quoted_paths(argv: Sequence[str], keys: Sequence[str], always: bool = False) -> list[str]:
    """Return a command line whose values of these keys are quoted for Hydra, unless they are already.

    A path may hold what Hydra's grammar gives a meaning, such as brackets, or has no place for, such as umlauts.

    always: quote also what has a meaning as it is: lists of values, null, numbers such as 2024_06, and interpolations.
    """
    found = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        needed = always or not re.fullmatch(PLAIN, value, re.ASCII)
        if equals and key in keys and needed and value[:1] not in ("'", '"'):
            value = re.sub(r'(\\*)"', r'\1\1\\"', value)  # backslashes count only before a quote
            trailing = len(value) - len(value.rstrip("\\"))
            value = '"' + value + "\\" * trailing + '"'
            value = value.replace("${", "\\${") if always else value
        found.append(f"{key}{equals}{value}")
    return found


def remove_empty(directory: Path) -> None:
    """Remove a directory if it is empty, then its parents as long as they are empty, but nothing above or outside.

    The working directory and its parents stay.
    """
    directory, here = directory.resolve(), Path.cwd().resolve()
    for path in [directory, *(p for p in directory.parents if here in p.parents)]:
        if path == here or path in here.parents:
            return
        try:
            path.rmdir()
        except OSError:
            return
