"""From a configuration to its parts: the task family, the learner and the data module."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import nn

from innerloop.backbones import Backbone, named
from innerloop.backbones.backbone import frozen
from innerloop.datamodule import EpisodeDataModule
from innerloop.datasets.images import LabelledImages, resized
from innerloop.devices.files import user_path
from innerloop.episodes import SPLITS, tasks_of
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.learners.reach import check_reach
from innerloop.nets.norm import FixedNorms
from innerloop.runs.config import load_config, to_plain
from innerloop.runs.signatures import arguments, locate, make, parameters, target_of, unknown_key
from innerloop.runs.sources import compose_sources, mixture_values, of_source, source_nodes
from innerloop.runs.threads import is_dense, threads_of
from innerloop.runs.weights import load_weights
from innerloop.tasks.base import Tasks
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.mixture import Mixture, splits_of

log = logging.getLogger("innerloop")

DATA_MODULE_KEYS = ("meta_batch_size", "num_workers")
"""Keys of `data` that are the data module's arguments. The others are the task family's or its data set's."""


@dataclass
class Parts:
    """The task family, learner and data module built from a configuration."""

    tasks: Tasks
    learner: MetaLearner
    data: EpisodeDataModule


def build(cfg: DictConfig, fit: Callable[[LabelledImages], LabelledImages] | None = None) -> Parts:
    """Return the parts that a configuration describes. Raises InputError for what is not possible.

    The sources of a mixture, if they are names, are replaced in it by the configurations of these names.
    """
    compose_sources(cfg)
    plain = to_plain(cfg)
    data = dict(plain["data"])
    if data.pop("test_episodes", None) is None:  # test.episodes refers to it
        raise InputError("data.test_episodes is missing: a file in conf/data needs it, the number of test episodes")
    module_values = {name: data.pop(name) for name in DATA_MODULE_KEYS if name in data}
    seed_everything(plain["seed"], verbose=False)
    allow = plain.get("allow", ())
    with explained("these tasks cannot be built"):
        tasks = make_tasks(data, allow, fit)
    with explained("this net cannot be built"):
        net = make_net(plain["net"], tasks, allow)
    kwargs = {"net": net, "loss": tasks.loss, "metrics": tasks.metrics}
    drawn = tasks
    algorithm = target_of(plain["algo"], "algo", MetaLearner, allow)
    if getattr(algorithm, "pools", False):
        drawn, kwargs["training_outputs"] = tasks.pooled()
    seams = {"observation": tasks.observation, "support_at": tasks.support_at}
    kwargs |= {name: seam for name, seam in seams.items() if seam is not None and name in parameters(algorithm)}
    with explained("this algorithm cannot be built on this net"):
        learner = make(plain["algo"], "algo", MetaLearner, allow, **kwargs)
    module = EpisodeDataModule(
        drawn,
        seed=plain["seed"],
        eval_seed=plain["test"]["seed"],
        val_episodes=plain["trainer"]["val_episodes"],
        test_episodes=plain["test"]["episodes"],
        # A call on small tensors is mostly overhead, and without a graph for the meta-gradient there is memory left.
        eval_meta_batches=4 if is_dense(learner) else 1,
        overfit_batches=plain["trainer"]["overfit_batches"],
        **arguments(module_values, EpisodeDataModule, "data"),
    )
    if set(tasks.splits) != set(SPLITS):
        raise InputError(f"data={data['name']} has tasks for {', '.join(tasks.splits)} only: give it to a mixture")
    if tasks.varied_ways and not learner.adaptation.frees_ways:
        raise InputError(
            f"algo={plain['algo']['name']} has a fixed head of {tasks.output_size} ways: data.min_ways and "
            "data.test_ways, and sampler=meta_dataset, need a learner that writes its head from the support set, such "
            "as protonet, r2d2, proto_maml or cnaps, or hypernet and hybrid where algo.writes is head or head+film"
        )
    with threads_of(cfg.trainer, learner):
        try_out(learner, module)
    return Parts(tasks, learner, module)


def try_out(learner: MetaLearner, data: EpisodeDataModule) -> None:
    """Evaluate a learner on one episode, to find what does not fit before anything is written.

    Raises InputError if that fails, such as for prototypes of real targets or a size that only torch finds impossible,
    if the metrics lack the one that runs are compared by, and for nets that do not use the weights they are given.
    """
    batch = data.meta_batch("validation", [0])
    with explained(ON_EPISODE):
        found = learner.engine.map(learner.evaluate_episode, batch)
        metric = getattr(data.tasks, "metric", None)
        if metric is not None and metric not in found:
            raise InputError(f"the learner's metrics lack {metric}, by which runs are compared: got {', '.join(found)}")
        check_reach(learner, tasks_of(batch)[0])


def try_a_gradient(parts: Parts) -> None:
    """Take one meta-gradient on one episode, to find what does not fit before anything is written.

    Raises InputError if that fails, such as for a learner without anything to learn.
    """
    learner, batch = parts.learner, parts.data.meta_batch("validation", [0])
    parameters = [p for p in learner.parameters() if p.requires_grad]
    with explained(ON_EPISODE):
        for phase in learner.phases():
            learner.engine.value_and_grad(phase.objective, parameters, batch, eager=True)


ON_EPISODE = "these data, net and algorithm fail on a first episode"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any error into an InputError that says what failed."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: {type(error).__name__}: {reason} (traceback=true shows where)") from error


def make_net(node: dict[str, Any], tasks: Tasks, allow: Sequence[str] = ()) -> nn.Module:
    """Return the net of a `net` node, in the sizes of the tasks. Raises InputError if the net does not take these."""
    known, sizes = parameters(target_of(node, "net", nn.Module, allow)), tasks.sizes()
    if missing := [name for name in sizes if name not in known]:
        raise InputError(f"net={node.get('name')} takes no {', '.join(missing)}, which these tasks have: {tasks.fits}")
    return tasks.prepare(make(node, "net", nn.Module, allow, **sizes))


