"""The synthetic task families: what is drawn, from which stream, and whether the Bayes predictions are that."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from innerloop.episodes import SPLITS, Episode, InputError, Samples, Split, episode_rng
from innerloop.tasks.base import Tasks
from innerloop.tasks.baselines import logistic_regression
from innerloop.tasks.hyperplane import Hyperplane
from innerloop.tasks.multimodal import FAMILIES, Multimodal
from innerloop.tasks.sinusoid import Sinusoid

Known = Multimodal | Hyperplane
WITH_ORACLE: dict[str, Callable[[], Known]] = {
    "multimodal": Multimodal,
    "uniform": Hyperplane,
    "clustered": lambda: Hyperplane(clusters=5),
}
EVERY: dict[str, Callable[[], Sinusoid | Known]] = {"sinusoid": Sinusoid, **WITH_ORACLE}
every_family = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
every_oracle = pytest.mark.parametrize("make", WITH_ORACLE.values(), ids=WITH_ORACLE)


def draw(tasks: Tasks, count: int, split: Split = "test", seed: int = 0, first: int = 0) -> Episode:
    return tasks.draw(split, [episode_rng(seed, split, i) for i in range(first, first + count)])


def flat(episode: Episode) -> list[Tensor]:
    return [v for part in episode for v in part]


def ks(values: np.ndarray, low: float, high: float) -> float:
    """sqrt(n) times the Kolmogorov-Smirnov distance from U[low, high]: above 1.95 once in a thousand.

    Asserts that the values fill the interval to its ends and stay within.
    """
    u = np.sort((values - low) / (high - low))
    assert -1e-6 <= u[0] < 9 / len(u)
    assert 1 - 9 / len(u) < u[-1] <= 1 + 1e-6
    return math.sqrt(len(u)) * float(np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max())


@every_family
def test_shapes_and_types(make: Callable[[], Sinusoid | Known]) -> None:
    tasks = make()
    episode = draw(tasks, 3)
    for part, n in zip(episode, (tasks.shots, tasks.queries), strict=True):
        assert part.x.shape == (3, n, *tasks.input_shape)
        assert part.x.dtype == torch.float32
        if isinstance(tasks, Hyperplane):
            assert part.y.shape == (3, n)
            assert part.y.dtype == torch.int64
        else:
            assert part.y.shape == (3, n, tasks.output_size)
            assert part.y.dtype == torch.float32
        assert all(v.is_contiguous() for v in part)


@every_family
def test_an_episode_is_a_function_of_its_own_stream(make: Callable[[], Tasks]) -> None:
    tasks = make()
    whole = flat(draw(tasks, 13))
    for sizes in ([1] * 13, [4, 9], [12, 1]):
        starts = np.cumsum([0, *sizes])
        parts = [flat(draw(make(), n, first=int(i))) for i, n in zip(starts, sizes, strict=False)]
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*parts, strict=True), strict=True))


@every_family
def test_splits_and_seeds_share_no_point(make: Callable[[], Tasks]) -> None:
    episodes = [draw(make(), 50, split, seed) for split in SPLITS for seed in (0, 1)]
    points = torch.cat([part.x.flatten(0, 1) for episode in episodes for part in episode])
    # One dimension has so few float32 numbers in [-5, 5] that a chance pair is likely; a shared stream makes hundreds.
    assert len(points) - len(points.unique(dim=0)) <= 2


@pytest.mark.parametrize("family", [Sinusoid, Multimodal])
def test_regression_inputs_are_uniform(family: type[Sinusoid] | type[Multimodal]) -> None:
    episode = draw(family(shots=5, queries=5), 500)
    assert family.x_range == (-5, 5)
    for part in episode:
        assert ks(part.x.flatten().numpy(), *family.x_range) < 1.95


def test_sinusoids_have_the_amplitudes_and_phases_of_the_paper() -> None:
    """A sin(x - p) = (A cos p) sin x - (A sin p) cos x, so least squares gives both back."""
    episode = draw(Sinusoid(shots=10, queries=10), 2000)
    x, y = (torch.cat(v, 1).double() for v in zip(*episode, strict=True))
    basis = torch.cat([x.sin(), -x.cos()], -1)
    solution = torch.linalg.lstsq(basis, y).solution
    assert (basis @ solution - y).abs().max() < 1e-5
    p, q = solution.squeeze(-1).T.numpy()
    assert ks(np.hypot(p, q), 0.1, 5) < 1.95
    assert ks(np.arctan2(q, p), 0, math.pi) < 1.95


def test_multimodal_functions_have_the_stated_noise_coefficients_and_frequencies() -> None:
    """With noise that is all but gone, each family's own fit leaves nothing: it names the family and the numbers."""
    n = 1500
    episode = draw(Multimodal(shots=20, queries=20, noise=1e-6), n)
    x, y = (torch.cat(v, 1).squeeze(-1).double().numpy() for v in zip(*episode, strict=True))
    one = np.ones_like(x)

    def fit(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        basis = np.stack(columns, -1)
        coefficients = np.linalg.pinv(basis) @ y[..., None]
        return coefficients[..., 0], np.abs(basis @ coefficients - y[..., None]).max((1, 2)) < 1e-4

    wave, is_wave = fit(np.sin(x), -np.cos(x))
    line, is_line = fit(x, one)
    square, is_square = fit(x**2, x, one)
    is_square &= ~is_line
    rest = ~(is_wave | is_line | is_square)
    saturates = np.abs(y).max(1) <= 6.0001  # |a tanh + b|
    for share in (is_wave, is_line, is_square):
        assert abs(share.mean() - 0.2) < 4 * math.sqrt(0.16 / n)
    assert abs(rest.mean() - 0.4) < 4 * math.sqrt(0.24 / n)
    assert saturates[rest].mean() > 0.5

    assert ks(np.hypot(*wave[is_wave].T), 0.1, 5) < 1.95
    assert ks(np.arctan2(wave[is_wave, 1], wave[is_wave, 0]), 0, math.pi) < 1.95
    assert ks(line[is_line, 0], -3, 3) < 1.95
    assert ks(line[is_line, 1], -3, 3) < 1.95
    a = square[is_square, 0]
    centre = -square[is_square, 1] / (2 * a)
    assert ks(np.abs(a), 0.02, 0.15) < 1.95
    assert abs((a > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(a))
    assert ks(centre[np.abs(centre) < 3], -3, 3) < 1.95
    assert ks(square[is_square, 2] - a * centre**2, -3.0001, 3.0001) < 1.95


def test_multimodal_noise_is_on_support_and_query_with_the_stated_deviation() -> None:
    """The same streams with another noise differ by that noise alone."""
    loud, quiet = (draw(Multimodal(shots=10, queries=10, noise=s), 500) for s in (0.8, 0.3))
    for one, other in zip(loud, quiet, strict=True):
        assert torch.equal(one.x, other.x)
        noise = (one.y - other.y).flatten() / 0.5
        assert noise.std() == pytest.approx(1, abs=0.05)
        assert noise.mean() == pytest.approx(0, abs=0.05)
        assert noise.abs().max() > 3


def test_multimodal_oracle_is_the_posterior_mean() -> None:
    """Against plain importance sampling over a prior that is written down anew here."""
    tasks = Multimodal(shots=3, queries=4, noise=1.0)
    episode = draw(tasks, 8)
    rng, n = np.random.default_rng(1), 300_000
    a, b, c = rng.uniform(-3, 3, (3, n, 1))
    amplitude, phase = rng.uniform(0.1, 5, (n, 1)), rng.uniform(0, math.pi, (n, 1))
    bend = rng.uniform(0.02, 0.15, (n, 1)) * rng.choice([-1, 1], (n, 1))
    kind = rng.integers(5, size=(n, 1))
    oracle = tasks.oracle(episode)
    for i in range(8):
        x = torch.cat([episode.support.x[i], episode.query.x[i]]).double().numpy().T
        f = np.select(
            [kind == k for k in range(5)],
            [
                amplitude * np.sin(x - phase),
                a * x + b,
                bend * (x - c) ** 2 + b,
                a * np.abs(x - c) + b,
                a * np.tanh(x - c) + b,
            ],
        )
        weight = np.exp(-((f[:, :3] - episode.support.y[i].numpy().T) ** 2).sum(1) / 2)
        weight /= weight.sum()
        mean = weight @ f[:, 3:]
        deviation = np.sqrt((weight[:, None] ** 2 * (f[:, 3:] - mean) ** 2).sum(0))
        assert (np.abs(oracle[i, :, 0].numpy() - mean) < 4.5 * deviation + 0.002).all()


def test_multimodal_oracle_has_converged() -> None:
    episode = draw(Multimodal(), 40)
    coarse, fine = (Multimodal().oracle(episode, slopes=n) for n in (32, 96))
    assert (coarse - fine).square().mean().sqrt() < 1e-3


def test_multimodal_oracle_recovers_a_function_that_the_support_pins_down() -> None:
    tasks = Multimodal(shots=30, queries=20, noise=0.05)
    episode = draw(tasks, 20)
    # What is left is the noise of the queries and a little of where the support has gaps.
    assert (tasks.oracle(episode) - episode.query.y).square().mean((1, 2)).median() < 2 * 0.05**2


def test_multimodal_oracle_beats_every_family_and_is_calibrated() -> None:
    tasks = Multimodal()
    episode = draw(tasks, 300)
    (x, y), (x_query, y_query) = episode
    bayes = tasks.oracle(episode)

    # A Gaussian process whose covariance is that of the prior itself, estimated from noise-free functions: the best
    # prediction that is linear in the support's y.
    grid_x = torch.cat([x, x_query], 1)
    covariance = _prior_covariance(grid_x.squeeze(-1).double().numpy())
    n = x.shape[1]
    noisy = covariance[:, :n, :n] + 0.09 * np.eye(n)
    linear = torch.from_numpy(covariance[:, n:, :n] @ np.linalg.solve(noisy, y.double().numpy()))

    error, linear_error = ((v - y_query).square().mean((1, 2)) for v in (bayes, linear))
    # Paired: the same tasks; three standard errors.
    difference = linear_error - error
    assert difference.mean() > 3 * difference.std() / math.sqrt(len(error))
    assert error.median() > 0.09 * 0.8
    # The error of a posterior mean has no correlation with anything that the support determines, itself included.
    for support_statistic in (bayes, linear):
        product = ((y_query - bayes) * support_statistic).mean((1, 2))
        assert product.mean().abs() < 4 * product.std() / math.sqrt(len(product))


def _prior_covariance(x: np.ndarray) -> np.ndarray:
    """Second moments of the noise-free functions at points (tasks, n): (tasks, n, n), by sampling coefficients."""
    rng, m = np.random.default_rng(0), 1500
    moments = []
    for family in FAMILIES.values():
        low, high = np.array(family.a)[rng.integers(len(family.a), size=m)].T
        a, b, c = rng.uniform(low, high, m), rng.uniform(*family.b, m), rng.uniform(*family.c, m)
        f = a[:, None, None] * family.shape(x, c[:, None, None]) + b[:, None, None]
        moments.append(np.einsum("mtn,mtk->tnk", f, f, optimize=True) / m)
    return np.mean(moments, 0)


@every_oracle
def test_oracles_ignore_the_order_of_the_support_and_the_other_tasks(make: Callable[[], Known]) -> None:
    tasks = make()
    episode = draw(tasks, 12)
    prediction = tasks.oracle(episode)
    assert prediction.shape == episode.query.y.shape
    assert torch.equal(prediction, tasks.oracle(episode))
    order = torch.randperm(episode.support.x.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = Episode(Samples(*(v[:, order] for v in episode.support)), episode.query)
    torch.testing.assert_close(tasks.oracle(shuffled), prediction, rtol=0, atol=1e-5)
    alone = Episode(*(Samples(part.x[3:4], part.y[3:4]) for part in episode))
    torch.testing.assert_close(tasks.oracle(alone), prediction[3:4], rtol=0, atol=1e-5)


@every_oracle
def test_oracles_never_look_at_the_query_labels(make: Callable[[], Known]) -> None:
    tasks = make()
    episode = draw(tasks, 4)
    blind = Episode(episode.support, Samples(episode.query.x, torch.zeros_like(episode.query.y)))
    assert torch.equal(tasks.oracle(blind), tasks.oracle(episode))


@pytest.mark.parametrize("clusters", [0, 5])
def test_hyperplane_labels(clusters: int) -> None:
    """With very many points a least-squares fit of the labels finds the direction; flips are on the support alone."""
    tasks = Hyperplane(dimensions=4, clusters=clusters, shots=3000, queries=3000, flip=0.05)
    support, query = draw(tasks, 60)
    clean, _ = draw(Hyperplane(dimensions=4, clusters=clusters, shots=3000, queries=3000, flip=0), 60)
    assert torch.equal(clean.x, support.x)
    assert (clean.y != support.y).double().mean() == pytest.approx(0.05, abs=0.003)
    for part in (support, query):
        assert part.x.mean() == pytest.approx(0, abs=0.01)
        assert part.x.std() == pytest.approx(1, abs=0.01)
        assert set(part.y.unique().tolist()) == {0, 1}
    # Normal x: the mean of y x is along w, and the share of ones is the normal distribution function of b.
    direction = torch.einsum("tnd,tn->td", query.x, query.y - query.y.double().mean(1, keepdim=True).float())
    direction /= direction.norm(dim=1, keepdim=True)
    along = torch.einsum("tnd,td->tn", query.x, direction)
    offset = torch.special.ndtri(query.y.double().mean(1))
    agree = ((along + offset[:, None] > 0) == query.y.bool()).double().mean()
    assert agree > 0.97
    assert offset.std() == pytest.approx(0.3, abs=0.1)
    if clusters:
        nearest = (direction.double() @ torch.from_numpy(tasks.centres).T).max(1)
        assert nearest.values.mean() > 0.85
        assert len(nearest.indices.unique()) == clusters
    else:
        assert (direction.T @ direction / 60 - torch.eye(4) / 4).abs().max() < 0.15


def test_cluster_centres_belong_to_the_distribution() -> None:
    one, other = Hyperplane(clusters=5, shots=3), Hyperplane(clusters=5, queries=9)
    assert np.array_equal(one.centres, other.centres)
    np.testing.assert_allclose(np.linalg.norm(one.centres, axis=1), 1)


def test_hyperplane_oracle_agrees_with_a_grid_over_two_parameters() -> None:
    """In two dimensions a hyperplane is an angle and an offset: both integrated on a fine grid."""
    tasks = Hyperplane(dimensions=2, shots=6, queries=5, flip=0.1, offset=0.5)
    episode = draw(tasks, 20)
    angle = (torch.arange(720, dtype=torch.float64) + 0.5) * (2 * math.pi / 720)
    b = torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)
    w = torch.stack([angle.cos(), angle.sin()], -1)
    prior = (-((b / 0.5) ** 2) / 2).exp()
    oracle = tasks.oracle(episode, effective=20_000)
    for i in range(20):
        above = [(part.x[i].double() @ w.T)[..., None] + b > 0 for part in episode]  # (points, angles, offsets)
        right = (above[0] == episode.support.y[i].bool()[:, None, None]).sum(0)
        weight = 0.9**right * 0.1 ** (6 - right) * prior
        expected = (above[1] * weight).sum((1, 2)) / weight.sum()
        torch.testing.assert_close(oracle[i].double(), expected, rtol=0, atol=0.03)


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    episode = draw(Hyperplane(dimensions=5, shots=30), 5)
    ours = logistic_regression(episode)
    for i in range(5):
        reference = linear_model.LogisticRegression(tol=1e-10, max_iter=10_000)
        reference.fit(episode.support.x[i].double().numpy(), episode.support.y[i].numpy())
        theirs = reference.predict_proba(episode.query.x[i].double().numpy())[:, 1]
        np.testing.assert_allclose(ours[i].numpy(), theirs, atol=1e-5)


def test_logistic_regression_survives_a_support_of_one_class() -> None:
    (x, y), query = draw(Hyperplane(), 4)
    for label in (0, 1):
        p = logistic_regression(Episode(Samples(x, torch.full_like(y, label)), query))
        assert ((p - label).abs() < 0.01).all()


@pytest.mark.parametrize(("clusters", "gain"), [(0, 0.0), (5, 0.04)])
def test_hyperplane_oracle_beats_logistic_regression_and_is_calibrated(clusters: int, gain: float) -> None:
    tasks = Hyperplane(clusters=clusters, queries=40)
    episode = draw(tasks, 120)
    truth = episode.query.y.double()
    p = tasks.oracle(episode, effective=150).double()
    accuracy, baseline = (((v > 0.5) == truth.bool()).double().mean(1) for v in (p, logistic_regression(episode)))
    difference = accuracy - baseline
    assert difference.mean() > gain
    assert difference.mean() > 2 * difference.std() / math.sqrt(len(difference))
    # A stated probability is a frequency: in every fifth of the range, and for the expected accuracy as a whole.
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (p >= low) & (p < low + 0.2)
        assert (truth[inside] - p[inside]).mean().abs() < 0.05
    expected = torch.maximum(p, 1 - p).mean(1)
    surprise = accuracy - expected
    assert surprise.mean().abs() < 4 * surprise.std() / math.sqrt(len(surprise))


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        (Sinusoid, {"shots": 0}),
        (Sinusoid, {"queries": -1}),
        (Multimodal, {"shots": 0}),
        (Multimodal, {"queries": 0}),
        (Multimodal, {"noise": 0.0}),
        (Multimodal, {"noise": math.nan}),
        (Hyperplane, {"dimensions": 0}),
        (Hyperplane, {"shots": 0}),
        (Hyperplane, {"queries": 0}),
        (Hyperplane, {"clusters": -1}),
        (Hyperplane, {"spread": -0.1}),
        (Hyperplane, {"offset": -0.1}),
        (Hyperplane, {"flip": -0.1}),
        (Hyperplane, {"flip": 0.5}),
    ],
)
def test_arguments_that_cannot_be(family: Callable[..., Tasks], arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        family(**arguments)


def test_oracles_refuse_what_they_cannot_answer() -> None:
    for tasks in (Multimodal(), Hyperplane()):
        batch = draw(tasks, 2)
        single = Episode(*(Samples(part.x[0], part.y[0]) for part in batch))
        with pytest.raises(InputError, match="meta-batch"):
            tasks.oracle(single)
    hard = Hyperplane(dimensions=10, shots=40)
    with pytest.raises(InputError, match="blocks"):
        hard.oracle(draw(hard, 2), blocks=2)


def test_families_names_what_draw_draws() -> None:
    """Three of the families are linear in known functions of x, which fit their tasks and not the others'."""
    bases: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
        "sinusoid": lambda x: [np.sin(x), np.cos(x)],
        "line": lambda x: [np.ones_like(x), x],
        "parabola": lambda x: [np.ones_like(x), x, x**2],
    }
    tasks, streams = Multimodal(shots=20, queries=1, noise=1e-6), range(200)
    names = tasks.families([episode_rng(0, "test", i) for i in streams])
    (x, y), _ = tasks.draw("test", [episode_rng(0, "test", i) for i in streams])
    assert set(names) == set(FAMILIES)
    for basis, functions in bases.items():
        for name, inputs, targets in zip(names, x.double().numpy()[..., 0], y.double().numpy()[..., 0], strict=True):
            matrix = np.stack(functions(inputs), 1)
            misfit = np.abs(matrix @ np.linalg.lstsq(matrix, targets, rcond=None)[0] - targets).max()
            fits = name == basis or (basis == "parabola" and name == "line")
            assert (misfit < 1e-4) == fits, (basis, name, misfit)
