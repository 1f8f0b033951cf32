"""The adaptation of model-based learners: a hypernetwork reads the support set and writes the task's weights."""

import torch
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.heads import classes_present, without_absent
from innerloop.episodes import Observation, Samples, Weights, apply, features
from innerloop.nets.additive import PairEncoder, PairGenerator
from innerloop.nets.generator import Generator
from innerloop.nets.set_encoder import SetEncoder


class ZeroCode(nn.Module):
    """An encoder whose code is zero for every support set. For codes that are found by gradient steps only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.code_size = size

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        like = x if x.is_floating_point() else y  # items of ratings are numbered
        return torch.zeros(self.code_size, dtype=like.dtype, device=x.device)


class Generate(Adaptation):
    """The adaptation w = theta + g(S; phi), which reads the support set S as a set of (x, y) pairs.

    encoder: reads the support set. phi consists of its parameters and the generator's.
    generator: writes a named subset of the weights. The others stay theta.
    read_features: the encoder reads the features of x by the net's own body under theta, not x itself (CNAPs, Requeima
        et al., 2019). For images.
    read_predictions: the encoder reads, beside each point, what the head of these weights predicts for it, without a
        gradient (HyperMAML, Przewięźlikowski et al., 2022). Needs read_features.
    residual: add the written weights to theta. False: they replace theta, w = g(S; phi).
    observation: what the encoder reads of the task under theta. None: its samples.

    If there is one code per class, the codes of classes that are not in the support set have no influence, and a head
    that is written has no outputs for these classes.
    """

    def __init__(
        self,
        encoder: SetEncoder | PairEncoder | ZeroCode,
        generator: Generator | PairGenerator,
        *,
        read_features: bool = False,
        read_predictions: bool = False,
        residual: bool = True,
        observation: Observation | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator
        self.read_features, self.read_predictions, self.residual = read_features, read_predictions, residual
        self.observation = observation

    @property
    def frees_ways(self) -> bool:
        return bool(self.generator.rows)

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return self.write(weights, self.code(net, weights, support), support)

    def code(self, net: nn.Module, weights: Weights, support: Samples) -> Tensor:
        """Return the code of the support set, (code_size,), or one code per class, (classes, code_size)."""
        if self.observation is not None:
            support = self.observation.read(net, weights, support)
        x = features(net, weights, support.x) if self.read_features else support.x
        if self.read_predictions:
            x = torch.cat([x, self.predictions(net, weights, x, support)], -1)
        return self.encoder(x, support.y)

    def predictions(self, net: nn.Module, weights: Weights, x: Tensor, support: Samples) -> Tensor:
        """Return the head's probabilities of the classes for the support features x, (n, outputs), as constants.

        They are those of the task's own classes. Real targets are predicted as they are.
        """
        weights = without_absent(weights, support)
        head = {name.removeprefix("head."): w for name, w in weights.items() if name.startswith("head.")}
        outputs = apply(net.get_submodule("head"), head, x).detach()
        if support.y.is_floating_point():
            return outputs
        return outputs.sigmoid() if outputs.shape[-1] == 1 else outputs.softmax(-1)

    def write(self, weights: Weights, code: Tensor, support: Samples) -> Weights:
        """Return the task's weights for its code."""
        if self.generator.by_class:
            # Absent classes get the mean code of the present ones, so they do not change the mean over all classes.
            present = classes_present(support.y, len(code)).unsqueeze(-1)
            code = torch.where(present, code, (present * code).sum(0) / present.sum())
        written = self.generator(code)
        if self.residual:
            written = {name: weights[name] + value for name, value in written.items()}
        weights = {**weights, **written}
        return without_absent(weights, support) if self.frees_ways else weights
