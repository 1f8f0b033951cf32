"""Recommendation: reading ratings, users as tasks, the factor model, its closed forms, and the metrics of ranking."""

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from sklearn.metrics import ndcg_score
from test_memory import printed_by
from test_meta_gradient import ENGINES, close, directional_check

from innerloop.adaptation.heads import RidgeStep
from innerloop.datamodule import EpisodeDataModule
from innerloop.datasets import columns, files, ratings
from innerloop.datasets.ratings import RatingTable, load, movielens, synthetic
from innerloop.episodes import Episode, InputError, Samples, episode_index, episode_rng, tasks_of, weights_of
from innerloop.learners import IMAML, MAML, R2D2, Hybrid, HyperNet, MetaLearner, Reptile
from innerloop.nets import Factors
from innerloop.tasks import Ratings
from innerloop.tasks.factorise import alternating_least_squares, item_means
from innerloop.tasks.ratings import NO_ITEM, ndcg_at

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines to a file and returns its path."""

    def written(*lines: str, name: str = "ratings.csv", encoding: str = "utf-8") -> str:
        path = tmp_path / name
        path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
        return str(path)

    return written


HEAD = "user,item,rating,when"
ROWS = ("b,y,4,30", "a,x,3.5,10", "b,x,1,20", "a,y,5,40", "c,x,2,50")


def plain(table: RatingTable) -> list[tuple[str, str, float]]:
    user = np.repeat(np.arange(len(table.users)), table.counts)
    return [(table.users[u], table.items[i], float(r)) for u, i, r in zip(user, table.item, table.rating, strict=True)]


# Reading.


def test_spaces_around_names_make_no_other_user_or_item_and_a_comma_no_rating(write: Write) -> None:
    spaced = ("b ,y,4,30", "a, x ,3.5,10", "\tb,x ,1,20", " a ,y,5,40", "c,x,2,50")
    assert plain(load(write(HEAD, *spaced))) == plain(load(write(HEAD, *ROWS)))
    with pytest.raises(InputError, match=r"line 2: user is empty"):
        load(write(HEAD, "  ,y,4,30"))
    with pytest.raises(InputError, match=r"line 2: rating is '3,5', which is no number; write numbers with a point"):
        load(write(HEAD.replace(",", ";"), "a;x;3,5;10"))


def test_ratings_are_sorted_by_user_and_item_whatever_the_order_of_the_rows(write: Write) -> None:
    expected = [("a", "x", 3.5), ("a", "y", 5.0), ("b", "x", 1.0), ("b", "y", 4.0), ("c", "x", 2.0)]
    for rows in (ROWS, ROWS[::-1], (*ROWS[2:], *ROWS[:2])):
        table = load(write(HEAD, *rows), time="when")
        assert plain(table) == expected
        assert table.time is not None
        assert table.time.tolist() == [10, 40, 20, 30, 50]
        assert (table.first.tolist(), table.scale) == ([0, 2, 4, 5], (1.0, 5.0))
        assert plain(load(write(HEAD, *rows))) == expected


def test_names_separators_heads_and_encodings_are_settings(write: Write) -> None:
    expected = plain(load(write(HEAD, *ROWS)))
    for separator in (";", "\t", "|", "::"):
        rows = [row.replace(",", separator) for row in ROWS]
        given = separator if separator == "::" else None
        bare = write(*rows, "", name="u.data")
        assert plain(load(bare, "1", "2", "3", separator=given, header=False)) == expected
        named = write("who::what::stars::at".replace("::", separator), "", *rows)
        assert plain(load(named, "who", "what", "stars", separator=given)) == expected
    for encoding in ("utf-8-sig", "utf-16"):
        assert plain(load(write(HEAD, *ROWS, encoding=encoding))) == expected
    assert plain(load(write('user,"item",rating', '"b", y ,4', "a,x,3"))) == [("a", "x", 3.0), ("b", "y", 4.0)]


def test_gigantic_unsorted_ids_are_names(write: Write) -> None:
    big = [10**30 + 7, 3, 2**64, 10**30]
    table = load(write("user,item,rating", *(f"{u},{u},{1 + i}" for i, u in enumerate(big))))
    assert table.users == table.items == tuple(map(str, sorted(big)))
    assert table.rating.tolist() == [2, 3, 4, 1]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_that_excel_states(separator: str, write: Write) -> None:
    lines = (line.replace(",", separator) for line in (HEAD, *ROWS))
    assert plain(load(write(f"sep={separator}", *lines))) == plain(load(write(HEAD, *ROWS)))


def test_duplicates_end_it_or_one_of_them_counts(write: Write) -> None:
    path = write(HEAD, "a,x,1,1", *ROWS)
    with pytest.raises(InputError, match=r"1 ratings are of an item .* user a of item x; data\.duplicates=last"):
        load(path)
    assert plain(load(path, duplicates="first"))[0] == ("a", "x", 1.0)
    assert plain(load(path, duplicates="last")) == plain(load(write(HEAD, *ROWS)))


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ((HEAD, "a,x,3", *ROWS), {}, r"line 2: 3 cells, and the first line has 4"),
        ((HEAD, *ROWS, "a,z,4,1,9"), {}, r"line 7: 5 cells, and the first line has 4"),
        ((HEAD, *ROWS, "a,z,good,1"), {}, r"line 7: rating is 'good', which is no number"),
        ((HEAD, *ROWS, "a,z,nan,1"), {}, r"line 7: rating is 'nan', which is no number"),
        ((HEAD, *ROWS, "a,z,,1"), {}, r"line 7: rating is '', which is no number"),
        ((HEAD, *ROWS, ",z,4,1"), {}, r"line 7: user is empty"),
        ((HEAD, *ROWS, "a,z,4,noon"), {"time": "when"}, r"line 7: when is 'noon', which is no number"),
        ((HEAD, "", '"c\nd",z,4,1', "", *ROWS, "a,z,good,1"), {}, r"line 11: rating is 'good', which is no number"),
        ((HEAD, "", '"c\nd",z,4,1', "", *ROWS, "a,z,4"), {}, r"line 11: 3 cells, and the first line has 4"),
        ((HEAD, "", '"c\nd",z,good,1', *ROWS), {}, r"line 3: rating is 'good', which is no number"),
        (("sep=;", "", HEAD.replace(",", ";"), "a;x;good;1"), {}, r"line 4: rating is 'good', which is no number"),
        ((HEAD, *ROWS), {"scale": [1, 4]}, r"line 5: rating is 5, outside of the scale from 1 to 4"),
        ((HEAD, *ROWS), {"scale": [5, 1]}, r"data\.scale must be the lowest and the highest rating"),
        ((HEAD, *ROWS), {"item": "movie"}, r"has no column movie; its columns are user, item, rating, when"),
        (("user,item,rating,item", "a,x,3,y"), {}, r"has two columns item"),
        ((HEAD, *ROWS), {"item": "user"}, r"must be different columns"),
        ((HEAD, *ROWS), {"duplicates": "mean"}, r"data\.duplicates=mean: choose one of error, first, last"),
        ((HEAD, *ROWS), {"separator": ""}, r"separator is empty"),
        ((HEAD, "a,x,3,1", "b,y,3,1"), {}, r"all ratings are 3, so there is nothing to predict"),
        ((HEAD,), {}, r"has no rows below the names of its columns"),
        (("",), {}, r"is empty"),
    ],
    ids=str,
)
def test_what_is_no_rating_is_named(lines: Sequence[str], settings: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(write(*lines), **settings)
    assert "\n" not in str(raised.value)


def test_files_that_are_none(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in ((None, "must be given"), (tmp_path / "no.csv", "cannot be read"), (tmp_path, "is no file")):
        with pytest.raises(InputError, match=message):
            load(path if path is None else str(path))
    with pytest.raises(InputError, match="no UTF-8 text"):
        load(write(HEAD, "é,x,3,1", encoding="latin-1"))
    before = [HEAD, *ROWS * 2000]
    byte = len("\n".join(before)) + len("\nab")
    with pytest.raises(InputError, match=rf"no UTF-8 text \(byte {byte}\)"):
        load(write(*before, "abé,x,3,1", *before, encoding="latin-1"))
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    with pytest.raises(InputError, match="a line of 1,000 characters or more"):
        load(write(HEAD, *ROWS, f"d,{'x' * 993},3,50"))


def test_memory_grows_by_less_than_twice_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GB is read within 2 GB: what is kept grows by less than 2 bytes a byte, for rows of 13 bytes and more."""
    monkeypatch.setattr(columns, "BLOCK", 1000)
    monkeypatch.setattr(ratings, "PIECE", 1000)
    sizes, peaks = [], []
    for users in (250, 1500):
        path = tmp_path / "large.csv"
        rows = (f"{10000 + u},{1000 + i},{1 + (u + i) % 5}\n" for u in range(users) for i in range(100))
        path.write_text("user,item,rating\n" + "".join(rows))
        sizes.append(path.stat().st_size)
        tracemalloc.start()
        assert len(load(str(path)).rating) == users * 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2 * (sizes[1] - sizes[0])


