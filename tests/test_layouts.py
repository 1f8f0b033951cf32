"""Pictures as people have them: tables, lists of classes, arrays, the same classes in all splits, other test ways."""

import logging
import pickle
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Here
from pictures import classes, write, zip_of
from torch import Tensor

from innerloop.backbones import features
from innerloop.datasets import folder, layouts
from innerloop.datasets import images as shared
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, InputError, Split, episode_rng
from innerloop.runs.build import backbone_of
from innerloop.tasks.images import FewShotImages


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / "cache" / project)


def names(data: LabelledImages) -> dict[Split, list[str]]:
    return {split: [data.classes[c] for c in data.splits[split]] for split in SPLITS}


def pictures_of(data: LabelledImages) -> dict[str, Tensor]:
    return {name: data.images[a : a + n] for name, a, n in zip(data.classes, data.first, data.counts, strict=True)}


EXPECTED = {"train": ["a", "b"], "validation": ["c", "d"], "test": ["e", "f"]}
THIRDS: dict[str, Any] = {"split_rule": "count", "train_fraction": 0.34, "validation_fraction": 0.34}
OF = {name: split for split, members in EXPECTED.items() for name in members}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "TEST"),
        ("base", "val", "novel"),
        ("Base", "dev", "Novel"),
        ("meta_train", "meta-val", "meta test"),
        ("training", "validation", "testing"),
        ("train_set", "ValSet", "test images"),
        ("Base_Classes", "Val_Classes", "Novel_Classes"),
        ("images_background", "images_dev", "images_evaluation"),
        ("1_train", "2_val", "3_test"),
    ],
)
def test_split_folders_by_their_usual_names(train: str, validation: str, test: str, tmp_path: Path) -> None:
    of = {"train": train, "validation": validation, "test": test}
    root = write(tmp_path / "own", {f"{of[OF[n[0]]]}/{n}": d for n, d in classes("abcdef").items()})
    found = names(folder.load(str(root), size=8))
    assert {s: [n.rpartition("/")[2] for n in members] for s, members in found.items()} == EXPECTED


@pytest.mark.parametrize("place", ["", "images/", "deep/er/"])
@pytest.mark.parametrize("splits", [True, False])
def test_a_table_of_files_labels_and_splits(splits: bool, place: str, tmp_path: Path) -> None:
    """Files by their paths, or by their names wherever they are; a split for each, or the usual split by class."""
    flat = {name.replace("/", "_"): data for name, data in classes("abcdef").items()}
    root = write(tmp_path / "own", {f"{place}{name}": data for name, data in flat.items()})
    rows = [f"{name};{name[0]};{OF[name[0]].upper()}" if splits else f"{name};{name[0]}" for name in flat]
    (root / "labels.csv").write_text("\n".join(["Filename;Species" + (";Set" if splits else ""), *rows]))
    by_folder = folder.load(str(write(tmp_path / "folders", classes("abcdef"))), size=8, **THIRDS)
    for source in (root, root / "labels.csv"):
        data = folder.load(str(source), size=8, **THIRDS)
        assert names(data) == (EXPECTED if splits else names(by_folder))
        for name, images in pictures_of(data).items():
            assert torch.equal(images, pictures_of(by_folder)[name])


