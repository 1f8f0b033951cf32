"""Tables of pictures: they lead nowhere else, their label is said or asked for, and individuals stay together."""

import os
from pathlib import Path

import pytest
from conftest import Here
from pictures import classes, drawing, encoded, small, write, zip_of

from innerloop import practice
from innerloop.datasets import folder
from innerloop.datasets import images as shared
from innerloop.episodes import InputError

__all__ = ["small"]
SECRET = encoded(drawing(ord("a"), 99))


def table(path: Path, rows: list[str], head: str = "file,label") -> Path:
    path.write_text("\n".join([head, *rows]))
    return path


ROWS = [f"{name},{name[0]}" for name in classes()]


@pytest.mark.parametrize("given", ["own", "own/labels.csv"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (r"..\secret.png", "is nowhere there in .* files outside of it are not read"),
        ("a/../../secret.png", "is nowhere there in .* files outside of it are not read"),
        ("{tmp}/secret.png", "is nowhere there in .* files outside of it are not read"),
        ("a/link.png", "is a link"),
        ("linked/secret.png", "is a link"),
        ("{tmp}/own/a/link.png", "is a link"),
    ],
)
def test_a_table_leads_nowhere_else(
    row: str, reason: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For labelled and new pictures it is a row of those set aside; data=folder refuses it."""
    monkeypatch.setattr(shared.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    own, row = write(tmp_path / "own", classes()), row.format(tmp=tmp_path)
    write(tmp_path, {"secret.png": SECRET, "elsewhere/secret.png": SECRET})
    (own / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    (own / "linked").symlink_to(tmp_path / "elsewhere")
    table(own / "labels.csv", [*ROWS, f"{row},a"])
    opened = os.open

    def watched(path: object, *rest: int) -> int:
        assert "secret" not in os.path.realpath(str(path)), "the file outside is opened"
        return opened(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watched)
    adapted = practice.adapt(tmp_path / given)
    assert adapted.support is not None
    assert set(adapted.support.files) == set(classes())
    pattern = pytest.raises(InputError, match=reason)
    skipped = [s for s in adapted.support.listing.skipped if "label" not in s.file]
    assert skipped
    with pattern:
        raise InputError("; ".join(s.reason for s in skipped))
    found = adapted.predict(own / "labels.csv")
    assert len(found.files) == 12
    with pytest.raises(InputError, match=r"which is (nowhere there|a link)|is a link"):
        folder.load(str(tmp_path / given), size=8)


def test_absolute_paths_into_the_folder_are_read(tmp_path: Path) -> None:
    own = write(tmp_path / "own", classes())
    (tmp_path / "way").symlink_to(own)
    for root in (own, tmp_path / "way"):
        table(own / "labels.csv", [f"{root}/{row}" for row in ROWS])
        for source in (root, root / "labels.csv"):
            assert practice.adapt(source).about["support"]["pictures"] == 12


def both(tmp_path: Path, head: str, rows: list[str]) -> list[Path]:
    """A folder beside class folders, a zip file, and the table itself."""
    own = write(tmp_path / "own", classes())
    given = table(own / "list.csv", rows, head)
    return [own, given, zip_of(own)]


def test_several_columns_that_may_be_the_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{name},{'xy'[name[0] == 'c']},{name[0]}" for name in classes()]
    for source in both(tmp_path, "file,class,species", rows):
        message = r"several columns that may be the label, class, species: give adapt\.py label=COLUMN"
        with pytest.raises(InputError, match=message):
            practice.adapt(source)
        assert practice.adapt(source, label="species").classes == ["a", "b", "c"]
        assert practice.adapt(source, label="Class").classes == ["x", "y"]
        with pytest.raises(InputError, match=r"label=genus: .*no (such column|table of pictures)"):
            practice.adapt(source, label="genus")
    assert "the label is the column species" in caplog.text
    with pytest.raises(InputError, match="several columns that may be the label"):
        folder.load(str(tmp_path / "own"), size=8)


def test_a_number_and_a_name_of_each_class_are_one_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{name},{ord(name[0])},{name[0]}" for name in classes()]
    assert practice.adapt(both(tmp_path, "file,class,class_name", rows)[1]).classes == ["97", "98", "99"]
    assert "the label is the column class" in caplog.text
    table(tmp_path / "own" / "list.csv", [f"{name},w,{name[0]}" for name in classes()], "file,species,label")
    assert practice.adapt(tmp_path / "own" / "list.csv").classes == ["a", "b", "c"], "one that is called label is it"


def test_the_column_of_labels_is_that_of_new_pictures_too(tmp_path: Path) -> None:
    source = both(tmp_path, "file,class,art", [f"{name},w,{name[0]}" for name in classes()])[1]
    adapted = practice.adapt(source, label="art")
    new = write(tmp_path / "new", classes(each=2, first=9))
    given = table(new / "new.csv", [f"{name},w,{name[0]}" for name in classes(each=2, first=9)], "file,class,art")
    evaluation = adapted.predict(given).evaluation()
    assert evaluation is not None
    assert evaluation["pictures"] == 6


@pytest.mark.parametrize("head", ["image,x,y,w,h", "image,y"])
def test_a_table_of_something_else_beside_class_folders(head: str, tmp_path: Path) -> None:
    numbers = ",".join("3" for _ in head.split(",")[1:])
    own = both(tmp_path, head, [f"{name},{numbers[:-1]}{i}" for i, name in enumerate(classes())])[0]
    assert practice.adapt(own).classes == ["a", "b", "c"]
    assert folder.find_layout(own, None).classes.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("label", ["Maple, red", ""])
def test_rows_of_another_length(label: str, tmp_path: Path) -> None:
    rows = ["a/0.png" + (f",{label}" if label else ""), *ROWS[1:]]
    message = f"line 2: it has {3 if label else 1} cells, and there are 2 columns"
    for source in both(tmp_path, "file,label", rows):
        with pytest.raises(InputError, match=message):
            practice.adapt(source)
        with pytest.raises(InputError, match=message):
            folder.load(str(source), size=8)


def test_the_command_takes_a_label_for_pictures(tmp_path: Path, here: Here) -> None:
    sources = both(tmp_path, "file,class,art", [f"{name},w,{name[0]}" for name in classes()])
    for i, source in enumerate(sources):
        status, err = here("adapt.py", f"support={source}", "label=art", f"out=out{i}")
        assert (status, "the label is the column art" in err) == (0, True)
    status, err = here("adapt.py", f"support={sources[0]}", "label=art", "id=file", "out=no")
    assert status == 1
    assert "with label=COLUMN it is a table" in err


@pytest.mark.parametrize("column", ["individual", "Patient", "plant"])
def test_pictures_of_one_individual_are_left_out_together(
    column: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{name},{name[0]},{name[0]}{int(name[2]) // 2}" for name in classes()]
    adapted = practice.adapt(both(tmp_path, f"file,label,{column}", rows)[1])
    assert adapted.groups is not None
    assert len(adapted.groups.unique()) == 6
    assert adapted.held_out is not None
    assert adapted.held_out.folds == 6
    assert adapted.about["validation"]["left_out"] == "in 6 parts, copies and pictures of one individual together"
    assert f"pictures of one {column} (that column of list.csv) are left out together" in caplog.text
    one = [f"{name},{name[0]},{name[0] if name[0] == 'a' else name}" for name in classes()]
    adapted = practice.adapt(table(tmp_path / "own" / "one.csv", one, "file,label,individual"))
    assert adapted.about["validation"]["pictures"] == 8
    assert any("All pictures of a are copies or of one individual" in line for line in adapted.about["warnings"])
    every = [f"{name},{name[0]},{name[0]}" for name in classes()]
    adapted = practice.adapt(table(tmp_path / "own" / "every.csv", every, "file,label,individual"))
    assert "validation" not in adapted.about
    assert any("so nobody knows how good" in line for line in adapted.about["warnings"])
