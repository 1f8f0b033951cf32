"""Evaluates a finished run again, or elsewhere: other data, more episodes, more inner steps."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from innerloop.callbacks.progress import Progress
from innerloop.config import CONFIG, load_config, remove_empty
from innerloop.errors import InputError
from innerloop.ranks import ranks
from innerloop.record import recorded, write_json
from innerloop.reporting import closing_table, draw_plots, write_episodes
from innerloop.run import RESULTS, build, check, evaluate, load_weights, make_trainer, test_conditions


def evaluate_run(cfg: DictConfig) -> None:
    """Tests a run's checkpoint as configured; results.json, plots and the rest go below <run>/evaluations."""
    out = Path(HydraConfig.get().runtime.output_dir)
    run = Path(cfg.run)
    try:
        cfg.net = load_config(run).net  # data choose a net for training; this one is trained
        check(cfg)
        if ranks(cfg.trainer).total > 1:
            raise InputError(f"trainer.devices={cfg.trainer.devices}: an evaluation runs on one device")
        parts = build(cfg)
        load_weights(parts.learner, run / "checkpoints" / f"{cfg.checkpoint}.ckpt")
    except BaseException:
        remove_empty(out)
        raise
    with recorded(out):
        OmegaConf.save(cfg, out / CONFIG, resolve=True)
        trainer = make_trainer(
            cfg, parts.learner, logger=False, callbacks=[Progress(parts.tasks.metric)], enable_checkpointing=False
        )
        validation, test, values = evaluate(trainer, parts, cfg.test.steps)
        results: dict[str, Any] = {
            "run": str(run),
            "checkpoint": cfg.checkpoint,
            "algo": cfg.algo.name,
            "data": cfg.data.name,
            "net": cfg.net.name,
            "seed": cfg.seed,
            "parameters": sum(p.numel() for p in parts.learner.parameters() if p.requires_grad),
            **test_conditions(cfg, parts.learner),
            "validation": validation,
            "test": test,
        }
        write_episodes(out / "test_episodes.csv", parts.learner.curve.names, values)
        draw_plots(out, parts.tasks, parts.learner, parts.data, test)
        write_json(out / RESULTS, results)
        print(closing_table(results, parts.tasks.metric, out), flush=True)
