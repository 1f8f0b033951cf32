"""What a run is called: algorithm, data and what its sweep varied, never the seed; and the group of its sweep."""

import os
from collections.abc import Sequence
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
    hydra, agent = HydraConfig.get(), os.environ.get("WANDB_SWEEP_ID")
    varied: list[str] = []
    group = None
    if hydra.mode == RunMode.MULTIRUN:
        directory = Path(hydra.sweep.dir).resolve()
        varied, group = swept(hydra.overrides.task, typed_overrides(directory)), directory.name
    elif agent:
        varied, group = swept(hydra.overrides.task, []), agent
    name = " ".join([f"{cfg.algo.name}-{cfg.data.name}", *varied])
    return (name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"), group


def typed_overrides(sweep_dir: Path) -> list[str]:
    """A sweep's overrides as they were typed, from its record or else from Hydra's; none where nobody kept them."""
    for file, key in (("sweep.yaml", "overrides"), ("multirun.yaml", "hydra.overrides.task")):
        if (sweep_dir / file).is_file():
            return list(OmegaConf.select(OmegaConf.load(sweep_dir / file), key) or [])
    return []


def swept(job: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Of a job's overrides those that the sweep varied, for a name: what was not typed as one value for all jobs."""
    parser = OverridesParser.create()
    fixed = {o.key_or_group for o in parser.parse_overrides(list(typed)) if not o.is_sweep_override()}
    found = []
    for override in parser.parse_overrides(list(job)):
        key = override.key_or_group
        if key not in fixed and key not in UNSAID and not key.startswith(("hydra", "logger")):
            found.append(str(override.input_line).lstrip("+"))
    return found
