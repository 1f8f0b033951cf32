"""The weights that a run begins with: those of its own last checkpoint, or of another run's net."""

import logging
import re
from pathlib import Path

import torch
from omegaconf import DictConfig

from innerloop.devices.files import user_path
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs.config import load_config
from innerloop.runs.record import read_checkpoint

log = logging.getLogger("innerloop")


def start_weights(cfg: DictConfig, learner: MetaLearner, run_dir: Path) -> None:
    """Give a learner the weights that it trains from: of the run's last checkpoint, or else of the run `init_from`.

    Raises InputError if they are not of this learner.
    """
    start = latest_checkpoint(run_dir)
    if start is not None:
        load_weights(learner, start)
    elif cfg.get("init_from"):
        begin_with(learner, cfg.init_from)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint that a run is resumed from: the last one, or else the best one; None if it has neither."""
    last, best = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    if not last.exists() and best.exists():
        log.warning("%s is missing, so the run is resumed from the earlier state in %s", last, best)
        return best
    return last if last.exists() else None


def begin_with(learner: MetaLearner, run: str) -> None:
    """Give a learner's net the weights of the net of a run directory, those of its best validation.

    A head of another size keeps its initial weights, and a message says so. What an adaptation learned besides the net
    is not taken. Raises InputError for a directory that holds no trained run, and for a net of other weights.
    """
    run_dir = user_path(run)
    load_config(run_dir)  # raises InputError
    state, ours = read_checkpoint(run_dir / "checkpoints" / "best.ckpt")["state_dict"], learner.net.state_dict()
    theirs = {name.removeprefix("net."): w for name, w in state.items() if name.startswith("net.")}
    shapes = [{name: tuple(w.shape) for name, w in weights.items()} for weights in (theirs, ours)]
    other = sorted(name for name in {*theirs, *ours} if len({side.get(name) for side in shapes}) > 1)
    for name in other:
        there, here = (side.get(name, "missing") for side in shapes)
        if not name.startswith("head.") or len(other) == len({*theirs, *ours}):
            raise InputError(f"init_from={run_dir}: its net does not fit, {name} is {there} there and {here} here")
        log.info("%s is %s in %s and %s here: it is not taken from there", name, there, run_dir, here)
    learner.net.load_state_dict({name: w for name, w in theirs.items() if name not in other}, strict=False)


def load_weights(learner: MetaLearner, path: Path) -> None:
    """Load meta-parameters from a checkpoint, in the precision that they were trained in.

    Raises InputError if it is missing, broken or of another learner.
    """
    weights = read_checkpoint(path)["state_dict"]
    learner.to(next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32))
    try:
        learner.load_state_dict(weights)
    except RuntimeError as error:
        size = re.search(
            r"size mismatch for (\S+): .*?shape torch.Size\((.*?)\).*?torch.Size\((.*?)\)", str(error), re.DOTALL
        )
        reason = " ".join(str(error).split()[:40]) + " …"
        if size:
            reason = f"{size[1]} has the shape {size[2]} there and {size[3]} here: inputs or outputs are of other sizes"
        raise InputError(f"{path} does not fit these data, net and algorithm: {reason}") from error
