"""Copies of pictures are found, never judge a model that has seen the other, and never leave their group."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import classes, drawing, encoded, small, write
from PIL import Image

from innerloop import practice
from innerloop.datasets.pictures import picture
from innerloop.episodes import InputError
from innerloop.practice import heads, twins, validation
from innerloop.practice.model_file import load, model_bytes
from innerloop.practice.reading import thumbnail

__all__ = ["small"]
ROOT = Path(__file__).resolve().parents[1]
LEAVES = Path(os.environ.get("INNERLOOP_LEAVES", ROOT.parent / "shared" / "data" / "leaves")) / "leaves.zip"
T = Image.Transpose


def copies_of(image: Image.Image) -> dict[str, bytes]:
    """A picture saved again, resized, turned and mirrored."""
    return {
        "saved.jpg": encoded(image, "jpg", quality=85),
        "small.jpg": encoded(image.resize((64, 64)), "jpg", quality=80),
        "left.png": encoded(image.transpose(T.ROTATE_90)),
        "over.jpg": encoded(image.transpose(T.ROTATE_180), "jpg", quality=85),
        "mirror.png": encoded(image.transpose(T.FLIP_LEFT_RIGHT)),
        "dark.png": encoded(image.point(lambda v: round(0.9 * v))),
    }


def smooth(kind: int, number: int) -> Image.Image:
    """A picture without the hard edges of `drawing`."""
    return drawing(kind, number, (4, 4)).resize((96, 96), Image.Resampling.BICUBIC)


def prints(files: list[bytes]) -> torch.Tensor:
    return twins.prints_of(torch.stack([thumbnail(picture(data, "x.png", 96, 3)) for data in files]))


@pytest.mark.parametrize("source", ["drawings", "leaves"])
def test_copies_are_found_and_other_pictures_are_none(source: str) -> None:
    """Among leaves of the same species too, which are as alike as pictures that differ may be."""
    if source == "leaves":
        if not LEAVES.is_file():
            pytest.skip("the leaves are not on this machine")
        with zipfile.ZipFile(LEAVES) as archive:
            names = sorted(n for n in archive.namelist() if "Quercus" in n or "Arundinaria" in n)[:160]
            images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    else:
        images = [smooth(kind, i) for kind in range(10) for i in range(8)]
    own = prints([encoded(image) for image in images])
    assert {(i, j) for i, j in twins.near(own, own) if i != j} == set()
    for i in range(0, len(images), 16):
        copies = prints(list(copies_of(images[i]).values()))
        assert twins.near(copies, own) == [(n, i) for n in range(len(copies))]


def test_pictures_of_one_colour_are_no_copies() -> None:
    flat = [encoded(Image.new("RGB", (40, 40), colour)) for colour in ("red", "white", "black", "black")]
    assert twins.near(prints(flat), prints(flat)) == []


def test_groups_are_joined_by_copies_and_individuals() -> None:
    found = twins.groups_of([(0, 1), (1, 4)], ["p", None, "q", "q", None, "p"], 6)
    assert found is not None
    assert found.tolist() == [0, 0, 2, 2, 0, 0]
    assert twins.groups_of([], [None] * 3, 3) is None
    assert twins.groups_of([], [], 3) is None


@pytest.mark.parametrize("most", [2, 7, 300])
def test_a_group_is_never_on_both_sides(most: int) -> None:
    """And no fit misses a class. The scores are those of models that were fitted without the group."""
    rng = np.random.default_rng(most)
    y = torch.tensor(rng.permutation([0] * 30 + [1] * 20 + [2] * 6 + [3] * 2 + [4]))
    groups = torch.tensor(rng.integers(0, 25, len(y)))
    groups[y == 3] = 77  # one group alone, so nothing of the class can be left out
    x = torch.arange(len(y), dtype=torch.float64)[:, None]
    seen: list[tuple[set[int], set[int]]] = []

    def fit(kept: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, heads.VectorModel]:
        assert set(labels.tolist()) == {0, 1, 2, 3, 4}
        model = heads.pixel_means(kept, labels, classes)[heads.PIXELS]

        def predict(out: torch.Tensor) -> heads.Scores:
            seen.append((set(kept[:, 0].int().tolist()), set(out[:, 0].int().tolist())))
            return model(out)

        return {"means": predict}  # type: ignore[dict-item]

    found = validation.hold_out(fit, x, y, 5, most, groups)
    assert found is not None
    several = {c for c in range(5) if len(groups[y == c].unique()) > 1}
    alone = {int(group) for group, c in zip(groups, y, strict=True) if int(c) not in several}
    assert sorted(found.members.tolist()) == [i for i in range(len(y)) if int(groups[i]) not in alone]
    for kept, out in seen:
        shared = {int(groups[i]) for i in out} & {int(groups[i]) for i in kept}
        assert not shared, "a group is among those left out and those that a model has seen"
    assert sorted(i for _, out in seen for i in out) == found.members.tolist()


def test_copies_make_no_model_look_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels without any sense: a model that saw a copy of each would be nearly always right."""
    files = {}
    for i in range(16):
        image = smooth(100 + i, 0)
        files[f"{'ab'[i % 2]}/{i}.png"] = encoded(image)
        files |= {f"{'ab'[i % 2]}/{i}_{name}": data for name, data in list(copies_of(image).items())[:2]}
    adapted = practice.adapt(write(tmp_path / "own", files))
    assert adapted.about["validation"]["accuracy"] < 0.8
    assert adapted.about["validation"]["pictures"] == 48
    assert "32 pictures look like a copy of another" in caplog.text
    assert "in 16 parts, copies" in adapted.about["validation"]["left_out"]
    assert adapted.y is not None
    alone = validation.hold_out(heads.pixel_means, heads.raw_pixels(adapted.support.thumbnails), adapted.y, 2)  # type: ignore[union-attr]
    assert alone is not None
    assert len(alone.members) == 48


