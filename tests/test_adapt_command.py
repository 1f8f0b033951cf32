"""adapt.py as it is typed: mistakes, odd names, what it leaves, and models of other versions and of strangers."""

import csv
import html
import io
import json
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here
from pictures import Patches, classes, drawing, encoded, small, write
from PIL import Image

from innerloop import practice
from innerloop.devices import files as device_files
from innerloop.episodes import InputError
from innerloop.errors import WriteError
from innerloop.practice import command as adapt_steps
from innerloop.practice import model_file, output

__all__ = ["small"]


def test_odd_names(tmp_path: Path, here: Here) -> None:
    """Names that are no UTF-8, very long ones, ones that look like HTML, formulas or options."""
    odd = [b"caf\xe9.png", b"n" * 250 + b".png", b"<script>alert(1)</script>".replace(b"/", b"") + b".png"]
    odd += [b"=1+1.png", b"-rf.png", b'a,b;"c".png', "ä\u202eß\n.png".encode()]
    new = tmp_path / "new"
    new.mkdir()
    for i, name in enumerate(odd):
        with open(os.path.join(os.fsencode(new), name), "wb") as file:
            file.write(encoded(drawing(ord("a"), 20 + i)))
    support = write(tmp_path / "own", {name.replace("a/", "<b>&amp;/"): data for name, data in classes().items()})
    status, err = here("adapt.py", f"support={support}", f"query={new}", "out=out")
    assert status == 0, err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8"))))
    assert {row["predicted"] for row in rows} == {"<b>&amp;"}
    assert len(rows) == len(odd)
    assert "caf\\udce9.png" in {row["file"] for row in rows}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>&amp;</b>" not in page
    assert "&lt;b&gt;&amp;amp;" in page


def test_blank_and_equal_pictures(tmp_path: Path, here: Here) -> None:
    """Classes of pictures that hardly differ: finite numbers all the same, and a model that can be read again."""
    shades = {f"{c}/{i}.png": Image.new("RGB", (9, 9), (200 * (c == "a") + i, 0, 0)) for c in "ab" for i in range(3)}
    write(tmp_path / "own", {name: encoded(image) for name, image in shades.items()})
    assert here("adapt.py", "support=own", "query=own", "out=out")[0] == 0
    assert here("adapt.py", "model=out", "query=own", "out=out2")[0] == 0
    text = (tmp_path / "out" / "predictions.csv").read_text() + (tmp_path / "out" / "summary.json").read_text()
    assert "nan" not in text.lower()
    assert "inf" not in text.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give support=LABELLED, labelled pictures, or model=DIR"),
        (["support=own", "model=own"], "give support=LABELLED, labelled pictures, or model=DIR"),
        (["support=own", "run=somewhere", "backbone=tiny"], "give run or backbone, not both"),
        (["support=own", "run=nowhere"], "nowhere is no run directory"),
        (["support=own", "backbone=resnet"], "unknown backbone 'resnet'; choose one of"),
        (["support=own", "query=nowhere"], "nowhere: there is no such folder or file"),
        (["support=own", "query=empty"], "query=empty holds no picture that can be used: it is empty"),
        (["support=own", "false_alarms=0"], "false_alarms must be between 0 and 1, got 0"),
        (["support=own", "look_below=2"], "look_below must be from 0 to 1, got 2"),
        (["support=own", "workers=0"], "workers must be from 1 to 1,024, got 0"),
        (["support=own", "threads=0"], "threads must be from 1 to 1,024, got 0"),
        (["support=own", "threads=1000000000000"], "threads must be from 1 to 1,024"),
        (["support="], "support= is empty: give labelled pictures, or a table of labelled rows"),
        (["support=own", "query="], "query= is empty"),
        (["support=own", "out="], "out= is empty"),
        (["support=own", "out=."], "out=. is the working directory or above it"),
        (["support=own", "out=.."], "out=.. is the working directory or above it"),
        (["support=~nosuchuser/x"], "~nosuchuser/x: there is no such folder or file"),
        (["support=null"], "null: there is no such folder or file"),
        (["support=2024_05"], "2024_05: there is no such folder or file"),
        (["support=Blätter"], "Blätter: there is no such folder or file"),
        (["support=own", "false_alarms=0,05"], "Ambiguous value for argument 'false_alarms=0,05'"),
        (["own"], "own: write KEY=VALUE, such as support=own"),
        (["model=own", "query=own", "false_alarms=0.1"], "an adapted model has its own; leave false_alarms out"),
        (["support=own", "workers=many"], "workers: Value 'many'"),
        (["support=own", "suport=own"], "unknown key suport. Did you mean support"),
        (["support=own", "-m"], "-m: an adaptation is one command"),
        (["model=own"], r"model=… predicts new pictures: add query=NEW"),
        (["model=own", "query=own"], "there is no adapted model"),
        (["model=own", "query=own", "backbone=tiny"], "an adapted model has its own"),
        (["support=own", "out=full"], "out=full is there: choose another folder, or set overwrite=true"),
        (["support=own", "out=own/a/0.png"], "is there and is no folder"),
        (["support=own", "out=own", "overwrite=true"], "out=own holds a, which is not of an adaptation"),
    ],
)
def test_one_line_for_each_mistake(arguments: list[str], message: str, tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own", classes())
    write(tmp_path / "full", {"report.html": b"earlier"})
    (tmp_path / "empty").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    given = arguments if any(a.startswith("out=") for a in arguments) else [*arguments, "out=out"]
    status, err = here("adapt.py", *given)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "full" / "report.html").read_text() == "earlier"
    assert [p for p in sorted(str(p) for p in tmp_path.rglob("*")) if "/cache" not in p] == before


