"""The head of Simple CNAPS: the Mahalanobis distance to class means, with a covariance estimated for each class."""

import torch
from torch import Tensor, nn

from innerloop.adaptation.adaptation import Adaptation
from innerloop.adaptation.heads import labelled_means, without_absent
from innerloop.devices.precision import exact
from innerloop.episodes import InputError, Samples, Weights


class MahalanobisHead(Adaptation):
    """The head that classifies by the Mahalanobis distance to class means (Simple CNAPS, Bateni et al., 2020, eq. 2-4).

    With the support features f of a task, the mean mu_k and covariance Sigma_k of the n_k features of class k and the
    covariance Sigma of all features of the task, each with the divisor n - 1 (a single feature has the covariance 0):

        Q_k = lambda_k Sigma_k + (1 - lambda_k) Sigma + beta I,   lambda_k = n_k / (n_k + 1)
        logit_k(f) = -(f - mu_k)' Q_k^-1 (f - mu_k)

    The paper writes a factor 1/2 before the distance and its code has none, as here. So with Q_k = I this is
    `PrototypeHead`. With Q_k = L_k L_k', A_k = L_k^-1 and m_k = A_k mu_k the logit is
    -|A_k f|^2 + 2 (A_k' m_k) . f - |m_k|^2, which `QuadraticHead` computes. It is differentiable in the features.

    beta: above zero. Raises InputError for real targets, and for a net whose head is no `QuadraticHead`.
    """

    frees_ways = True

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise InputError(f"beta must be above zero, got {beta}")
        self.beta = beta

    def forward(self, net: nn.Module, weights: Weights, support: Samples) -> Weights:
        if "head.factors" not in weights:
            raise InputError("Mahalanobis distances need a QuadraticHead as the net's head")
        f, labels, means = labelled_means(net, weights, support)
        dtype, outputs = f.dtype, len(weights["head.bias"])
        f, labels, means = exact(f), exact(labels), exact(means)
        lower = torch.linalg.cholesky(self.covariances(f, labels, means))
        identity = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device).expand_as(lower)
        factors = torch.linalg.solve_triangular(lower, identity, upper=False)
        white = torch.einsum("krd,kd->kr", factors, means)
        weight, bias = 2 * torch.einsum("krd,kr->kd", factors, white), -white.square().sum(-1)
        if outputs == 1:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        head = {"head.weight": weight, "head.bias": bias, "head.factors": factors}
        return without_absent(weights | {name: w.to(dtype) for name, w in head.items()}, support)

    def covariances(self, f: Tensor, labels: Tensor, means: Tensor) -> Tensor:
        """Return Q of each class (classes, d, d). f: (n, d). labels: one-hot (n, classes). means: (classes, d)."""
        counts = labels.sum(0)[:, None, None]
        within = f - labels @ means
        of_class = torch.einsum("nk,nd,ne->kde", labels, within, within) / (counts - 1).clamp_min(1)
        around = f - f.mean(0)
        of_task = around.T @ around / max(len(f) - 1, 1)
        share = counts / (counts + 1)
        identity = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
        return share * of_class + (1 - share) * of_task + self.beta * identity
