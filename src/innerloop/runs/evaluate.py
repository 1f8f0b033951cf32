"""Evaluation of a learner on validation and test episodes, at the end of a run and again later on other settings."""

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor

from innerloop.devices.ranks import ranks
from innerloop.episodes import Split, episode_rng
from innerloop.errors import InputError
from innerloop.learners import MetaLearner
from innerloop.runs.build import Parts, build, try_out
from innerloop.runs.callbacks import Progress
from innerloop.runs.checks import check
from innerloop.runs.command import remove_empty
from innerloop.runs.config import CONFIG, load_config, to_plain
from innerloop.runs.elsewhere import adapted_by, as_trained, check_adapt
from innerloop.runs.keys import check_hydra
from innerloop.runs.record import RESULTS, TRAINING_CLASSES, messages, write_config, write_json
from innerloop.runs.report.figures import save_figures
from innerloop.runs.report.results import closing_table, source_results, split_results, write_episodes
from innerloop.runs.resume import flat, refuse_initial
from innerloop.runs.schemas import EvaluateConfig
from innerloop.runs.trainer import make_trainer
from innerloop.runs.training_classes import warn_of_training_classes
from innerloop.runs.weights import load_weights

log = logging.getLogger("innerloop")


class Evaluation(NamedTuple):
    """validation, test: the entries of results.json. values: of the test, (episodes, 1 + K + 1, metrics).

    sources: the source of each test episode; empty unless the tasks are a mixture.
    """

    validation: dict[str, Any]
    test: dict[str, Any]
    values: Tensor
    sources: list[str]


def evaluate(trainer: Trainer, parts: Parts, steps: str) -> Evaluation:
    """Evaluate a learner on its validation and test episodes.

    steps: "last" reports the metrics after all inner steps, "validation" after the number of inner steps that is best
        on the validation tasks.
    """
    learner, tasks = parts.learner, parts.tasks
    trainer.validate(learner, parts.data, verbose=False)
    means = [entry["mean"] for entry in learner.last_curve[tasks.metric][1:]]
    step = best_step(means, tasks.higher_is_better) if steps == "validation" else len(means) - 1
    validation, _, _ = results_of(parts, "validation", step)
    trainer.test(learner, parts.data, verbose=False)
    return Evaluation(validation, *results_of(parts, "test", step))


def results_of(parts: Parts, split: Split, step: int) -> tuple[dict[str, Any], Tensor, list[str]]:
    """Return of the split evaluated last its entry of results.json, the values and the source of each episode."""
    learner, values = parts.learner, parts.learner.curve.compute()
    sources = parts.tasks.sources(split, [episode_rng(parts.data.eval_seed, split, i) for i in range(len(values))])
    entry = split_results(learner.last_curve, len(values), step)
    if sources:
        entry["sources"] = source_results(learner.curve.names, values, sources, step)
    return entry, values, sources


def warn_if_not_finite(found: Evaluation, metric: str) -> None:
    """Log a warning if a reported result is not a number. In results.json it is null."""
    for split, part in (("validation", found.validation), ("test", found.test)):
        if not math.isfinite(part[metric]["mean"]):
            log.warning(
                "the %s %s is not a number: on at least one episode the adapted weights diverge; "
                "fewer inner steps or a smaller inner rate may help",
                split,
                metric,
            )


def best_step(means: Sequence[float], higher_is_better: bool) -> int:
    """Return the number of inner steps with the best mean. NaN counts as the worst."""
    worth = [-math.inf if math.isnan(m) else m if higher_is_better else -m for m in means]
    return worth.index(max(worth))


def describe(cfg: DictConfig, learner: MetaLearner) -> dict[str, Any]:
    """Return what results.json says of the configuration, and of the conditions that a metric depends on.

    These are the net's norm, whether a prediction depends on the task's other queries, and the number of queries.
    """
    return {
        "algo": cfg.algo.name,
        "data": cfg.data.name,
        "net": cfg.net.name,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "norm": cfg.net.get("norm"),
        "transductive": learner.transductive,
        "queries": cfg.data.get("queries") if cfg.data.get("sampler", "uniform") == "uniform" else None,
    }


def refuse_net(overrides: Sequence[str]) -> None:
    """Raise InputError if an override concerns the net, since an evaluation uses the net that was trained."""
    for override in overrides:
        if re.match(r"[+~]*net\b", override):
            raise InputError(f"{override}: an evaluation uses the net that was trained, so net cannot be set")


def evaluate_run(cfg: DictConfig) -> None:
    """Test a run's checkpoint as configured. Results, plots and the rest go below <run>/evaluations."""
    out = Path(HydraConfig.get().runtime.output_dir)
    run = Path(cfg.run)
    with messages() as log_file:
        try:
            refuse_net(HydraConfig.get().overrides.task)
            trained = load_config(run)
            cfg.net = trained.net  # other data may choose another net for training, but this one was trained
            check(cfg, EvaluateConfig)
            refuse_initial(*({"algo." + k: v for k, v in flat(to_plain(c.algo)).items()} for c in (trained, cfg)))
            check_adapt(cfg)
            check_hydra(HydraConfig.get())
            if ranks(cfg.trainer).total > 1:
                raise InputError(f"trainer.devices={cfg.trainer.devices}: an evaluation runs on one device")
            other = HydraConfig.get().runtime.choices["data"] != "of_run"
            parts = build(cfg, as_trained(cfg, trained) if other else None)
            warn_of_training_classes(run / TRAINING_CLASSES, parts.tasks)
            load_weights(parts.learner, run / "checkpoints" / f"{cfg.checkpoint}.ckpt")
            if cfg.adapt != "inner":
                parts.learner = adapted_by(parts, cfg.adapt, cfg.adapt_lr, cfg.adapt_steps)
                try_out(parts.learner, parts.data)
        except BaseException:
            remove_empty(out)
            raise
        log_file.write_to(out)
        write_config(out / CONFIG, cfg)
        progress = Progress(parts.tasks.metric)
        trainer = make_trainer(cfg, parts.learner, out, logger=False, callbacks=[progress], enable_checkpointing=False)
        found = evaluate(trainer, parts, cfg.test.steps)
        results = {
            "run": str(run),
            "checkpoint": cfg.checkpoint,
            **({} if cfg.adapt == "inner" else {"adapt": cfg.adapt}),
            **describe(cfg, parts.learner),
            "metric": parts.tasks.metric,
            "validation": found.validation,
            "test": found.test,
        }
        warn_if_not_finite(found, parts.tasks.metric)
        write_episodes(out / "test_episodes.csv", parts.learner.curve.names, found.values, found.sources)
        save_figures(out, parts.tasks, parts.learner, parts.data, found.test)
        write_json(out / RESULTS, results)
        print(closing_table(results, parts.tasks.metric, out, parts.tasks.beside), flush=True)
