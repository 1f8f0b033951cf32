"""Tasks from files of rows: the same numbers as the family that wrote the file, and every wrong file in one line."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer

from innerloop.datamodule import EpisodeDataModule
from innerloop.datasets.task_arrays import load
from innerloop.episodes import Episode, InputError, Samples, Split, episode_index, episode_rng, stack, tasks_of
from innerloop.learners import MAML
from innerloop.nets import MLP
from innerloop.runs.report.results import closing_table
from innerloop.runs.schemas import register, task_family
from innerloop.tasks import ArrayTasks, Sinusoid
from innerloop.tasks.arrays import ClassArrays, RealArrays

CONF = Path(__file__).resolve().parents[1] / "conf"
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines to a file and returns its path."""

    def written(*lines: str, name: str = "rows.csv") -> str:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return written


# The same numbers as the family that wrote the file.

WAVES = {"train": range(12), "validation": range(12, 16), "test": range(16, 20)}


class Waves(Sinusoid):
    """The episodes that a file of sine waves gives: its tasks in the same order, their points sorted by x."""

    def wave(self, number: int) -> Episode:
        (episode,) = tasks_of(super().draw("train", [episode_rng(7, "train", number)]))
        orders = [part.x[:, 0].argsort() for part in episode]
        return Episode(*(Samples(part.x[o], part.y[o]) for part, o in zip(episode, orders, strict=True)))

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        n, numbers = len(WAVES[split]), WAVES[split]
        return stack([self.wave(numbers[r.integers(n) if split == "train" else episode_index(r) % n]) for r in rngs])


def rows_of_waves() -> list[str]:
    rows = []
    for split, numbers in WAVES.items():
        for number in numbers:
            for part, samples in zip(("support", "query"), Waves().wave(number), strict=True):
                pairs = torch.cat(samples, 1).double().tolist()
                rows += [f"wave {number:02},{split},{part},{x!r},{y!r}" for x, y in pairs]
    return rows


