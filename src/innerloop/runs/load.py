"""The Python door: a finished run loaded again, adapted to new support sets, and evaluated."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from innerloop.datamodule import EpisodeDataModule
from innerloop.devices.precision import set_tensor_float, tensor_float
from innerloop.episodes import Episode, Samples, Weights, apply, weights_of
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs.build import Parts, build
from innerloop.runs.callbacks import Progress
from innerloop.runs.config import load_config, to_plain
from innerloop.runs.evaluate import describe, evaluate
from innerloop.runs.record import RESULTS
from innerloop.runs.trainer import make_trainer
from innerloop.runs.weights import load_weights
from innerloop.tasks.base import Tasks


class TaskWeights(dict[str, Tensor]):
    """A task's weights by name, with what a prediction may need besides them.

    support: the support set that they were adapted to. step: the number of inner steps that they were adapted with.
    """

    def __init__(self, weights: Weights, support: Samples, step: int) -> None:
        super().__init__(weights)
        self.support, self.step = support, step


@dataclass(frozen=True)
class Run:
    """A run that was loaded again.

    path: the run directory. checkpoint: "best" or "last". learner: the learner with that checkpoint's weights.
    tasks, data: the task family and the data module. config: the recorded configuration in plain containers.
    """

    path: Path
    checkpoint: str
    config: dict[str, Any]
    learner: MetaLearner
    tasks: Tasks
    data: EpisodeDataModule

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json. Raises InputError for a run that is not finished."""
        path = self.path / RESULTS
        if not path.is_file():
            raise InputError(f"{self.path} is not finished: it has no {RESULTS}")
        return json.loads(path.read_text())

    @property
    def checkpoint_path(self) -> Path:
        """The file that the weights were loaded from."""
        return self.path / "checkpoints" / f"{self.checkpoint}.ckpt"

    @property
    def step(self) -> int:
        """The number of inner steps of the reported results, or of evaluation if the run is not finished."""
        if (self.path / RESULTS).is_file():
            return self.results["test"]["step"]
        episode = self._moved(self.data.episode("validation", 0))
        return len(self._trajectory(episode.support)) - 1

    def adapt(self, support: Samples, steps: int | None = None) -> TaskWeights:
        """Return a task's weights, adapted to its support set.

        support: x (n, *features), y (n,) class ids or (n, *targets); tensors, or NumPy's arrays.
        steps: number of inner steps, from 0 to those of evaluation; None: `step`.
        Raises InputError for another number of steps.
        """
        steps = self.step if steps is None else steps
        support = self._moved(support)
        path = self._trajectory(support)
        if not 0 <= steps < len(path):
            raise InputError(f"steps must be from 0 to {len(path) - 1}, the inner steps of evaluation; got {steps}")
        return TaskWeights(path[steps], support, steps)

    @torch.no_grad()
    def predict(self, weights: Weights, x: Tensor) -> Tensor:
        """Return the net's outputs on x under a task's weights: logits (n, ways), or real values (n, *targets).

        weights: of `adapt`. With weights that are no TaskWeights batch norms use the statistics of x.
        """
        x = self._moved(x)
        net = self.learner.net
        if isinstance(weights, TaskWeights):
            query = Samples(x, weights.support.y[:0])
            net = self.learner.query_net(Episode(weights.support, query), weights.step)
        return apply(net, weights, x)

    def evaluate(
        self, episodes: int | None = None, data: "Mapping[str, Any] | Tasks | None" = None, steps: str | None = None
    ) -> dict[str, Any]:
        """Return validation and test results like those of results.json.

        episodes: number of test episodes; None: as configured. The list of episodes only grows with it.
        data: values that replace those of the recorded `data`, such as {"shots": 5}; or a task family.
        steps: "last" or "validation", see `innerloop.runs.evaluate.evaluate`; None: as configured.
        """
        cfg = OmegaConf.create(self.config)
        if episodes is not None:
            cfg.test.episodes = episodes
        with unchanged_process(), tempfile.TemporaryDirectory() as folder:
            parts = self._parts(cfg, data)
            progress = Progress(parts.tasks.metric)
            trainer = make_trainer(
                cfg, parts.learner, Path(folder), logger=False, enable_checkpointing=False, callbacks=[progress]
            )
            found = evaluate(trainer, parts, steps or cfg.test.steps)
        told = describe(cfg, parts.learner)
        if isinstance(data, Tasks):
            told |= {"data": type(data).__name__, "queries": getattr(data, "queries", None)}
        return {**told, "validation": found.validation, "test": found.test}

    def _parts(self, cfg: DictConfig, data: "Mapping[str, Any] | Tasks | None") -> Parts:
        if isinstance(data, Mapping):
            replace_data(cfg, data)
            parts = build(cfg)
            load_weights(parts.learner, self.checkpoint_path)
            parts.learner.to(self.learner.device)
            return parts
        tasks = self.tasks if data is None else data
        return Parts(tasks, self.learner, self._data_module(cfg, tasks))

    def _data_module(self, cfg: DictConfig, tasks: Tasks) -> EpisodeDataModule:
        ours = self.data
        return EpisodeDataModule(
            tasks,
            ours.meta_batch_size,
            ours.seed,
            ours.eval_seed,
            ours.val_episodes,
            cfg.test.episodes,
            ours.num_workers,
            ours.eval_meta_batches,
        )

    def _trajectory(self, support: Samples) -> list[Weights]:
        self.learner.eval()
        with torch.no_grad():
            path = self.learner.adaptation.trajectory(self.learner.net, weights_of(self.learner.net), support)
        return [{name: w.detach() for name, w in weights.items()} for weights in path]

    def _moved(self, values: Any) -> Any:
        """Return tensors or arrays, or tuples of them, as tensors on the learner's device.

        Real values get the learner's dtype, integers of arrays int64. Raises InputError for anything else.
        """
        if isinstance(values, tuple) and (len(values) == 2 or hasattr(values, "_fields")):
            kind = type(values) if hasattr(values, "_fields") else Samples
            return kind(*map(self._moved, values))
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            values = torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64))
        if not isinstance(values, Tensor):
            raise InputError(f"give tensors or arrays of numbers, got {type(values).__name__}")
        like = next(self.learner.parameters())
        return values.to(like.device, like.dtype if values.is_floating_point() else values.dtype)


