"""The name of a run, from its algorithm, its data and what its sweep varied, and the group of its sweep."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

# Keys that are part of the name already, or that do not describe what was trained.
NOT_NAMED = ("algo", "data", "seed", "resume", "sweep", "debug", "traceback")
LONGEST = 128  # W&B's limit


def label(cfg: DictConfig, typed: Sequence[str] | None = None) -> tuple[str, str | None]:
    """Return (name, group) of Hydra's present job; the group is None outside of sweeps, Hydra's and W&B's.

    typed: the overrides of the job's sweep as they were typed. None reads Hydra's own record of them, multirun.yaml.
    """
    hydra, group = HydraConfig.get(), os.environ.get("WANDB_SWEEP_ID")
    varied: dict[str, str] = {}
    if hydra.mode == RunMode.MULTIRUN:
        directory = Path(hydra.sweep.dir).resolve()
        varied = swept(hydra.overrides.task, multirun_overrides(directory) if typed is None else typed)
        group = directory.name
    elif group is not None:
        varied = drawn_by_wandb()
    return name_of(f"{cfg.algo.name}-{cfg.data.name}", varied), group


def name_of(start: str, varied: Mapping[str, str]) -> str:
    """Return `start` followed by key=value of what was varied, numbers to four digits, cut to W&B's limit."""
    kept = [
        f"{key}={_short(value)}"
        for key, value in varied.items()
        if key not in NOT_NAMED and not key.startswith(("hydra", "logger"))
    ]
    name = " ".join([start, *kept])
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _short(value: str) -> str:
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value) else value


def multirun_overrides(directory: Path) -> list[str]:
    """Return the overrides that Hydra recorded for a multirun of its own sweeper; none if there is no record."""
    path = directory / "multirun.yaml"
    found = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") if path.is_file() else None
    return [] if found is None else OmegaConf.to_container(found, resolve=False)  # type: ignore[return-value]


def swept(job: Sequence[str], typed: Sequence[str]) -> dict[str, str]:
    """Return key -> value of the overrides of a job that differ from job to job: those not typed as a single value."""
    parser = OverridesParser.create()
    fixed = {o.key_or_group for o in parser.parse_overrides(list(typed)) if not o.is_sweep_override()}
    parsed = {o.key_or_group: str(o.input_line).partition("=")[2] for o in parser.parse_overrides(list(job))}
    return {key: value for key, value in parsed.items() if key not in fixed}


def drawn_by_wandb() -> dict[str, str]:
    """Return key -> value of what the agent of a W&B sweep drew for this run."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    drawn = OmegaConf.to_container(OmegaConf.load(path)) if path else {}
    assert isinstance(drawn, dict)
    return {str(key): str(entry["value"]) for key, entry in drawn.items() if isinstance(entry, dict)}
