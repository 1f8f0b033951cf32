"""adapt.py with a run on ratings and the ratings of a new user."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here

import innerloop
from innerloop.episodes import InputError
from innerloop.practice.recommend import recommend


@pytest.fixture(scope="module")
def run(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on synthetic ratings."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = ["data=ratings_synthetic", "data.users=60", "data.items=30", "data.rated=0.5", "trainer.threads=1"]
    short = ["trainer.max_steps=4", "trainer.val_every=4", "logger=csv", f"hydra.run.dir={folder}"]
    train("algo=maml", *settings, *short, "net.start=factorisation", "algo.inner_lr=0.1")
    return folder


OWN = "item,rating\n3,5\n7,1\n11,4\n"


def test_the_best_unrated_items_come_first(run: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(OWN + "unheard,3\n")
    status, err = here("adapt.py", f"run={run}", "support=mine.csv", "out=out")
    assert status == 0, err
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    items = [row["item"] for row in rows]
    assert sorted(map(int, items)) == [i for i in range(30) if i not in (3, 7, 11)], "those already rated left out"
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == sorted(predicted, reverse=True)
    assert all(1 <= p <= 5 for p in predicted)
    # By hand: mean + b_i + b_u + w_u·v_i after the inner steps on the three ratings.
    loaded = innerloop.load(run)
    net = loaded.learner.net.double()
    w, b = (p.detach().clone().requires_grad_() for p in net.head.parameters())  # type: ignore[union-attr]
    features, y = net.body(torch.tensor([3, 7, 11])).detach(), torch.tensor([5.0, 1.0, 4.0]).double()  # type: ignore[operator]
    for _ in range(10):
        r = net.mean + features[:, :-1] @ w[:, 0] + features[:, -1] + b
        slopes = torch.autograd.grad((r - y).square().mean(), (w, b))
        w, b = ((p - 0.1 * g).detach().requires_grad_() for p, g in zip((w, b), slopes, strict=True))
    every = net.body(torch.arange(30)).detach()  # type: ignore[operator]
    by_hand = (net.mean + every[:, :-1] @ w[:, 0] + every[:, -1] + b).clamp(1, 5).detach().numpy()
    np.testing.assert_allclose(predicted, by_hand[[int(i) for i in items]], atol=2e-4)
    assert here("adapt.py", f"run={run}", "support=mine.csv", "out=out")[0] == 1, "nothing is replaced unasked"


def test_what_is_printed(run: Path, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text(OWN)
    from innerloop.practice.recommend import recommend_command

    recommend_command(str(run), str(tmp_path / "mine.csv"), None, str(tmp_path / "out"), False, ())
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "adapted to 3 ratings; 27 items that are not among them, the best first:"
    assert len(lines) == 10
    assert all(re.fullmatch(r"  \d+ *  \d\.\d\d  \(\d+ training ratings\)", line) for line in lines)
    assert last.endswith("predictions.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item,rating\n3,9\n", r"line 2: rating is '9'; it must be from 1 to 5"),
        ("item,rating\n3,good\n", r"line 2: rating is 'good'; it must be from 1 to 5"),
        ("item,rating\n3,4\n3,5\n", r"line 3: item 3 is rated twice"),
        ("item,rating\nx,4\n", r"rates no item that the run knows, but x"),
        ("item,rating\n", r"rates no item that the run knows$"),
        ("item,rating\n2 8,4\nxx,1\n", r"knows, but 2 8, xx; perhaps 2 8 is 28$"),
        ('item,rating\n3,"4,5"\n', r"line 2: rating is '4,5'; it must be from 1 to 5; write numbers with a point"),
        ("film,rating\n3,4\n", r"has no column item; its columns are film, rating"),
    ],
)
def test_a_wrong_file_is_named(content: str, message: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        recommend(innerloop.load(run), tmp_path / "mine.csv")


def test_wrong_settings_are_named(run: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(OWN)
    for arguments, message in (
        ((), "give support="),
        (("support=mine.csv", "query=mine.csv"), "leave query out"),
        (("support=mine.csv", "false_alarms=0.1"), "false_alarms=0.1: a run on ratings"),
        (("support=mine.csv", "backbone=efficientnet_lite0"), "give run or backbone, not both"),
        (("support=mine.csv", "label=rating"), "label=rating and run"),
    ):
        status, err = here("adapt.py", f"run={run}", "out=out", *arguments)
        assert status == 1
        assert message in err
    assert not (tmp_path / "out").exists()
