"""Meta-Dataset's sampler: how many classes an episode has, which, and how many images of each.

Triantafillou et al.: Meta-Dataset. ICLR, 2020, section 3.2 and appendix A.3, in the version of the authors' code
(`sampling.py` of google-research/meta-dataset).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from innerloop.errors import InputError

log = logging.getLogger("innerloop")


@dataclass(frozen=True)
class Limits:
    """The sampler's limits, with the published values.

    min_ways, max_ways: of the number of classes. max_queries: of the query images of a class. max_support: of the
        support images of all classes. max_support_per_class: of what one class contributes to that size.
    min_weight, max_weight: of the factor by which a class's share of the support set differs from its share of images.
    max_span: an inner node of a hierarchy that spans more classes is not drawn.

    Raises InputError for limits that leave no episode.
    """

    min_ways: int = 5
    max_ways: int = 50
    max_queries: int = 10
    max_support: int = 500
    max_support_per_class: int = 100
    min_weight: float = 0.5
    max_weight: float = 2.0
    max_span: int = 392

    def __post_init__(self) -> None:
        for f in fields(self):
            value: Any = getattr(self, f.name)
            number = isinstance(value, int) or (isinstance(value, float) and isinstance(f.default, float))
            if isinstance(value, bool) or not number or not 0 < value < 10**9:
                kind = "a number" if isinstance(f.default, float) else "an integer"
                raise InputError(f"data.limits.{f.name}={value} must be {kind} above zero")
        for low, high in (("min_ways", "max_ways"), ("min_weight", "max_weight")):
            if getattr(self, low) > getattr(self, high):
                raise InputError(
                    f"data.limits.{low}={getattr(self, low)} must not exceed data.limits.{high}={getattr(self, high)}"
                )
        if self.min_ways < 2:
            raise InputError(f"data.limits.min_ways must be at least 2, got {self.min_ways}")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Self:
        """Return the limits with these values. Raises InputError for a name that does not exist."""
        known = [f.name for f in fields(cls)]
        for name in values or {}:
            if name not in known:
                raise InputError(f"unknown key data.limits.{name}. Possible here: {', '.join(sorted(known))}")
        return cls(**(values or {}))


class Plan(NamedTuple):
    """What an episode is made of. classes, shots: (ways,), each class and its number of support images.

    queries: number of query images of every class.
    """

    classes: np.ndarray
    shots: np.ndarray
    queries: int


class Sampler:
    """Draw the plans of episodes.

    counts: (classes,) number of images of each class, at least 2.
    groups: arrays of classes. An episode's classes are of one group, each of which is as likely; None: a single group.
    whole: an episode has all classes of its group, or max_ways of them at random. Otherwise the number of ways is
        uniform from min_ways to max_ways or the size of the group.

    Groups that are too small or, if `whole`, too large are left out, and the log counts them.
    Raises InputError if no group is left. where: of what, for the message.
    """

    def __init__(
        self,
        counts: np.ndarray,
        limits: Limits = Limits(),
        groups: Sequence[np.ndarray] | None = None,
        whole: bool = False,
        where: str = "the data",
    ) -> None:
        self.counts, self.limits, self.whole = counts, limits, whole
        found = [np.arange(len(counts))] if groups is None else groups
        largest = limits.max_span if whole else len(counts)
        self.groups = [group for group in found if limits.min_ways <= len(group) <= largest]
        if not self.groups:
            in_group = f", at most {max(map(len, found), default=0)} in a group," if groups is not None else ""
            raise InputError(
                f"sampler=meta_dataset draws at least data.limits.min_ways={limits.min_ways} classes, and {where} has "
                f"{len(counts)} classes{in_group} with at least two images: lower data.limits.min_ways, or add classes"
            )
        if self.most_ways > limits.max_support:
            raise InputError(
                f"data.limits.max_support={limits.max_support} must allow a support image of each of up to "
                f"{self.most_ways} classes: raise it, or lower data.limits.max_ways"
            )
        if left_out := len(found) - len(self.groups):
            log.info("%s: %d of %d groups of classes are too small or too large", where, left_out, len(found))

    @property
    def most_ways(self) -> int:
        """The largest number of classes of an episode."""
        return min(self.limits.max_ways, max(map(len, self.groups)))

    def __call__(self, rng: np.random.Generator) -> Plan:
        limits = self.limits
        group = self.groups[rng.integers(len(self.groups))]
        most = min(limits.max_ways, len(group))
        ways = most if self.whole else int(rng.integers(limits.min_ways, most + 1))
        classes = rng.choice(group, ways, replace=False)
        counts = self.counts[classes]
        queries = min(limits.max_queries, int(counts.min()) // 2)
        left = counts - queries
        beta = 1 - rng.random()  # in (0, 1]
        size = min(limits.max_support, int(np.ceil(beta * np.minimum(limits.max_support_per_class, left)).sum()))
        weights = np.exp(rng.uniform(np.log(limits.min_weight), np.log(limits.max_weight), ways))
        share = counts * weights / (counts * weights).sum()
        shots = np.minimum(np.floor(share * (size - ways)).astype(np.int64) + 1, left)
        return Plan(classes, shots, queries)
