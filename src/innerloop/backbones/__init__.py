"""Pretrained nets that turn pictures into vectors, frozen, and the vectors that are kept on disk."""

from innerloop.backbones.backbone import Backbone, named
from innerloop.backbones.store import features
from innerloop.backbones.whitening import Standard, standard

__all__ = ["Backbone", "Standard", "features", "named", "standard"]
