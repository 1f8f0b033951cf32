"""The configuration of a resumed run: which overrides are possible, and how they are recorded. No torch here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from innerloop.errors import InputError
from innerloop.runs.config import CONFIG, OVERRIDES, load_config
from innerloop.runs.record import write_config

# Keys that say what is trained, on what and from where. A run with other values is another run.
FIXED = ("seed", "net", "algo.name", "algo._target_", "algo.optimizer", "algo.update", "data.name", "data._target_")
FIXED_DATA = (
    *("dataset", "ways", "size", "channels", "split", "split_rule", "train_fraction", "validation_fraction"),
    *("sampler", "limits", "sources", "leave_out"),
)
"""Keys of `data` that decide which classes a task is made of, and the shape of its tensors."""
INITIAL = ("init_from", "algo.ridge", "algo.init")
"""Keys that only set initial values of what is learned. A resumed run starts from the learned values."""
PLACE = ("accelerator", "devices", "strategy", "precision", "threads")
"""Keys of `trainer` that a file of conf/trainer chooses in a resumed run. The others stay as recorded."""


def resumed_config(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a resumed run.

    cfg: composed from the recorded configuration and the overrides, see conf/resume.yaml.
    overrides: those of the command line.
    Raises InputError for an override that cannot have an effect on a run that has begun.
    """
    recorded = load_config(run_dir)
    OmegaConf.set_struct(cfg, False)
    keys = {override.partition("=")[0].lstrip("+~") for override in overrides}
    for group in ("algo", "data", "net"):
        if group in keys:  # the file would replace the run's own settings, tuned or typed, by its own
            raise InputError(f"{group}= cannot be chosen in a run that has begun: set single values, {group}.KEY=VALUE")
    if "trainer" in keys:
        for name, value in recorded.trainer.items():
            if name not in PLACE and f"trainer.{name}" not in keys:
                cfg.trainer[name] = value
    for name in ("sweep", "resume"):
        cfg[name] = recorded.get(name)
    refuse(flat(OmegaConf.to_container(recorded)), flat(OmegaConf.to_container(cfg)))
    OmegaConf.set_struct(cfg, True)
    return cfg


def refuse(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise InputError if a value changed that cannot change in a run that has begun. Keys are dotted."""
    fixed = (*FIXED, *(f"data.{name}" for name in FIXED_DATA))
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old != new and any(key == name or key.startswith(f"{name}.") for name in fixed):
            raise InputError(f"{key}={new} cannot be set in a run that has begun with {old}: start a new run")
    refuse_initial(before, after)


def refuse_initial(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise InputError if the initial value of something changed that the run has learned since. Keys are dotted."""
    for key in (*INITIAL, *(["algo.inner_lr"] if after.get("algo.learn_lr") else [])):
        new = after.get(key)
        if before.get(key) != new:
            raise InputError(
                f"{key}={new} would have no effect: it is the initial value of what this run has learned since"
            )


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a configuration in plain containers as dotted key -> value."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def record_changes(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> None:
    """Record the configuration of a resumed run in config.yaml, and append the overrides to overrides.yaml."""
    changes = [o for o in overrides if o.partition("=")[0] not in ("resume", "traceback", "allow")]
    if not changes:
        return
    path = run_dir / OVERRIDES
    earlier = list(OmegaConf.load(path)) if path.is_file() else list[str]()
    write_config(run_dir / CONFIG, cfg)
    write_config(path, OmegaConf.create([*earlier, *changes]))
