"""Printed characters as few-shot data: the same each time, no two classes alike, none empty."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from innerloop.datasets import glyphs
from innerloop.datasets import images as shared
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, InputError
from innerloop.tasks.images import FewShotImages

FEW = ((0x0041, 0x005A), (0x0391, 0x03A9), (0x05D0, 0x05EA))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def few(folder: Path) -> Iterator[LabelledImages]:
    """Latin and Greek capitals and Hebrew only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "BLOCKS", FEW)
        yield glyphs.load(str(folder))


def test_shape_and_ink(few: LabelledImages) -> None:
    assert few.images.shape == (20 * len(few.classes), 1, 28, 28)
    assert few.counts.tolist() == [20] * len(few.classes)
    assert few.images.amax((1, 2, 3)).min() > 100, "a rendering without ink"
    assert few.images[..., 0, :].float().mean() < 2, "ink runs over the edge"
    assert 20 < few.images.float().mean() < 80
    assert "U+0041 LATIN CAPITAL LETTER A" in few.classes
    assert "U+05D0 HEBREW LETTER ALEF" in few.classes


def test_look_alikes_are_one_class(few: LabelledImages) -> None:
    greek = {name.split()[-1] for name in few.classes if "GREEK" in name}
    assert {"GAMMA", "DELTA", "XI", "SIGMA", "PSI", "OMEGA"} <= greek
    assert not {"ALPHA", "BETA", "EPSILON", "OMICRON", "TAU", "RHO"} & greek


def test_renderings_of_a_class_differ(few: LabelledImages) -> None:
    assert len(few.images.flatten(1).unique(dim=0)) == len(few.images)


def test_drawn_once_and_always_the_same(few: LabelledImages, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "BLOCKS", FEW[:1])
    fresh = glyphs.draw_all()
    latin = [few.classes.index(name) for name in fresh["names"]]
    kept = few.images.reshape(-1, 20, 28, 28)[latin]
    assert (fresh["images"] == kept.numpy()).all(), "what a class looks like depends on the other classes"
    monkeypatch.setattr(glyphs, "draw_all", None)
    assert torch.equal(glyphs.load(str(folder)).images, few.images)
    assert [p.suffix for p in folder.iterdir()] == [".npz"]


def test_the_users_cache_by_default(few: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / project)
    monkeypatch.setattr(glyphs, "BLOCKS", FEW[2:])
    data = glyphs.load()
    assert all("HEBREW" in name for name in data.classes)
    assert len(list((tmp_path / "innerloop" / "glyphs").glob("*.npz"))) == 1


def test_splits(few: LabelledImages) -> None:
    sizes = [len(few.splits[s]) for s in SPLITS]
    assert sum(sizes) == len(few.classes)
    assert np.allclose(sizes, np.array([0.7, 0.1, 0.2]) * len(few.classes), atol=1)


def test_no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"DejaVuSans\.ttf is missing"):
        glyphs.load(str(tmp_path))


def test_tasks_can_be_solved(few: LabelledImages) -> None:
    tasks = FewShotImages(few, ways=5, shots=5, queries=15)
    support, query = tasks.draw("train", [np.random.default_rng(i) for i in range(20)])
    centres = support.x.reshape(20, 5, 5, -1).mean(2)
    assert (torch.cdist(query.x.flatten(2), centres).argmin(-1) == query.y).float().mean() > 0.5


@pytest.mark.slow
def test_all_of_them(tmp_path: Path) -> None:
    data = glyphs.load(str(tmp_path))
    assert len(data.classes) > 1000
    assert data.images.amax((1, 2, 3)).min() > 100
    assert len({*data.classes}) == len(data.classes)
