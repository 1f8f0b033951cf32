"""Meta-Dataset's sampler: its distribution against the published formulas, over 20,000 plans each."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_few_shot_images import SPLIT_IDS, numbered, read

from innerloop.datasets.images import LabelledImages
from innerloop.episodes import SPLITS, Episode, InputError, Split, episode_rng, tasks_of
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.sampling import Limits, Plan, Sampler

PLANS = 20_000
UNEVEN = np.array([7, 12, 20, 20, 33, 60, 150, 400, 900, 30, 25, 18])


def plans(sampler: Sampler, count: int = PLANS, seed: int = 0) -> Iterator[Plan]:
    rng = episode_rng(seed, "test", 0)
    for _ in range(count):
        yield sampler(rng)


def p_uniform(values: Any, low: int, high: int) -> float:
    """The chi-square test's p that integers are uniform from low to high."""
    counts = np.bincount(values, minlength=high + 1)
    assert counts[:low].sum() == 0
    assert len(counts) == high + 1
    return stats.chisquare(counts[low:]).pvalue


@pytest.mark.parametrize(("classes", "most"), [(12, 12), (80, 50)])
def test_ways_are_uniform_from_five_to_the_smaller_of_fifty_and_the_classes(classes: int, most: int) -> None:
    found = list(plans(Sampler(np.full(classes, 20))))
    assert p_uniform([len(p.classes) for p in found], 5, most) > 1e-3
    assert all(len({*p.classes}) == len(p.classes) for p in found)
    # Every class is as likely, and so is every class in the first place, which gets label 0.
    assert p_uniform([p.classes[0] for p in found], 0, classes - 1) > 1e-3


