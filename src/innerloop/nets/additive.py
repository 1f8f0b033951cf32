"""The net of tables, and the parts of a hypernetwork for it, which know no order of features or of classes."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from innerloop.episodes import InputError, Weights
from innerloop.nets.set_encoder import one_hot


class FeatureFunctions(nn.Module):
    """The same functions of every feature, zero at zero: (n, features) -> (n, features * functions).

    The first function is the feature itself.
    """

    def __init__(self, functions: int, width: int) -> None:
        super().__init__()
        self.functions = functions
        self.lift, self.out = nn.Linear(1, width), nn.Linear(width, functions - 1, bias=False)
        nn.init.normal_(self.lift.weight)
        nn.init.normal_(self.lift.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unsqueeze(-1)
        bent = self.out(self.lift(x).tanh() - self.lift.bias.tanh())
        return torch.cat([x, bent], -1).flatten(1)


class Additive(nn.Module):
    """A generalised additive model (Hastie and Tibshirani, 1986): logits are sums of functions of single features.

    The functions are shared by the features, so only the head depends on their number and order. A feature that is zero
    everywhere has no influence. functions: of each feature, itself included. width: hidden units of the functions.
    x: (n, *input_shape) -> (n, output_size).
    """

    def __init__(self, input_shape: int | Sequence[int], output_size: int, functions: int = 4, width: int = 16) -> None:
        super().__init__()
        if functions < 2 or width < 1:
            raise InputError(f"functions must be above one and width above zero, got {functions} and {width}")
        self.input_size = input_shape if isinstance(input_shape, int) else prod(input_shape)
        self.output_size, self.functions = output_size, functions
        self.body = FeatureFunctions(functions, width)
        self.feature_size = self.input_size * functions
        self.head = nn.Linear(self.feature_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Exchange(nn.Module):
    """An equivariant layer on a grid of classes and features (Hartford et al., 2018), with a skip connection.

    Each cell sees itself and the means over its class, its feature and the grid. grid: (classes, features, width).
    classes: (classes, 1, 1), features: (1, features, 1), 1 for those that are present and 0 for the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, grid: Tensor, classes: Tensor, features: Tensor) -> Tensor:
        over_classes = (grid * classes).sum(0, keepdim=True) / classes.sum()
        over_features = (grid * features).sum(1, keepdim=True) / features.sum().clamp_min(1)
        over_both = (over_classes * features).sum(1, keepdim=True) / features.sum().clamp_min(1)
        parts = [grid, over_classes.expand_as(grid), over_features.expand_as(grid), over_both.expand_as(grid)]
        return grid + self.mix(torch.cat(parts, -1))


class PairEncoder(nn.Module):
    """The encoder of a table: one code per class, made of one code for each pair of a class and a feature.

    A pair's code begins with the feature's functions' means in the class, their ridge regression on the class, and the
    scatter within the classes; layers between the pairs follow. Permuting the features or the classes permutes the
    codes. A feature that is zero in the whole support set has the code zero.

    functions: of each feature, see `Additive`. code: (classes, features * (width + functions)).
    """

    by_class = True

    def __init__(self, features: int, output_size: int, functions: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.output_size, self.functions, self.width = output_size, functions, width
        self.code_size = features * (width + functions)
        self.log_ridge = nn.Parameter(torch.tensor(1.0))
        self.lift = nn.Linear(2 * functions + 3, width)
        self.layers = nn.ModuleList(Exchange(width) for _ in range(layers))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f = x.unflatten(1, (-1, self.functions))
        labels = one_hot(y, self.output_size).to(x.dtype)
        counts = labels.sum(0)
        classes = (counts > 0).to(x.dtype).reshape(-1, 1, 1)
        features = (f[..., 0] != 0).any(0).to(x.dtype).reshape(1, -1, 1)
        means = torch.einsum("nc,njf->cjf", labels, f) / counts.clamp_min(1).reshape(-1, 1, 1)
        scatter = (f[..., 0] - torch.einsum("nc,cj->nj", labels, means[..., 0])).square().mean(0)
        ridge = self._ridge(x, labels).unflatten(1, (-1, self.functions))
        about = torch.stack(
            [
                scatter.expand(len(counts), -1),
                counts.clamp_min(1).log().unsqueeze(1).expand(-1, f.shape[1]),
                features.sum().log1p().expand(len(counts), f.shape[1]),
            ],
            -1,
        )
        grid = self.lift(torch.cat([means, ridge, about], -1))
        for layer in self.layers:
            grid = layer(grid, classes, features)
        return (torch.cat([grid, ridge], -1) * features).flatten(1)

    def _ridge(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the weights of ridge regression on centred one-hot rows, (classes, d)."""
        x, target = x - x.mean(0), labels - labels.mean(0)
        gram = x @ x.T + self.log_ridge.exp() * torch.eye(len(x), dtype=x.dtype, device=x.device)
        return (x.T @ torch.linalg.solve(gram, target)).T


class PairGenerator(nn.Module):
    """The generator that writes the head of `Additive` from a code of `PairEncoder`, pair by pair.

    At the start it writes a multiple of the ridge regression that the code holds.
    """

    by_class = True

    def __init__(self, functions: int, width: int = 32, scale: float = 4.0) -> None:
        super().__init__()
        self.functions, self.width = functions, width
        self.rows = {"head.weight": functions, "head.bias": 1}
        self.writer = nn.Linear(width + functions, functions + 1)
        with torch.no_grad():
            self.writer.weight.zero_()
            self.writer.weight[:functions, width:] = scale * torch.eye(functions)
            self.writer.bias.zero_()

    def forward(self, code: Tensor) -> Weights:
        pairs = code.unflatten(1, (-1, self.width + self.functions))
        present = (pairs != 0).any(-1, keepdim=True).to(pairs.dtype)
        written = self.writer(pairs) * present
        return {"head.weight": written[..., :-1].flatten(1), "head.bias": written[..., -1].sum(1)}
