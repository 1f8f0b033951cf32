"""Pictures in folders, zip files and pickles: one's own (`folder`) and mini-ImageNet's."""

import io
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Here
from hydra import compose, initialize_config_dir
from PIL import Image
from test_cifar import python2

from innerloop.datasets import folder, mini_imagenet
from innerloop.datasets import images as shared
from innerloop.datasets.images import LabelledImages, splits_by_name
from innerloop.datasets.pictures import picture
from innerloop.episodes import SPLITS, InputError, Split
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.tasks.images import FewShotImages

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
LEAVES = Path(os.environ.get("INNERLOOP_LEAVES", ROOT.parent / "shared" / "data" / "leaves")) / "leaves.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "innerloop"


def encoded(image: Image.Image, suffix: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
    return file.getvalue()


def colour(name: str) -> tuple[int, int, int]:
    """A colour of the name's own."""
    r, g, b = np.random.default_rng(list(name.encode())).integers(0, 256, 3).tolist()
    return r, g, b


def plain(name: str, size: tuple[int, int] = (20, 12)) -> bytes:
    return encoded(Image.new("RGB", size, colour(name)), name.rpartition(".")[2])


def tree(*classes: str, pictures: int = 3) -> dict[str, bytes]:
    """path -> bytes: class folders of pictures, each of one colour."""
    return {name: plain(name) for c in classes for name in [f"{c}/{i}.png" for i in range(pictures)]}


def unpack(files: dict[str, bytes], root: Path) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def zipped(files: dict[str, bytes], file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__MACOSX/a/._0.png", b"no picture")
        for path, data in files.items():
            archive.writestr(path, data)
    return file


def names(data: LabelledImages) -> dict[Split, list[str]]:
    return {split: [data.classes[c] for c in data.splits[split]] for split in SPLITS}


TEN = tree(*"abcdefghij")


@pytest.mark.parametrize("inside", ["", "leaves/", "deep/er/"])
@pytest.mark.parametrize("packed", [False, True])
def test_class_folders(packed: bool, inside: str, tmp_path: Path) -> None:
    files = {inside + path: data for path, data in {**TEN, "a/notes/of.txt": b"by hand"}.items()}
    root = zipped(files, tmp_path / "own.zip") if packed else unpack({**files, ".git/x.png": b"no"}, tmp_path / "own")
    data = folder.load(str(root), size=8)
    assert data.images.shape == (30, 3, 8, 8)
    assert data.classes == tuple("abcdefghij")
    for c, name in enumerate(data.classes):
        for i in range(3):
            assert (torch.tensor(colour(f"{name}/{i}.png")) == data.images[data.first[c] + i].flatten(1).T).all()
    # The names alone say which class is in which split.
    assert names(data) == {"train": list("aghi"), "validation": list("be"), "test": list("cdfj")}


def test_fractions(tmp_path: Path) -> None:
    root = str(unpack(TEN, tmp_path / "own"))
    usual, other = (
        folder.load(root, split_rule="count", **fractions)
        for fractions in ({}, {"train_fraction": 0.5, "validation_fraction": 0.3})
    )
    assert [len(usual.splits[s]) for s in SPLITS] == [6, 2, 2]
    assert names(usual) == {"train": list("bcdefj"), "validation": list("ah"), "test": list("gi")}, "as runs had it"
    assert [len(other.splits[s]) for s in SPLITS] == [5, 3, 2]
    assert {*names(other)["train"]} < {*names(usual)["train"]}
    with pytest.raises(InputError, match=r"split_rule=random: choose one of name, count"):
        folder.load(root, split_rule="random")
    for train, validation in ((0.9, 0.2), (-0.1, 0.2), (0.5, -0.3)):
        with pytest.raises(InputError, match="must leave something of 1 for testing"):
            folder.load(root, train_fraction=train, validation_fraction=validation)
    with pytest.raises(InputError, match=r"10 classes, 1 of them for test; .* change data\.train_fraction"):
        folder.load(root, train_fraction=0.7, validation_fraction=0.2, split_rule="count")


def test_fractions_are_met_approximately_and_no_class_is_moved_by_others() -> None:
    many = splits_by_name([f"class {i}" for i in range(2000)], 0.64, 0.16, 2)
    assert [len(many[s]) / 2000 for s in SPLITS] == pytest.approx([0.64, 0.16, 0.2], abs=0.03)
    classes = [f"species {i}" for i in range(6)]
    of: dict[str, str] = {}
    for i in range(6, 60):
        for split, ids in splits_by_name(classes, 0.64, 0.16, 2).items():
            assert len(ids) >= 2
            for name in (classes[c] for c in ids):
                assert not (of.get(name) == "train" and split != "train"), f"{name} was trained on"
                assert not (of.get(name) == "validation" and split == "test"), name
                of[name] = split
        classes.append(f"species {i}")
    # However a system composes accents, the name is the same.
    composed, decomposed = (splits_by_name([name], 0.5, 0.2, 0) for name in ("\u00e9", "e\u0301"))
    assert {s: ids.tolist() for s, ids in composed.items()} == {s: ids.tolist() for s, ids in decomposed.items()}


def test_rare_classes_are_left_out_of_their_split_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tree(*"abcdefghijklmnop")
    root = unpack(whole, tmp_path / "own")
    before = folder.load(str(root), size=4)
    for name in "ag":  # two of the training classes
        assert name in names(before)["train"]
        for file in ("1.png", "2.png"):
            (root / name / file).unlink()
    after = folder.load(str(root), size=4)
    assert names(after) == names(before)
    with caplog.at_level(logging.WARNING, logger="innerloop"):
        tasks = FewShotImages(after, ways=2, shots=1, queries=2)
    usable = {split: [after.classes[c] for c in tasks.classes[split]] for split in SPLITS}
    expected = {split: [c for c in members if c not in "ag"] for split, members in names(after).items()}
    assert usable == expected
    (line,) = caplog.messages
    count = len(names(after)["train"])
    assert line == (
        f"2 of {count} train classes are left out, since shots=1 and 2 queries need 3 images per class: a, g"
    )
    drawn = tasks.draw("train", [np.random.default_rng(i) for i in range(200)])
    mean = drawn.support.x.mean((2, 3, 4)).flatten()
    rare = [after.images[after.first[after.classes.index(c)]].float().mean() / 255 for c in "ag"]
    assert all((mean - value).abs().min() > 1e-4 for value in rare)
    with pytest.raises(InputError, match=rf"ways={count}, but the train split has {count - 2} classes without 2 rare"):
        FewShotImages(after, ways=count, shots=1, queries=2)
    none_left = r"train split has 0 classes without 8 rare classes \(a, g, .*; min_images=4\)"
    with pytest.raises(InputError, match=none_left):
        FewShotImages(after, ways=2, shots=1, queries=2, min_images=4)
    with pytest.raises(InputError, match="min_images must be above zero, got 0"):
        FewShotImages(after, ways=2, shots=1, queries=2, min_images=0)


def test_a_run_records_which_classes_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    root = unpack(tree(*"abcdefghijklmnopqrstuvwxyz"), tmp_path / "own")
    (root / "a" / "1.png").unlink()
    arguments = [
        f"data.root={root}",
        "data.size=16",
        "data.ways=2",
        "data.shots=1",
        "data.queries=2",
        "data.train_queries=2",
    ]
    status, err = here("train.py", "data=folder", *arguments, "net.width=4", *TINY, "logger=csv", "hydra.run.dir=run")
    assert status == 0, err
    said = "train classes are left out, since shots=1 and 2 queries need 3 images per class: a\n"
    assert said in err
    assert said in Path("run/train.log").read_text()


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_splits_that_the_folders_say(validation: str, tmp_path: Path) -> None:
    files = tree("train/train", "train/b", "train/c", f"{validation}/d", f"{validation}/e", "test/f", "test/kind/g")
    data = folder.load(str(unpack(files, tmp_path / "own")), size=4)
    assert names(data) == {
        "train": ["train/b", "train/c", "train/train"],
        "validation": [f"{validation}/d", f"{validation}/e"],
        "test": ["test/f", "test/kind/g"],
    }
    assert (data.images[data.first[data.classes.index("train/c")], :, 0, 0].numpy() == colour("train/c/0.png")).all()


def test_classes_may_bear_the_names_of_splits(tmp_path: Path) -> None:
    files = tree("train", "test", *"abcdefgh")
    assert len(folder.load(str(unpack(files, tmp_path / "own")), split_rule="count").splits["train"]) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/notes.txt": b""}, "holds no pictures"),
        ({**TEN, "k/notes.txt": b""}, "the folder k holds no pictures"),
        ({**TEN, "cover.png": plain("cover.png")}, r"cover\.png is in no class folder"),
        (tree("a/b", "a", "c/d"), r"a/0\.png is in no class folder"),
        (tree(*"abcde"), r"5 classes \(a, b, c, d, e\): meta-training needs more, .* a case for adapting"),
        (tree("healthy", "ill"), r"2 classes \(healthy, ill\): meta-training needs more, .* a case for adapting"),
        (tree("train/a", "train/b", "test/c", "test/d"), "4 classes .* meta-training needs more"),
        (tree(*(f"train/{c}" for c in "abcdef"), "val/g", "test/h"), "8 classes, 1 of them for validation"),
        (tree("train/a", "train/b", "val/c", "val/d", "test/e", "test/a"), "class a is in test and in train"),
        (tree("train/a", "val/c", "test/e", "more/f"), "the folder more/f is in none of train, validation"),
        (tree("train/a", "val/c", "test/e", "f"), "the folder f is in none of train, validation"),
        ({**TEN, "e/1.png": TEN["e/1.png"][:60]}, r"e/1\.png is not a readable PNG"),
        ({**TEN, "e/1.jpg": b"<html>"}, r"e/1\.jpg is not a readable JPG"),
        ({**TEN, "e/1.jpg": plain("x.jpg", (90, 90))[:-400]}, r"e/1\.jpg is not a readable JPG"),
        ({**TEN, "e/1.tiff": encoded(Image.new("F", (5, 5), 700), "tiff")}, r"e/1\.tiff has real values that are not"),
        ({**TEN, "e/1.tiff": encoded(Image.new("I", (5, 5), 2**17), "tiff")}, r"e/1\.tiff has more than 16 bits"),
        ({**TEN, "e/1.png": b"", "f/0.jpg": b"x"}, r"2 of 31 pictures cannot .*1\.png .* empty; .*f/0\.jpg .* format"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be(packed: bool, files: dict[str, bytes], message: str, tmp_path: Path, cache: Path) -> None:
    root = zipped(files, tmp_path / "own.zip") if packed else unpack(files, tmp_path / "own")
    with pytest.raises(InputError, match=message) as error:
        folder.load(str(root))
    assert str(root) in str(error.value)
    assert not cache.exists(), "a later run must not find a part"


def test_roots_and_settings_that_cannot_be(tmp_path: Path) -> None:
    root = unpack(TEN, tmp_path / "own")
    (root / "k").mkdir()
    with pytest.raises(InputError, match="the folder k holds no pictures"):
        folder.load(str(root))
    (root / "k").rmdir()
    with pytest.raises(InputError, match=r"data\.root=.*nowhere: there is no such folder or file"):
        folder.load(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"data=folder needs data\.root"):
        folder.load()
    (tmp_path / "own.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"own\.tar\.gz is not a valid zip file: .*; unpack it and give the folder"):
        folder.load(str(tmp_path / "own.tar.gz"))
    with pytest.raises(InputError, match=r"0\.png is not a valid zip file"):
        folder.load(str(root / "a" / "0.png"))
    whole = zipped(TEN, tmp_path / "own.zip").read_bytes()
    (tmp_path / "own.zip").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"own\.zip is not a valid zip file"):
        folder.load(str(tmp_path / "own.zip"))
    with pytest.raises(InputError, match=r"data\.channels=4: choose 1 for grey or 3 for colour"):
        folder.load(str(root), channels=4)
    with pytest.raises(InputError, match=r"data\.size must be above zero, got 0"):
        folder.load(str(root), size=0)


def test_pictures_of_all_kinds(tmp_path: Path) -> None:
    half = Image.new("RGB", (40, 20), "red")
    half.paste("blue", (20, 0, 40, 20))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: to be turned by a quarter, clockwise
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    palette = half.quantize(4)
    files = {
        **TEN,
        "a/0.png": encoded(half),
        "a/1.jpg": encoded(half, "jpg", exif=turned, quality=95),
        "a/2.png": encoded(clear),
        "b/0.png": encoded(palette, transparency=bytes([0] * 4)),
        "b/1.gif": encoded(Image.new("P", (9, 9)), "gif"),
        "b/2.bmp": encoded(half.convert("1"), "bmp"),
    }
    del files["a/1.png"], files["b/1.png"], files["b/2.png"]
    root = str(unpack(files, tmp_path / "own"))
    images = folder.load(root, size=10).images[:3].int()
    red, blue = torch.tensor([255, 0, 0])[:, None, None], torch.tensor([0, 0, 255])[:, None, None]
    assert ((images[0, :, :, :4] - red).abs() < 9).all()
    assert ((images[0, :, :, 6:] - blue).abs() < 9).all()
    assert ((images[1, :, :4] - red).abs() < 9).all()
    assert ((images[1, :, 6:] - blue).abs() < 9).all()
    assert (images[2] == 255).all(), "what is transparent is paper"
    grey = folder.load(root, size=10, channels=1).images
    assert grey.shape == (30, 1, 10, 10)
    assert (grey[0, 0, :, :4].int() - 76).abs().max() < 9  # .299 of 255
    assert (grey[3] == 255).all()


def test_grey_of_16_bits_is_scaled_over_its_whole_range() -> None:
    steps = np.arange(256, dtype=np.uint16)[None] * 257
    turned = Image.Exif()
    turned[0x0112] = 3
    wide = Image.fromarray(np.repeat(steps, 256, 0))
    for data, suffix in ((encoded(wide), "png"), (encoded(wide, "tiff"), "tif")):
        found = picture(data, f"a.{suffix}", 256, 3)
        assert (found == np.arange(256)).all()
    upside_down = picture(encoded(wide, "tiff", exif=turned), "a.tif", 256, 1)
    assert (upside_down == np.arange(255, -1, -1)).all()
    real = Image.fromarray(np.repeat(steps, 256, 0).astype(np.float32) / 65535)
    assert (picture(encoded(real, "tiff"), "a.tif", 256, 1) == np.arange(256)).all()


def test_decoded_once_and_anew_when_a_picture_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(TEN, tmp_path / "own")
    packed = zipped(TEN, tmp_path / "own.zip")
    before = folder.load(str(root), size=6)
    assert torch.equal(folder.load(str(packed), size=6).images, before.images)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "pictures", None)
        for place in (root, packed):
            assert torch.equal(folder.load(str(place), size=6).images, before.images)
    assert folder.load(str(root), size=7).images.shape == (30, 3, 7, 7)
    changed = {**TEN, "c/1.png": plain("another.png")}
    (root / "c" / "1.png").write_bytes(changed["c/1.png"])
    zipped(changed, packed)
    for place in (root, packed):
        after = folder.load(str(place), size=6).images
        assert [i for i in range(30) if not torch.equal(after[i], before.images[i])] == [7]


@pytest.mark.skipif(not LEAVES.is_file(), reason="the leaves are not on this machine")
def test_real_leaves() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["data=folder", f"data.root={LEAVES}", "data.size=28", "data.channels=1", "algo=maml"])
    tasks = build(cfg).tasks
    assert isinstance(tasks, FewShotImages)
    assert tasks.dataset.images.shape == (1600, 1, 28, 28)
    assert [len(tasks.dataset.splits[s]) for s in SPLITS] == [65, 12, 23]
    assert set(tasks.dataset.counts) == {16}
    assert tasks.dataset.classes[0] == "Acer_Campestre"
    # The nearest support image in raw pixels is right far more often than one time in five.
    support, query = tasks.draw("test", [np.random.default_rng(i) for i in range(40)])
    nearest = torch.cdist(query.x.flatten(2), support.x.flatten(2)).argmin(-1)
    assert (nearest == query.y).float().mean() > 0.4


# mini-ImageNet: four classes a split, three photographs each.
PHOTOGRAPHS = {
    split: {f"n{4 * s + c:08d}": [f"n{4 * s + c:08d}{i:08d}.png" for i in range(3)] for c in range(4)}
    for s, split in enumerate(SPLITS)
}
Write = Callable[[Path], None]


def photographs(split: Split) -> np.ndarray:
    """(12, 84, 84, 3), those of a class one after the other."""
    every = [name for members in PHOTOGRAPHS[split].values() for name in members]
    return np.stack(
        [np.random.default_rng(int(name[1:9] + name[-5])).integers(0, 256, (84, 84, 3)) for name in every]
    ).astype(np.uint8)


def write_class_dict(root: Path) -> None:
    for split, short in zip(SPLITS, ("train", "val", "test"), strict=True):
        pixels = photographs(split)
        mixed = np.random.default_rng(0).permutation(12)
        places = mixed.argsort()
        content = {
            "image_data": pixels[mixed],
            "class_dict": {name: places[3 * c : 3 * c + 3].tolist() for c, name in enumerate(PHOTOGRAPHS[split])},
        }
        (root / f"mini-imagenet-cache-{short}.pkl").write_bytes(pickle.dumps(content))


def write_labels(root: Path) -> None:
    for split, short in zip(SPLITS, ("train_phase_train", "val", "test"), strict=True):
        content = {"data": photographs(split), "labels": [c for c in range(4) for _ in range(3)]}
        (root / f"miniImageNet_category_split_{short}.pickle").write_bytes(python2(content))


def write_lists(root: Path) -> None:
    for split, short in zip(SPLITS, ("train", "val", "test"), strict=True):
        rows = [f"{name},{label}" for label, members in PHOTOGRAPHS[split].items() for name in members]
        (root / f"{short}.csv").write_text("\n".join(["filename,label", *rows, ""]))
        for name, pixels in zip([row.partition(",")[0] for row in rows], photographs(split), strict=True):
            unpack({f"images/{name}": encoded(Image.fromarray(pixels))}, root)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Four classes a split and three photographs each; an empty folder for them."""
    monkeypatch.setattr(mini_imagenet, "CLASSES", dict.fromkeys(SPLITS, 4))
    monkeypatch.setattr(mini_imagenet, "PHOTOGRAPHS", 3)
    (tmp_path / "mini").mkdir()
    return tmp_path / "mini"


@pytest.mark.parametrize("write", [write_class_dict, write_labels, write_lists])
def test_mini_imagenet_in_each_form(write: Write, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(small)
    data = mini_imagenet.load(str(small))
    assert data.images.shape == (36, 3, 84, 84)
    assert [data.splits[s].tolist() for s in SPLITS] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    expected = np.concatenate([photographs(s) for s in SPLITS]).transpose(0, 3, 1, 2)
    assert (data.images.numpy() == expected).all()
    if write is not write_labels:  # which have no names
        assert list(data.classes) == [name for s in SPLITS for name in PHOTOGRAPHS[s]]
    assert len(set(data.classes)) == 12
    monkeypatch.setattr(mini_imagenet, "parse", None)
    assert torch.equal(mini_imagenet.load(str(small)).images, data.images)


def test_photographs_are_squeezed_and_changes_are_seen(small: Path) -> None:
    write_lists(small)
    before = mini_imagenet.load(str(small)).images
    name = PHOTOGRAPHS["validation"]["n00000005"][1]
    (small / "images" / name).write_bytes(plain(name, (300, 200)))
    after = mini_imagenet.load(str(small)).images
    assert [i for i in range(36) if not torch.equal(after[i], before[i])] == [16]
    assert (torch.tensor(colour(name)) == after[16].flatten(1).T).all()


def test_roots_that_are_not_mini_imagenet(small: Path, cache: Path) -> None:
    def refused(message: str, root: Path | None = small) -> None:
        with pytest.raises(InputError, match=message):
            mini_imagenet.load(None if root is None else str(root))
        assert not cache.exists(), "a later run must not find a part"

    refused(r"no public download: set data\.root=FOLDER", None)
    refused(r"data\.root=.*: there is no such folder\. mini-ImageNet has no public", small / "nowhere")
    refused("neither the three pickles nor the three lists")
    write_lists(small)
    (small / "test.csv").unlink()
    refused("neither the three pickles nor the three lists")
    write_lists(small)
    photograph = small / "images" / PHOTOGRAPHS["test"]["n00000009"][0]
    whole = photograph.read_bytes()
    photograph.write_bytes(whole[:5000])
    refused(f"{photograph.name} is not a readable PNG")
    photograph.unlink()
    refused(rf"test\.csv names {photograph.name}, which is nowhere in")
    photograph.write_bytes(whole)
    lists = small / "val.csv"
    rows = lists.read_text()
    lists.write_text(rows.replace("filename", "file"))
    refused(r"val\.csv is no list of photographs")
    lists.write_text("")
    refused(r"val\.csv is no list of photographs")
    lists.write_bytes(b"\xff\xfe\x00\x01")
    refused(r"val\.csv cannot be read")
    lists.write_text("\n".join(rows.splitlines()[:-1]))
    refused(r"val\.csv: n00000007 has 2 photographs, there should be 3")
    lists.write_text("\n".join(rows.splitlines()[:-3]))
    refused(r"val\.csv holds 3 classes, the validation split has 4")
    # Pickles go before lists.
    write_class_dict(small)
    file = small / "mini-imagenet-cache-val.pkl"
    data = file.read_bytes()
    content = pickle.loads(data)
    for broken in (b"", b"a text", data[:1000], data[:-100]):
        file.write_bytes(broken)
        refused(r"cache-val\.pkl is not a valid pickle")
    members = content["class_dict"]
    for wrong, message in (
        ({}, "KeyError"),
        ({**content, "image_data": content["image_data"][:, :80]}, r"images of shape \(12, 80, 84, 3\)"),
        ({**content, "image_data": content["image_data"] / 255}, "float64"),
        ({**content, "class_dict": {**members, "n00000004": [0, 0, 99]}}, "do not contain every image exactly once"),
        ({**content, "class_dict": [1]}, "AttributeError"),
        ({"data": content["image_data"], "labels": [0, 1]}, "do not contain every image exactly once"),
    ):
        file.write_bytes(pickle.dumps(wrong))
        refused(rf"cache-val\.pkl is no part of mini-ImageNet: .*{message}")


def test_a_class_in_two_splits(small: Path) -> None:
    write_class_dict(small)
    (small / "mini-imagenet-cache-test.pkl").write_bytes((small / "mini-imagenet-cache-train.pkl").read_bytes())
    with pytest.raises(InputError, match="mini: class n00000000 is in train and in test"):
        mini_imagenet.load(str(small))


def test_published_counts_are_insisted_on(tmp_path: Path) -> None:
    assert list(mini_imagenet.CLASSES.values()) == [64, 16, 20]
    write_class_dict(tmp_path)
    with pytest.raises(InputError, match="holds 4 classes, the train split has 64"):
        mini_imagenet.load(str(tmp_path))


def test_the_configuration_of_mini_imagenet_builds(small: Path) -> None:
    write_lists(small)
    overrides = ["algo=maml", "data=mini_imagenet", f"data.root={small}", "data.ways=4", "data.queries=2"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        support, query = build(compose("train", overrides)).data.episode("test", 0)
    assert (support.x.shape, query.x.shape) == ((4, 3, 84, 84), (8, 3, 84, 84))
    assert support.x.max() == 1
