"""Training of one run: build, fit, test, record."""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from innerloop.devices.files import writing
from innerloop.devices.memory import keep_freed
from innerloop.devices.processes import all_ranks, run_as_rank
from innerloop.devices.ranks import check_launch, is_first
from innerloop.errors import DivergedError, InputError, Pruned, Stopped
from innerloop.runs.build import Parts, build, try_a_gradient
from innerloop.runs.callbacks import Histograms, RunCheckpoint, SaveOnSignal, Session
from innerloop.runs.checks import check
from innerloop.runs.command import remove_empty
from innerloop.runs.compilation import settle_compilation
from innerloop.runs.config import CONFIG, OVERRIDES, begun_job_config, logger_settings, make_absolute, to_plain
from innerloop.runs.evaluate import describe, evaluate, warn_if_not_finite
from innerloop.runs.keys import check_hydra
from innerloop.runs.locks import LOCK, locked
from innerloop.runs.naming import label
from innerloop.runs.record import (
    RESULTS,
    TRAINING_CLASSES,
    environment,
    messages,
    read_checkpoint,
    write_checkpoint,
    write_config,
    write_json,
)
from innerloop.runs.report.figures import save_figures
from innerloop.runs.report.results import closing_table, episode_rows, flatten, write_episodes
from innerloop.runs.resume import record_changes, resumed_config
from innerloop.runs.signatures import make
from innerloop.runs.threads import threads_of
from innerloop.runs.tracking import Closing, Label, RunInfo, check_loggers, end_loggers, make_loggers, trackers
from innerloop.runs.trainer import check_extra, make_trainer
from innerloop.runs.training_classes import classes_seen
from innerloop.runs.weights import begin_with, latest_checkpoint, load_weights, start_weights
from innerloop.tasks.base import Tasks

log = logging.getLogger("innerloop")


