"""The W&B sweep files: every value that one can draw makes a command line that a run starts with."""

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from innerloop.errors import InputError
from innerloop.runs import schemas
from innerloop.runs.build import Parts, build
from innerloop.runs.checks import check
from innerloop.runs.config import logger_settings
from innerloop.runs.tracking import check_loggers

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))


def drawn(parameter: dict[str, Any]) -> list[Any]:
    """Every value of a list, both ends of a distribution."""
    if "values" in parameter:
        return parameter["values"]
    if "value" in parameter:
        return [parameter["value"]]
    assert parameter["distribution"] in ("uniform", "log_uniform_values", "int_uniform")
    return [parameter["min"], parameter["max"]]


def command_lines(sweep: dict[str, Any]) -> list[list[str]]:
    """The command lines of W&B's agent, put together by its own code, for all combinations."""
    names, values = list(sweep["parameters"]), [drawn(p) for p in sweep["parameters"].values()]
    lines = []
    for chosen in itertools.product(*values):
        args = {name: {"value": value} for name, value in zip(names, chosen, strict=True)}
        known = create_sweep_command_args({"args": args})
        known |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
        tokens = create_sweep_command(list(sweep["command"]))
        lines.append([a for t in tokens for a in (known[t[2:-1]] if t.startswith("${") else [t])])
    return lines


def started(line: list[str]) -> Parts:
    """What a run builds before it trains, of a command line."""
    environment, interpreter, program, *overrides = line
    assert (environment, interpreter) == ("/usr/bin/env", "python")
    assert (ROOT / program).is_file()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides)
    check(cfg)
    check_loggers(logger_settings(cfg))
    assert cfg.logger.wandb is not None
    return build(cfg)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_value_makes_a_run_that_logs_the_metric(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    lines = command_lines(sweep)
    assert len({shlex.join(line) for line in lines}) == len(lines) > 5
    for line in lines:
        parts = started(line)
        assert sweep["metric"]["name"] == f"val/{parts.tasks.metric}"
        assert (sweep["metric"]["goal"] == "maximize") == parts.tasks.higher_is_better


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_command_is_what_hydra_takes(path: Path) -> None:
    text = path.read_text()
    command = yaml.safe_load(text)["command"]
    assert command[:4] == ["${env}", "${interpreter}", "${program}", "logger=wandb"]
    assert command[-1] == "${args_no_hyphens}"
    assert f"wandb sweep scripts/sweeps/{path.name}" in text


def test_there_are_files_of_every_method() -> None:
    assert {yaml.safe_load(path.read_text())["method"] for path in FILES} == {"bayes", "grid", "random"}


@pytest.mark.parametrize("planted", [None, "parameters", "0.1.2"])
def test_a_planted_value_that_is_none_is_caught(planted: Any) -> None:
    sweep = yaml.safe_load((ROOT / "scripts" / "sweeps" / "maml_sinusoid.yaml").read_text())
    sweep["parameters"] = {"algo.learn_lr": {"values": [planted]}}
    with pytest.raises(InputError, match="learn_lr"):
        started(command_lines(sweep)[0])