def test_copies_of_other_classes_are_said(tmp_path: Path) -> None:
    image = smooth(ord("a"), 50)
    odd = {"a/x.png": encoded(image), "b/y.jpg": encoded(image, "jpg", quality=90)}
    adapted = practice.adapt(write(tmp_path / "own", {**classes(), **odd}))
    assert any("different labels, such as a/x.png (a) and b/y.jpg (b)" in line for line in adapted.about["warnings"])
    assert adapted.groups is not None
    assert len(adapted.groups.unique()) == 13


def test_copies_of_labelled_pictures_among_the_new_ones(tmp_path: Path) -> None:
    """They are marked and judge nothing, by a model that was read from a file too."""
    image = smooth(ord("a"), 50)
    adapted = practice.adapt(write(tmp_path / "own", {**classes(), "a/x.png": encoded(image)}))
    assert not [line for line in adapted.about["warnings"] if "copy" in line]
    copies = {f"b/{name}": data for name, data in copies_of(image).items()}
    new = write(tmp_path / "new", {**classes(each=2, first=9), **copies, "b/same.png": encoded(image)})
    write(tmp_path / "model", {"adapted.pt": model_bytes(adapted)})
    for model in (adapted, load(tmp_path / "model")):
        found = model.predict(new)
        marked = {f for f, look in zip(found.files, found.look(), strict=True) if "like a copy of a labelled" in look}
        assert marked == set(copies)
        assert found.summary()["copies_of_labelled"] == len(copies)
        evaluation = found.evaluation()
        assert evaluation is not None
        assert (evaluation["pictures"], evaluation["accuracy"]) == (6, 1)


def test_a_model_of_an_earlier_version_has_no_prints(tmp_path: Path) -> None:
    """It predicts the same and marks no copies. Prints that are none are refused."""
    image = smooth(ord("a"), 50)
    adapted = practice.adapt(write(tmp_path / "own", {**classes(), "a/x.png": encoded(image)}))
    new = write(tmp_path / "new", {**classes(each=1, first=9), "b/x.jpg": encoded(image, "jpg", quality=90)})
    content = torch.load(io.BytesIO(model_bytes(adapted)), weights_only=True)
    del content["prints"], content["about"]["label"]
    torch.save(content, tmp_path / "adapted.pt")
    found = load(tmp_path).predict(new)
    np.testing.assert_array_equal(found.probabilities, adapted.predict(new).probabilities)
    assert found.summary()["copies_of_labelled"] == 0
    for odd in (torch.zeros(3, 4), torch.full((1, twins.SIDE, twins.SIDE), torch.nan), "prints"):
        torch.save({**content, "prints": odd}, tmp_path / "adapted.pt")
        with pytest.raises(InputError, match=r"prints|no whole adapted model"):
            load(tmp_path)
