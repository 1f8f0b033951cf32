"""Lightning's Trainer for a run, and the warnings of Lightning's that do not concern it."""

import warnings
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf

from innerloop.devices.precision import TENSOR_FLOAT, set_tensor_float
from innerloop.devices.ranks import placement
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs.callbacks.checkpoints import RunCheckpointIO
from innerloop.runs.signatures import converted, parameters
from innerloop.runs.threads import set_threads

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}

# Arguments of Lightning's Trainer that trainer.extra cannot set -> the keys to use instead.
RESERVED = {
    "max_steps": "trainer.max_steps",
    "max_epochs": "trainer.max_steps",
    "limit_train_batches": "trainer.val_every",
    "log_every_n_steps": "trainer.log_every",
    "accelerator": "trainer.accelerator",
    "devices": "trainer.devices",
    "num_nodes": "trainer.devices",
    "strategy": "trainer.strategy",
    "plugins": "trainer.strategy",
    "precision": "trainer.precision",
    "deterministic": "trainer.deterministic",
    "overfit_batches": "trainer.overfit_batches",
    "profiler": "trainer.profiler",
    "accumulate_grad_batches": "algo.accumulate",
    "gradient_clip_val": "algo.outer_clip",
    "gradient_clip_algorithm": "algo.outer_clip",
    "logger": "logger",
    "callbacks": "callbacks",
    "default_root_dir": "hydra.run.dir",
    "fast_dev_run": "debug=fast",
    "enable_progress_bar": "callbacks.progress",
}
NEEDED = ("enable_checkpointing", "barebones")
"""Arguments of Lightning's Trainer that would take away the checkpoints, which the test and resume= need."""
# Arguments that follow from how learners and runs work.
FIXED = {
    "num_sanity_val_steps": 0,
    "inference_mode": False,  # the inner loop takes gradients in evaluation too
    "enable_model_summary": False,
}


def make_trainer(cfg: DictConfig, learner: MetaLearner, run_dir: Path, **kwargs: Any) -> Trainer:
    """Return Lightning's Trainer for a configuration; an epoch is the stretch between two validations.

    run_dir: where a profiler's report goes. kwargs: further arguments of the Trainer, which no configuration sets.
    Raises InputError for settings that Lightning refuses.
    """
    t = cfg.trainer
    set_threads(t, learner)
    set_tensor_float(t.precision == TENSOR_FLOAT)
    ignore_warnings()
    own: dict[str, Any] = {
        "max_steps": t.max_steps,
        "max_epochs": -1,
        "limit_train_batches": min(t.val_every, t.max_steps) * learner.outer.accumulate,
        "log_every_n_steps": max(min(t.log_every, t.max_steps), 1),
        "accelerator": t.accelerator,
        "precision": "32-true" if t.precision == TENSOR_FLOAT else t.precision,
        "deterministic": t.deterministic,
        "profiler": PROFILERS[t.profiler](dirpath=run_dir, filename="profile") if t.profiler else None,
        **placement(t),
    }
    own["plugins"] = [*own["plugins"], RunCheckpointIO()]
    try:
        return Trainer(**{**FIXED, **extra_arguments(t), **own, **kwargs})
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error


def extra_arguments(trainer: DictConfig) -> dict[str, Any]:
    """Return trainer.extra as arguments of Lightning's Trainer.

    Raises InputError for a key that the Trainer does not have, a value of the wrong type, and an argument that has a
    key of its own.
    """
    extra = OmegaConf.to_container(trainer.extra, resolve=True)
    assert isinstance(extra, dict)
    for name in extra:
        if name in RESERVED:
            raise InputError(f"trainer.extra.{name} cannot be set: use {RESERVED[str(name)]}")
        if name in NEEDED:
            raise InputError(f"trainer.extra.{name} cannot be set: the test and resume= need checkpoints")
    known = {name: kind for name, (kind, _) in parameters(Trainer).items() if name not in RESERVED}
    return converted({str(k): v for k, v in extra.items()}, known, "trainer.extra")


def check_extra(trainer: DictConfig) -> None:
    """Raise InputError for values of trainer.extra that Lightning's Trainer refuses."""
    extra = extra_arguments(trainer)
    if extra:
        try:
            Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **{**FIXED, **extra})
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise InputError(f"trainer.extra: {error}") from error


def ignore_warnings() -> None:
    """Silence warnings of Lightning's that do not concern how runs use it."""
    # trainer=cpu is a choice, also where there is a GPU.
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    # Lightning itself calls an interface of torch that is deprecated.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # A run resumed at an epoch's end passes that end once more, where nothing was validated and nothing is saved.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # The loader starts where the trainer's counters say, which needs no state of its own.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # Drawing an episode costs less than receiving it from a worker process.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # An epoch is the stretch between two validations: limit_train_batches sets its length.
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    # Epochs are short where validations are frequent. The logging interval counts steps over all of them.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # Resumed runs and evaluations use a directory that holds checkpoints on purpose.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
