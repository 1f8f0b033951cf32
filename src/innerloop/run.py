"""From a configuration to a run directory: compose -> build -> fit -> test -> results.json."""

import inspect
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from innerloop.callbacks.distributions import Histograms, InnerRates
from innerloop.callbacks.progress import Progress
from innerloop.callbacks.pruning import Pruning
from innerloop.callbacks.session import Session
from innerloop.config import (
    CONFIG,
    EvaluateConfig,
    LoggerConfig,
    TrainConfig,
    arguments,
    explain,
    load_config,
    locate,
    remove_empty,
    unknown_key,
)
from innerloop.datamodule import EpisodeDataModule
from innerloop.errors import InputError, Pruned, Stopped
from innerloop.jobs import as_job
from innerloop.learners import MetaLearner
from innerloop.memory import keep_freed
from innerloop.naming import label
from innerloop.precision import TENSOR_FLOAT, set_tensor_float
from innerloop.ranks import check_launch, check_trainer, is_first, join, placement, share_of_cores, together
from innerloop.record import RESULTS, environment, read_checkpoint, recorded, write_json
from innerloop.reporting import closing_table, draw_plots, episode_rows, flatten, test_results, write_episodes
from innerloop.search import reporter
from innerloop.tasks.base import Tasks
from innerloop.tracking import Closing, Label, RunInfo, check_loggers, end, make_loggers, trackers

log = logging.getLogger("innerloop")


@dataclass
class Parts:
    """What a configuration describes."""

    tasks: Tasks
    learner: MetaLearner
    data: EpisodeDataModule


def build(cfg: DictConfig) -> Parts:
    """The task family, the learner and the data module of a configuration. Raises InputError for what cannot be."""
    plain = to_plain(cfg)
    data = dict(plain["data"])
    data.pop("test_episodes")  # read through test.episodes
    of_module = {name: data.pop(name) for name in ("meta_batch_size", "num_workers") if name in data}
    seed_everything(plain["seed"], verbose=False)
    tasks = _make_tasks(data)
    net = _make(plain["net"], "net", input_shape=tasks.input_shape, output_size=tasks.output_size)
    given = {"net": net, "loss": tasks.loss, "metrics": tasks.metrics}
    drawn = tasks
    if getattr(_target(plain["algo"], "algo"), "pools", False):
        drawn, given["training_outputs"] = tasks.pooled()
    learner = _make(plain["algo"], "algo", **given)
    module = EpisodeDataModule(
        drawn,
        seed=plain["seed"],
        eval_seed=plain["test"]["seed"],
        val_episodes=plain["trainer"]["val_episodes"],
        test_episodes=plain["test"]["episodes"],
        # Most of a call's time is the call's then, and without a graph for the meta-gradient there is room.
        eval_meta_batches=4 if _dense(learner) else 1,
        **arguments(of_module, EpisodeDataModule, "data"),
    )
    if tasks.varied_ways and not learner.adaptation.frees_ways:
        raise InputError(
            f"algo={plain['algo']['name']} has a fixed head of {tasks.output_size} ways: data.min_ways needs a learner "
            "that writes its head from the support set, such as protonet, r2d2, proto_maml or cnaps, or hypernet and "
            "hybrid where algo.writes is head or head+film"
        )
    # What does not fit, such as prototypes of real targets, is found here, before anything is written.
    learner.engine.map(learner.evaluate_episode, module.meta_batch("validation", [0]))
    return Parts(tasks, learner, module)


def _dense(learner: MetaLearner) -> bool:
    """Whether its tensors are small, so that the CPU, too, takes all tasks at once."""
    return learner.engine.resolve(torch.device("cpu")) == "vmap"


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers, interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def _target(node: Mapping[str, Any], key: str) -> Any:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise InputError(f"{key} must name a configuration with a _target_, got {node}")
    return locate(node["_target_"], f"{key}._target_")


