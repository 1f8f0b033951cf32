"""Trains a meta-learner: python train.py algo=maml. Everything that can be set: python train.py --cfg job."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

# Runs without an installation too; launchers that start processes of their own find the package the same way.
SRC = str(Path(__file__).resolve().parent / "src")
sys.path.insert(0, SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from innerloop import config, sweep  # noqa: E402

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    from innerloop.run import train  # torch and Lightning take seconds: --help and a sweep's parent do without

    return train(cfg)


def start() -> None:
    sys.argv = sweep.command_line(sys.argv)
    main()


if __name__ == "__main__":
    config.command(start)