def weights_after_training(tasks: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    learner = MAML(MLP(1, [20], 1), tasks.loss, tasks.metrics, inner_lr=0.02, inner_steps=2)
    data = EpisodeDataModule(tasks, meta_batch_size=5, val_episodes=4, test_episodes=4)
    trainer = Trainer(
        accelerator="cpu", max_steps=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_train_batches=20, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, data)
    trainer.test(learner, data, verbose=False)
    return [p.detach() for p in learner.parameters()] + [learner.curve.compute()]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*treespec")
def test_sine_waves_from_a_file_train_to_the_same_numbers_whatever_the_order_of_its_rows(write: Write) -> None:
    rows, expected = rows_of_waves(), weights_after_training(Waves())
    for seed in (None, 0, 1):
        if seed is not None:
            np.random.default_rng(seed).shuffle(rows)
        tasks = ArrayTasks(load(write("task,split,part,x,y", *rows), split="split", part="part"))
        found = weights_after_training(tasks)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "to the last bit"


def test_drawn_episodes_do_not_depend_on_the_order_of_the_rows_or_on_others(write: Write) -> None:
    rows = rows_of_waves()
    one, other = (
        ArrayTasks(load(write("task,split,part,x,y", *r), split="split", features=["x"]), shots=3)
        for r in (rows, rows[::-1])
    )
    streams = [episode_rng(0, "train", i) for i in range(6)]
    first = one.draw("train", streams)
    second = [tasks_of(other.draw("train", [episode_rng(0, "train", i)]))[0] for i in range(6)]
    for a, b in zip(tasks_of(first), second, strict=True):
        assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
        assert len(a.support.x) == 3
        assert len(a.query.x) == 17
        assert len(torch.cat([a.support.x, a.query.x]).unique()) == 20, "no row is in both"


# Kinds of files, tasks and targets.

HEAD = "task,a,b,y"


def table(tasks: int = 9, rows: int = 6, target: Callable[[int, int], Any] = lambda t, i: t + i / 7) -> list[str]:
    return [f"t{t},{t + i / 3},{(i * 7) % 5}.5,{target(t, i)}" for t in range(tasks) for i in range(rows)]


def same(one: Any, other: Any) -> None:
    assert one.tasks == other.tasks
    for name in ("first", "x", "y"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.classes == other.classes
    assert {k: v.tolist() for k, v in one.splits.items()} == {k: v.tolist() for k, v in other.splits.items()}


@pytest.mark.parametrize("target", ["real", "class"])
def test_text_npz_and_parquet_are_read_alike(target: str, write: Write, tmp_path: Path) -> None:
    lines = table() if target == "real" else table(target=lambda t, i: "odd" if (t + i) % 2 else "even")
    expected = load(write(HEAD, *lines))
    assert expected.classes == (() if target == "real" else ("odd", "even"))
    same(load(write(HEAD.replace(",", ";"), *(line.replace(",", ";") for line in lines))), expected)
    cells = [line.split(",") for line in lines]
    x = np.array([[float(a), float(b)] for _, a, b, _ in cells])
    y = np.array([float(c[3]) if target == "real" else c[3] for c in cells])
    names = np.array([c[0] for c in cells])
    np.savez(tmp_path / "rows.npz", task=names, x=x, y=y)
    same(load(str(tmp_path / "rows.npz")), expected)
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = pytest.importorskip("pyarrow").table({"task": names, "a": x[:, 0], "b": x[:, 1], "y": y})
    parquet.write_table(columns, tmp_path / "rows.parquet")
    same(load(str(tmp_path / "rows.parquet")), expected)


def test_arrays_keep_their_shape_and_several_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"task": np.repeat(np.arange(8), 5), "x": rng.random((40, 2, 16)), "y": rng.random((40, 3))}
    np.savez(tmp_path / "series.npz", **arrays)
    tasks = ArrayTasks(load(str(tmp_path / "series.npz")), shots=2, queries=2)
    assert (tasks.input_shape, tasks.output_size) == ((2, 16), 3)
    assert tasks.draw("train", [episode_rng(0, "train", 0)]).query.y.shape == (1, 2, 3)  # type: ignore[union-attr]


def test_tasks_of_different_sizes_are_a_list_and_those_that_are_too_small_are_named(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for t in range(12) for row in table(tasks=t + 1, rows=2 + t % 3)[-(2 + t % 3) :]]
    data = load(write(HEAD, *rows, "lonely,1,2.5,3.5"), train_fraction=0.5, validation_fraction=0.25)
    tasks = ArrayTasks(data, shots=1)
    assert tasks.ragged
    batch = tasks.draw("train", [episode_rng(0, "train", i) for i in range(30)])
    assert isinstance(batch, list)
    assert {len(e.query.x) for e in batch} == {1, 2, 3}
    assert "1 of" in caplog.text
    assert "are left out, without shots=1 support rows and 1 more for the query: lonely" in caplog.text
    equal = ArrayTasks(data, shots=1, queries=1)
    assert not equal.ragged
    assert isinstance(equal.draw("train", [episode_rng(0, "train", i) for i in range(30)]), Episode)
    with pytest.raises(InputError, match=r"no task of the train split has shots=9 support rows and 1 more"):
        ArrayTasks(data, shots=9)


@pytest.mark.parametrize(
    ("cells", "kind", "family", "metric", "mode"),
    [
        (("1.0", "2.5"), "auto", RealArrays, "mse", "min"),
        (("1", "2"), "auto", ClassArrays, "accuracy", "max"),
        (("ill", "well"), "auto", ClassArrays, "accuracy", "max"),
        (("1", "2"), "regression", RealArrays, "mse", "min"),
        (("1.0", "2.5"), "classification", ClassArrays, "accuracy", "max"),
    ],
)
def test_targets_make_the_family_and_its_metric(
    cells: Sequence[str], kind: str, family: type, metric: str, mode: str, write: Write
) -> None:
    register()
    path = write(HEAD, *table(target=lambda t, i: cells[(t + i) % 2]))
    tasks = ArrayTasks(load(path, kind=kind), shots=2)
    assert type(tasks) is family
    assert tasks.metric == metric
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["data=arrays", f"data.root={path}", f"data.kind={kind}", "callbacks=early_stopping"])
    assert task_family(cfg) is family
    assert cfg.callbacks.early_stopping.mode == mode
    assert cfg.callbacks.early_stopping.monitor == f"val/{metric}"


# What is wrong, in one line.

