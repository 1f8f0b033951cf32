"""What the README and the pages say can be typed, and what their examples say can be run."""

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import SHORT, quiet, run_script, trainer
from hydra import compose, initialize_config_dir

from innerloop.runs import schemas
from innerloop.runs.build import build

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def test_there_are_two_set_up_commands() -> None:
    assert re.findall(r"^pip install.*$", README, re.M) == [
        "pip install -e . && python train.py algo=maml",
        'pip install -e ".[dev]" && pytest',
    ]


def test_pages_are_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 220
    assert [line for line in lines if len(line) > 110] == []
    assert {
        page.name: n for page in PAGES if (n := len(page.read_text().splitlines())) > 220 - 20 * (page != PAGES[0])
    } == {}


def commands() -> list[str]:
    pattern = re.compile(r"python train\.py ((?:'[^'\n]*'|[^\n`|#)'])*)")
    return sorted({command for page in PAGES for command in pattern.findall(page.read_text())})


@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith(("resume=", "net=mine"))])
def test_every_training_command_composes(command: str) -> None:
    overrides = [a for a in shlex.split(command) if "=" in a and not a.startswith(("resume=", "hydra."))]
    # Of a sweep, the first job.
    first = [o if "=[" in o else o.partition(",")[0] for o in overrides if "(" not in o and "…" not in o]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", first).algo.name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text) + [
            (t, "") for t in re.findall(r'(?:src|srcset)="(.*?)"', text)
        ]
        for target, anchor in links:
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = " ".join(page.read_text() for page in PAGES)
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in README or f"({page.name}" in linked


def test_example_without_hydra_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example, _, _ = EXAMPLES
    short = example.replace("max_steps=1000", "max_steps=6")
    short = short.replace("limit_train_batches=500", "limit_train_batches=3, log_every_n_steps=1")
    assert short != example
    quiet()
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(short, scope)
    assert scope["trainer"].global_step == 6
    assert scope["trainer"].callback_metrics["test/mse"].isfinite()


def test_example_that_loads_a_run(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train("algo=maml", "hydra.run.dir=loaded", "logger=csv", *SHORT)
    _, example, _ = EXAMPLES
    here = re.sub(r'innerloop.load\(".*"\)', 'innerloop.load("loaded")', example)
    assert here != example
    scope: dict = {}
    exec(here, scope)
    assert scope["predictions"].shape == scope["query"].y.shape


@pytest.mark.slow
def test_figures(train: Any) -> None:
    """docs/figures/draw.py draws each figure for light and dark pages, the same each time, without a warning."""
    sweep = Path("drawn").absolute()
    train("-m", "algo=maml,hypernet,hybrid", "seed=0,1", f"sweep={sweep}", *SHORT)
    contents = []
    for folder in ("first", "second"):
        run_script("../docs/figures/draw", str(sweep), "--out", str(sweep / folder))
        contents.append({path.name: path.read_bytes() for path in (sweep / folder).iterdir()})
    assert contents[0] == contents[1]
    # The report's picture is one of a browser's, and scripts/transfer.py draws that of docs/transfer.md.
    kept = {path.name for path in (ROOT / "docs" / "figures").iterdir()} - {"draw.py", "report.png", "transfer.png"}
    assert set(contents[0]) == kept


def test_the_algorithm_that_the_readme_adds_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    *_, module = EXAMPLES
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
