"""Omniglot: small archives in the official layout, from a folder and from a local server, whole and damaged."""

import hashlib
import io
import logging
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from innerloop.datasets import images as shared
from innerloop.datasets import omniglot
from innerloop.episodes import SPLITS, InputError
from innerloop.tasks.images import FewShotImages

REAL = Path(os.environ.get("INNERLOOP_OMNIGLOT", Path(__file__).parents[2] / "shared" / "data" / "omniglot"))
ALPHABETS = {"images_background": {"Greek": 3, "Tagalog": 3}, "images_evaluation": {"Angelic": 4}}


def png(name: str, size: int = 105) -> bytes:
    rng = np.random.default_rng(list(name.encode()))
    image = Image.new("1", (size, size), 1)
    ImageDraw.Draw(image).line([tuple(p) for p in rng.integers(5, 100, (6, 2)).tolist()], fill=0, width=3)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def contents(archive: str) -> dict[str, bytes]:
    """path -> bytes of a small archive."""
    files, number = {}, 0
    for alphabet, characters in ALPHABETS[archive].items():
        for c in range(1, characters + 1):
            number += 1
            for drawing in range(1, 21):
                path = f"{archive}/{alphabet}/character{c:02d}/{number:04d}_{drawing:02d}.png"
                files[path] = png(path)
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images_background/", "")
        archive.writestr("__MACOSX/images_background/Greek/character01/._0001_01.png", b"not a drawing")
        for path, data in files.items():
            archive.writestr(path, data)
    return file.getvalue()


def unpack(files: dict[str, bytes], root: Path) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, bytes]]:
    return {archive: contents(archive) for archive in ALPHABETS}


