"""The model-based learner's map: a hypernetwork reads the support set and writes the task's weights."""

from torch import nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.episodes import Samples, Weights, apply
from innerloop.nets.generator import Generator
from innerloop.nets.set_encoder import SetEncoder


class Generate(Adaptation):
    """w = theta + g(S; phi), the support read as a set of (x, y) pairs.

    encoder: reads; the module's parameters and the generator's are phi.
    generator: writes a named subset of the weights; the others stay theta.
    read_features: the encoder reads what the net's own body makes of x under theta, not x itself (CNAPs, Requeima et
        al., 2019): for images.
    residual: False drops theta for the weights that are written, w = g(S; phi).
    """

    def __init__(
        self, encoder: SetEncoder, generator: Generator, *, read_features: bool = False, residual: bool = True
    ) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator
        self.read_features, self.residual = read_features, residual

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        x = support.x
        if self.read_features:
            body = {name.removeprefix("body."): w for name, w in weights.items() if name.startswith("body.")}
            x = apply(net.get_submodule("body"), body, x)
        written = self.generator(self.encoder(x, support.y))
        if self.residual:
            written = {name: weights[name] + value for name, value in written.items()}
        return {**weights, **written}