def load_run(
    path: Path,
    checkpoint: str = "best",
    *,
    data: Mapping[str, Any] | None = None,
    device: str = "cpu",
    allow: Sequence[str] = (),
) -> Run:
    """Return the run of a directory: see `innerloop.load`."""
    cfg = load_config(path)
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy = accelerator_of(device), 1, "auto"
    cfg.allow = list(allow)
    replace_data(cfg, data or {})
    with unchanged_process():
        parts = build(cfg)
    run = Run(path, checkpoint, to_plain(cfg), parts.learner, parts.tasks, parts.data)
    load_weights(parts.learner, run.checkpoint_path)
    parts.learner.to(device).eval()
    return run


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what building and evaluating change in the process: random states, threads, warnings, log levels."""
    threads, lightning = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level, tensor_float_before = lightning.level, tensor_float()
    lightning.setLevel(logging.WARNING)
    try:
        with isolate_rng(), warnings.catch_warnings():
            yield
    finally:
        lightning.setLevel(level)
        torch.set_num_threads(threads)
        set_tensor_float(tensor_float_before)


def accelerator_of(device: str) -> str:
    """Return Lightning's name of the accelerator of a device such as "cpu" or "cuda:0"."""
    kind = torch.device(device).type
    return "gpu" if kind == "cuda" else kind


def replace_data(cfg: DictConfig, values: Mapping[str, Any]) -> None:
    """Replace values of a configuration's `data`. Unknown keys are found when it is built."""
    for name, value in values.items():
        cfg.data[name] = value