@pytest.fixture(scope="module")
def zips(parts: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return {archive: zipped(files) for archive, files in parts.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "innerloop" / "omniglot"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "CHARACTERS", {name: sum(a.values()) for name, a in ALPHABETS.items()})
    monkeypatch.setattr(omniglot, "TRAIN", 5)
    monkeypatch.setattr(omniglot, "VALIDATION", 2)


@pytest.fixture
def root(tmp_path: Path, zips: dict[str, bytes], small: None) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for archive, data in zips.items():
        (folder / f"{archive}.zip").write_bytes(data)
    return folder


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` bytes are missing at the end of each answer, though it promises the whole."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut = 0
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write((data or b"")[: len(data or b"") - self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(zips: dict[str, bytes], small: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        server.files = {f"/python/{archive}.zip": data for archive, data in zips.items()}
        monkeypatch.setattr(omniglot, "URL", f"http://127.0.0.1:{server.server_port}/python/")
        monkeypatch.setattr(omniglot, "MD5", {a: hashlib.md5(data).hexdigest() for a, data in zips.items()})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_once(server: Server, cache: Path) -> None:
    data = omniglot.load()
    assert data.images.shape == (200, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.classes[0] == "Greek/character01"
    again = omniglot.load()
    assert torch.equal(data.images, again.images)
    assert server.asked == ["/python/images_background.zip", "/python/images_evaluation.zip"]


@pytest.mark.parametrize("damage", ["cut", "other bytes", "cut from the start", "absent"])
def test_a_bad_download_leaves_nothing_to_be_taken_for_whole(damage: str, server: Server, cache: Path) -> None:
    good, name = dict(server.files), "/python/images_evaluation.zip"
    if damage == "cut":
        server.cut = 500
    elif damage == "other bytes":
        server.files[name] = zipped({"images_evaluation/Angelic/character01/0001_01.png": png("other")})
    elif damage == "cut from the start":
        server.files[name] = good[name][:-500]
    else:
        del server.files[name]
    for _ in range(2):
        with pytest.raises(InputError, match=r"could not be downloaded .* data\.root="):
            omniglot.load()
        left = sorted(p.name for p in cache.iterdir() if p.suffix != ".npz")
        assert left == ([] if damage == "cut" else ["images_background.zip"])
    server.files, server.cut = good, 0
    assert len(omniglot.load().images) == 200


def test_no_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "URL", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match=r"could not be downloaded .* data\.root="):
        omniglot.load()


def test_zips_and_folders_are_one(root: Path, parts: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    packed = omniglot.load(str(root))
    unpacked, mixed = tmp_path / "unpacked", tmp_path / "mixed"
    for files in parts.values():
        unpack(files, unpacked)
    unpack(parts["images_background"], mixed)
    (mixed / "images_evaluation.zip").write_bytes((root / "images_evaluation.zip").read_bytes())
    for other in (unpacked, mixed):
        data = omniglot.load(str(other))
        assert data.classes == packed.classes
        assert torch.equal(data.images, packed.images)
        assert all((data.splits[s] == packed.splits[s]).all() for s in SPLITS)


def test_images_are_the_drawings(root: Path, parts: dict[str, dict[str, bytes]]) -> None:
    data = omniglot.load(str(root))
    assert data.counts.tolist() == [20] * 10
    c = data.classes.index("Tagalog/character02")
    path = "images_background/Tagalog/character02/0005_07.png"
    drawn = Image.open(io.BytesIO(parts["images_background"][path])).convert("L")
    paper = drawn.resize((28, 28), Image.Resampling.LANCZOS)
    assert (255 - np.asarray(paper) == data.images[data.first[c] + 6, 0].numpy()).all()
    assert data.images[:, 0, 0, 0].max() == 0
    assert data.images.amax((1, 2, 3)).min() > 150


def test_splits(root: Path) -> None:
    characters, alphabets = omniglot.load(str(root)), omniglot.load(str(root), "alphabets")
    assert [len(characters.splits[s]) for s in SPLITS] == [5, 2, 3]
    of = {s: {alphabets.classes[i].split("/")[0] for i in alphabets.splits[s]} for s in SPLITS}
    assert of == {"train": {"Greek"}, "validation": {"Tagalog"}, "test": {"Angelic"}}
    with pytest.raises(InputError, match=r"data\.split=lake: choose characters or alphabets"):
        omniglot.load(str(root), "lake")


def test_a_changed_drawing_is_seen(parts: dict[str, dict[str, bytes]], tmp_path: Path, small: None) -> None:
    for files in parts.values():
        unpack(files, tmp_path / "data")
    before = omniglot.load(str(tmp_path / "data"))
    (tmp_path / "data/images_background/Greek/character01/0001_01.png").write_bytes(png("another"))
    after = omniglot.load(str(tmp_path / "data"))
    assert not torch.equal(before.images[0], after.images[0])
    assert torch.equal(before.images[1:], after.images[1:])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_cache_is_built_anew(
    damage: str, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = omniglot.load(str(root))
    for file in cache.glob("*.npz"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes({"truncated": data[:-100], "flipped": data, "empty": b"", "foreign": b"hello"}[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(omniglot.load(str(root)).images, before.images)
    assert caplog.text.count("is damaged") == 2
    assert sorted(p.suffix for p in cache.iterdir()) == [".npz", ".npz"]
    # From now on the cache serves.
    monkeypatch.setattr(omniglot, "parse", None)
    assert torch.equal(omniglot.load(str(root)).images, before.images)


def test_an_interrupted_write_leaves_nothing(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared.np, "savez", interrupt)
        with pytest.raises(KeyboardInterrupt):
            omniglot.load(str(root))
    assert list(cache.iterdir()) == []
    assert len(omniglot.load(str(root)).images) == 200


def test_where_no_cache_can_be_written(root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(omniglot.load(str(root)).images) == 200
    assert "on every start" in caplog.text


def test_roots_that_are_not_omniglot(root: Path, parts: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            omniglot.load(str(root))

    with pytest.raises(InputError, match="there is no such folder"):
        omniglot.load(str(tmp_path / "nowhere"))
    file, good = root / "images_evaluation.zip", (root / "images_evaluation.zip").read_bytes()
    file.unlink()
    refused(r"neither images_evaluation\.zip nor a folder images_evaluation is there")
    file.write_bytes(good[: len(good) // 2])
    refused(r"images_evaluation\.zip is not a valid zip file")
    broken = bytearray(good)
    at = good.index(b"IDAT") + 8
    broken[at : at + 40] = bytes(40)
    file.write_bytes(broken)
    refused(r"images_evaluation\.zip")
    file.write_bytes((root / "images_background.zip").read_bytes())
    refused("it holds no images_evaluation/ALPHABET")
    files = dict(parts["images_evaluation"])
    file.write_bytes(zipped({**files, "images_evaluation/Angelic/character09/0999_01.png": png("x")}))
    refused("character09 has 1 drawings, there should be 20")
    first = next(iter(files))
    file.write_bytes(zipped({**files, first: files[first][:60]}))
    refused(f"{first} is not a readable PNG")
    file.write_bytes(zipped({**files, first: png("x", size=28)}))
    refused(f"{first} is 28x28")
    file.write_bytes(zipped({path: data for path, data in files.items() if "character01" not in path}))
    refused("holds 3 characters, there should be 4")
    (root / "images_evaluation").mkdir()
    refused("it holds no images_evaluation/ALPHABET")


def test_official_counts_are_insisted_on(tmp_path: Path, zips: dict[str, bytes]) -> None:
    for archive, data in zips.items():
        (tmp_path / f"{archive}.zip").write_bytes(data)
    with pytest.raises(InputError, match="holds 6 characters, there should be 964"):
        omniglot.load(str(tmp_path))


@pytest.mark.skipif(not (REAL / "images_background.zip").is_file(), reason="Omniglot is not on this machine")
def test_the_real_data() -> None:
    data = omniglot.load(str(REAL))
    assert data.images.shape == (32460, 1, 28, 28)
    assert len({*data.classes}) == 1623
    assert [len(data.splits[s]) for s in SPLITS] == [1100, 100, 423]
    assert len({*np.concatenate([data.splits[s] for s in SPLITS]).tolist()}) == 1623
    # Published results stand on this very split: it must never move.
    digest = hashlib.sha256("\n".join(data.classes[i] for i in data.splits["test"]).encode()).hexdigest()
    assert digest[:16] == "691e9ac189ff5eaa"
    alphabets = omniglot.load(str(REAL), "alphabets")
    assert [len(alphabets.splits[s]) for s in SPLITS] == [883, 81, 659]
    of = [{alphabets.classes[i].split("/")[0] for i in alphabets.splits[s]} for s in SPLITS]
    assert [len(names) for names in of] == [25, 5, 20]
    assert not of[0] & of[1]
    # The nearest support image in raw pixels is right far more often than one time in five.
    tasks = FewShotImages(data, ways=5, shots=1, queries=15)
    support, query = tasks.draw("test", [np.random.default_rng(i) for i in range(40)])
    nearest = torch.cdist(query.x.flatten(2), support.x.flatten(2)).argmin(-1)
    assert (nearest == query.y).float().mean() > 0.35
