"""Adapt to your labelled pictures and predict new ones: python adapt.py support=labelled query=new out=predictions."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

# So that it runs without being installed.
SRC = str(Path(__file__).resolve().parent / "src")
sys.path.insert(0, SRC)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from innerloop.devices.startup import fast_imports  # noqa: E402
from innerloop.errors import InputError  # noqa: E402
from innerloop.runs import command, keys, schemas  # noqa: E402

PATHS = ("support", "query", "out", "run", "model", "label", "id")


@hydra.main(version_base="1.3", config_path="conf", config_name="adapt")
def main(cfg: DictConfig) -> None:
    with command.reported_errors():
        keys.check_schema(cfg, schemas.AdaptConfig)
        if OmegaConf.is_missing(cfg, "out"):
            raise InputError("where to? add out=FOLDER, a new folder for the report and the predictions")
        with fast_imports():  # of torch, which --help does without
            from innerloop.practice.command import adapt_command

        adapt_command(cfg)


def application() -> None:
    schemas.register()
    if any(a in ("-m", "--multirun") for a in sys.argv[1:]):
        raise InputError("-m: an adaptation is one command; there is nothing to sweep")
    sys.argv[1:] = command.quoted_paths(sys.argv[1:], PATHS, always=True)
    main()


if __name__ == "__main__":
    command.command(application)
