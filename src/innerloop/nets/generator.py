"""The generator of a hypernetwork, which writes named weights of the target net from the code of a support set."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Size, Tensor, nn

from innerloop.episodes import InputError, Weights


class Generator(nn.Module):
    """A module that writes a named subset of a net's weights from a code.

    shapes: shapes of the weights to write, by name. code_size: length of a code.
    classes: number of classes, if there is one code per class, (classes, code_size). Weights named `head.*` are written
        row by row, each class's row from the code of this class, and all other weights from the mean of the codes.
        None: all weights are written from a single code, (code_size,).
    chunk_size: write the weights that are not written row by row in chunks of this many numbers. One small net writes
        every chunk from the code and an embedding of the chunk (von Oswald et al., 2020), so its size does not grow
        with the target net. None: one linear map writes these weights.
    init="zero": the output is exactly zero at the start. For weights that are added to theta.
    init="linear": the usual initialisation of a linear layer, but with zero bias, so that the zero code writes zeros
        and other codes do not.
    init="hyperfan_in": the output starts with the variance that keeps the scale of the target net's activations equal
        from layer to layer (Chang et al., 2020, ReLU case, for code entries of unit variance). For weights that replace
        theta.
    """

    def __init__(
        self,
        shapes: Mapping[str, Size],
        code_size: int,
        classes: int | None = None,
        chunk_size: int | None = None,
        init: str = "zero",
    ) -> None:
        super().__init__()
        if not shapes:
            raise InputError("the generator has no weights to write")
        if init not in ("zero", "linear", "hyperfan_in"):
            raise InputError(f"unknown generator init {init!r}; choose one of zero, linear, hyperfan_in")
        if chunk_size is not None and (chunk_size < 1 or init != "zero"):
            raise InputError(f"chunk_size must be above zero and needs init=zero, got {chunk_size} with init={init}")
        self.by_class = classes is not None
        self.rows = {n: s for n, s in shapes.items() if self.by_class and n.startswith("head.")}
        self.whole = {n: s for n, s in shapes.items() if n not in self.rows}
        self.row_writer = self._linear(code_size, self.rows, init, per_row=True) if self.rows else None
        self.writer: nn.Module | None = None
        if self.whole and chunk_size is None:
            self.writer = self._linear(code_size, self.whole, init, per_row=False)
        elif self.whole:
            self.writer = ChunkedWriter(code_size, sum(map(prod, self.whole.values())), chunk_size or 1)

    def forward(self, code: Tensor) -> Weights:
        written: Weights = {}
        if self.row_writer is not None:
            sizes = [prod(shape[1:]) for shape in self.rows.values()]
            parts = self.row_writer(code).split(sizes, -1)
            written |= {n: p.reshape(s) for (n, s), p in zip(self.rows.items(), parts, strict=True)}
        if self.writer is not None:
            single_code = code.mean(0) if self.by_class else code
            parts = self.writer(single_code).split([prod(s) for s in self.whole.values()], -1)
            written |= {n: p.reshape(s) for (n, s), p in zip(self.whole.items(), parts, strict=True)}
        return written

    @staticmethod
    def _linear(code_size: int, shapes: Mapping[str, Size], init: str, per_row: bool) -> nn.Linear:
        sizes = [prod(s[1:]) if per_row else prod(s) for s in shapes.values()]
        linear = nn.Linear(code_size, sum(sizes))
        nn.init.zeros_(linear.bias)
        if init != "linear":
            nn.init.zeros_(linear.weight)
        if init == "hyperfan_in":
            with torch.no_grad():
                blocks = linear.weight.split(sizes), linear.bias.split(sizes)
                for (name, shape), weight, bias in zip(shapes.items(), *blocks, strict=True):
                    if len(shape) > 1:
                        weight.normal_(0, (2 / (prod(shape[1:]) * code_size)) ** 0.5)
                    elif name.endswith("norm.weight"):
                        bias.fill_(1.0)
        return linear


class ChunkedWriter(nn.Module):
    """A module that writes numbers in chunks: code (code_size,) -> (size,). At the start they are all zero."""

    def __init__(self, code_size: int, size: int, chunk_size: int) -> None:
        super().__init__()
        self.size = size
        self.chunks = nn.Parameter(torch.randn(-(-size // chunk_size), code_size))
        self.mix = nn.Sequential(nn.Linear(2 * code_size, 2 * code_size), nn.ReLU())
        self.out = nn.Linear(2 * code_size, chunk_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, code: Tensor) -> Tensor:
        inputs = torch.cat([code.expand(self.chunks.shape[0], -1), self.chunks], -1)
        return self.out(self.mix(inputs)).flatten()[: self.size]