READ = """
import sys
from innerloop.datasets.ratings import load
from innerloop.devices.memory import largest_resident_set
for path in sys.argv[1:]:
    load(path, time="time")
    print(largest_resident_set())
"""


def rated(path: Path, megabytes: int) -> str:
    """Write a file with ratings of this size, 28 bytes for each and 157 ratings of each user."""
    with path.open("w") as file:
        file.write("user,item,rating,time\n")
        for user in range(100_000, 100_000 + megabytes * 10**6 // (28 * 157)):
            items = range(10_000 + 7 * user % 320, 60_000, 320)
            file.write("".join(f"{user},{item},{item % 5}.5,{10**9 + 7 * item}\n" for item in items))
    return str(path)


@pytest.mark.parametrize("megabytes", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_a_process_grows_by_less_than_twice_the_file(megabytes: int, tmp_path: Path) -> None:
    """Of a file with times, with all that the process has from the system. 1 GB holds too, and takes four minutes."""
    paths = rated(tmp_path / "small.csv", 1), rated(tmp_path / "large.csv", megabytes)
    before, after = map(float, printed_by(READ, *paths).split())
    assert megabytes / 2 < after - before < 2 * megabytes, "less would be no measurement: the numbers alone take it"


MOVIES = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}


@pytest.mark.parametrize("file", MOVIES)
def test_movielens_is_recognised_and_counted(file: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    head = ["userId,movieId,rating,timestamp"] if file == "ratings.csv" else []
    path = write(*head, *(row.replace(",", MOVIES[file]) for row in ("1,7,4,30", "2,9,5,10", "1,9,3,20")), name=file)
    name, collection = next((n, c) for n, c in ratings.COLLECTIONS.items() if c.file == file)
    with pytest.raises(InputError, match=rf"3 ratings of 2 users and 2 items, and {name} has {collection.counts[0]:,}"):
        movielens(path)
    monkeypatch.setitem(ratings.COLLECTIONS, name, collection._replace(counts=(3, 2, 2)))
    table = movielens(str(Path(path).parent), time=True)
    assert plain(table) == [("1", "7", 4.0), ("1", "9", 3.0), ("2", "9", 5.0)]
    assert table.scale == (collection.lowest, 5.0)
    assert table.time is not None
    assert table.time.tolist() == [30, 20, 10]


def test_without_movielens_it_says_where_to_get_it(tmp_path: Path) -> None:
    for root in (None, str(tmp_path)):
        with pytest.raises(InputError, match=r"https://grouplens\.org/datasets/movielens/"):
            movielens(root)


# Users as tasks.


@pytest.fixture(scope="module")
def table() -> RatingTable:
    return synthetic(users=60, items=40, rated=0.4)


def test_folds_test_disjoint_users_and_no_user_is_in_two_splits(table: RatingTable) -> None:
    tests = []
    for fold in range(5):
        users = Ratings(table, folds=5, fold=fold, shots=4).users
        assert sorted(np.concatenate(list(users.values())).tolist()) == list(range(60))
        tests.append(users["test"])
    assert sorted(np.concatenate(tests).tolist()) == list(range(60))


def test_an_episode_is_a_function_of_its_stream_and_each_test_user_comes_once(table: RatingTable) -> None:
    tasks = Ratings(table, shots=4)
    streams = [episode_rng(3, "test", i) for i in range(tasks.limit("test") or 0)]
    whole = tasks.draw("test", streams)
    for i, one in enumerate(tasks_of(whole)):
        alone = tasks.draw("test", [episode_rng(3, "test", i)])
        assert all(torch.equal(a[0], b) for p, q in zip(alone, one, strict=True) for a, b in zip(p, q, strict=True))
        user = tasks.users["test"][i]
        seen = torch.cat([part.x[part.x != NO_ITEM] for part in one]).sort().values
        assert seen.tolist() == table.item[table.first[user] : table.first[user + 1]].tolist()
        assert not set(one.support.x.tolist()) & set(one.query.x.tolist())
    assert [episode_index(rng) for rng in streams] == list(range(len(streams))), "also after it was drawn from"
    module = EpisodeDataModule(tasks, meta_batch_size=4, test_episodes=1000)
    batches, listed = list(module.test_dataloader()), module.meta_batch("test", range(len(streams)))
    assert len(batches) > 1
    assert torch.equal(torch.cat([batch.support.x for batch in batches]), listed.support.x)


def test_the_earliest_ratings_are_the_support() -> None:
    base = synthetic(users=30, items=40, rated=0.5)
    time = np.random.default_rng(0).random(len(base.rating))
    dated = RatingTable(base.users, base.items, base.first, base.item, base.rating, base.scale, time)
    tasks = Ratings(dated, shots=3, support="earliest", queries=2)
    for i, episode in enumerate(tasks_of(tasks.draw("test", [episode_rng(0, "test", i) for i in range(3)]))):
        rows = slice(*dated.first[tasks.users["test"][i] : tasks.users["test"][i] + 2])
        order = dated.item[rows][np.argsort(time[rows])]
        assert torch.cat([part.x for part in episode]).tolist() == order[:5].tolist()
    with pytest.raises(InputError, match=r"needs the time of each rating: set data\.time"):
        Ratings(base, support="earliest")


def test_users_and_items_of_one_rating(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{u},{i},{1 + (u * i) % 5}" for u in range(12) for i in range(6)]
    table = load(write("user,item,rating", *rows, "lonely,3,4", "5,rare,2"))
    tasks = Ratings(table, shots=3, folds=3)
    assert "1 of 13 users are left out: they have fewer than 4 ratings" in caplog.text
    assert "lonely" not in [table.users[u] for users in tasks.users.values() for u in users]
    net = tasks.prepare(Factors(**tasks.sizes(), start="factorisation"))  # type: ignore[arg-type]
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "shots must be above zero"),
        ({"shots": 30}, r"no user of the train split has more than shots=30 ratings"),
        ({"queries": 0}, "queries must be above zero"),
        ({"support": "last"}, "support=last: choose one of random, earliest"),
        ({"folds": 2}, "folds must be at least 3"),
        ({"fold": 10}, "fold must be from 0 to folds - 1 = 9"),
    ],
    ids=str,
)
def test_impossible_tasks_are_refused(table: RatingTable, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ratings(table, **settings)


def test_the_start_of_the_items_is_fitted_to_training_users_only(table: RatingTable) -> None:
    tasks = Ratings(table, shots=4)
    others = np.concatenate([tasks.users["test"], tasks.users["validation"]])
    hidden = np.isin(np.repeat(np.arange(60), table.counts), others)
    rating = np.where(hidden, 1, table.rating).astype(np.float32)
    changed = RatingTable(table.users, table.items, table.first, table.item, rating, table.scale)
    nets = [
        family.prepare(Factors(**family.sizes(), rank=2, start=start))  # type: ignore[arg-type]
        for family in (tasks, Ratings(changed, shots=4))
        for start in ("means", "factorisation")
    ]
    for before, after in zip(nets[:2], nets[2:], strict=True):
        assert torch.equal(before.mean, after.mean)
        assert torch.equal(before.body.bias, after.body.bias)
    assert torch.equal(nets[1].body.factors, nets[3].body.factors)


# Closed forms.


def test_item_means_and_alternating_least_squares_are_minima() -> None:
    table = synthetic(users=25, items=12, rated=0.6)
    user, item = np.repeat(np.arange(25), table.counts), table.item
    residual = (table.rating - table.rating.mean()).astype(float)
    bias = item_means(item, residual, 13, 2.0)
    by_hand = [residual[item == i].sum() / ((item == i).sum() + 2) for i in range(13)]
    np.testing.assert_allclose(bias, by_hand)
    assert bias[12] == 0
    # With rank 0 the objective is a ridge regression on indicators, which has one solution.
    design = np.concatenate([np.eye(12)[item], np.eye(25)[user]], 1)
    exact = np.linalg.solve(design.T @ design + 3 * np.eye(37), design.T @ residual)
    _, bias = alternating_least_squares(user, item, residual, 12, 0, 3.0, rounds=200)
    np.testing.assert_allclose(bias, exact[:12], atol=1e-10)
    # With factors, users that are folded in and items are each other's optima, so nothing moves any more.
    v, bias = alternating_least_squares(user, item, residual, 12, 2, 3.0, rounds=2000)
    again, biases = alternating_least_squares(user, item, residual, 12, 2, 3.0, rounds=2001)
    np.testing.assert_allclose(again, v, atol=1e-6)
    np.testing.assert_allclose(biases, bias, atol=1e-6)
    assert np.abs(v).max() > 0.1


def padded(tasks: int = 3, seed: int = 0) -> Episode:
    """A meta-batch of 6 support ratings and 5 to 7 of the query, of 9 items."""
    rng = np.random.default_rng(seed)
    x = np.stack([rng.permutation(9)[:6] for _ in range(tasks)])
    x_query = np.stack([rng.permutation(9)[:7] for _ in range(tasks)])
    for row in range(1, tasks):
        x_query[row, 7 - row % 3 :] = NO_ITEM
    y, y_query = (torch.from_numpy(rng.integers(1, 6, (tasks, n, 1)).astype(float)) for n in (6, 7))
    return Episode(Samples(torch.from_numpy(x), y), Samples(torch.from_numpy(x_query), y_query))


def factors(**settings: Any) -> Factors:
    torch.manual_seed(0)
    return Factors(items=9, mean=3.0, rank=2, **settings)


@pytest.fixture
def family(table: RatingTable) -> Ratings:
    return Ratings(table, shots=4)


LEARNERS: dict[str, Callable[..., MetaLearner]] = {
    "maml": lambda loss: MAML(factors(), loss, inner_lr=0.1, inner_steps=2, learn_lr="parameter"),
    "hypernet": lambda loss: HyperNet(factors(), loss, width=8),
    "hybrid": lambda loss: Hybrid(factors(), loss, width=8, inner_lr=0.1, inner_steps=2),
    "r2d2": lambda loss: R2D2(factors(), loss, ridge=2.0),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradients_agree_with_finite_differences_in_every_engine(name: str, family: Ratings) -> None:
    learner = LEARNERS[name](family.loss)
    randomise(learner, scale=0.1)
    directional_check(learner, padded(), ENGINES[1:])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LEARNERS)
def test_only_the_user_is_adapted_and_items_are_learned(name: str, family: Ratings) -> None:
    learner = LEARNERS[name](family.loss)
    randomise(learner, scale=0.1)
    theta = weights_of(learner.net)
    adapted = learner.adaptation(learner.net, theta, tasks_of(padded())[0].support)
    assert {n for n in theta if not torch.equal(adapted[n], theta[n])} == {"head.weight", "head.bias"}
    items = list(learner.net.body.parameters())  # type: ignore[union-attr]
    _, gradients, _ = learner.engine.value_and_grad(learner.query_objective, items, padded())
    assert all((g != 0).any() for g in gradients)


@pytest.mark.usefixtures("float64")
def test_padding_counts_in_no_loss_and_no_metric(family: Ratings) -> None:
    net, episode = factors(), tasks_of(padded())[1]
    randomise(net, scale=0.3)
    rated = episode.query.x != NO_ITEM
    assert 0 < rated.sum() < len(rated)
    short = Samples(episode.query.x[rated], episode.query.y[rated])
    weights = weights_of(net)
    close([family.loss(net, weights, episode.query)], [family.loss(net, weights, short)])
    long, brief = (family.metrics(net, weights, samples) for samples in (episode.query, short))
    close(list(long.values()), list(brief.values()))
    error = (net(short.x).clamp(*family.dataset.scale) - short.y).detach().numpy()[:, 0]
    assert brief["mae"].item() == pytest.approx(np.abs(error).mean())
    assert brief["rmse"].item() == pytest.approx(np.sqrt((error**2).mean()))


@pytest.mark.usefixtures("float64")
def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 10, 25):
        scores, stars = rng.standard_normal(n), rng.integers(1, 6, n)
        rated = np.ones(n + 4)
        rated[n:] = 0
        more = [torch.from_numpy(np.append(a, b)) for a, b in ((scores, [9.0] * 4), (stars, [5] * 4))]
        found = ndcg_at(10, more[0], more[1].double(), torch.from_numpy(rated))
        assert found.item() == pytest.approx(ndcg_score([2.0**stars - 1], [scores], k=10))