def _make(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    target = _target(node, key)
    rest = {name: value for name, value in node.items() if name not in ("name", "_target_")}
    return target(**arguments(rest, target, key), **given)


def _make_tasks(node: dict[str, Any]) -> Tasks:
    """The task family; where `dataset` names a loader, the loader takes the keys that its signature names."""
    if "dataset" not in node:
        return _make(node, "data")
    loader = locate(node["dataset"], "data.dataset")
    wanted = set(inspect.signature(loader).parameters)
    of_loader = {name: value for name, value in node.items() if name in wanted}
    rest = {name: value for name, value in node.items() if name not in wanted and name != "dataset"}
    return _make(rest, "data", dataset=loader(**arguments(of_loader, loader, "data")))


def train(cfg: DictConfig) -> float | None:
    """Trains, tests and records one run. Returns the headline metric on the validation tasks.

    A sweep's job goes on where it stopped, and records how it failed or that it was pruned: then None is returned.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if cfg.sweep is None:
        return _train(cfg, run_dir)
    return as_job(run_dir, lambda: _train(cfg, run_dir))


def _train(cfg: DictConfig, run_dir: Path) -> float:
    going_on = cfg.sweep is not None and (run_dir / CONFIG).exists()
    resuming = cfg.resume is not None or going_on
    try:
        if resuming:
            # What a sweep's job overrides is in its record already.
            cfg = resumed_config(run_dir, [] if going_on else HydraConfig.get().overrides.task)
        elif is_first() and (run_dir / CONFIG).exists():
            raise InputError(f"{run_dir} holds a run already: go on with resume={run_dir}, or choose another directory")
        check(cfg)
        check_loggers(logger_settings(cfg))
        check_launch(HydraConfig.get().mode == RunMode.MULTIRUN, HydraConfig.get().overrides.hydra, resuming)
        parts = build(cfg)
    except BaseException:
        remove_empty(run_dir)
        raise
    with recorded(run_dir, is_first()):
        if is_first() and not resuming:
            write_record(cfg, run_dir)
        name = Label(*label(cfg))
        task = {"config": to_plain(cfg), "run_dir": str(run_dir), "label": name}
        with together(cfg.trainer, task, "innerloop.run:other_rank"):
            return _fit_and_test(cfg, run_dir, parts, name)


def other_rank() -> None:
    """Runs in the processes that `together` starts: the same training, of which the first rank keeps the record."""

    def run(task: dict[str, Any]) -> None:
        cfg, run_dir = OmegaConf.create(task["config"]), Path(task["run_dir"])
        with recorded(run_dir, first=False):
            _fit_and_test(cfg, run_dir, build(cfg), Label(*task["label"]))

    join(run)


def _fit_and_test(cfg: DictConfig, run_dir: Path, parts: Parts, name: Label) -> float:
    learner, data, tasks = parts.learner, parts.data, parts.tasks
    checkpoints = run_dir / "checkpoints"
    last = checkpoints / "last.ckpt"
    start = last if last.exists() else None
    resumed_at = read_checkpoint(last)["global_step"] if start else 0
    session = Session(last, learner.accumulate)
    best = ModelCheckpoint(
        checkpoints,
        filename="best",
        monitor=f"val/{tasks.metric}",
        mode="max" if tasks.higher_is_better else "min",
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    # Not save_last=True of the other one: Lightning (2.6) then writes last.ckpt only where the best has improved.
    latest = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    info = RunInfo(run_dir, to_plain(cfg), name, resumed_at)
    loggers = make_loggers(info, logger_settings(cfg))
    ended: BaseException | None = None
    try:
        callbacks = [best, latest, session, Progress(tasks.metric), LearningRateMonitor("step"), InnerRates()]
        callbacks += [Histograms(t.histograms_every, t.log_histograms) for t in trackers(loggers) if t.histograms_every]
        report = reporter(run_dir) if is_first() and cfg.get("sweep") else None
        if report:
            callbacks.append(Pruning(f"val/{tasks.metric}", report))
        keep_freed(math.prod(tasks.input_shape))
        trainer = make_trainer(cfg, learner, logger=loggers, callbacks=callbacks)
        log.info("training %s on %s in %s", cfg.algo.name, cfg.data.name, run_dir)
        trainer.fit(learner, data, ckpt_path=start, weights_only=False)
        trainer.loggers = []  # the closing evaluation of the best weights is no point of the learning curve
        load_weights(learner, checkpoints / "best.ckpt")
        validation, test, values = evaluate(trainer, parts, cfg.test.steps)
        results = {
            "algo": cfg.algo.name,
            "data": cfg.data.name,
            "net": cfg.net.name,
            "seed": cfg.seed,
            "metric": tasks.metric,
            "steps": trainer.global_step,
            "ranks": trainer.world_size,
            "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
            "train_seconds": session.wall_seconds,
            "train_cpu_seconds": sum_over_ranks(trainer, session.cpu_seconds),
            "steps_per_second": trainer.global_step / session.wall_seconds,
            **session.peak_memory,
            **test_conditions(cfg, learner),
            "validation": validation,
            "test": test,
        }
        if trainer.is_global_zero:
            write_episodes(run_dir / "test_episodes.csv", learner.curve.names, values)
            figures = draw_plots(run_dir, tasks, learner, data, test)
            rows = episode_rows(learner.curve.names, values, test["step"])
            for tracker in trackers(loggers):
                tracker.log_closing(Closing(results, *flatten(results), rows, figures))
            write_json(run_dir / RESULTS, results)
            print(closing_table(results, tasks.metric, run_dir), flush=True)
    except Pruned:  # no failure of the run
        raise
    except Stopped as stopped:
        ended = Stopped(f"{stopped}. Go on with: python train.py resume={run_dir}")
        raise ended from None
    except BaseException as error:
        ended = error
        raise
    finally:
        end(loggers, ended)
    return validation[tasks.metric]["mean"]


def sum_over_ranks(trainer: Trainer, value: float) -> float:
    """The sum of each rank's value. All ranks must ask."""
    if trainer.world_size == 1:
        return value
    mine = torch.tensor(value, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(mine, reduce_op="sum").item()


def test_conditions(cfg: DictConfig, learner: MetaLearner) -> dict[str, Any]:
    """What an accuracy is to be read with: the net's norm, whether queries share its statistics, and their number."""
    return {"norm": cfg.net.get("norm"), "transductive": learner.transductive, "queries": cfg.data.get("queries")}


def load_weights(learner: MetaLearner, path: Path) -> None:
    """Meta-parameters from a checkpoint. Raises InputError if it is missing, broken or of another learner."""
    weights = read_checkpoint(path)["state_dict"]
    try:
        learner.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise InputError(f"{path} does not fit these data, net and algorithm: {reason} …") from error


def evaluate(trainer: Trainer, parts: Parts, steps: str) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor]:
    """Validation and test results of a learner, and the test's values (episodes, 1 + K + 1, metrics).

    steps: "last" reports after all inner steps; "validation" after as many as are best on the validation tasks.
    """
    learner, tasks = parts.learner, parts.tasks
    trainer.validate(learner, parts.data, verbose=False)
    means = [entry["mean"] for entry in learner.last_curve[tasks.metric][1:]]
    step = best_step(means, tasks.higher_is_better) if steps == "validation" else len(means) - 1
    validation = test_results(learner.last_curve, parts.data.val_episodes, step)
    trainer.test(learner, parts.data, verbose=False)
    return validation, test_results(learner.last_curve, parts.data.test_episodes, step), learner.curve.compute()


def best_step(means: Sequence[float], higher_is_better: bool) -> int:
    """The number of inner steps with the best mean; one that is not a number is the worst."""
    worth = [-math.inf if math.isnan(m) else m if higher_is_better else -m for m in means]
    return worth.index(max(worth))


def make_trainer(cfg: DictConfig, learner: MetaLearner, **extra: Any) -> Trainer:
    """Lightning's trainer; an epoch is the stretch between two validations."""
    t = cfg.trainer
    place = placement(t)
    # The tensors of dense nets are too small to share: threads only wait for each other, on a busy machine for ages.
    threads = t.threads or (1 if _dense(learner) else share_of_cores(t))
    if threads is not None:
        torch.set_num_threads(threads)
    set_tensor_float(t.precision == TENSOR_FLOAT)
    _quiet()
    try:
        return Trainer(
            max_steps=t.max_steps,
            max_epochs=-1,
            limit_train_batches=min(t.val_every, t.max_steps) * learner.accumulate,
            log_every_n_steps=min(t.log_every, t.max_steps),
            accelerator=t.accelerator,
            precision="32-true" if t.precision == TENSOR_FLOAT else t.precision,
            deterministic=t.deterministic,
            num_sanity_val_steps=0,
            inference_mode=False,
            enable_model_summary=False,
            **place,
            **extra,
        )
    except (ValueError, lightning.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error


def logger_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of each logger, None for those that are not asked for."""
    whole = OmegaConf.merge(OmegaConf.structured(LoggerConfig), cfg.logger)
    assert isinstance(whole, DictConfig)
    return to_plain(whole)


def resumed_config(run_dir: Path, overrides: list[str]) -> DictConfig:
    """The recorded configuration of a run, with what else the command line says."""
    cfg = load_config(run_dir)
    OmegaConf.set_struct(cfg, True)
    try:
        for override in overrides:
            key, _, value = override.partition("=")
            if key != "resume":
                OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v)
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    return cfg


def check(cfg: DictConfig) -> None:
    """InputError for what no type says: sizes above zero, known choices, keys that nothing reads."""
    known = [f.name for schema in (TrainConfig, EvaluateConfig) for f in fields(schema)]
    for name in cfg:
        if name not in known:
            raise InputError(unknown_key(str(name), known))
    for name in ("max_steps", "val_every", "val_episodes", "log_every", "threads"):
        value = cfg.trainer[name]
        if value is not None and value < 1:
            raise InputError(f"trainer.{name} must be above zero, got {value}")
    if cfg.test.episodes < 1:
        raise InputError(f"test.episodes must be above zero, got {cfg.test.episodes}")
    if cfg.seed < 0 or cfg.test.seed < 0:
        raise InputError(f"seed and test.seed must not be negative, got {cfg.seed} and {cfg.test.seed}")
    if cfg.test.steps not in ("last", "validation"):
        raise InputError(f"test.steps={cfg.test.steps}: choose one of last, validation")
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"trainer.accelerator={cfg.trainer.accelerator}: no GPU is visible; use trainer=cpu or auto")
    shared = {"trainer.val_episodes": cfg.trainer.val_episodes, "test.episodes": cfg.test.episodes}
    check_trainer(cfg.trainer, shared | {"data.meta_batch_size": cfg.data.get("meta_batch_size")})


def write_record(cfg: DictConfig, run_dir: Path) -> None:
    """config.yaml, overrides.yaml and environment.json: what is needed to do the run again."""
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, run_dir / CONFIG, resolve=True)
    OmegaConf.save(HydraConfig.get().overrides.task, run_dir / "overrides.yaml")
    write_json(run_dir / "environment.json", environment())


def _quiet() -> None:
    # Lightning's own call of a torch interface that is on its way out.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # A run resumed from an epoch's end passes that end once more, with nothing validated and nothing to save.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # The loader goes on where the trainer's counters say, which is better than a state of its own.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # Episodes are drawn on the spot, cheaper than a worker process would hand them over.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # An epoch is the stretch between two validations, and its length is told by limit_train_batches.
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    # Resuming and testing happen on purpose in a directory that holds checkpoints.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
