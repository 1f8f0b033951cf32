"""Small pictures of classes that differ, in folders, for the tests of practice."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from innerloop.backbones import Backbone
from innerloop.backbones.backbone import frozen


class Patches(nn.Module):
    """The means of the 16 patches of a picture, in every channel: (n, 3, 16, 16) -> (n, 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return (self.scale * self.pool(x)).flatten(1)


def tiny(name: str = "tiny") -> Backbone:
    if name not in ("tiny", "efficientnet_lite0"):
        from innerloop.backbones import named

        return named(name)
    return frozen("tiny", Patches(), 16, [0.5] * 3, [0.25] * 3)


def drawing(kind: int, number: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture of a class: a background of its own with noise, different for every number."""
    centre = np.random.default_rng(kind).integers(40, 216, (4, 4, 3))
    noise = np.random.default_rng([kind, number]).normal(0, 25, (4, 4, 3))
    small = Image.fromarray((centre + noise).clip(0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.NEAREST)


def encoded(image: Image.Image, suffix: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zip_of(root: Path, outer: str = "") -> Path:
    """A zip file of a folder, beside it. outer: a folder that all is in, such as "own/"."""
    path = root.with_name(f"{root.name}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, outer + file.relative_to(root).as_posix())
    return path


def classes(names: str = "abc", each: int = 4, first: int = 0) -> dict[str, bytes]:
    """path -> bytes of pictures in class folders. Pictures of other numbers are others of the same classes."""
    return {f"{name}/{i}.png": encoded(drawing(ord(name[0]), i)) for name in names for i in range(first, first + each)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small backbone in the place of all others, whose vectors are kept in the test's own folder."""
    monkeypatch.setattr("innerloop.runs.build.named", tiny)
    monkeypatch.setattr("innerloop.backbones.store.cache_folder", lambda name: tmp_path / "cache" / name)