def test_out_must_be_given(tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own", classes())
    status, err = here("adapt.py", "support=own")
    assert (status, err.strip()) == (
        1,
        "adapt.py: where to? add out=FOLDER, a new folder for the report and the predictions",
    )


@pytest.mark.parametrize(
    "name", ["2024_06", "1e4", "true", "null", "Blätter 3", "a=b, {c} [d] ${e}", 'q"u\\', "~x", "é"]
)
def test_any_folder_may_be_named(name: str, tmp_path: Path, here: Here) -> None:
    write(tmp_path / name, classes())
    status, err = here("adapt.py", f"support={name}", f"out=out {name}")
    assert status == 0, err
    assert (tmp_path / f"out {name}" / "report.html").is_file()


def test_names_of_any_bytes_and_forms(tmp_path: Path, here: Here) -> None:
    """A class whose name is no UTF-8, and one name in two forms of Unicode, which is one class."""
    files = classes()
    support = tmp_path / "own"
    for name, data in files.items():
        place = {"a": os.fsencode(support) + b"/caf\xe9", "b": os.fsencode(support / "e\u0301"), "c": b""}[name[0]]
        place = place or os.fsencode(support / "\u00e9")
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, os.fsencode(name[0] + name[2:])), "wb") as file:
            file.write(data)
    status, err = here("adapt.py", "support=own", "query=own", "out=out")
    assert status == 0, err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8"))))
    assert {row["predicted"] for row in rows} == {"caf\\udce9", "\u00e9"}
    status, err = here("adapt.py", "model=out", "query=own", "out=out2")
    assert status == 0, err


