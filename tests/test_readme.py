"""What the README says can be typed, and what its example says can be run."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from conftest import quiet, trainer
from hydra import compose, initialize_config_dir

from innerloop.runs import schemas
from innerloop.runs.build import build

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "conf").glob("*/README.md")))
README = PAGES[0].read_text()


def test_there_are_two_set_up_commands() -> None:
    assert re.findall(r"^pip install.*$", README, re.M) == [
        "pip install -e . && python train.py algo=maml",
        'pip install -e ".[dev]" && pytest',
    ]


def commands() -> list[str]:
    pattern = re.compile(r"python train\.py ((?:'[^'\n]*'|[^\n`|#)'])*)")
    return sorted({command for page in PAGES for command in pattern.findall(page.read_text())})


@pytest.mark.parametrize("command", commands())
def test_every_training_command_composes(command: str) -> None:
    overrides = [a for a in shlex.split(command) if "=" in a and not a.startswith(("resume=", "hydra."))]
    # Of a sweep, the first job.
    first = [o.partition(",")[0] if not o.startswith("logger=[") else o for o in overrides if "(" not in o]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", first).algo.name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), target


def test_example_without_hydra_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    short = example.replace("max_steps=1000", "max_steps=6")
    short = short.replace("limit_train_batches=500", "limit_train_batches=3, log_every_n_steps=1")
    assert short != example
    quiet()
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(short, scope)
    assert scope["trainer"].global_step == 6
    assert scope["trainer"].callback_metrics["test/mse"].isfinite()


def test_the_algorithm_that_the_readme_adds_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, module = re.findall(r"```python\n(.*?)```", README, re.S)
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert len(module.splitlines()) <= 40
    added = types.ModuleType("innerloop.learners.sign_maml")
    exec(compile(module, "sign_maml.py", "exec"), added.__dict__)
    monkeypatch.setitem(sys.modules, added.__name__, added)
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "sign_maml.yaml").write_text(settings)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["algo=sign_maml", "algo.inner_lr=0.05", f"hydra.searchpath=[file://{tmp_path}]"])
    parts = build(cfg)
    before = [p.clone() for p in parts.learner.parameters()]
    trainer(max_steps=2).fit(parts.learner, parts.data)
    assert all((p != q).any() for p, q in zip(before, parts.learner.parameters(), strict=True))
    # One step on one weight, by hand: whatever its gradient, it moves by the rate.
    episode = parts.data.episode("test", 0)
    path = parts.learner.adaptation.trajectory(
        parts.learner.net, dict(parts.learner.net.named_parameters()), episode[0]
    )
    moved = (path[1]["head.bias"] - path[0]["head.bias"]).abs().item()
    assert moved == pytest.approx(0.05)
    assert len(path) == 6
