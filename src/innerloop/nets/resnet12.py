"""The residual net of twelve layers for few-shot image classification."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.episodes import InputError
from innerloop.nets.conv4 import Block, ConvNorm, MeanOverPositions
from innerloop.nets.dense import ACTIVATIONS, choose


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions and a 1x1 shortcut, each with its norm.

    Their sum passes through a 2x2 max-pool and an activation.
    """

    def __init__(self, channels: int, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Block(channels, width, 1, False, norm, activation),
            Block(width, width, 1, False, norm, activation),
            ConvNorm(width, width, norm),
        )
        self.shortcut = ConvNorm(channels, width, norm, kernel=1)
        self.activation = choose("activation", activation, ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        # All activations are non-decreasing, so pooling before them gives the same values and costs a quarter.
        return self.activation(F.max_pool2d(self.layers(x) + self.shortcut(x), 2))


class ResNet12(nn.Module):
    """ResNet-12: four residual blocks, the mean over positions, and a linear head.

    Source: Oreshkin et al., 2018; Lee et al., 2019, without DropBlock.

    widths: number of channels of each of the four blocks. x: (n, channels, height, width) -> (n, output_size).
    Raises InputError for images below 16x16.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_size: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        norm: str = "batch",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise InputError(
                "resnet12 needs images (channels, height, width) of at least 16x16, got inputs of shape "
                f"{tuple(input_shape)}"
            )
        if len(widths) != 4 or min(widths) < 1:
            raise InputError(f"widths must be four numbers above zero, got {list(widths)}")
        self.input_size, self.output_size, self.feature_size = prod(input_shape), output_size, widths[-1]
        channels = pairwise([input_shape[0], *widths])
        self.body = nn.Sequential(*(ResidualBlock(c, w, norm, activation) for c, w in channels), MeanOverPositions())
        self.head = nn.Linear(self.feature_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
