"""What a picture becomes before a classifier sees it: a backbone's vector, or the pixels that a run's net takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop.backbones import Backbone, Standard, features
from innerloop.errors import InputError
from innerloop.practice.reading import Preparation
from innerloop.runs.build import backbone_of
from innerloop.runs.load import Run
from innerloop.tasks.images import FewShotImages, resolved

DEFAULT_BACKBONE = "efficientnet_lite0"


@dataclass(frozen=True, eq=False)
class Embedding:
    """pictures -> x. preparation: how pictures are read. backbone: None for pixels. form: of the backbone's vectors."""

    preparation: Preparation
    backbone: Backbone | None = None
    form: Standard | None = None
    batch_size: int = 16

    @property
    def name(self) -> str:
        """The backbone's name, or what the pixels are."""
        size = self.preparation.size
        return self.backbone.name if self.backbone else f"{size}x{size} pixels"

    def __call__(self, images: Iterator[np.ndarray], total: int) -> Tensor:
        """Return x: vectors (n, d) float32, or pictures (n, channels, size, size) uint8."""
        if self.backbone is None:
            return torch.from_numpy(np.stack(list(images)))
        x = features(self.backbone, images, total, batch_size=self.batch_size)
        return x if self.form is None else self.form(x)

    def state(self) -> dict[str, Any]:
        """Return what `restored` needs, in plain containers and tensors."""
        return {
            "preparation": list(self.preparation),
            "backbone": self.backbone and self.backbone.name,
            "digest": self.backbone and self.backbone.digest,
            "form": self.form and list(self.form),
        }


def of_backbone(name: str, batch_size: int, allow: Sequence[str] = ()) -> Embedding:
    """Return the vectors of a backbone, whose pictures are read at its own size. allow: see `innerloop.load`."""
    backbone = backbone_of(name, allow)
    preparation = Preparation(backbone.size, backbone.channels, bool(backbone.inverted))
    return Embedding(preparation, backbone, None, batch_size)


def of_run(run: Run, batch_size: int) -> Embedding:
    """Return what the net of a run takes. Raises InputError for a run on anything but classes of pictures."""
    tasks = run.tasks
    if not isinstance(tasks, FewShotImages):
        family = type(tasks).__name__
        raise InputError(f"{run.path} is a run on {family} and not on classes of pictures: choose another run")
    channels, height, width = tasks.dataset.images.shape[1:]
    if height != width:
        raise InputError(f"{run.path} is a run on pictures of {height}x{width} pixels, which are not square")
    backbone = None if tasks.backbone is None else resolved(tasks.backbone)
    inverted = tasks.dataset.inverted if backbone is None or backbone.inverted is None else backbone.inverted
    return Embedding(Preparation(height, channels, inverted), backbone, tasks.standard, batch_size)


def restored(state: dict[str, Any], batch_size: int, allow: Sequence[str] = ()) -> Embedding:
    """Return the embedding of a state. Raises InputError if its backbone is another one today."""
    backbone = None if state["backbone"] is None else backbone_of(state["backbone"], allow)
    if backbone is not None and backbone.digest != state["digest"]:
        raise InputError(
            f"the backbone {backbone.name} is not the one that the model was adapted with: its weights or its "
            "preprocessing have changed; adapt again"
        )
    form = None if state["form"] is None else Standard(*state["form"])
    return Embedding(Preparation(*state["preparation"]), backbone, form, batch_size)
