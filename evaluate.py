"""Evaluates a run: python evaluate.py run=<run directory> test.episodes=2000. Another domain: add data=omniglot."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

# Runs without an installation too; launchers that start processes of their own find the package the same way.
SRC = str(Path(__file__).resolve().parent / "src")
sys.path.insert(0, SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from innerloop import config  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    from innerloop.evaluation import evaluate_run  # torch and Lightning take seconds: --help does without

    evaluate_run(cfg)


def start() -> None:
    config.register()
    config.register_run(config.given("run", sys.argv[1:]))
    main()


if __name__ == "__main__":
    config.command(start)
