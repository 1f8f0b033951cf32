"""The convolutional net of four blocks for few-shot image classification, in both published forms."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from innerloop.episodes import InputError
from innerloop.nets import fused
from innerloop.nets.dense import ACTIVATIONS, choose
from innerloop.nets.norm import NORMS, norm_then
from innerloop.nets.per_task_conv import Conv2d


def convolutional(module: nn.Module) -> bool:
    """Return True if the module contains a convolution."""
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())


class ConvNorm(nn.Module):
    """A convolution followed by a norm.

    kernel: the kernel size, an odd number. Padding keeps the height and width of the input. With a stride above 1, the
        output has every stride-th position.
    """

    def __init__(self, channels: int, width: int, norm: str, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        # Batch norm subtracts the mean, so a bias before it would have no effect.
        self.conv = Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=norm != "batch")
        self.norm = choose("norm", norm, NORMS)(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolved(x))

    def convolved(self, x: Tensor) -> Tensor:
        """Return the output of the convolution, without the norm."""
        return self.conv(fused.channels_last(x) if fused.supported(x, self.conv.weight) else x)


class Block(ConvNorm):
    """A 3x3 convolution, a norm, a 2x2 max-pool if `pool` is set, and an activation."""

    def __init__(self, channels: int, width: int, stride: int, pool: bool, norm: str, activation: str) -> None:
        super().__init__(channels, width, norm, stride=stride)
        self.activation = choose("activation", activation, ACTIVATIONS)()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return norm_then(self.norm, self.convolved(x), self.pool, self.activation)


class Conv4(nn.Module):
    """Four 3x3 convolutions (Vinyals et al., 2016; Finn et al., 2017) and a linear head.

    downsample="stride": convolutions of stride 2; the head reads the mean over positions (MAML's Omniglot net).
    downsample="pool": 2x2 max-pools; the head reads all positions (MAML's mini-ImageNet net).
    x: (n, channels, height, width) -> (n, output_size).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_size: int,
        width: int = 64,
        downsample: str = "stride",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise InputError(f"conv4 needs images (channels, height, width), got inputs of shape {tuple(input_shape)}")
        if downsample not in ("stride", "pool"):
            raise InputError(f"unknown downsample {downsample!r}; choose one of stride, pool")
        if width < 1:
            raise InputError(f"width must be above zero, got {width}")
        pool = downsample == "pool"
        if pool and min(input_shape[1:]) < 16:
            raise InputError(f"four max-pools need images of at least 16x16, got {tuple(input_shape[1:])}")
        self.input_size, self.output_size = prod(input_shape), output_size
        channels = [input_shape[0]] + [width] * 4
        blocks = [Block(channels[i], width, 1 if pool else 2, pool, norm, activation) for i in range(4)]
        reduce = nn.Flatten() if pool else MeanOverPositions()
        self.body = nn.Sequential(*blocks, reduce)
        self.feature_size = width * prod(size // 16 for size in input_shape[1:]) if pool else width
        self.head = nn.Linear(self.feature_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class MeanOverPositions(nn.Module):
    """The mean over positions: (n, channels, height, width) -> (n, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
