"""The model-based learner's map: a hypernetwork reads the support set and writes the task's weights."""

import torch
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.heads import classes_present, without_absent
from innerloop.episodes import Samples, Weights, features
from innerloop.nets.generator import Generator
from innerloop.nets.set_encoder import SetEncoder


class ZeroCode(nn.Module):
    """Reads nothing: the code of every support set is zero, for codes that are found by gradient steps alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.code_size = size

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(self.code_size, dtype=x.dtype, device=x.device)


class Generate(Adaptation):
    """w = theta + g(S; phi), the support read as a set of (x, y) pairs.

    encoder: reads; the module's parameters and the generator's are phi.
    generator: writes a named subset of the weights; the others stay theta.
    read_features: the encoder reads what the net's own body makes of x under theta, not x itself (CNAPs, Requeima et
        al., 2019): for images.
    residual: False drops theta for the weights that are written, w = g(S; phi).

    Where codes come one a class, those of classes that the support lacks have no say, and a head that is written has no
    outputs for them.
    """

    def __init__(
        self,
        encoder: SetEncoder | ZeroCode,
        generator: Generator,
        *,
        read_features: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator
        self.read_features, self.residual = read_features, residual

    @property
    def frees_ways(self) -> bool:
        return bool(self.generator.rows)

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return self.write(weights, self.code(net, weights, support), support)

    def code(self, net: nn.Module, weights: Weights, support: Samples) -> Tensor:
        """What the support set is read as: (code_size,), or one code a class, (classes, code_size)."""
        x = features(net, weights, support.x) if self.read_features else support.x
        return self.encoder(x, support.y)

    def write(self, weights: Weights, code: Tensor, support: Samples) -> Weights:
        """The task's weights from its code."""
        if self.generator.by_class:
            # With the mean of the others in place of the absent ones, the mean over all is that of the others.
            present = classes_present(support.y, len(code)).unsqueeze(-1)
            code = torch.where(present, code, (present * code).sum(0) / present.sum())
        written = self.generator(code)
        if self.residual:
            written = {name: weights[name] + value for name, value in written.items()}
        weights = {**weights, **written}
        return without_absent(weights, support) if self.frees_ways else weights