ROWS = table()


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ((HEAD, *ROWS, "t0,1,2"), {}, r"line 56: 3 cells, and the first line has 4"),
        ((HEAD, *ROWS, "t0,1,2,3,4"), {}, r"line 56: 5 cells, and the first line has 4"),
        ((HEAD, *ROWS, "t0,red,2,3"), {}, r"line 56: a is 'red', which is no number"),
        ((HEAD, *ROWS, "t0,nan,2,3"), {}, r"line 56: a is 'nan', which is no number"),
        ((HEAD, *ROWS, "t0,1,,3"), {}, r"line 56: b is '', which is no number"),
        ((HEAD, *ROWS, "t0,1,2,nan"), {"kind": "regression"}, r"the target of row 55 is no number"),
        ((HEAD, *ROWS, ",1,2,3"), {}, r"task is empty in row 55"),
        ((HEAD, *ROWS), {"task": "patient"}, r"has no column patient; its columns are task, a, b, y"),
        ((HEAD, *ROWS), {"target": ["z"]}, r"has no column z"),
        ((HEAD, *ROWS), {"features": ["a", "c"]}, r"has no column c"),
        ((HEAD, *ROWS), {"part": "a"}, r"a of row 1 is '0.0'; it must be support or query"),
        ((HEAD, *ROWS), {"split": "a"}, r"a of row 1 is '0.0'; it must be one of train, validation, test"),
        (("task,y", "a,1", "b,2"), {}, r"has no columns of features beside task, y"),
        ((HEAD, *table(target=lambda t, i: "ill")), {}, r"all targets are ill, and there is nothing to tell apart"),
        ((HEAD, *table(target=lambda t, i: "" if t == 8 else "ill")), {}, r"the target of row 49 is missing"),
        ((HEAD, *table(tasks=2)), {}, r"has 2 tasks, none of them for train"),
        ((HEAD, *ROWS), {"train_fraction": 0.9}, r"must leave something of 1"),
        ((HEAD, *ROWS), {"kind": "ranking"}, r"data\.kind=ranking: choose one of auto, regression, classification"),
        ((HEAD, *ROWS), {"target": ["a", "y"], "kind": "classification"}, r"a class is in one"),
        ((HEAD,), {}, r"has no rows"),
        (("",), {}, r"is empty"),
    ],
    ids=str,
)
def test_a_wrong_table_is_named(lines: Sequence[str], settings: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(write(*lines), **settings)
    assert "\n" not in str(raised.value)


def test_a_task_in_two_splits(write: Write) -> None:
    lines = [f"{line},{'train' if i % 2 else 'test'}" for i, line in enumerate(ROWS)]
    with pytest.raises(InputError, match=r"class t0 is in .* and in .*; few-shot splits must not share a class"):
        load(write(f"{HEAD},split", *lines), split="split")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, r"has no array x; it has task, y"),
        ({"x": np.full((12, 2), np.nan)}, r"x is not finite in row 1"),
        ({"x": np.ones(12)}, r"x must be numbers of shape \(n, \*features\), got \(12,\)"),
        ({"x": np.array([["a", "b"]] * 12)}, r"x must be numbers"),
        ({"y": np.ones(5)}, r"y has the shape \(5,\), and x has 12 rows"),
        ({"y": np.array([{}] * 12, dtype=object)}, r"has arrays of objects, which are not read"),
    ],
    ids=str,
)
def test_wrong_arrays_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {"task": np.repeat(np.arange(4), 3), "x": np.arange(24.0).reshape(12, 2), "y": np.arange(12.0)} | changes
    np.savez(tmp_path / "rows.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "rows.npz"))


def test_files_that_are_none(tmp_path: Path, write: Write) -> None:
    broken = write("no arrays", name="broken.npz")
    for path, message in (
        (None, "must be given"),
        (str(tmp_path / "no.csv"), "cannot be read"),
        (broken, r"is no \.npz file"),
    ):
        with pytest.raises(InputError, match=message):
            load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "shots must be given"), ({"shots": 0}, "shots must be above zero"), ({"shots": 2, "queries": 0}, "queries")],
)
def test_impossible_sizes_are_refused(settings: dict[str, int], message: str, write: Write) -> None:
    with pytest.raises(InputError, match=message):
        ArrayTasks(load(write(HEAD, *ROWS)), **settings)
    if not settings:
        parts = load(write("task,split,part,x,y", *rows_of_waves()), split="split", part="part")
        with pytest.raises(InputError, match=r"data\.part fixes support and query: shots=3 and queries=None"):
            ArrayTasks(parts, shots=3)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_feature_that_tells_the_target_is_warned_of(
    kind: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    lines = table(target=lambda t, i: (t + i) % 3)
    load(write(HEAD, *lines), kind=kind)
    assert not caplog.text
    factor = 1 if kind == "regression" else 10
    load(write(f"{HEAD},copy", *(f"{line},{factor * int(line.rpartition(',')[2])}" for line in lines)), kind=kind)
    assert caplog.text.count("equals the target in every row") == 1
    assert "copy equals the target" in caplog.text


# Strangers' files.


def test_an_index_is_no_feature(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"t{i // 6},{i % 5},{i * 0.5}" for i in range(60)]
    plain = load(write("task,a,y", *rows))
    with caplog.at_level("WARNING", "innerloop"):
        indexed = load(write(",task,a,y", *(f"{i},{row}" for i, row in enumerate(rows))))
    assert np.array_equal(plain.x, indexed.x)
    assert "the column without a name is an index, and is left out" in caplog.text


@pytest.mark.parametrize(
    ("cell", "target", "line"),
    [
        ("3,5", "1", r"line 2: a is '3,5', which is no number; write numbers with a point"),
        ("12%", "1", r"line 2: a is '12%', which is no number; write numbers with a point"),
        ("1", "0,5", r"the target of row 1 is '0,5'; write numbers with a point"),
    ],
)
def test_marks_in_numbers_end_in_a_hint_and_make_no_classes(cell: str, target: str, line: str, write: Write) -> None:
    with pytest.raises(InputError, match=line):
        load(write("task;a;y", *(f"t{i // 6};{cell};{target}" for i in range(60))))
    with pytest.raises(InputError, match=line.replace("'0,5'", "no number")):
        load(write("task;a;y", *(f"t{i // 6};{cell};{target}" for i in range(60))), kind="regression")


def test_whole_targets_with_a_point_are_regressed_to_and_the_log_says_how_to_make_them_classes(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "innerloop"):
        assert load(write("task,a,y", *(f"t{i // 6},{i % 5},{i % 2}" for i in range(60)))).classes == ("0", "1")
        assert "regress" not in caplog.text
        path = write("task,a,y", *(f"t{i // 6},{i % 5},{i % 2}.0" for i in range(60)))
        assert load(path).classes == ()
    assert "the targets 0.0, 1.0 are numbers to regress; data.kind=classification makes them classes" in caplog.text
    assert load(path, kind="classification").classes == ("0.0", "1.0")


@pytest.mark.parametrize("name", ["task", "a", "whole", "y"])
def test_a_null_of_a_parquet_file_is_named_with_its_row(name: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns: dict[str, list[Any]] = {
        "task": [f"t{i // 6}" for i in range(60)],
        "a": [i / 7 for i in range(60)],
        "whole": [i % 5 for i in range(60)],
        "y": [bool(i % 2) for i in range(60)],
        "__index_level_0__": list(range(60)),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "whole.parquet")
    assert load(str(tmp_path / "whole.parquet")).x.shape == (60, 2)
    columns[name][3] = None
    parquet.write_table(pyarrow.table(columns), tmp_path / "null.parquet")
    with pytest.raises(InputError, match=f"null.parquet: {name} is empty in row 4$"):
        load(str(tmp_path / "null.parquet"))


def test_a_workbook_and_one_array_are_known_by_their_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "book.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(InputError, match="is a workbook of Excel: in Excel, File, Save as, CSV UTF-8"):
        load(str(tmp_path / "book.csv"))
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(InputError, match=r"is one array of numpy: save task, x and y by numpy.savez, as \.npz"):
        load(str(tmp_path / "x.npy"))


@pytest.mark.parametrize(
    ("count", "line"), [(1, "1 test episode, and an interval needs two or more test tasks:"), (3, "3 test episodes:")]
)
def test_one_test_task_is_said_to_give_no_interval(count: int, line: str) -> None:
    entry = {"mse": {"mean": 1.0, "ci95": None if count == 1 else 0.1, "median": 1.0}}
    test = {"episodes": count, "unadapted": entry, "by_step": [], "step": 0}
    results = {"algo": "maml", "data": "arrays", "net": "mlp", "parameters": 3, "seed": 0, "norm": None, "test": test}
    assert line in closing_table(results, "mse", Path("run")).splitlines()
