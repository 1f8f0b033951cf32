"""Evaluate a run: python evaluate.py run=<run directory> test.episodes=2000. On other data: add data=omniglot."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

# So that it runs without being installed.
SRC = str(Path(__file__).resolve().parent / "src")
sys.path.insert(0, SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from innerloop.devices.startup import fast_imports  # noqa: E402
from innerloop.errors import InputError  # noqa: E402
from innerloop.runs import command, config, schemas  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    with command.reported_errors():
        with fast_imports():  # of torch, which --help does without
            from innerloop.runs.evaluate import evaluate_run

        evaluate_run(cfg)


def application() -> None:
    schemas.register()
    run = command.typed_value("run", sys.argv[1:])
    sys.argv[1:] = command.quoted_paths(sys.argv[1:], ("run", "data.root"))
    if not run and not any(a.startswith("-") or "=" not in a for a in sys.argv[1:]):  # such as --help
        raise InputError("which run? python evaluate.py run=RUN, its directory")
    config.register_run(run)
    main()


if __name__ == "__main__":
    command.command(application)