@pytest.mark.usefixtures("float64")
def test_ridge_towards_theta_is_the_fold_in_of_a_user() -> None:
    support, net = tasks_of(padded())[0].support, factors()
    randomise(net, scale=0.3)
    theta = weights_of(net)
    found = RidgeStep(ridge=2.0)(net, theta, support)
    v = torch.cat([net.body.factors[support.x], torch.ones(6, 1)], 1).detach()
    residual = (support.y - net(support.x)).detach()
    by_hand = torch.linalg.solve(v.T @ v + 2 * torch.eye(3), v.T @ residual)[:, 0]
    moved = torch.cat([(found[n] - theta[n]).flatten() for n in ("head.weight", "head.bias")])
    close([moved], [by_hand])
    # Without factors the user's bias is the shrunken mean of what the items' biases leave.
    biases = Factors(items=9, mean=3.0, rank=0)
    randomise(biases.body, scale=0.3)
    after = RidgeStep(ridge=2.0)(biases, weights_of(biases), support)["head.bias"]
    close([after], [((support.y - biases(support.x)).sum() / 8).detach()[None]])


@pytest.mark.parametrize("learner", [Reptile, IMAML])
def test_learners_that_would_leave_the_items_as_they_are_refuse(learner: type[MetaLearner], family: Ratings) -> None:
    with pytest.raises(InputError, match=r"tasks share this net's body\.factors, body\.bias"):
        learner(factors(), family.loss)  # type: ignore[arg-type]


def test_weight_decay_acts_on_one_part(family: Ratings) -> None:
    learner = MAML(factors(), family.loss, learn_lr="tensor", optimizer="adamw", weight_decay=0.5, decay_only="body")
    optimizer, _ = learner.outer.make_optimizer(learner.groups()["all"], 10, learner._decayed())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in learner.named_parameters():
        assert decays[id(p)] == (0.5 if name.startswith("net.body.") else 0.0), name
    with pytest.raises(InputError, match=r"decay_only=neck: this net has no such part, only body\.factors"):
        MAML(factors(), family.loss, decay_only="neck")


@pytest.mark.parametrize(("start", "message"), [("mean", "choose one of random, means, factorisation"), ("means", "")])
def test_starts_of_the_net(start: str, message: str) -> None:
    if not message:
        assert factors(start=start).start == start
        return
    with pytest.raises(InputError, match=message):
        factors(start=start)
