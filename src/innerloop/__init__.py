"""innerloop: meta-learners that turn a task's support set into that task's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from innerloop.runs.load import Run as Run


def load(
    run_dir: "str | Path",
    checkpoint: str = "best",
    *,
    data: "dict[str, Any] | None" = None,
    device: str = "cpu",
    allow: "Sequence[str]" = (),
) -> "Run":
    """Return the run of a directory: its learner with trained weights, its tasks, data, configuration and results.

        run = innerloop.load("runs/maml-sinusoid/2026-11-26_12-00-00_c0ffee")
        weights = run.adapt(support)            # Samples -> the task's weights
        outputs = run.predict(weights, x)

    checkpoint: "best" on the validation tasks, or "last". data: values that replace those of the recorded `data`, such
        as {"root": "/here/my_pictures"} on another machine. device: where the learner is.
    allow: packages besides innerloop whose classes the run's configuration may name, such as ["my_package"]. Loading a
        run of somebody else runs no code but innerloop's and theirs.
    Raises InputError if the directory holds no run, or the checkpoint is missing or broken.
    """
    from innerloop.runs.load import load_run  # imports torch, which a command's --help does without

    return load_run(Path(run_dir), checkpoint, data=data, device=device, allow=allow)


def __getattr__(name: str) -> Any:
    if name == "Run":  # imports torch
        from innerloop.runs.load import Run

        return Run
    if name == "practice":
        import innerloop.practice

        return innerloop.practice
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
