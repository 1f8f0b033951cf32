"""Strangers' tables: marks in numbers, words for missing values, copies, ids, labels and categories that do not fit."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from innerloop import practice
from innerloop.episodes import InputError
from innerloop.practice import validation
from innerloop.practice.command import Settings
from innerloop.practice.heads import Scores
from innerloop.practice.table_checks import labels_of_new, one_spelling
from innerloop.practice.tables import read
from innerloop.practice.validation import hold_out


def saved(path: Path, names: str, rows: list[list[object]], separator: str = ",") -> Path:
    lines = [names.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(count: int = 16, first: int = 0) -> list[list[object]]:
    """Rows of two numbers and a class that the first of them tells."""
    rng = np.random.default_rng(first)
    return [[f"{36 + i % 2 + 0.1 * rng.normal():.2f}", f"{rng.normal():.3f}", "ab"[i % 2]] for i in range(count)]


def with_commas(rows: list[list[object]]) -> list[list[object]]:
    return [[str(cell).replace(".", ",") for cell in row] for row in rows]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_decimal_comma_is_read_where_it_cannot_separate_cells(
    separator: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = saved(tmp_path / "p.csv", "temp,age,dx", rows_of())
    commas = saved(tmp_path / "c.csv", "temp,age,dx", with_commas(rows_of()), separator)
    new = saved(tmp_path / "n.csv", "temp,age", [row[:2] for row in rows_of(5, 9)])
    new_commas = saved(tmp_path / "m.csv", "temp,age", [row[:2] for row in with_commas(rows_of(5, 9))], separator)
    plain = practice.adapt_table(points, "dx").predict(new).probabilities
    with caplog.at_level(logging.INFO, "innerloop"):
        adapted = practice.adapt_table(commas, "dx")
        for query in (new, new_commas):
            np.testing.assert_array_equal(adapted.predict(query).probabilities, plain)
    assert any("the comma is the decimal mark in temp, age: '36," in line for line in adapted.about["remarks"])
    assert caplog.text.count("the comma is the decimal mark in") == 2
    whole = saved(tmp_path / "w.csv", "temp,age", [["37", "0,5"]], separator)
    assert adapted.predict(whole).files == ["row 1"]


@pytest.mark.parametrize(
    ("cells", "separator", "line"),
    [
        (["48%", "55 %"], ",", "line 2: the column ef holds '48%'; write numbers with a point and without %"),
        (['"158,000"', '"1,249,000"'], ",", "the column ef holds '158,000'"),
        (['"36,5"', '"37,1"'], ",", "the column ef holds '36,5'"),
        (["900", "1,500"], ";", "line 3: the column ef holds '1,500'"),  # 1500 or 1.5
        (["36,5", "37.1"], ";", "the column ef holds '36,5'"),
        (["1 500", "1'600"], "\t", "the column ef holds '1 500'"),
        (["\u22125", "\u22126"], ",", "the column ef holds '\u22125'"),
    ],
)
def test_numbers_with_other_marks_end_in_a_line_and_do_not_become_categories(
    cells: list[str], separator: str, line: str, tmp_path: Path
) -> None:
    rows: list[list[object]] = [[cells[i % 2], i % 3, "ab"[i % 2]] for i in range(12)]
    with pytest.raises(InputError, match=line) as caught:
        practice.adapt_table(saved(tmp_path / "a.csv", "ef,w,dx", rows, separator), "dx")
    assert "\n" not in str(caught.value)
    good = [[str(i), i % 3, "ab"[i % 2]] for i in range(12)]
    adapted = practice.adapt_table(saved(tmp_path / "b.csv", "ef,w,dx", good, separator), "dx")
    with pytest.raises(InputError, match=line):
        adapted.predict(tmp_path / "a.csv")
    good[3][0] = "12%"  # one cell among many is a slip of its row
    adapted = practice.adapt_table(saved(tmp_path / "c.csv", "ef,w,dx", good, separator), "dx")
    assert adapted.support is not None
    assert "write numbers with a point" in adapted.support.listing.skipped[0].reason


@pytest.mark.parametrize("word", ["none", "NA", "-", "?", "null"])
def test_a_word_for_a_missing_feature_may_be_a_class(word: str, tmp_path: Path) -> None:
    rows = [[*row[:2], {"a": word, "b": "mild"}[str(row[2])]] for row in rows_of()]
    rows[0][2], rows[2][1] = "", word
    adapted = practice.adapt_table(saved(tmp_path / "a.csv", "temp,age,dx", rows), "dx")
    assert adapted.classes == sorted([word, "mild"])
    assert adapted.support is not None
    assert adapted.support.listing.skipped == [("row 1", "has no label")]
    assert any(f"the label {word} (7 rows) is a class" in line for line in adapted.about["remarks"])
    evaluation = adapted.predict(saved(tmp_path / "b.csv", "temp,age,dx", [[36, 0, word], [37, 0, ""]])).evaluation()
    assert evaluation is not None
    assert evaluation["pictures"] == 1


def test_an_index_without_a_name_is_left_out_and_a_counter_with_one_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = sorted(rows_of(), key=lambda row: str(row[2]))
    plain = practice.adapt_table(saved(tmp_path / "a.csv", "temp,age,dx", rows), "dx")
    indexed = saved(tmp_path / "b.csv", ",temp,age,dx,", [[i, *row, ""] for i, row in enumerate(rows)])
    with caplog.at_level(logging.WARNING, "innerloop"):
        adapted = practice.adapt_table(indexed, "dx")
    assert "its first column has no name, as an index has none, and is left out" in caplog.text
    assert plain.support is not None
    assert adapted.support is not None
    assert torch.equal(plain.support.x, adapted.support.x)
    for first in (0, 1):
        named = saved(tmp_path / "c.csv", "nr,temp,age,dx", [[i, *row] for i, row in enumerate(rows, first)])
        assert any("The column nr counts the rows" in w for w in practice.adapt_table(named, "dx").about["warnings"])
    with pytest.raises(InputError, match="has columns without a name"):
        read(saved(tmp_path / "d.csv", "my export,,", rows))


def test_copied_rows_tell_nothing_about_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [[*rng.normal(size=8).round(3), "ab"[rng.integers(2)]] for _ in range(20)]
    names = ",".join([*(f"x{i}" for i in range(8)), "dx"])
    once = practice.adapt_table(saved(tmp_path / "a.csv", names, rows), "dx")
    twice = practice.adapt_table(saved(tmp_path / "b.csv", names, rows + rows), "dx")
    assert any("20 rows equal another row" in line for line in twice.about["remarks"])
    assert not any("another row" in line for line in once.about["remarks"])
    for name, of_copies in twice.about["validation"]["candidates"].items():
        assert abs(of_copies - once.about["validation"]["candidates"][name]) < 0.21, name  # chance, and not nearly all
    rows[5][-1] = "ba"["ab".index(str(rows[5][-1]))]
    contradicting = practice.adapt_table(saved(tmp_path / "c.csv", names, rows + [[*rows[5][:-1], "c"]] * 2), "dx")
    assert any("have different labels: row 6 and row 21" in line for line in contradicting.about["warnings"])


def test_equal_rows_of_a_few_possible_values_are_no_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [["mf"[int(rng.random() < 0.1 + 0.8 * (i % 2))], "ab"[i % 2]] for i in range(40)]
    adapted = practice.adapt_table(saved(tmp_path / "a.csv", "sex,dx", rows), "dx")
    assert adapted.about["validation"]["accuracy"] > 0.7
    assert not any("equal" in line for line in adapted.about["remarks"] + adapted.about["warnings"])


def test_rows_of_one_id_are_left_out_together_and_named_by_id_and_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(12, 6))  # what tells a patient, and not the class
    rows = [[f"p{i % 12}", *(own[i % 12] + 0.01 * rng.normal(size=6)).round(4), "ab"[i % 2]] for i in range(48)]
    names = "patient,x0,x1,x2,x3,x4,x5,dx"
    table = saved(tmp_path / "a.csv", names, rows)
    blind = practice.adapt_table(saved(tmp_path / "b.csv", names[8:], [row[1:] for row in rows]), "dx")
    grouped = practice.adapt_table(table, "dx", id="patient")
    assert blind.about["validation"]["accuracy"] > 0.9
    assert grouped.about["validation"]["accuracy"] < 0.8
    assert grouped.held_out is not None
    assert grouped.held_out.folds == 12
    assert "in 12 parts, the rows of one id" in grouped.about["validation"]["left_out"]
    assert any("48 rows have 12 ids" in line and "intervals count rows" in line for line in grouped.about["remarks"])
    assert grouped.predict(table).files[:2] == ["p0 (line 2)", "p1 (line 3)"]
    # A class of one patient cannot be left out.
    alone = [[*row[:-1], "c"] if row[0] == "p3" else row for row in rows]
    adapted = practice.adapt_table(saved(tmp_path / "c.csv", names, alone), "dx", id="patient")
    assert adapted.about["validation"]["pictures"] == 44
    assert any("All rows of c have one id" in line for line in adapted.about["warnings"])


@pytest.mark.parametrize("most", [300, 7])
def test_no_group_is_in_two_parts_and_no_part_holds_a_class(most: int) -> None:
    rng = np.random.default_rng(0)
    groups = torch.from_numpy(rng.integers(0, 15, 60))
    y = torch.where(torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.2, groups % 3, groups % 2)
    seen: list[tuple[set[int], set[int]]] = []

    def fit(x: torch.Tensor, y: torch.Tensor, classes: int) -> dict[str, object]:
        assert set(y.tolist()) == set(range(classes))
        kept = set(x.flatten().tolist())

        def model(out: torch.Tensor) -> Scores:
            seen.append(({int(groups[int(i)]) for i in out.flatten()}, {int(groups[int(i)]) for i in kept}))
            return Scores(torch.zeros(len(out), classes), out.flatten())

        return {"it": model}

    held_out = hold_out(fit, torch.arange(60)[:, None], y, 3, most, groups)  # type: ignore[arg-type]
    assert held_out is not None
    assert held_out.folds == len(seen) <= most
    assert all(not out & kept for out, kept in seen)
    assert torch.equal(held_out.scores["it"].distance, held_out.members)
    single = validation.hold_out(fit, torch.arange(60)[:, None], y, 3, most)  # type: ignore[arg-type]
    assert single is not None
    assert len(single.members) == 60


def test_equal_numbers_are_one_label_and_look_alikes_are_named(tmp_path: Path) -> None:
    assert one_spelling(["0.0", "1", "1.00", None, "x"], ["0", "1"]) == ["0", "1", "1", None, "x"]
    assert one_spelling(["TRUE", "no"], ["False", "True"]) == ["True", "no"]
    far = ["9007199254740993", "9007199254740992"]  # one float64
    assert one_spelling(far, far) == far
    assert one_spelling(["1.0", "01"], ["1", "one"]) == ["1.0", "01"]
    assert labels_of_new(["?", "NA", "ill"], ["ill", "NA"]) == ([None, "NA", "ill"], [])
    found, lines = labels_of_new(["Very ill", "very_ill", "other"], ["very ill", "well"])
    assert found == ["Very ill", "very_ill", "other"]
    assert "'Very ill' and 'very ill' differ in capitals or spaces alone" in lines[0]
    assert "No label of the new rows is a class, so nothing is evaluated: 'Very ill', 'very_ill', 'other'" in lines[1]
    rows = [[*row[:2], {"a": "0", "b": "1.0"}[str(row[2])]] for row in rows_of()]
    rows[0][2], rows[1][2] = "0.0", "1"
    adapted = practice.adapt_table(saved(tmp_path / "a.csv", "temp,age,dx", rows), "dx")
    assert adapted.classes == ["0", "1"]
    predictions = adapted.predict(saved(tmp_path / "b.csv", "temp,age,dx", [[36, 0, "0.000"], [37, 0, "1e0"]]))
    assert predictions.labels == ["0", "1"]
    alike = [[*row[:2], "B" if i == 1 else row[2]] for i, row in enumerate(rows_of())]
    warnings = practice.adapt_table(saved(tmp_path / "c.csv", "temp,age,dx", alike), "dx").about["warnings"]
    assert any("The classes 'B' and 'b' differ in capitals" in line for line in warnings)


def test_categories_that_the_labelled_rows_do_not_have_are_named_in_the_report(tmp_path: Path) -> None:
    rows = [["mf"[i % 2], ["True", "False"][i // 2 % 2], "ab"[i % 2]] for i in range(12)]
    support = saved(tmp_path / "a.csv", "sex,smoker,dx", [*rows])
    query = saved(tmp_path / "b.csv", "sex,smoker", [["male", "TRUE"], ["F", "false"], ["m", "true"], ["NA", "TRUE"]])
    Settings(out=str(tmp_path / "out"), support=str(support), query=str(query), label="dx").do()
    line = "The column sex has values that the labelled rows do not have, in 2 new rows: 'male', 'F'."
    found = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert found["new_rows"]["warnings"] == [line]
    assert "in 2 new rows" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    both = practice.adapt_table(support, "dx", query=query, fit_on="support+query")
    assert line in both.about["warnings"]
    adapted = practice.adapt_table(support, "dx")
    p = adapted.predict(saved(tmp_path / "c.csv", "sex,smoker", [["m", "TRUE"], ["m", "True"], ["m", "true"]]))
    assert len(np.unique(p.probabilities, axis=0)) == 1


def test_rows_set_aside_are_counted_by_class_and_column(tmp_path: Path) -> None:
    rows = [[f"{5 + i % 2 * 9 + i / 50:.2f}", i % 5, "ab"[i % 2]] for i in range(40)]
    for i in range(0, 28, 4):
        rows[i][0] = "<5"
    rows[1][1] = "unknown"
    warnings = practice.adapt_table(saved(tmp_path / "a.csv", "crp,age,dx", rows), "dx").about["warnings"]
    assert "7 of 20 rows of class a were set aside: column crp holds '<5'." in warnings
    assert "1 of 20 rows of class b were set aside: column age holds 'unknown'." in warnings


def test_codes_are_no_numbers_and_a_quantity_is_no_class(tmp_path: Path) -> None:
    rows = [[f"{i % 3 + 1}_{i % 2 + 1}", i * 0.7, "ab"[i % 2]] for i in range(16)]
    adapted = practice.adapt_table(saved(tmp_path / "a.csv", "plot,v,dx", rows), "dx")
    assert "1 columns of numbers and 1 of categories" in adapted.about["features"]
    ages = [[*row[:2], 30 + i // 2 * 2.5] for i, row in enumerate(rows_of(14))]
    warnings = practice.adapt_table(saved(tmp_path / "b.csv", "temp,w,age", [*ages, [36, 0, 30]]), "age").about
    assert not any("quantity" in line for line in warnings["warnings"])
    ages = [[*row[:2], 30 + (i if i < 12 else 0)] for i, row in enumerate(rows_of(14))]
    warnings = practice.adapt_table(saved(tmp_path / "c.csv", "temp,w,age", ages), "age").about
    assert any("The label age looks like a quantity, with 12 different numbers" in w for w in warnings["warnings"])


def test_a_workbook_is_known_by_its_content_and_a_table_without_label_says_what_to_add(tmp_path: Path) -> None:
    for name in ("book.csv", "book.xlsx"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("xl/workbook.xml", "<x/>")
        for label in ("dx", None):
            with pytest.raises(InputError, match="is a workbook of Excel: in Excel, File, Save as, CSV UTF-8"):
                Settings(out=str(tmp_path / "out"), support=str(tmp_path / name), label=label)
    table = saved(tmp_path / "a.csv", "temp,age,dx", rows_of())
    with pytest.raises(InputError, match="only temp, age, dx; for a table of numbers give label=COLUMN"):
        practice.adapt(table)
    with pytest.raises(InputError, match=r"^out= is empty: give a new folder$"):
        Settings(out="", support=str(table), label="dx")


def test_a_label_of_too_many_numbers_is_refused_as_a_quantity(tmp_path: Path) -> None:
    ages = [[*row[:2], 20 + i] for i, row in enumerate(rows_of(12))]
    with pytest.raises(
        InputError, match=r"has 12 classes in 12 rows: .*; it looks like a quantity: make a few classes"
    ):
        practice.adapt_table(saved(tmp_path / "a.csv", "temp,w,age", ages), "age")