def make_tasks(
    node: dict[str, Any],
    allow: Sequence[str] = (),
    fit: Callable[[LabelledImages], LabelledImages] | None = None,
    **kwargs: Any,
) -> Tasks:
    """Return the task family of a `data` node.

    If the node's `dataset` names a loader, the loader gets the keys that its signature has, the family gets the others.

    allow: modules besides innerloop whose classes and functions the node may name. fit: applied to the loaded images.
    kwargs: further arguments, which only a family with a loader and these parameters gets.
    """
    family = target_of(node, "data", Tasks, allow)
    if issubclass(family, Mixture):
        return make_mixture(node, allow)
    loader = loader_of(node, allow, dataset_of(family))
    loader_keys = set(parameters(loader)) if loader else set()
    known = {*parameters(family), *loader_keys, *DATA_MODULE_KEYS, "test_episodes"}
    for name in node:
        if name not in known and name not in ("name", "_target_"):
            raise InputError(unknown_key(f"data.{name}", list(known)))
    if loader is None:
        return make(node, "data", Tasks, allow)
    loader_values = {name: node[name] for name in node if name in loader_keys}
    family_values = {name: node[name] for name in node if name not in loader_keys and name != "dataset"}
    dataset = loader(**arguments(loader_values, loader, "data"))
    kwargs = {name: value for name, value in kwargs.items() if name in parameters(family)}
    if "splits" in kwargs:  # a source without classes for a split has no part in it
        kwargs["splits"] = [split for split in kwargs["splits"] if len(dataset.splits[split])]
    kwargs["dataset"] = fit(dataset) if fit and isinstance(dataset, LabelledImages) else dataset
    if str(family_values.get("backbone")).startswith("run:"):
        kwargs["backbone"] = backbone_of(family_values.pop("backbone"), allow)
    return make(family_values, "data", Tasks, allow, **kwargs)


def make_mixture(node: dict[str, Any], allow: Sequence[str] = ()) -> Tasks:
    """Return the mixture of a `data` node: see `innerloop.runs.sources`. Its pictures are of one size and mode."""
    nodes, size = source_nodes(node, lambda n: keys_of(n, allow)), node.get("size")
    if size:
        log.info("all pictures have %dx%d pixels, %s", size, size, "grey" if node["channels"] == 1 else "colour")
    sources: dict[str, Tasks] = {}
    for name, own in nodes.items():
        fit = partial(resized, size=size, channels=node["channels"], name=name) if size else None
        with of_source(name):
            sources[name] = make_tasks(own, allow, fit, splits=splits_of(name, node.get("leave_out")))
    return make(mixture_values(node), "data", Tasks, allow, sources=sources)


def keys_of(node: dict[str, Any], allow: Sequence[str]) -> set[str]:
    """Return the keys that a `data` node may have: those of its loader, if it has one, and of its family."""
    family = target_of(node, "data", Tasks, allow)
    loader = loader_of(node, allow, dataset_of(family))
    return {*parameters(family), *(parameters(loader) if loader else ())}


def dataset_of(family: type) -> type:
    """Return the class of a family's `dataset`; LabelledImages for a family without one."""
    return parameters(family).get("dataset", (LabelledImages, None))[0]


def loader_of(
    node: dict[str, Any], allow: Sequence[str] = (), kind: type = LabelledImages
) -> Callable[..., Any] | None:
    """Return the loader that a `data` node names in `dataset`, None if it names none.

    A loader is a function that is annotated to return what the family's `dataset` is, such as LabelledImages. Raises
    InputError for anything else, since a configuration may be somebody else's.
    """
    if "dataset" not in node:
        return None
    loader = locate(node["dataset"], "data.dataset", allow)
    if not inspect.isfunction(loader) or inspect.signature(loader, eval_str=True).return_annotation is not kind:
        raise InputError(f"data.dataset={node['dataset']} is no function that returns {kind.__name__}")
    return loader


def backbone_of(name: str, allow: Sequence[str] = ()) -> Backbone:
    """Return the backbone of a name: the body of a net that a run has trained for `run:RUN`, else see `named`.

    Its batch norms have fixed statistics, those of `REFERENCE` training pictures of that run. allow: see `locate`.
    Raises InputError for a run that is not on pictures, or whose net has no body.
    """
    if not name.startswith("run:"):
        return named(name)
    run_dir = user_path(name.removeprefix("run:"))
    cfg = load_config(run_dir)
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.strategy, cfg.allow = "cpu", 1, "auto", list(allow)
    with isolate_rng():
        parts = build(cfg)
    load_weights(parts.learner, run_dir / "checkpoints" / "best.ckpt")
    tasks, net = parts.tasks, parts.learner.net.float()
    if not isinstance(tasks, FewShotImages) or tasks.backbone is not None or not hasattr(net, "body"):
        raise InputError(f"{name}: a backbone is the body of a net that was trained on pictures, and this run has none")
    data = tasks.dataset
    train = np.concatenate([np.arange(data.first[c], data.first[c] + data.counts[c]) for c in tasks.classes["train"]])
    some = train[np.linspace(0, len(train) - 1, min(REFERENCE, len(train))).astype(int)]
    body = FixedNorms(net.get_submodule("body"), tasks.inputs(torch.from_numpy(data.take(some))))
    channels, size = data.images.shape[1:3]
    found = frozen("run", body, size, [0.0] * channels, [1.0] * channels)
    return replace(found, name=name, inverted=data.inverted)


REFERENCE = 256
"""Number of training pictures whose statistics the batch norms of a run's body have as a backbone."""
