"""Train a meta-learner: python train.py algo=maml. Everything that can be set: python train.py --cfg job."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

# So that it runs without being installed, and so do the processes that launchers start.
SRC = str(Path(__file__).resolve().parent / "src")
sys.path.insert(0, SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from innerloop.devices.startup import fast_imports  # noqa: E402
from innerloop.runs import command, config, schemas  # noqa: E402
from innerloop.sweeps.command_line import command_line  # noqa: E402

schemas.register()  # here and not below, so that processes that import this file know the resolvers


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    with command.reported_errors():
        with fast_imports():  # of torch, which --help and a sweep's parent process do without
            from innerloop.runs.train import train
            from innerloop.sweeps.jobs import train_job

        return train(cfg) if cfg.sweep is None else train_job(cfg)


def application() -> None:
    sys.argv = command_line(sys.argv)
    resumed = command.typed_value("resume", sys.argv[1:])
    if resumed not in (None, "null"):
        config.register_run(resumed)
        sys.argv.insert(1, "--config-name=resume")  # the recorded configuration instead of conf/train.yaml
    sys.argv[1:] = command.quoted_paths(sys.argv[1:], ("resume", "sweep", "data.root", "hydra.run.dir"))
    main()


if __name__ == "__main__":
    command.command(application)
