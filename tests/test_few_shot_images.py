"""N-way k-shot tasks on images that carry their own name: class, number and which way is up."""

import numpy as np
import pytest
import torch

from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Episode, InputError, Split, episode_rng
from innerloop.tasks.images import FewShotImages

SIDE = 4
SPLIT_IDS: dict[Split, range] = {"train": range(0, 6), "validation": range(6, 11), "test": range(11, 18)}


def numbered(counts: list[int] | None = None, splits: dict | None = None, width: int = SIDE) -> LabelledImages:
    """Class c has 20 + c % 3 images; pixels: (0, 0) = 255, (0, 1) = class, (0, 2) = number within the class."""
    if counts is None:
        counts = [20 + c % 3 for c in range(18)]
    images = torch.zeros(sum(counts), 1, SIDE, width, dtype=torch.uint8)
    images[:, 0, 0, 0] = 255
    images[:, 0, 0, 1] = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    images[:, 0, 0, 2] = torch.from_numpy(np.concatenate([np.arange(n) for n in counts]))
    ids = {split: np.array(list(r)) for split, r in (splits or SPLIT_IDS).items()}
    return LabelledImages(images, tuple(f"class {c}" for c in range(len(counts))), np.array(counts), ids)


def read(x: torch.Tensor) -> np.ndarray:
    """(n, 1, 4, 4) floats -> (n, 3): class, number and quarter turns of each image."""
    assert x.dtype == torch.float32
    pixels = (x * 255).round().long()[:, 0]
    found = np.full((len(x), 3), -1)
    for turn in range(4):
        upright = pixels.rot90(-turn, (-2, -1))
        here = (upright[:, 0, 0] == 255).numpy()
        found[here] = np.stack([upright[here, 0, 1], upright[here, 0, 2], np.full(here.sum(), turn)], axis=1)
    assert (found >= 0).all()
    return found


def draw(tasks: FewShotImages, split: Split, indices: range, seed: int = 0) -> Episode:
    return tasks.draw(split, [episode_rng(seed, split, i) for i in indices])


def same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(p, q) for s, t in zip(a, b, strict=True) for p, q in zip(s, t, strict=True))


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_episodes_do_not_depend_on_how_they_are_grouped(split: Split, rotations: bool) -> None:
    tasks = FewShotImages(numbered(), ways=5, shots=2, queries=4, train_queries=3, rotations=rotations)
    together = draw(tasks, split, range(12))
    for size in (1, 5, 7):
        groups = [draw(tasks, split, range(i, min(i + size, 12))) for i in range(0, 12, size)]
        joined = [[torch.cat([g[part][i] for g in groups]) for i in (0, 1)] for part in (0, 1)]
        assert all(torch.equal(together[part][i], joined[part][i]) for part in (0, 1) for i in (0, 1))
    assert not same(together, draw(tasks, split, range(12, 24)))
    assert not same(together, draw(tasks, split, range(12), seed=1))


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_labels(split: Split) -> None:
    tasks = FewShotImages(numbered(), ways=5, shots=2, queries=4, train_queries=3, rotations=True)
    queries = 3 if split == "train" else 4
    support, query = draw(tasks, split, range(6))
    assert tasks.input_shape == (1, SIDE, SIDE)
    assert tasks.output_size == 5
    assert support.x.shape == (6, 10, 1, SIDE, SIDE)
    assert query.x.shape == (6, 5 * queries, 1, SIDE, SIDE)
    for part, n in ((support, 2), (query, queries)):
        assert part.y.dtype == torch.int64
        assert part.x.is_contiguous()
        assert part.x.max() == 1.0
        assert all(torch.bincount(y, minlength=5).tolist() == [n] * 5 for y in part.y)


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_what_an_episode_is_made_of(split: Split, rotations: bool) -> None:
    tasks = FewShotImages(numbered(), ways=5, shots=5, queries=15, rotations=rotations)
    support, query = draw(tasks, split, range(60))
    turned = mixed = twice = 0
    for s, q, ys, yq in zip(support.x, query.x, support.y, query.y, strict=True):
        s, q = read(s), read(q)
        assert len({*map(tuple, s), *map(tuple, q)}) == 5 * 20, "an image occurs twice in a task"
        kinds = [{*map(tuple, np.r_[s[ys == label], q[yq == label]][:, [0, 2]])} for label in range(5)]
        assert all(len(kind) == 1 for kind in kinds), "one label, two classes or angles"
        pairs = {pair for kind in kinds for pair in kind}
        assert len(pairs) == 5, "one class, two labels"
        ids, angles = zip(*pairs, strict=True)
        assert {*ids} <= {*SPLIT_IDS[split]}
        turned, mixed, twice = turned + any(angles), mixed + (len({*angles}) > 1), twice + (len({*ids}) < 5)
    # A class may meet itself at another angle; nothing turns outside training.
    expected = rotations and split == "train"
    assert (turned > 50, mixed > 50, twice > 10) == (expected,) * 3
    assert expected or not (turned or mixed or twice)