def test_names_of_every_language_are_in_the_report(tmp_path: Path, here: Here) -> None:
    """A figure would need a font with their letters, and has boxes without one."""
    names = {"a": "\u65e5\u672c", "b": "\u0627\u0644", "c": "x^2 $\\alpha$ <i>" + "y" * 40}
    files = {f"own/{names[name[0]]}/{name[2:]}": data for name, data in classes().items()}
    write(tmp_path, files)
    with warnings.catch_warnings(action="error"):
        assert here("adapt.py", "support=own", "out=out")[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for name in names.values():
        assert page.count(html.escape(name)) > 2
    assert page.count(f"<span>{html.escape(names['c'])[:20]}") == 2


def test_classes_with_the_names_of_columns_have_columns_of_their_own(tmp_path: Path) -> None:
    names = {"a": "label", "b": "label (class)", "c": "look"}
    files = {n.replace(n[0], names[n[0]], 1): d for n, d in classes().items()}
    found = practice.adapt(write(tmp_path / "own", files)).predict(write(tmp_path / "new", classes(each=1, first=8)))
    assert len(set(found.columns())) == len(found.columns()) == 4 + 3 + 3
    assert all(len(row) == len(found.columns()) for row in found.rows())


def test_names_that_a_spreadsheet_would_compute(tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own", {n.replace("a/", "=1+1/"): d for n, d in classes().items()})
    assert here("adapt.py", "support=own", "query=own", "out=out")[0] == 0
    for name in ("predictions.csv", "skipped.csv"):
        cells = csv.reader(io.StringIO((tmp_path / "out" / name).read_text()))
        assert not [cell for row in cells for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert "'=1+1" in (tmp_path / "out" / "predictions.csv").read_text()


def test_a_run_on_something_else(train: Any, tmp_path: Path) -> None:
    train("algo=maml", "trainer=cpu", "trainer.max_steps=0", "test.episodes=2", "trainer.val_episodes=2", "logger=csv",
          "hydra.run.dir=sine")  # fmt: skip
    with pytest.raises(InputError, match="is a run on Sinusoid and not on classes of pictures"):
        practice.adapt(write(tmp_path / "own", classes()), run=Path("sine"))


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    content = torch.load(io.BytesIO(model_file.model_bytes(adapted)), weights_only=True)

    def stored(value: Any) -> Path:
        torch.save(value, tmp_path / "adapted.pt")
        return tmp_path

    assert practice.load(stored(content)).classes == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"another version of innerloop \(9\.9, format 7; this one reads format 1\)"):
        practice.load(stored({**content, "format": 7, "innerloop": "9.9"}))
    with pytest.raises(InputError, match="is no whole adapted model: KeyError"):
        practice.load(stored({k: v for k, v in content.items() if k != "model"}))
    with pytest.raises(InputError, match="the backbone tiny is not the one"):
        practice.load(stored({**content, "embedding": {**content["embedding"], "digest": "0" * 32}}))
    whole = (stored(content) / "adapted.pt").read_bytes()
    (tmp_path / "adapted.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no adapted model, or is damaged"):
        practice.load(tmp_path)


def test_a_flipped_bit_in_a_model_is_found(tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    whole, new = model_file.model_bytes(adapted), write(tmp_path / "new", classes(each=2, first=9))
    expected = adapted.predict(new).rows()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "adapted.pt").write_bytes(bytes(data))
        try:
            again = practice.load(tmp_path)
        except InputError:
            continue
        assert again.predict(new).rows() == expected, "the bit was in what the format does not use"


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("nan")},
        {"temperature": 0.0},
        {"threshold": "a"},
        {"threshold": -1.0},
        {"classes": ["a"]},
        {"classes": ["a", "a", "b"]},
        {"seen": ["xyz"]},
        {"model": {"form": 1}},
        {"about": {}},
        {"about": 3},
    ],
)
def test_a_model_of_odd_values_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    content = torch.load(io.BytesIO(model_file.model_bytes(adapted)), weights_only=True)
    torch.save(content | changes, tmp_path / "adapted.pt")
    with pytest.raises(InputError, match="adapted model"):
        practice.load(tmp_path)


ERROR = ("validation", "calibration_error")


