"""What a run is called: algorithm, data and what its sweep varied, never the seed; and the group of its sweep."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

# Said already, or no property of what was trained.
UNSAID = ("algo", "data", "seed", "resume", "sweep", "debug")
LONGEST = 128  # W&B takes no longer name


def label(cfg: DictConfig) -> tuple[str, str | None]:
    """(name, group) of the job that runs now; the group is None outside of a sweep, of Hydra's or W&B's."""
    hydra, group = HydraConfig.get(), os.environ.get("WANDB_SWEEP_ID")
    varied: dict[str, str] = {}
    if hydra.mode == RunMode.MULTIRUN:
        directory = Path(hydra.sweep.dir).resolve()
        varied, group = swept(hydra.overrides.task, typed_overrides(directory)), directory.name
    elif group is not None:
        varied = drawn_by_wandb()
    return name_of(f"{cfg.algo.name}-{cfg.data.name}", varied), group


def name_of(start: str, varied: Mapping[str, str]) -> str:
    """The start and what was varied, numbers to four digits, as far as there is room."""
    said = [f"{key}={_short(value)}" for key, value in varied.items()]
    kept = [
        s for key, s in zip(varied, said, strict=True) if key not in UNSAID and not key.startswith(("hydra", "logger"))
    ]
    name = " ".join([start, *kept])
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _short(value: str) -> str:
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value) else value


def typed_overrides(sweep_dir: Path) -> list[str]:
    """A sweep's overrides as they were typed, from its record or else from Hydra's; none where nobody kept them."""
    for file, key in (("sweep.yaml", "overrides"), ("multirun.yaml", "hydra.overrides.task")):
        if (sweep_dir / file).is_file():
            found = OmegaConf.select(OmegaConf.load(sweep_dir / file), key)
            return [] if found is None else OmegaConf.to_container(found, resolve=False)  # type: ignore[return-value]
    return []


def swept(job: Sequence[str], typed: Sequence[str]) -> dict[str, str]:
    """key -> value of a job's overrides that its sweep varied: what was not typed as one value for all jobs."""
    parser = OverridesParser.create()
    fixed = {o.key_or_group for o in parser.parse_overrides(list(typed)) if not o.is_sweep_override()}
    parsed = {o.key_or_group: str(o.input_line).partition("=")[2] for o in parser.parse_overrides(list(job))}
    return {key: value for key, value in parsed.items() if key not in fixed}


def drawn_by_wandb() -> dict[str, str]:
    """key -> value of what the agent of a W&B sweep drew for this run."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    drawn = OmegaConf.to_container(OmegaConf.load(path)) if path else {}
    assert isinstance(drawn, dict)
    return {str(key): str(entry["value"]) for key, entry in drawn.items() if isinstance(entry, dict)}