def test_other_labels_for_the_same_pictures_are_read_anew(tmp_path: Path) -> None:
    """The images are kept class by class, so a table that has changed has its own."""
    root = write(tmp_path / "own", {name.replace("/", "_"): data for name, data in classes("abcdef").items()})
    for letters in ("abcdef", "fedcba"):
        rows = [f"{name},{letters['abcdef'.index(name[0])]}" for name in sorted(p.name for p in root.glob("*.png"))]
        (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
        found = pictures_of(folder.load(str(root), size=8, **THIRDS))
        first = folder.pictures(root, [f"a_{i}.png" for i in range(4)], 8, 3)
        assert torch.equal(found[letters[0]], torch.from_numpy(first))


def test_labels_and_files_in_either_form_of_unicode(tmp_path: Path) -> None:
    """macOS writes an accent behind its letter, and tables are typed with whole letters."""
    whole, apart = "\u00e9", "e\u0301"
    root = write(tmp_path / "own", {f"{apart}_{n.replace('/', '_')}": d for n, d in classes("abcdef").items()})
    rows = [f"{whole}_{n.replace('/', '_')},{(whole, apart)[int(n[2]) % 2]} {n[0]}" for n in classes("abcdef")]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert folder.load(str(root), size=8, **THIRDS).classes == tuple(f"{whole} {c}" for c in "abcdef")


@pytest.mark.parametrize("table", [False, True])
def test_names_that_are_alike_are_said(table: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {**classes("abcdef"), **{f"A/{n[2:]}": d for n, d in classes("g").items()}}
    root = write(tmp_path / "own", files)
    if table:
        (root / "labels.csv").write_text("\n".join(["file,label", *(f"{n},{n[0]}" for n in files)]))
    assert len(folder.load(str(root), size=8, **THIRDS).classes) == 7
    assert (
        "the classes 'A' and 'a' differ in capitals or spaces alone; if these are one, its pictures may" in caplog.text
    )
    assert layouts.alike(["Acer rubrum", "Acer_Rubrum", "Acer  rubra", "\u00e9", "e\u0301"]).count(" and ") == 2


def test_a_table_for_each_split(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {f"images/{n.replace('/', '')}": d for n, d in classes("abcdef").items()})
    for split, members in EXPECTED.items():
        rows = [f"{n}{i}.png,{n}" for n in members for i in range(4)]
        (root / f"{split[:5]}.csv".replace("valid.", "val.")).write_text("\n".join(["filename,label", *rows]))
    assert names(folder.load(str(root), size=8)) == EXPECTED


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x/9.png,a,train"], r"labels\.csv names x/9\.png, which is nowhere there"),
        (["../../etc/passwd,a,train"], "names ../../etc/passwd, which is nowhere there"),
        (["0.png,a,train"], r"names 0\.png, which is there more than once: a/0\.png, b/0\.png"),
        (["a/0.png,,train"], r"a/0\.png has no label"),
        (["a/0.png,b,train"], r"a/0\.png has several labels"),
        (["b/1.png,a,test"], "class a is in train and in test"),
        (["b/1.png,b,holdout"], "is in the split holdout, which is not a known one"),
        (["b/1.png,z,"], "class z has no split, and others have one"),
    ],
)
def test_tables_that_cannot_be(rows: list[str], message: str, tmp_path: Path) -> None:
    root = write(tmp_path / "own", classes("abcdef"))
    good = [f"{n},{n[0]},{OF[n[0]]}" for n in classes("abcdef") if n != "b/1.png"]
    (root / "labels.csv").write_text("\n".join(["file,label,split", *good, *rows]))
    with pytest.raises(InputError, match=message):
        folder.load(str(root), size=8)


@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_classes_as_cifar_fs_is_published(packed: bool, tmp_path: Path) -> None:
    files = {f"cifar100/data/{name}": data for name, data in classes("abcdef").items()}
    for split, word in zip(SPLITS, ("train", "val", "test"), strict=True):
        files[f"cifar100/splits/bertinetto/{word}.txt"] = "\n".join(EXPECTED[split]).encode()
    root = write(tmp_path / "own", files)
    if packed:
        import zipfile

        root = tmp_path / "cifar100.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    assert names(folder.load(str(root), size=8)) == EXPECTED
    if not packed:
        lists = root / "cifar100" / "splits" / "bertinetto"
        (lists / "train.txt").write_text("a\n")
        with pytest.raises(InputError, match="the folder b is in none of the lists"):
            folder.load(str(root), size=8)
        (lists / "train.txt").write_text("a\nb\nz\n")
        with pytest.raises(InputError, match="the lists name z, and there is no such class folder"):
            folder.load(str(root), size=8)
        (lists / "train.txt").write_text("a\nb\nc\n")
        with pytest.raises(InputError, match="class c is in the lists of"):
            folder.load(str(root), size=8)
        shutil.copytree(lists, lists.with_name("others"))
        with pytest.raises(InputError, match=r"has lists of classes in .*bertinetto and in .*others"):
            folder.load(str(root), size=8)


def test_names_in_lists_of_classes_may_have_spaces(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {f"data/leaf {name}": data for name, data in classes("abcdef").items()})
    for split, word in zip(SPLITS, ("train", "val", "test"), strict=True):
        lines = "\r\n".join([*(f"leaf {name}" for name in EXPECTED[split]), ""])
        write(root, {f"splits/{word}.txt": b"\xef\xbb\xbf" + lines.encode()})
    assert names(folder.load(str(root), size=8)) == {s: [f"leaf {n}" for n in EXPECTED[s]] for s in SPLITS}