@pytest.mark.parametrize(
    "path",
    [("method",), ("support", "pictures"), ("support", "classes", "a"), ("validation", "left_out"), ("run",), ERROR],
)
def test_what_a_model_of_a_stranger_says_is_no_markup(path: tuple[str, ...], tmp_path: Path, here: Here) -> None:
    """Of its own text nothing reaches the page as HTML; what is no text there is refused."""
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    content = torch.load(io.BytesIO(model_file.model_bytes(adapted)), weights_only=True)
    place = content["about"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "<script>alert(1)</script>"
    torch.save(content, tmp_path / "adapted.pt")
    status, err = here("adapt.py", "model=adapted.pt", "query=own", "out=out")
    if status == 0:
        assert "<script" not in (tmp_path / "out" / "report.html").read_text()
    else:
        assert "says of itself" in err


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/innerloop-was-here",)


def test_a_model_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    torch.save({"format": 1, "classes": Evil()}, tmp_path / "adapted.pt")
    with pytest.raises(InputError, match="is no adapted model, or is damaged"):
        practice.load(tmp_path)
    assert not Path("/tmp/innerloop-was-here").exists()


def test_the_folder_of_an_adaptation(tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own pictures, (1)", {**classes(), "a/x.png": b""})
    write(tmp_path / "new", {**classes(each=2, first=7), "y.txt": b""})
    given = ["support=own pictures, (1)", "query=new", "out=results/first"]
    status, err = here("adapt.py", *given)
    assert status == 0, err
    out = tmp_path / "results" / "first"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["adapted.pt", "predictions.csv", "report.html", "skipped.csv", "summary.json"]
    )
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["first"]
    skipped = list(csv.DictReader(io.StringIO((out / "skipped.csv").read_text())))
    assert [(row["of"], row["file"]) for row in skipped] == [("support", "a/x.png"), ("query", "y.txt")]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["support"]["classes"] == {"a": 4, "b": 4, "c": 4}
    assert summary["new_pictures"]["evaluation"]["accuracy"] == 1
    rows = (out / "predictions.csv").read_text()
    assert rows.splitlines()[0] == "file,predicted,probability,second,a,b,c,unknown,look,label"
    status, err = here("adapt.py", "model=results/first", "query=new", "out=second")
    assert status == 0, err
    assert (tmp_path / "second" / "predictions.csv").read_text() == rows
    status, err = here("adapt.py", "model=second", "query=new", "out=second", "overwrite=true")
    assert status == 0, err
    assert practice.load(tmp_path / "second").classes == ["a", "b", "c"], "a model may be used in its own folder"
    write(tmp_path / "new", {"z.png": classes()["b/0.png"]})
    status, err = here("adapt.py", *given)
    assert status == 1
    assert (out / "predictions.csv").read_text() == rows
    status, err = here("adapt.py", *given, "overwrite=true")
    assert status == 0, err
    assert len((out / "predictions.csv").read_text().splitlines()) == len(rows.splitlines()) + 1
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["first"]


def test_the_report_needs_nothing_else(tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own", classes())
    write(tmp_path / "new", classes("abz", each=5, first=7))
    status, err = here("adapt.py", "support=own", "query=new", "out=out")
    assert status == 0, err
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")
    for part in ("class means of raw pixels", "the most frequent class", "Confusion matrix", "Reliability diagram"):
        assert part in page
    for part in ("The least certain", "The most unlike every class", "no medical device", "left out one by one"):
        assert part in page
    assert page.count("<img") > 12 + 2 + 12
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())["new_pictures"]
    for reason in (
        f"deserve a look: {counts['unlike_every_class']} unlike every class (farther",
        "uncertain (the prob",
    ):
        assert reason in page, "words of predictions.csv are explained"
    assert not re.search(r"\d %<(?!/strong)", page), "a number and its percent sign stay on one line"


@pytest.mark.parametrize("out", ["/proc/x/y", "own/a/0.png/x", "x" * 300, "x" * 250, "a\0b"])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, {f"own/{name}": data for name, data in classes().items()}))
    monkeypatch.setattr(adapt_steps, "adapt", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises((InputError, WriteError), match=r"cannot be written|cannot be read|holds a NUL"):
        adapt_steps.Settings(support="own", out=out).do()
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_that_write_one_folder(overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one comes between the look and the renaming. It is replaced whole, or not at all, and nothing stays."""
    out = tmp_path / "out"
    others = {"report.html": "the other's", "summary.json": "the other's"}
    looked = output.check_out

    def meanwhile(folder: Path, replace: bool) -> None:
        looked(folder, replace)
        monkeypatch.setattr(output, "check_out", looked)
        output.write_out(folder, others, replace)

    monkeypatch.setattr(output, "check_out", meanwhile)
    if overwrite:
        output.write_out(out, {"report.html": "mine"}, overwrite)
    else:
        with pytest.raises(InputError, match="is there: choose another folder"):
            output.write_out(out, {"report.html": "mine"}, overwrite)
    expected = {"report.html": "mine"} if overwrite else others
    assert {path.name: path.read_text() for path in out.iterdir()} == expected
    assert list(tmp_path.iterdir()) == [out]


def test_many_that_write_one_folder(tmp_path: Path) -> None:
    """Each replaces the folder of another, and the folder is always one of theirs."""
    out, names = tmp_path / "out", ("report.html", "summary.json", "skipped.csv")
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(output.write_out, out, dict.fromkeys(names, f"{i}"), True) for i in range(40)]
    for job in jobs:
        job.result()
    assert len({path.read_text() for path in out.iterdir()}) == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own", classes())
    assert here("adapt.py", "support=own", "query=own", "out=out")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    written = device_files.os.fsync
    for fails_at in range(0, 10, 2):  # between them, the folder is synchronised, which may fail
        count = iter(range(100))

        def full(number: int, count: Any = count, fails_at: int = fails_at) -> None:
            if next(count) == fails_at:
                raise OSError(28, "No space left on device")
            written(number)

        monkeypatch.setattr(device_files.os, "fsync", full)
        status, err = here("adapt.py", "support=own", "query=own", "out=out", "overwrite=true", "look_below=0.5")
        monkeypatch.setattr(device_files.os, "fsync", written)
        assert status == 1
        assert "cannot be written: No space left on device" in err
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_ctrl_c_keeps_the_vectors_and_leaves_no_folder(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "own", classes(each=30))
    forward = Patches.forward
    seen: list[int] = []

    def interrupted(self: Patches, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(Patches, "forward", interrupted)
    status, err = here("adapt.py", "support=own", "out=out")
    assert (status, err.strip()) == (130, "adapt.py: interrupted")
    assert not (tmp_path / "out").exists()
    kept = sum(seen) - seen[3]
    seen[:] = [0] * 10
    assert here("adapt.py", "support=own", "out=out")[0] == 0
    assert sum(seen) <= 90 - kept + 16