def test_bounds_that_hold_in_every_plan() -> None:
    limits = Limits(max_support=120, max_support_per_class=40)
    for classes, shots, queries in plans(Sampler(UNEVEN, limits), 5000):
        n = UNEVEN[classes]
        assert queries == min(10, n.min() // 2)
        assert (shots >= 1).all()
        assert (shots <= n - queries).all()
        assert shots.sum() <= 120


def test_the_size_of_the_support_set_of_equal_classes_is_exactly_uniform() -> None:
    """20 images a class: 10 queries, 10 left; 8 ways, a power of two, so that equal shares are exact: ceil(10 beta)."""
    sampler = Sampler(np.full(30, 20), Limits(min_ways=8, max_ways=8, min_weight=1, max_weight=1))
    shots = np.stack([p.shots for p in plans(sampler)])
    assert (shots == shots[:, :1]).all()
    assert p_uniform(shots[:, 0], 1, 10) > 1e-3


def reference(counts: np.ndarray, rng: np.random.RandomState) -> tuple[int, int, float]:
    """Ways, support images and the largest class's share of an episode, written down anew from REFERENCES' formulas."""
    ways = rng.randint(5, min(50, len(counts)) + 1)
    n = rng.permutation(counts)[:ways]
    queries = min(10, *(x // 2 for x in n))
    r, beta = n - queries, 1 - rng.uniform()
    size = min(500, sum(int(np.ceil(beta * min(100, x))) for x in r))
    unnormalized = [x * np.exp(rng.uniform(np.log(0.5), np.log(2))) for x in n]
    shots = [
        min(int(np.floor(u / sum(unnormalized) * (size - ways))) + 1, x) for u, x in zip(unnormalized, r, strict=True)
    ]
    return ways, sum(shots), shots[int(n.argmax())] / sum(shots)


def test_support_sizes_and_class_shares_of_uneven_classes_agree_with_the_formulas() -> None:
    ours = [
        (len(p.classes), p.shots.sum(), p.shots[UNEVEN[p.classes].argmax()] / p.shots.sum())
        for p in plans(Sampler(UNEVEN))
    ]
    rng = np.random.RandomState(1)
    theirs = [reference(UNEVEN, rng) for _ in range(PLANS)]
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        edges = np.unique(np.quantile(other, np.linspace(0, 1, 31)))
        table = [np.histogram(values, [-np.inf, *edges[1:-1], np.inf])[0] for values in (mine, other)]
        assert stats.chi2_contingency(table).pvalue > 1e-3
    # The test sees a small mistake, 95 images of a class in place of 100.
    wrong = [p.shots.sum() for p in plans(Sampler(UNEVEN, Limits(max_support_per_class=95)))]
    assert stats.ks_2samp(wrong, [size for _, size, _ in theirs]).pvalue < 1e-3


def test_the_ratio_of_two_shares_is_that_of_the_counts_times_two_log_uniform_weights() -> None:
    counts = np.array([30_000, 60_000])
    limits = Limits(min_ways=2, max_ways=2, max_support=10**6, max_support_per_class=5000)
    found = [p for p in plans(Sampler(counts, limits)) if p.shots.sum() > 2000]
    assert len(found) > 0.7 * PLANS
    ratios = [np.log(p.shots[0] / counts[p.classes[0]]) - np.log(p.shots[1] / counts[p.classes[1]]) for p in found]
    width = np.log(2) - np.log(0.5)  # the difference of two uniform numbers has a triangular density
    assert stats.kstest(ratios, stats.triang(0.5, loc=-width, scale=2 * width).cdf).pvalue > 1e-3


def test_an_alphabet_is_drawn_first_and_then_its_characters() -> None:
    alphabets = [np.arange(0, 6), np.arange(6, 26), np.arange(26, 29), np.arange(29, 40)]
    found = list(plans(Sampler(np.full(40, 20), groups=alphabets)))
    which = np.array([next(i for i, a in enumerate(alphabets) if p.classes[0] in a) for p in found])
    assert all(np.isin(p.classes, alphabets[i]).all() for p, i in zip(found, which, strict=True))
    assert stats.chisquare(np.bincount(which)[[0, 1, 3]]).pvalue > 1e-3, "each alphabet is as likely, whatever its size"
    assert (which != 2).all(), "an alphabet of three characters gives no episode of five"
    for i, most in ((0, 6), (1, 20), (3, 11)):
        assert p_uniform([len(p.classes) for p, w in zip(found, which, strict=True) if w == i], 5, most) > 1e-3


def test_a_node_of_a_graph_gives_all_its_classes_or_fifty_of_them() -> None:
    nodes = [np.arange(0, 8), np.arange(4, 104), np.arange(0, 120), np.arange(2)]
    sampler = Sampler(np.full(120, 20), Limits(max_span=110), nodes, whole=True)
    found = list(plans(sampler, 4000))
    small = [p for p in found if len(p.classes) == 8]
    assert all({*p.classes} == {*range(8)} for p in small)
    large = [p for p in found if len(p.classes) == 50]
    assert len(small) + len(large) == 4000
    assert stats.binomtest(len(small), 4000, 0.5).pvalue > 1e-3
    members = np.concatenate([p.classes for p in large])
    # Without replacement the counts vary less than independent draws, so the statistic is scaled.
    counts = np.bincount(members)[4:104]
    assert members.min() == 4
    assert members.max() == 103
    variance = len(large) * 0.5 * 0.5 * 100 / 99
    assert stats.chi2.sf(((counts - len(large) / 2) ** 2).sum() / variance, 99) > 1e-3


# Episodes.


def drawn(settings: dict[str, Any], split: Split, count: int = 60, data: LabelledImages | None = None) -> list[Episode]:
    tasks = FewShotImages(data or numbered(), sampler="meta_dataset", **settings)
    batch = tasks.draw(split, [episode_rng(0, split, i) for i in range(count)])
    assert isinstance(batch, list)
    return tasks_of(batch)


@pytest.mark.parametrize("split", SPLITS)
def test_no_image_is_in_support_and_query_and_queries_are_balanced(split: Split) -> None:
    for (support, query), (again, _) in zip(
        drawn({"rotations": True}, split), drawn({"rotations": True}, split), strict=True
    ):
        s, q = read(support.x), read(query.x)
        assert (support.x == again.x).all()
        assert len({*map(tuple, s[:, :2]), *map(tuple, q[:, :2])}) == len(s) + len(q)
        ways = int(query.y.max()) + 1
        assert 5 <= ways <= len(SPLIT_IDS[split])
        counts = np.bincount(query.y, minlength=ways)
        assert (counts == 10).all(), "half of the smallest class of 20 to 22"
        assert {*support.y.tolist()} == {*range(ways)}
        for label in range(ways):
            kinds = {*map(tuple, np.r_[s[support.y == label], q[query.y == label]][:, [0, 2]])}
            assert len(kinds) == 1, "one label, two classes or angles"
            assert kinds.pop()[0] in SPLIT_IDS[split]
        assert split == "train" or not s[:, 2].any()


def test_an_episode_does_not_depend_on_the_others_of_its_meta_batch() -> None:
    tasks = FewShotImages(numbered(), sampler="meta_dataset")
    together = tasks_of(tasks.draw("train", [episode_rng(0, "train", i) for i in range(6)]))
    for i, episode in enumerate(together):
        (alone,) = tasks_of(tasks.draw("train", [episode_rng(0, "train", i)]))
        assert all((a == b).all() for s, t in zip(alone, episode, strict=True) for a, b in zip(s, t, strict=True))


def test_pooled_labels_are_those_of_classes_and_angles() -> None:
    tasks, count = FewShotImages(numbered(), sampler="meta_dataset", rotations=True).pooled()
    assert count == 24
    for support, _ in tasks_of(tasks.draw("train", [episode_rng(0, "train", i) for i in range(30)])):
        found = read(support.x)
        assert (support.y.numpy() == 4 * found[:, 0] + found[:, 2]).all()


def test_the_net_has_outputs_for_the_most_ways_that_the_limits_allow_whatever_the_data_have() -> None:
    assert FewShotImages(numbered(), sampler="meta_dataset").output_size == 50
    limited = FewShotImages(numbered(), sampler="meta_dataset", limits={"max_ways": 6})
    assert limited.output_size == 6
    assert limited.varied_ways


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limits": {"max_way": 5}}, "unknown key data.limits.max_way. Possible here: max_queries"),
        ({"limits": {"max_ways": 0}}, "data.limits.max_ways=0 must be an integer above zero"),
        ({"limits": {"max_ways": 7.5}}, "data.limits.max_ways=7.5 must be an integer above zero"),
        ({"limits": {"max_queries": True}}, "data.limits.max_queries=True must be an integer"),
        ({"limits": {"min_weight": float("nan")}}, "data.limits.min_weight=nan must be a number above zero"),
        ({"limits": {"min_ways": 1}}, "data.limits.min_ways must be at least 2"),
        ({"limits": {"max_ways": 4}}, "data.limits.min_ways=5 must not exceed data.limits.max_ways=4"),
        (
            {"limits": {"max_support": 5}},
            "data.limits.max_support=5 must allow a support image of each of up to 6 classes",
        ),
        ({"limits": {"min_ways": 6}}, "min_ways=6 classes, and the validation split has 5 classes with at least two"),
        ({"min_shots": 1}, "sampler=meta_dataset draws ways and shots within data.limits"),
        ({"test_ways": 5}, "leave min_ways, min_shots and test_ways"),
        ({"sampler": "metadataset"}, "sampler=metadataset: choose one of uniform, meta_dataset"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        FewShotImages(numbered(), **{"sampler": "meta_dataset"} | settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_of_one_image_are_left_out_and_too_few_others_are_named() -> None:
    counts = [20] * 18
    counts[7] = 1
    with pytest.raises(InputError, match="the validation split has 4 classes with at least two images"):
        FewShotImages(numbered(counts), sampler="meta_dataset")
    counts = [20] * 18
    counts[12] = 1
    names = FewShotImages(numbered(counts), sampler="meta_dataset").class_names("test")
    assert len(names) == 6
    assert "class 12" not in names