def arrays(kinds: int, first: int, channels: int = 3, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Mixed pictures of some classes: (n, size, size, channels) uint8 and labels (n,)."""
    rng = np.random.default_rng(first)
    labels = rng.permutation(np.repeat(np.arange(first, first + kinds), 5))
    return (labels[:, None, None, None] * 10 + rng.integers(0, 9, (len(labels), size, size, channels))).astype(
        np.uint8
    ), labels


@pytest.mark.parametrize("kind", ["pickle", "npz", "npz channels first", "python 2"])
def test_pickles_and_npz_of_arrays(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "own"
    root.mkdir()
    for first, word in ((0, "train"), (3, "val"), (6, "test")):
        images, labels = arrays(3, first)
        if kind.startswith("npz"):
            shown = images.transpose(0, 3, 1, 2) if "first" in kind else images
            np.savez(root / f"{word}.npz", images=shown, labels=labels)
        else:
            content = {"data": images, "labels": labels.tolist()}
            protocol = 2 if kind == "python 2" else 4
            (root / f"CIFAR_FS_{word}.pickle").write_bytes(pickle.dumps(content, protocol))
    (root / "miniImageNet_train_phase_test.pickle").write_bytes(b"another cut of the training classes")
    data = folder.load(str(root), size=12)
    assert data.images.shape == (45, 3, 12, 12)
    assert [len(data.splits[s]) for s in SPLITS] == [3, 3, 3]
    for c, images in enumerate(pictures_of(data).values()):
        assert (images.float().mean((1, 2, 3)) - (10 * c + 4)).abs().max() < 1.5
    grey = folder.load(str(root), size=6, channels=1)
    assert grey.images.shape == (45, 1, 6, 6)


def test_one_file_of_arrays_is_split_by_class(tmp_path: Path) -> None:
    images, labels = arrays(20, 0, channels=1)
    np.savez(tmp_path / "own.npz", x=images[..., 0], y=labels)
    data = folder.load(str(tmp_path / "own.npz"), size=12, split_rule="count", channels=1)
    assert [len(data.splits[s]) for s in SPLITS] == [13, 3, 4]
    same = folder.load(str(tmp_path / "own.npz"), size=12, split="same", channels=1)
    assert [len(same.splits[s]) for s in SPLITS] == [20, 20, 20]


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch /tmp/innerloop-arrays",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((4, 5, 5, 3), np.uint8)}, "there must be images"),
        ({"images": np.zeros((4, 5, 5, 3), np.float32), "labels": np.arange(4)}, "images must be uint8"),
        (
            {"images": np.zeros((4, 5, 5, 3), np.uint8), "labels": np.arange(3)},
            "there are 4 images and labels of shape",
        ),
    ],
)
def test_arrays_that_cannot_be(content: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        folder.load(str(tmp_path / "own.npz"))


def test_arrays_of_strangers_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({"data": Evil(), "labels": [0]}))
    np.savez(tmp_path / "b.npz", images=np.array([Evil()], object), labels=np.arange(1))
    for name in ("a.pickle", "b.npz"):
        with pytest.raises(InputError, match=r"is no valid|is not a valid pickle"):
            folder.load(str(tmp_path / name))
    assert not Path("/tmp/innerloop-arrays").exists()
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"is no valid \.npz"):
        folder.load(str(tmp_path / "b.npz"))


def test_the_depth_of_a_class(tmp_path: Path) -> None:
    files = {f"{n[0]}/site{i}/{n[2:]}": d for i in range(2) for n, d in classes("abcdef", first=4 * i).items()}
    root = str(write(tmp_path / "own", files))
    for level in (None, 2):
        assert len(folder.load(root, size=8, class_level=level, **THIRDS).classes) == 12
    data = folder.load(root, size=8, class_level=1, **THIRDS)
    assert data.classes == tuple("abcdef")
    assert set(data.counts) == {8}
    with pytest.raises(InputError, match=r"data\.class_level must be above zero"):
        folder.load(root, class_level=0)
    write(tmp_path / "own", {"a/8.png": classes("a", first=8)["a/8.png"]})
    assert folder.load(root, size=8, class_level=1, **THIRDS).counts.tolist() == [9, *[8] * 5]
    for level in (None, 2):
        with pytest.raises(InputError, match=r"a/8\.png is in no class folder"):
            folder.load(root, size=8, class_level=level)
    split = str(write(tmp_path / "split", {f"{OF[n[0]]}/{n}": d for n, d in (files | classes("a")).items()}))
    assert names(folder.load(split, size=8, class_level=1))["train"] == ["train/a", "train/b"]
    write(tmp_path / "split", {"train/8.png": classes("a", first=8)["a/8.png"]})
    with pytest.raises(InputError, match="the folder train is in none of"):
        folder.load(split, size=8, class_level=1)


def test_what_was_found_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {**classes("abcdefgh"), **classes("a", each=9), "notes.txt": b""}
    with caplog.at_level(logging.INFO, "innerloop"):
        folder.load(str(write(tmp_path / "own", files)), size=8, **THIRDS)
    said = [record.getMessage() for record in caplog.records]
    assert any("1 files are no pictures of a known format" in line for line in said)
    sizes = "3 for train, 3 for validation, 2 for test; 4 to 9 pictures a class, median 4"
    assert any(f"37 pictures of 8 classes (a, b, c, d, e and 3 more); {sizes}" in line for line in said)


def test_the_same_classes_in_all_splits(tmp_path: Path) -> None:
    root = write(tmp_path / "own", classes("abc", each=10))
    data = folder.load(str(root), size=8, split="same", train_fraction=0.5, validation_fraction=0.2)
    assert names(data) == {split: ["a", "b", "c"] for split in SPLITS}
    assert data.counts.tolist() == [5] * 3 + [2] * 3 + [3] * 3
    every = {image.numpy().tobytes() for image in data.images}
    assert len(every) == 30, "no picture is in two splits"
    again = folder.load(str(write(tmp_path / "own", classes("d", each=10))), size=8, split="same", train_fraction=0.5)
    assert torch.equal(again.images[:5], data.images[:5]), "another class moves no picture of these"
    with pytest.raises(InputError, match="class d has 2 pictures, too few for all splits"):
        folder.load(str(write(tmp_path / "few", {**classes("abc", each=10), **classes("d", each=2)})), split="same")


@pytest.mark.parametrize("outer", ["", "own/", "own.v1/"])
@pytest.mark.parametrize("tables", [1, 3])
def test_a_zip_file_of_pictures_and_tables_of_them(outer: str, tables: int, tmp_path: Path) -> None:
    """As the archives of many challenges are: images/ and labels.csv, or a table for each split."""
    files = classes("abcdef")
    root = write(tmp_path / "own", {f"images/{n.replace('/', '_')}": data for n, data in files.items()})
    for split in SPLITS if tables == 3 else ("labels",):
        rows = [f"{n.replace('/', '_')},{n[0]},{OF[n[0]]}" for n in files if split in ("labels", OF[n[0]])]
        (root / f"{split}.csv").write_text("\n".join(["file,label,split", *rows]))
    loaded, packed = folder.load(str(root), size=8), folder.load(str(zip_of(root, outer)), size=8)
    assert names(packed) == names(loaded) == EXPECTED
    assert torch.equal(packed.images, loaded.images)
    (root / f"{'test' if tables == 3 else 'labels'}.csv").write_text("file,labels\nx.png,a\n")
    for source in (root, zip_of(root, outer)):
        with pytest.raises(InputError, match=r"(test|labels)\.csv has no column label"):
            folder.load(str(source), size=8)


def test_a_table_beside_class_folders_that_is_of_something_else(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {**classes("abcdef"), "notes.csv": b"day,weather\n1,rain\n"})
    for source in (root, zip_of(root)):
        assert folder.load(str(source), size=8, **THIRDS).classes == tuple("abcdef")


def test_columns_that_are_there_twice(tmp_path: Path) -> None:
    root = write(tmp_path / "own", classes("abcdef"))
    (root / "labels.csv").write_text("\n".join(["file,label,Label", *(f"{n},{n[0]},x" for n in classes("abcdef"))]))
    with pytest.raises(InputError, match=r"labels\.csv has two columns label"):
        folder.load(str(root / "labels.csv"), size=8)


def test_a_folder_around_a_zip_file_is_no_folder_of_pictures(tmp_path: Path) -> None:
    path = zip_of(write(tmp_path / "got" / "own", classes("abcdef")))
    shutil.rmtree(tmp_path / "got" / "own")
    with pytest.raises(InputError, match=rf"; give {path} itself$"):
        folder.load(str(path.parent))


@pytest.mark.parametrize("kind", ["folders", "table", "npz"])
def test_the_same_classes_in_splits_that_the_source_has(kind: str, tmp_path: Path) -> None:
    """These say which pictures are whose; read as folders of classes, train/a would be another class than test/a."""
    rows, each = [], {"train": 4, "validation": 2, "test": 3}
    for first, (split, n) in enumerate(each.items()):
        files = classes("abc", each=n, first=10 * first)
        write(tmp_path / "own", {f"{split}/{name}": data for name, data in files.items()})
        rows += [f"{split}/{name},{name[0]},{split}" for name in files]
    root = tmp_path / "own"
    expected = {
        s: folder.pictures(root / s, list(classes("abc", n, 10 * i)), 8, 3) for i, (s, n) in enumerate(each.items())
    }
    if kind == "table":
        (root / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    elif kind == "npz":
        root = tmp_path / "arrays"
        root.mkdir()
        for split, images in expected.items():
            labels = np.repeat(list("abc"), each[split])
            np.savez(root / f"{split}.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    if kind != "npz":
        with pytest.raises(InputError, match=r"class a is in .* set data\.split=same"):
            folder.load(str(root), size=8)
    data = folder.load(str(root), size=8, split="same")
    assert names(data) == {split: ["a", "b", "c"] for split in SPLITS}
    assert data.counts.tolist() == [n for n in each.values() for _ in "abc"]
    assert np.array_equal(data.images.numpy(), np.concatenate(list(expected.values())))
    if kind == "folders":
        shutil.rmtree(root / "validation" / "b")
        with pytest.raises(InputError, match="class b has no picture for validation"):
            folder.load(str(root), size=8, split="same")


def few_shot(**settings: Any) -> FewShotImages:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (20 * 12, 1, 8, 8), dtype=np.uint8))
    splits: dict[Split, np.ndarray] = {
        "train": np.arange(10),
        "validation": np.arange(10, 15),
        "test": np.arange(15, 20),
    }
    data = LabelledImages(images, tuple(f"c{i}" for i in range(20)), np.full(20, 12), splits)
    return FewShotImages(data, **{"shots": 2, "queries": 3, **settings})


def test_other_ways_in_the_test() -> None:
    both, five = few_shot(ways=8, test_ways=5), few_shot(ways=5)
    assert both.output_size == 8
    assert both.varied_ways
    assert not few_shot(ways=5, test_ways=5).varied_ways
    train = both.draw("train", [episode_rng(0, "train", 0)])
    assert not isinstance(train, list)
    assert train.support.y.unique().numel() == 8
    for split in ("validation", "test"):
        mine, same = (tasks.draw(split, [episode_rng(0, split, 3)]) for tasks in (both, five))  # type: ignore[arg-type]
        assert not isinstance(mine, list)
        assert not isinstance(same, list)
        assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(mine, same, strict=True))
    with pytest.raises(InputError, match="test_ways=9, but the validation split has 5 classes: lower test_ways"):
        few_shot(ways=5, test_ways=9)
    with pytest.raises(InputError, match="test_ways must be at least 2"):
        few_shot(ways=5, test_ways=1)
    with pytest.raises(InputError, match="give min_ways or test_ways"):
        few_shot(ways=5, test_ways=4, min_ways=2)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of torchvision's interface that is used: transforms are classes of v2, drawn by torch's generator."""
    v2 = types.ModuleType("torchvision.transforms.v2")

    class Transform(torch.nn.Module):
        pass

    class RandomHorizontalFlip(Transform):
        def __init__(self, p: float = 0.5) -> None:
            super().__init__()
            self.p = p

        def forward(self, x: Tensor) -> Tensor:
            return x.flip(-1) if torch.rand(()) < self.p else x

    class Pad(Transform):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (1, 1))

    class MixUp(Transform):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("labels should be given")

    v2.Transform, v2.RandomHorizontalFlip, v2.Pad, v2.path = Transform, RandomHorizontalFlip, Pad, sys  # type: ignore[attr-defined]
    v2.MixUp = MixUp  # type: ignore[attr-defined]
    transforms = types.ModuleType("torchvision.transforms")
    transforms.v2 = v2  # type: ignore[attr-defined]
    for name, module in (("torchvision", types.ModuleType("torchvision")), ("torchvision.transforms", transforms)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", v2)


@pytest.mark.usefixtures("torchvision")
def test_training_pictures_are_augmented_as_the_episode_has_it() -> None:
    plain, flipped = few_shot(ways=3), few_shot(ways=3, augment=[{"RandomHorizontalFlip": {"p": 0.5}}])
    state = torch.get_rng_state()
    for split in SPLITS:
        rngs = [[episode_rng(1, split, i) for i in range(3)] for _ in range(3)]
        before, after = plain.draw(split, rngs[0]), flipped.draw(split, rngs[1])
        again = flipped.draw(split, list(reversed(rngs[2])))
        assert not isinstance(before, list)
        assert not isinstance(after, list)
        assert not isinstance(again, list)
        for a, b, c in zip(before, after, again, strict=True):
            assert torch.equal(a.y, b.y)
            assert torch.equal(b.x, c.x.flip(0)), "whatever was drawn before"
            if split != "train":
                assert torch.equal(a.x, b.x)
                continue
            same = (a.x == b.x).flatten(2).all(2)
            assert torch.equal(b.x, torch.where(same[..., None, None, None], a.x, a.x.flip(-1)))
            assert 0 < same.double().mean() < 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["Flip"], "Flip is no transform of torchvision"),
        (["path"], "path is no transform of torchvision"),
        ([{"RandomHorizontalFlip": {"q": 1}}], "RandomHorizontalFlip cannot be made with"),
        ("RandomHorizontalFlip", "augment must be a list"),
        ([3], "3 is no transform"),
        (["RandomHorizontalFlip", "MixUp"], "MixUp fails on a picture: ValueError: labels should be given"),
        (["Pad"], "they must stay uint8 of"),
    ],
)
def test_augmentations_that_cannot_be(augment: Any, message: str) -> None:
    """Found when the tasks are built, and not in the middle of training."""
    with pytest.raises(InputError, match=message):
        few_shot(ways=3, augment=augment)


