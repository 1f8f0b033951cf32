"""Heads in closed form: the last layer that a support set implies, differentiable in its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.devices.precision import exact
from innerloop.episodes import InputError, Samples, Weights, features
from innerloop.nets.set_encoder import encode_labels


def classes_present(y: Tensor, outputs: int) -> Tensor:
    """Which of a net's outputs have a class among labels y (n,), bool; all, for a single logit and for real targets."""
    if outputs == 1 or y.is_floating_point():
        return torch.ones(outputs, dtype=torch.bool, device=y.device)
    # Not F.one_hot, which looks at the values and so fails in a gradient under vmap.
    return (y.unsqueeze(-1) == torch.arange(outputs, device=y.device)).any(0)


def without_absent(weights: Weights, support: Samples) -> Weights:
    """The same weights; classes that the support set lacks get so low a bias in the head that no softmax sees them.

    Exactly: neither probabilities nor gradients depend on how many outputs a net has to spare.
    """
    bias = weights["head.bias"]
    # Finite, since differences of -inf are NaN.
    lowest = torch.finfo(bias.dtype).min / 2
    return weights | {"head.bias": torch.where(classes_present(support.y, len(bias)), bias, lowest)}


class ZeroHead(Adaptation):
    """A head of zeros, which knows nothing yet: where training a new classifier on given features starts from."""

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return weights | {name: torch.zeros_like(w) for name, w in weights.items() if name.startswith("head.")}


class PrototypeHead(Adaptation):
    """The head whose softmax is the nearest class mean's (prototypical networks, Snell et al., 2017, eq. 8).

    With prototypes c_k, the means of the support features of class k, -|f - c_k|^2 = 2 c_k . f - |c_k|^2 - |f|^2, whose
    last term no softmax sees: row k of the head is 2 c_k and its bias -|c_k|^2. For a net with a single logit, the
    difference of the two. Needs class ids; raises InputError for real targets.
    """

    frees_ways = True

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        if support.y.is_floating_point():
            raise InputError("prototypes need class ids for labels, and these tasks have real targets")
        f = features(net, weights, support.x)
        outputs = weights["head.bias"].shape[0]
        labels = F.one_hot(support.y, max(outputs, 2)).to(f.dtype)
        sums = (exact(labels).T @ exact(f)).to(f.dtype)
        prototypes = sums / labels.sum(0).clamp_min(1).unsqueeze(-1)
        weight, bias = 2 * prototypes, -prototypes.square().sum(-1)
        if outputs == 1:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        return without_absent(weights | {"head.weight": weight, "head.bias": bias}, support)


class RidgeHead(Adaptation):
    """The head that ridge regression on the support features gives (R2D2, Bertinetto et al., 2019, eq. 4).

    W = argmin |F W - Y|^2 + lambda |W|^2, F the support features and a constant 1, Y one-hot rows, -1 and 1 for a
    single logit, or real targets as they are. Solved in the smaller of its two forms, F' (F F' + lambda I)^-1 Y or
    (F' F + lambda I)^-1 F' Y. lambda is learned, and so is what scales the solution to logits where labels are classes.

    ridge: lambda at the start, above zero.
    """

    frees_ways = True

    def __init__(self, ridge: float = 1.0) -> None:
        super().__init__()
        if not ridge > 0:
            raise InputError(f"ridge must be above zero, got {ridge}")
        self.log_ridge = nn.Parameter(torch.tensor(ridge).log())
        # One-hot targets fit to at most 1, which leaves a softmax over a few classes nearly uniform.
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        f = F.pad(features(net, weights, support.x), (0, 1), value=1.0)
        y = encode_labels(support.y, weights["head.bias"].shape[0]).to(f.dtype)
        solution = self.solve(exact(f), exact(y)).to(f.dtype)
        if not support.y.is_floating_point():
            solution = self.log_scale.exp() * solution
        return without_absent(weights | {"head.weight": solution[:-1].T, "head.bias": solution[-1]}, support)

    def solve(self, f: Tensor, y: Tensor) -> Tensor:
        """f (n, d), y (n, outputs) -> (d, outputs)."""
        n, d = f.shape
        wide = n <= d
        gram = f @ f.T if wide else f.T @ f
        regular = gram + self.log_ridge.exp() * torch.eye(min(n, d), dtype=f.dtype, device=f.device)
        return f.T @ torch.linalg.solve(regular, y) if wide else torch.linalg.solve(regular, f.T @ y)
