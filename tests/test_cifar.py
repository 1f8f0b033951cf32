"""CIFAR-FS and FC100: small archives in the official format, from a file and from a local server, whole and damaged."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from test_omniglot import Server

from innerloop.datasets import cifar100, cifar_fs, fc100, pickles
from innerloop.datasets import images as shared
from innerloop.episodes import SPLITS, InputError, weights_of
from innerloop.runs import schemas
from innerloop.runs.build import build

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
PARTS = {"train": 14, "test": 6}

# The superclasses in the order of their numbers, each with its classes, as the file `meta` of the archive has them.
TREE = """
aquatic_mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food_containers: bottle bowl can cup plate
fruit_and_vegetables: apple mushroom orange pear sweet_pepper
household_electrical_devices: clock keyboard lamp telephone television
household_furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large_carnivores: bear leopard lion tiger wolf
large_man-made_outdoor_things: bridge castle house road skyscraper
large_natural_outdoor_scenes: cloud forest mountain plain sea
large_omnivores_and_herbivores: camel cattle chimpanzee elephant kangaroo
medium_mammals: fox porcupine possum raccoon skunk
non-insect_invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small_mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles_1: bicycle bus motorcycle pickup_truck train
vehicles_2: lawn_mower rocket streetcar tank tractor
"""
GROUPS = [line.partition(": ")[0] for line in TREE.split("\n")[1:-1]]
GROUP_OF = {name: g for g, line in enumerate(TREE.split("\n")[1:-1]) for name in line.partition(": ")[2].split()}
NAMES = sorted(GROUP_OF)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes as Python 2 and numpy 1 did when the archives were made: 8-bit strings, numbers for a dtype's flags."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def reducer_override(self, value: object) -> object:
        if isinstance(value, np.dtype):
            return np.dtype, (value.str[1:], 0, 1), (3, value.str[0], None, None, None, -1, -1, 0)
        return NotImplemented


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def part(count: int, seed: int) -> dict:
    """A part in random order. An image's first pixel is (class, number, 7); numbers go on from part to part."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(100), count))
    pixels = np.zeros((100 * count, 3, 32, 32), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 2, 0, 0] = labels, 7
    for c in range(100):
        pixels[labels == c, 1, 0, 0] = np.arange(count) + 100 * seed
    return {
        "data": pixels.reshape(-1, 3072),
        "fine_labels": labels.tolist(),
        "coarse_labels": [GROUP_OF[NAMES[c]] for c in labels],
        "filenames": [f"{NAMES[c]}_{i}.png" for i, c in enumerate(labels)],
        "batch_label": "part 1 of 1",
    }


def official(**changed: object) -> dict[str, bytes]:
    """File name -> bytes of the three files."""
    files = {name: part(count, seed) for seed, (name, count) in enumerate(PARTS.items())}
    files["meta"] = {"fine_label_names": NAMES, "coarse_label_names": GROUPS}
    return {name: python2(changed.get(name, content)) for name, content in files.items()}


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in {"file.txt~": b"", **files}.items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return official()


@pytest.fixture(scope="module")
def archive(files: dict[str, bytes]) -> bytes:
    return tarred(files)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(cifar100, "PARTS", PARTS)
    return tmp_path / "cache" / "innerloop" / "cifar100"