def train(cfg: DictConfig, name: Label | None = None, callbacks: Sequence[Callback] = ()) -> float:
    """Train, test and record one run of Hydra's application. Returns the metric on the validation tasks.

    A job of a sweep whose directory holds a run already resumes it.

    name: what trackers call the run. None: see `label`. callbacks: further ones, for the first rank only.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    resumed = cfg.resume is not None
    job = cfg.sweep is not None
    resuming = resumed or is_begun_job(cfg, run_dir)
    with messages(is_first()) as log_file, ExitStack() as stack:
        try:
            cfg = checked_config(cfg, run_dir, resuming)
            configured_callbacks(cfg)
            parts = tried(cfg)
            start_weights(cfg, parts.learner, run_dir)
            classes = [] if resuming else classes_seen(cfg, parts.tasks)
        except BaseException:
            remove_empty(run_dir)
            raise
        if is_first():
            if not job:  # a sweep's job is locked already
                stack.enter_context(locked(run_dir / LOCK, f"{run_dir} is a run that another process is training"))
            log_file.write_to(run_dir)
            make_absolute(cfg)
            if resumed:
                if (run_dir / RESULTS).exists() and not HydraConfig.get().overrides.task[1:]:
                    log.info("%s is finished, so it is only tested again", run_dir)
                record_changes(cfg, run_dir, HydraConfig.get().overrides.task)
            elif not resuming:
                write_record(cfg, run_dir)
                if classes:
                    write_json(run_dir / TRAINING_CLASSES, classes)
        name = name or Label(*label(cfg))
        task = {"config": to_plain(cfg), "run_dir": str(run_dir), "label": name}
        with all_ranks(cfg.trainer, task, "innerloop.runs.train:train_as_rank"):
            return fit_and_test(cfg, run_dir, parts, name, callbacks)


def tried(cfg: DictConfig) -> Parts:
    """Return the parts of a checked configuration, after a first gradient. Raises InputError for what is not possible.

    Nothing is written.
    """
    parts = tried_eagerly(cfg)
    settle_compilation(cfg, parts)
    return parts


def tried_eagerly(cfg: DictConfig) -> Parts:
    """Return the same parts, nothing compiled."""
    check_extra(cfg.trainer)
    parts = build(cfg)
    if cfg.trainer.max_steps:
        with threads_of(cfg.trainer, parts.learner):
            try_a_gradient(parts)
    return parts


def try_out(cfg: DictConfig) -> None:
    """Raise what a run of this configuration would end with before it trains, callbacks left out, which may act."""
    check(cfg)
    check_loggers(logger_settings(cfg))
    parts = tried_eagerly(cfg)
    if cfg.get("init_from"):
        begin_with(parts.learner, cfg.init_from)


def is_begun_job(cfg: DictConfig, run_dir: Path) -> bool:
    """Return True if the run is a job of a sweep that has started before."""
    return cfg.sweep is not None and (run_dir / CONFIG).exists()


def checked_config(cfg: DictConfig, run_dir: Path, resuming: bool) -> DictConfig:
    """Return the configuration of a run: Hydra's, or the recorded one of a run that is resumed.

    Raises InputError for what is not possible.
    """
    hydra = HydraConfig.get()
    if is_begun_job(cfg, run_dir):  # its record includes its overrides
        cfg = begun_job_config(run_dir, cfg)
    elif resuming:
        cfg = resumed_config(cfg, run_dir, hydra.overrides.task)
    elif is_first() and (run_dir / CONFIG).exists():
        raise InputError(f"{run_dir} holds a run already: resume it, resume={run_dir}, or choose another directory")
    check(cfg)
    check_hydra(hydra)
    check_loggers(logger_settings(cfg))
    check_launch(hydra.mode == RunMode.MULTIRUN, hydra.overrides.hydra, resuming)
    return cfg


def train_as_rank() -> None:
    """Train as another rank, in a process that `all_ranks` starts. The first rank keeps the record."""

    def run(task: dict[str, Any]) -> None:
        cfg, run_dir = OmegaConf.create(task["config"]), Path(task["run_dir"])
        with messages(first=False):
            parts = build(cfg)
            start_weights(cfg, parts.learner, run_dir)
            fit_and_test(cfg, run_dir, parts, Label(*task["label"]))

    run_as_rank(run)


def fit_and_test(
    cfg: DictConfig, run_dir: Path, parts: Parts, name: Label, callbacks: Sequence[Callback] = ()
) -> float:
    """Train from the last checkpoint or the start, test the best weights, and write what the run leaves.

    Returns the metric on the validation tasks.
    """
    learner = parts.learner
    start = latest_checkpoint(run_dir)
    if cfg.trainer.max_steps and start is not None and "loops" not in read_checkpoint(start):
        start = None  # the run was only tested so far, so its first step is still to come
    last = run_dir / "checkpoints" / "last.ckpt"
    info = RunInfo(run_dir, to_plain(cfg), name, resumed_at=read_checkpoint(start)["global_step"] if start else 0)
    loggers = make_loggers(info, logger_settings(cfg))
    ended: BaseException | None = None
    try:
        session = Session(last, learner.outer.accumulate, cfg.seed)
        chosen = configured_callbacks(cfg)
        keep_freed(math.prod(parts.tasks.input_shape))
        trainer = make_trainer(
            cfg,
            learner,
            run_dir,
            logger=loggers,
            callbacks=[
                session,
                *checkpoints(run_dir, parts.tasks),
                *chosen,
                *histograms(loggers),
                *callbacks,
                SaveOnSignal(session),
            ],
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
        )
        log.info("training %s on %s in %s", cfg.algo.name, cfg.data.name, run_dir)
        if cfg.trainer.max_steps:
            trainer.fit(learner, parts.data, ckpt_path=start, weights_only=True)
        elif start is None and is_first():
            last.parent.mkdir(parents=True, exist_ok=True)
            for path in (last.with_name("best.ckpt"), last):
                write_checkpoint(path, {"state_dict": learner.state_dict(), "global_step": 0})
        return test_and_report(cfg, run_dir, parts, trainer, session)
    except Pruned:  # this is no failure of the run
        raise
    except Stopped as stopped:
        allow = f" allow=[{','.join(cfg.allow)}]" if cfg.get("allow") else ""
        ended = Stopped(f"{stopped}. Resume it with: python train.py resume={run_dir}{allow}")
        raise ended from None
    except DivergedError as error:
        ended = DivergedError(f"{error}. {advice(cfg.algo)}")
        raise ended from error
    except BaseException as error:
        ended = error
        raise
    finally:
        end_loggers(loggers, ended)


def test_and_report(cfg: DictConfig, run_dir: Path, parts: Parts, trainer: Trainer, session: Session) -> float:
    """Test the best weights of a trained learner and write results, tables and plots.

    Returns the metric on the validation tasks.
    """
    learner, loggers = parts.learner, list(trainer.loggers)
    trainer.loggers = []  # this evaluation is no point of the learning curve
    kept = [callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    trainer.callbacks = kept  # type: ignore[attr-defined]  # averaging would exchange the best weights for the last
    best = run_dir / "checkpoints" / "best.ckpt"
    load_weights(learner, best)
    if (step := read_checkpoint(best)["global_step"]) != trainer.global_step:
        log.info("testing the weights of step %d, the best in validation", step)
    found = evaluate(trainer, parts, cfg.test.steps)
    results = {
        **describe(cfg, learner),
        "metric": parts.tasks.metric,
        "steps": trainer.global_step,
        "ranks": trainer.world_size,
        "train_seconds": session.wall_seconds,
        "train_cpu_seconds": sum_over_ranks(trainer, session.cpu_seconds),
        "steps_per_second": trainer.global_step / session.wall_seconds if session.wall_seconds else 0.0,
        **session.peak_memory,
        "validation": found.validation,
        "test": found.test,
    }
    if trainer.is_global_zero:
        warn_if_not_finite(found, parts.tasks.metric)
        names = learner.curve.names
        write_episodes(run_dir / "test_episodes.csv", names, found.values, found.sources)
        figures = save_figures(run_dir, parts.tasks, learner, parts.data, found.test)
        rows = episode_rows(names, found.values, found.test["step"])
        for tracker in trackers(loggers):
            tracker.log_closing(Closing(results, *flatten(results), rows, figures))
        write_json(run_dir / RESULTS, results)
        print(closing_table(results, parts.tasks.metric, run_dir, parts.tasks.beside), flush=True)
    return found.validation[parts.tasks.metric]["mean"]


def advice(algo: DictConfig) -> str:
    """Return what may help after a divergence, in keys that this algorithm has and with the values that they had."""
    lower = [f"algo.{name}={algo[name]}" for name in ("inner_lr", "outer_lr", "generator_lr") if algo.get(name)]
    found = f"Lower {' or '.join(lower)}"
    clips = [name for name in ("inner_clip", "outer_clip") if name in algo and (algo[name] is None or algo[name] > 10)]
    if clips:
        found += "; bound gradients by " + " or ".join(f"algo.{name}=10" for name in clips)
    return found + (f"; take fewer inner steps (now {algo.inner_steps})" if algo.get("inner_steps", 0) > 1 else "")


def checkpoints(run_dir: Path, tasks: Tasks) -> list[Callback]:
    """Return the callbacks that write best.ckpt and last.ckpt, which every run has."""
    best = RunCheckpoint(
        run_dir / "checkpoints",
        filename="best",
        monitor=f"val/{tasks.metric}",
        mode="max" if tasks.higher_is_better else "min",
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    # Not save_last=True of the other callback: Lightning (2.6) then writes last.ckpt only when the best improves.
    latest = RunCheckpoint(run_dir / "checkpoints", filename="last", enable_version_counter=False)
    return [best, latest]


def configured_callbacks(cfg: DictConfig) -> list[Callback]:
    """Return the callbacks of the configuration. Raises InputError for what is not possible."""
    found: list[Callback] = []
    for name, node in to_plain(cfg.callbacks).items():
        if node is not None:
            try:
                callback = make(node, f"callbacks.{name}", Callback, cfg.get("allow", ()))
            except InputError:
                raise
            except (TypeError, ValueError, MisconfigurationException) as error:
                raise InputError(f"callbacks.{name}: {error}") from error
            found.append(callback)
    bars = [callback for callback in found if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        raise InputError("callbacks has two progress bars: leave innerloop's out with callbacks.progress=null")
    return found


def histograms(loggers: Sequence[Logger]) -> list[Callback]:
    """Return a callback for each tracker that logs histograms."""
    return [Histograms(t.histograms_every, t.log_histograms) for t in trackers(loggers) if t.histograms_every]


def sum_over_ranks(trainer: Trainer, value: float) -> float:
    """Return the sum of every rank's value. All ranks must call this."""
    if trainer.world_size == 1:
        return value
    mine = torch.tensor(value, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(mine, reduce_op="sum").item()


def write_record(cfg: DictConfig, run_dir: Path) -> None:
    """Write config.yaml, overrides.yaml and environment.json: what is needed to repeat the run."""
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_config(run_dir / CONFIG, cfg)
    write_config(run_dir / OVERRIDES, OmegaConf.create(list(HydraConfig.get().overrides.task)))
    write_json(run_dir / "environment.json", environment())
