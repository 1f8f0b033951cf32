"""Encoders of a support set: permutation-invariant maps from its (x, y) pairs to one code, or to one code per class."""

import torch
from torch import Tensor, nn

from innerloop.episodes import InputError
from innerloop.nets.norm import LayerNorm


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Return whether each label is each class, (n, classes), bool.

    Unlike `F.one_hot`, which reads the values, it works in gradients under vmap and where operations are recorded.
    """
    return y.unsqueeze(-1) == torch.arange(classes, device=y.device)


def encode_labels(y: Tensor, output_size: int) -> Tensor:
    """Return the labels in the space of the net's output, (n, output_size).

    Class ids become one-hot rows, or -1 and 1 if the net has a single logit. Real targets keep their values.
    """
    if y.is_floating_point():
        return y.reshape(y.shape[0], output_size)
    if output_size == 1:
        return 2.0 * y.unsqueeze(-1).to(torch.get_default_dtype()) - 1.0
    return one_hot(y, output_size).to(torch.get_default_dtype())


class SelfAttention(nn.Module):
    """One pre-norm transformer block over the points of a set (Set Transformer, Lee et al., 2019). x: (n, width).

    Attention is composed of elementary operations because torch's fused kernels have no second derivative.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"the encoder's width must be a multiple of {heads} for attention, got {width}")
        self.heads = heads
        self.norm, self.norm_out = LayerNorm(width), LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(1, 2, 0, 3).unbind()
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, width)
        x = x + self.out(mixed)
        return x + self.feed_forward(self.norm_out(x))


class SetEncoder(nn.Module):
    """The encoder of a task relation model: Deep Sets (Zaheer et al., 2017), optionally with self-attention.

    x_size: length of one flattened x. output_size: number of outputs of the net, see `encode_labels`.
    attention: apply self-attention to the points before they are pooled.
    by_class=False: reads (x, y) pairs and returns one code, (width,).
    by_class=True: pools the points of each class and returns one code per class, (output_size, width). It is
        equivariant to relabelling and needs class ids.
    """

    def __init__(
        self, x_size: int, output_size: int, width: int = 64, attention: bool = False, by_class: bool = False
    ) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"the encoder's width must be above zero, got {width}")
        self.output_size, self.code_size, self.by_class = output_size, width, by_class
        pair_size = x_size if by_class else x_size + output_size
        self.lift = nn.Linear(pair_size, width)
        self.point = nn.Sequential(LayerNorm(width), nn.ReLU(), nn.Linear(width, width), LayerNorm(width), nn.ReLU())
        self.mix = SelfAttention(width) if attention else nn.Identity()
        self.read = nn.Sequential(nn.Linear(width, width), LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, labels = x.flatten(1), encode_labels(y, self.output_size).to(x.dtype)
        if not self.by_class:
            points = self.mix(self.point(self.lift(torch.cat([x, labels], -1))))
            return self.read(points.mean(0, keepdim=True)).squeeze(0)
        lifted = self.lift(x)
        points = self.mix(lifted + self.point(lifted))
        pooled = (labels.T @ points) / labels.sum(0).clamp_min(1).unsqueeze(-1)
        # The skip connection keeps the class mean, because a class's row of the head starts from its prototype.
        return pooled + self.read(pooled)