def test_the_net_of_a_run_is_a_backbone(train: Any, tmp_path: Path, here: Here) -> None:
    root = write(tmp_path / "own", classes("abcdefghijkl", each=8))
    common = [*TINY, "logger=csv", "data=folder", f"data.root={root}", "data.size=16", "data.ways=2", "data.queries=2"]
    common += ["data.train_queries=2", "data.split_rule=count", "test.episodes=4"]
    train("algo=protonet", *common, "net.width=8", f"hydra.run.dir={tmp_path / 'first'}")
    backbone = backbone_of(f"run:{tmp_path / 'first'}")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16), dtype=np.uint8))
    whole = backbone(images)
    assert whole.shape == (7, 8)
    torch.testing.assert_close(torch.cat([backbone(image[None]) for image in images]), whole, rtol=1e-4, atol=1e-5)
    found = features(backbone, images.numpy(), 7, tmp_path / "vectors")
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert backbone_of(f"run:{tmp_path / 'first'}").digest == backbone.digest
    on_vectors = [f"data.backbone=run:{tmp_path / 'first'}", "data.standardize=true", "net=linear"]
    train("algo=protonet", *common, *on_vectors, "trainer.max_steps=0", f"hydra.run.dir={tmp_path / 'second'}")
    assert (tmp_path / "second" / "results.json").exists()
    with pytest.raises(InputError, match="a backbone is the body of a net that was trained on pictures"):
        backbone_of(f"run:{tmp_path / 'second'}")
    status, err = here("adapt.py", f"support={root}", f"query={root}", "out=out", f"backbone=run:{tmp_path / 'first'}")
    assert status == 0, err
    status, err = here("adapt.py", "model=out", f"query={root}", "out=out2")
    assert status == 0, err
    rows = [(tmp_path / name / "predictions.csv").read_text() for name in ("out", "out2")]
    assert rows[0] == rows[1]