@pytest.fixture
def root(archive: bytes, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(archive)
    return tmp_path / "data"


@pytest.fixture
def server(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        server.files = {"/cifar-100-python.tar.gz": archive}
        monkeypatch.setattr(cifar100, "URL", f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz")
        monkeypatch.setattr(cifar100, "MD5", hashlib.md5(archive).hexdigest())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_one_download_serves_both(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cifar_fs.load()
    monkeypatch.setattr(cifar100, "parse", None)  # from now on the cache serves
    second = fc100.load()
    assert first.images.shape == (2000, 3, 32, 32)
    assert first.images.dtype == torch.uint8
    assert torch.equal(first.images, second.images)
    assert list(first.classes) == list(second.classes) == NAMES
    assert server.asked == ["/cifar-100-python.tar.gz"]
    assert sorted(p.suffix for p in cache.iterdir()) == [".gz", ".npz"]


def test_images_of_a_class_are_those_of_both_parts(root: Path) -> None:
    data = cifar_fs.load(str(root))
    assert data.counts.tolist() == [20] * 100
    for c in range(100):
        mine = data.images[data.first[c] : data.first[c] + 20, :, 0, 0].tolist()
        assert mine == [[c, number, 7] for number in [*range(14), *range(100, 106)]]
    assert data.images[..., 1:].max() == 0


def test_cifar_fs_is_the_published_split(root: Path) -> None:
    split = cifar_fs.published_split()
    assert [len(split[s]) for s in SPLITS] == [64, 16, 20]
    assert sorted(name for s in SPLITS for name in split[s]) == NAMES
    # Published results stand on these very classes.
    assert {"baby", "whale", "rocket"} < set(split["test"])
    digests = [hashlib.sha256("\n".join(sorted(split[s])).encode()).hexdigest()[:16] for s in SPLITS]
    assert digests == ["e40c037757741c61", "e02b317c48c94270", "2a35675fcdddfebb"]
    data = cifar_fs.load(str(root))
    assert {s: sorted(data.classes[c] for c in data.splits[s]) for s in SPLITS} == {s: sorted(split[s]) for s in SPLITS}


def test_fc100_is_the_published_split(root: Path) -> None:
    data = fc100.load(str(root))
    assert [len(data.splits[s]) for s in SPLITS] == [60, 20, 20]
    groups = {s: {GROUP_OF[data.classes[c]] for c in data.splits[s]} for s in SPLITS}
    assert groups == {
        "train": {1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19},
        "validation": {8, 11, 13, 16},
        "test": {0, 7, 12, 14},
    }


def test_the_archive_and_the_folder_are_one(root: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    packed = fc100.load(str(root))
    unpacked = tmp_path / "elsewhere" / "cifar-100-python"
    unpacked.mkdir(parents=True)
    for name, data in files.items():
        (unpacked / name).write_bytes(data)
    for place in (root / "cifar-100-python.tar.gz", unpacked, unpacked.parent):
        data = fc100.load(str(place))
        assert torch.equal(data.images, packed.images)
        assert all((data.splits[s] == packed.splits[s]).all() for s in SPLITS)
    # A file that changes is seen.
    other = part(PARTS["test"], 1)
    other["data"] = other["data"] // 2
    (unpacked / "test").write_bytes(python2(other))
    assert not torch.equal(fc100.load(str(unpacked)).images, packed.images)


@pytest.mark.parametrize("damage", ["cut", "other bytes", "absent"])
def test_a_bad_download_leaves_nothing_to_be_taken_for_whole(damage: str, server: Server, cache: Path) -> None:
    good, name = dict(server.files), "/cifar-100-python.tar.gz"
    if damage == "cut":
        server.cut = 500
    elif damage == "other bytes":
        server.files[name] = tarred(official(meta={}))
    else:
        del server.files[name]
    for _ in range(2):
        with pytest.raises(InputError, match=r"could not be downloaded .* data\.root="):
            cifar_fs.load()
        assert list(cache.iterdir()) == []
    server.files, server.cut = good, 0
    assert len(cifar_fs.load().images) == 2000


def test_roots_that_are_not_cifar100(
    root: Path, archive: bytes, files: dict[str, bytes], cache: Path, tmp_path: Path
) -> None:
    file = root / "cifar-100-python.tar.gz"

    def refused(data: bytes, message: str) -> None:
        file.write_bytes(data)
        with pytest.raises(InputError, match=message):
            cifar_fs.load(str(root))
        assert not cache.exists()

    with pytest.raises(InputError, match="there is no such file or folder"):
        cifar_fs.load(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"neither cifar-100-python\.tar\.gz nor its folder"):
        cifar_fs.load(str(tmp_path))
    # Cut anywhere, the compressed stream or the stream within.
    plain = gzip.decompress(archive)
    for share in (0.001, 0.2, 0.6, 0.9):
        refused(archive[: int(share * len(archive))], r"not (a complete cifar-100|a valid pickle)")
        refused(gzip.compress(plain[: int(share * len(plain))], 1), r"not (a complete cifar-100|a valid pickle)")
    refused(b"", "not a complete cifar-100")
    refused(b"<html>moved</html>", "not a complete cifar-100")
    for name in files:
        refused(tarred({n: data for n, data in files.items() if n != name}), f"it lacks {name}")
        refused(tarred({**files, name: files[name][:-50]}), f"{name} is not a valid pickle")
        refused(tarred({**files, name: b"a text"}), f"{name} is not a valid pickle")
        refused(tarred({**files, name: python2([1, 2])}), f"{name} holds a list, there should be a dictionary")
        refused(tarred({**files, name: python2({})}), "not CIFAR-100: KeyError")
    good = part(PARTS["test"], 1)
    refused(tarred(official(test=part(5, 1))), "not CIFAR-100: .*shape")
    refused(tarred(official(test={**good, "data": good["data"].astype(np.int32)})), "not CIFAR-100: .*int32")
    refused(tarred(official(test={**good, "fine_labels": [0] * 600})), "not 6 pictures of each of 100 classes")
    refused(tarred(official(test={**good, "coarse_labels": [0] * 600})), "pairs of class and superclass")
    names = ["cat", *NAMES[1:]]
    file.write_bytes(tarred(official(meta={"fine_label_names": names, "coarse_label_names": GROUPS})))
    with pytest.raises(InputError, match="no split has its class cat"):
        cifar_fs.load(str(root))


def test_a_malicious_tar_leads_nowhere(
    root: Path, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, made = root / "cifar-100-python.tar.gz", tmp_path / "made"
    (tmp_path / "secret").write_bytes(files["meta"])

    def entry(name: str, kind: bytes, target: str = "", data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(data)
        return info, data

    def refused(message: str, *entries: tuple[tarfile.TarInfo, bytes]) -> None:
        with tarfile.open(file, "w") as archive:
            for info, data in entries:
                archive.addfile(info, io.BytesIO(data))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=message):
            cifar_fs.load(str(root))
        assert sorted(tmp_path.rglob("*")) == before

    good = [entry(name, tarfile.REGTYPE, data=data) for name, data in files.items() if name != "meta"]
    # What only looks like the missing file is not followed.
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        refused("it lacks meta", *good, entry("meta", kind, str(tmp_path / "secret")))
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE):
        refused("it lacks meta", *good, entry("meta", kind))
    evil = pickle.dumps({"fine_label_names": Evil(os.mkdir, str(made))})
    refused(r"meta is not a valid pickle", *good, entry("../../meta", tarfile.REGTYPE, data=evil))
    refused("one file too many", *[entry(f"{i}", tarfile.REGTYPE) for i in range(cifar100.MOST_MEMBERS + 1)])
    monkeypatch.setattr(cifar100, "LARGEST_FILE", 10**6)
    refused("is too large", entry("train", tarfile.REGTYPE, data=bytes(10**6 + 1)))
    huge = entry("train", tarfile.REGTYPE)[0]
    huge.size = 2**62  # announced in the header alone
    file.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match="is too large"):
        cifar_fs.load(str(root))


def test_official_counts_are_insisted_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "PARTS", {"train": 500, "test": 100})
    with pytest.raises(InputError, match="not CIFAR-100"):
        fc100.load(str(root))


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_the_configuration_builds(name: str, root: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["algo=maml", f"data={name}", f"data.root={root}"])
    parts = build(cfg)
    support, query = parts.data.episode("test", 0)
    assert (support.x.shape, query.x.shape) == ((5, 3, 32, 32), (75, 3, 32, 32))
    assert support.x.max() <= 1
    weights = parts.learner.adaptation(parts.learner.net, weights_of(parts.learner.net), support)
    assert set(weights) == set(weights_of(parts.learner.net))


def test_all_that_the_code_reads_is_shipped() -> None:
    """A wheel holds the modules, and of other files only those that pyproject.toml names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "src" / "innerloop"
    others = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert package / "datasets" / "splits" / "cifar_fs.json" in others
    assert others == {path for pattern in settings["innerloop"] for path in package.glob(pattern)}


class Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_can_do_nothing_but_hold_arrays(protocol: int, tmp_path: Path) -> None:
    value = {
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "fortran": np.asfortranarray(np.ones((2, 3))),
        "number": np.float32(0.5),
        "bytes": bytes(range(256)),
        b"words": {"a": [1, 2]},
    }
    content = pickles.load(io.BytesIO(pickle.dumps(value, protocol)), "a.pkl")
    assert (content["array"] == value["array"]).all()
    assert content["array"].dtype == np.int32
    assert (content["fortran"] == 1).all()
    assert content["number"] == 0.5
    assert content["bytes"] == value["bytes"]
    assert {pickles.text(name): list(v) for name, v in content["words"].items()} == {"a": [1, 2]}
    made = tmp_path / "made"
    for evil in (
        Evil(os.mkdir, str(made)),
        Evil(exec, f"import os; os.mkdir({str(made)!r})"),
        Evil(np.save, str(made), [1]),
    ):
        data = pickle.dumps({"data": evil}, protocol)
        with pytest.raises(InputError, match=r"a\.pkl is not a valid pickle of arrays: .* it names \w+\.\w+"):
            pickles.load(io.BytesIO(data), "a.pkl")
        assert list(tmp_path.iterdir()) == []
        pickle.loads(data)  # the danger is real
        (left,) = tmp_path.iterdir()
        left.rmdir() if left.is_dir() else left.unlink()