def test_draws_are_uniform_over_classes_angles_labels_and_images() -> None:
    tasks = FewShotImages(numbered(), ways=4, shots=1, queries=1, rotations=True)
    support, query = draw(tasks, "train", range(3000))
    for part in (support, query):
        found = read(part.x.flatten(0, 1))
        pairs = np.bincount(4 * found[:, 0] + found[:, 2], minlength=24)
        assert np.abs(pairs - 500).max() < 5 * np.sqrt(500)
        first = np.bincount(found[::4, 0], minlength=6)  # the class that gets label 0
        assert np.abs(first - 500).max() < 5 * np.sqrt(500)
        for c in SPLIT_IDS["train"]:
            mine = np.bincount(found[found[:, 0] == c, 1], minlength=20 + c % 3)
            assert len(mine) == 20 + c % 3
            assert np.abs(mine - mine.mean()).max() < 5 * np.sqrt(mine.mean())


def test_every_image_of_a_class_can_be_used_up() -> None:
    tasks = FewShotImages(numbered([6] * 18), ways=5, shots=2, queries=4)
    support, query = draw(tasks, "test", range(3))
    for s, q in zip(support.x, query.x, strict=True):
        assert sorted({*read(s)[:, 1], *read(q)[:, 1]}) == list(range(6))


def test_the_data_set_is_left_alone() -> None:
    data = numbered()
    before = data.images.clone()
    support, _ = draw(FewShotImages(data, ways=5, queries=3, rotations=True), "train", range(20))
    support.x.zero_()
    assert torch.equal(data.images, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 1}, "ways must be at least 2, got 1"),
        ({"ways": 6}, "ways=6, but the validation split has 5 classes"),
        ({"ways": 8, "rotations": True}, "ways=8, but the validation split has 5 classes"),
        ({"ways": 25, "rotations": True}, "ways=25, but the train split has 24 classes"),
        ({"shots": 0}, "shots must be above zero, got 0"),
        ({"queries": 0}, "queries must be above zero, got 0"),
        ({"train_queries": 0}, "train_queries must be above zero, got 0"),
        (
            {"shots": 6},
            "ways=5, but the train split has 4 classes without 2 rare classes (class 0, class 3; shots=6 and 15",
        ),
        ({"shots": 6, "train_queries": 1}, "shots=6 and 15 queries need 21 images per class)"),
    ],
)
def test_what_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        FewShotImages(numbered(), **settings)
    assert message in str(error.value)


def test_only_square_images_turn() -> None:
    FewShotImages(numbered(width=5), ways=5)
    with pytest.raises(InputError, match="needs square images, these are 4x5"):
        FewShotImages(numbered(width=5), ways=5, rotations=True)


def test_labelled_images_fit_together() -> None:
    images, names, counts = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), ("a", "b", "c"), np.array([1, 2, 1])
    splits: dict[Split, np.ndarray] = {"train": np.array([0]), "validation": np.array([2]), "test": np.array([1])}
    data = LabelledImages(images, names, counts, splits)
    assert data.first.tolist() == [0, 1, 3]
    assert data.first.dtype == data.counts.dtype == np.int64
    with pytest.raises(InputError, match="class 0 is in more than one place"):
        LabelledImages(images, names, counts, {**splits, "test": np.array([1, 0])})
    with pytest.raises(InputError, match="there are 3 classes"):
        LabelledImages(images, names, counts, {**splits, "test": np.array([3])})
    with pytest.raises(InputError, match="must be train, validation, test"):
        LabelledImages(images, names, counts, {"train": np.array([0])})
    with pytest.raises(InputError, match="sum to 3"):
        LabelledImages(images, names, np.array([1, 1, 1]), splits)
    with pytest.raises(InputError, match="uint8"):
        LabelledImages(images.float(), names, counts, splits)
    with pytest.raises(InputError, match=r"images must be a tensor: torch.from_numpy\(images\)"):
        LabelledImages(images.numpy(), names, counts, splits)  # type: ignore[arg-type]
