"""Heads in closed form: last layers that are computed from a support set and are differentiable in its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.devices.precision import exact
from innerloop.episodes import InputError, Samples, Weights, apply, features, task_weights
from innerloop.nets.set_encoder import encode_labels, one_hot


def classes_present(y: Tensor, outputs: int) -> Tensor:
    """Return for each output of the net whether its class is among the labels y, (n,): (outputs,), bool.

    All are True for a single logit and for real targets.
    """
    if outputs == 1 or y.is_floating_point():
        return torch.ones(outputs, dtype=torch.bool, device=y.device)
    return one_hot(y, outputs).any(0)


def without_absent(weights: Weights, support: Samples) -> Weights:
    """Return the weights with a head that gives classes that are not in the support set the probability zero.

    Their bias is so low that their softmax is exactly zero. So neither probabilities nor gradients depend on the number
    of outputs that a task does not use.
    """
    bias = weights["head.bias"]
    # Finite, because differences of -inf are NaN.
    lowest = torch.finfo(bias.dtype).min / 2
    return weights | {"head.bias": torch.where(classes_present(support.y, len(bias)), bias, lowest)}


def labelled_means(net: nn.Module, weights: Weights, support: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Return the support features (n, d), their one-hot labels (n, classes) and the mean of each class (classes, d).

    A single logit has two classes. The mean of an absent class is zero. Raises InputError for real targets.
    """
    if support.y.is_floating_point():
        raise InputError(
            "prototypes need class ids for labels, and these tasks have real targets: use data of classes, as "
            "data=glyphs"
        )
    f = features(net, weights, support.x)
    labels = one_hot(support.y, max(weights["head.bias"].shape[0], 2)).to(f.dtype)
    sums = (exact(labels).T @ exact(f)).to(f.dtype)
    return f, labels, sums / labels.sum(0).clamp_min(1).unsqueeze(-1)


class ZeroHead(Adaptation):
    """A head of zeros, the starting point for training a new classifier on given features."""

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        return weights | {name: torch.zeros_like(w) for name, w in weights.items() if name.startswith("head.")}


class PrototypeHead(Adaptation):
    """The head that classifies by the distance to class means (prototypical networks, Snell et al., 2017, eq. 8).

    The prototype c_k is the mean of the support features f of class k. The logits are the negative squared distances
    -|f - c_k|^2 = 2 c_k . f - |c_k|^2 - |f|^2. The last term is the same for all classes and does not change the
    softmax, so row k of the head is 2 c_k and its bias is -|c_k|^2. For a net with a single logit, the head is the
    difference between the rows of the two classes.
    Raises InputError for real targets, because the labels must be class ids.
    """

    frees_ways = True

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        _, _, prototypes = labelled_means(net, weights, support)
        weight, bias = 2 * prototypes, -prototypes.square().sum(-1)
        if len(weights["head.bias"]) == 1:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        return without_absent(weights | {"head.weight": weight, "head.bias": bias}, support)


class RidgeHead(Adaptation):
    """The head of ridge regression on the support features (R2D2, Bertinetto et al., 2019, eq. 4).

    W = argmin |F W - Y|^2 + lambda |W|^2. F are the support features and a constant 1. Y are one-hot rows, -1 and 1 for
    a single logit, or real targets. The solution has two forms, F' (F F' + lambda I)^-1 Y and
    (F' F + lambda I)^-1 F' Y, and the one with the smaller system is used. lambda is learned. If labels are classes,
    the factor that scales the solution to logits is learned, too.

    ridge: initial value of lambda, above zero.
    """

    frees_ways = True

    def __init__(self, ridge: float = 1.0) -> None:
        super().__init__()
        if not ridge > 0:
            raise InputError(f"ridge must be above zero, got {ridge}")
        self.log_ridge = nn.Parameter(torch.tensor(ridge).log())
        # Fits of one-hot targets are at most 1, and a softmax of such values over a few classes is nearly uniform.
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        f = F.pad(features(net, weights, support.x), (0, 1), value=1.0)
        y = encode_labels(support.y, weights["head.bias"].shape[0]).to(f.dtype)
        solution = self.solve(exact(f), exact(y)).to(f.dtype)
        if not support.y.is_floating_point():
            solution = self.log_scale.exp() * solution
        return without_absent(weights | {"head.weight": solution[:-1].T, "head.bias": solution[-1]}, support)

    def solve(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the solution W of the ridge regression. f: (n, d), y: (n, outputs) -> (d, outputs)."""
        n, d = f.shape
        wide = n <= d
        gram = f @ f.T if wide else f.T @ f
        regular = gram + self.log_ridge.exp() * torch.eye(min(n, d), dtype=f.dtype, device=f.device)
        return f.T @ torch.linalg.solve(regular, y) if wide else torch.linalg.solve(regular, f.T @ y)


class RidgeStep(Adaptation):
    """The weights of a task in closed form: a ridge regression towards the weights that it starts from.

    w = theta + argmin_d |f(x; theta + d) - y|^2 + lambda |d|^2, for a net that is affine in the weights d that a task
    may have of its own, those of its head or `task_part` (Denevi et al., 2018). In a factor model of ratings it is the
    fold-in of a new user. lambda is learned. ridge: its initial value, above zero.
    Raises InputError for class ids.
    """

    def __init__(self, ridge: float = 1.0) -> None:
        super().__init__()
        if not ridge > 0:
            raise InputError(f"ridge must be above zero, got {ridge}")
        self.log_ridge = nn.Parameter(torch.tensor(float(ridge)).log())

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        if not support.y.is_floating_point():
            raise InputError(
                "toward=theta is a regression to real targets, and these tasks have class ids: toward=zero"
            )
        names = [name for name in task_weights(net) if name.startswith("head.")]

        def outputs(head: Weights) -> Tensor:
            return apply(net, weights | head, support.x).flatten()

        head = {name: weights[name] for name in names}
        jacobian = torch.func.jacrev(outputs)(head)
        f = exact(torch.cat([jacobian[name].flatten(1) for name in names], 1))
        residual = exact(support.y.flatten() - outputs(head))
        regular = f.T @ f + self.log_ridge.exp() * torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        found = torch.linalg.solve(regular, f.T @ residual).to(residual.dtype)
        parts = found.split([weights[name].numel() for name in names])
        return weights | {n: w + d.view_as(w) for (n, w), d in zip(head.items(), parts, strict=True)}
