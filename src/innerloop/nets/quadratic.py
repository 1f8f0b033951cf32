"""A last layer with a quadratic term for each output, as Gaussian classes of different covariances need it."""

import torch
from torch import Tensor, nn


class QuadraticHead(nn.Linear):
    """The head w_k . f + b_k - |A_k f|^2. f: (n, in_features) -> (n, out_features).

    The factors A (`factors`, (classes, rows, in_features)) have no rows unless an adaptation writes them. Without rows
    it is a linear head. For a single output, the logit between two classes, A has two classes, and the difference
    between their terms is taken, as in w = w_1 - w_0.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.factors = nn.Parameter(torch.empty(max(out_features, 2), 0, in_features))

    def forward(self, input: Tensor) -> Tensor:
        squares = torch.einsum("krd,nd->nkr", self.factors, input).square().sum(-1)
        if self.out_features == 1:
            squares = squares[:, 1:] - squares[:, :1]
        return super().forward(input) - squares
