"""What an adaptation says of odd pictures, folders, labels and archives, so that nothing happens silently."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Here
from pictures import classes, drawing, encoded, small, write
from PIL import Image

from innerloop import practice
from innerloop.datasets import pictures as decoding
from innerloop.episodes import InputError
from innerloop.practice.predictions import as_classes

__all__ = ["small"]


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_pictures_of_hardly_any_pixels_are_set_aside(size: tuple[int, int], tmp_path: Path) -> None:
    own = write(tmp_path / "own", {**classes(), "a/x.png": encoded(drawing(ord("a"), 7, size))})
    adapted = practice.adapt(own)
    assert adapted.support is not None
    reason = f"has {size[0]}x{size[1]} pixels, and each side must have 8"
    assert adapted.support.listing.skipped == [("a/x.png", reason)]
    assert adapted.predict(own).skipped == [("a/x.png", reason)]
    assert practice.adapt(write(tmp_path / "own", {"a/x.png": encoded(drawing(ord("a"), 7, (8, 8)))})).support.files  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_several_pages_are_said_once(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [drawing(ord("a"), i) for i in (7, 8)]
    name = f"x.{suffix}"
    data = encoded(frames[0], suffix, save_all=True, append_images=frames[1:])
    said = f"1 picture has several pages or frames, of which the first is used: {name}"
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    adapted.predict(write(tmp_path / "new", {name: data, "y.png": encoded(frames[1])}))
    assert caplog.text.count("several pages") == caplog.text.count(said) == 1
    again = practice.adapt(write(tmp_path / "own", {f"a/{name}": data}))
    assert [line for line in again.about["remarks"] if "pages" in line] == [said.replace(name, f"a/{name}")]
    caplog.clear()
    images = decoding.pictures(tmp_path / "new", [name, "y.png"], 24, 3)
    assert caplog.text.count("several pages") == 1
    own = [decoding.picture(encoded(frame), "0.png", 24, 3).astype(int) for frame in frames]
    away = [abs(images[0].astype(int) - picture).mean() for picture in own]
    assert away[0] < away[1] / 2, "the first one is read"


def test_the_preview_of_a_camera_is_no_page(tmp_path: Path) -> None:
    frames = [drawing(ord("a"), i, (64, 64)) for i in (7, 8)]
    file = io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    own = write(tmp_path / "own", {**classes(), "a/x.jpg": file.getvalue()})
    assert practice.adapt(own).about["remarks"] == []


def test_folders_in_the_folders_of_classes(tmp_path: Path) -> None:
    nested = {f"{year}/{name}": data for year in ("2023", "2024") for name, data in classes(each=2).items()}
    nested = {name: encoded(drawing(ord(name[5]), i)) for i, name in enumerate(nested)}
    adapted = practice.adapt(write(tmp_path / "own", nested))
    assert adapted.classes == ["2023", "2024"]
    (line,) = (line for line in adapted.about["warnings"] if "outermost" in line)
    assert line == (
        "The classes are the outermost folders, such as 2023. If the folders in them are the classes, such as 2023/a, "
        "put these side by side, or give a CSV of files and labels."
    )
    single = {name.replace("/", "/site/"): data for name, data in classes().items()}
    assert not practice.adapt(write(tmp_path / "single", single)).about["warnings"]


@pytest.mark.parametrize(
    ("labels", "expected", "said"),
    [
        (["Acer Rubrum"], ["acer_rubrum"], "taken for it: 'Acer Rubrum' as 'acer_rubrum'"),
        (["0.0", "1"], ["0", "1"], "taken for it: '0.0' as '0'"),
        (["ULMUS"], ["ULMUS"], "one of several classes are taken for none: 'ULMUS' ('Ulmus' or 'ulmus')"),
        (["1", "oak"], ["1", "oak"], ""),
        (["oak", None], ["oak", None], "no label of the new pictures is a class, so they are not evaluated: 'oak'"),
        ([None], [None], ""),
    ],
)
def test_labels_that_are_written_like_a_class(labels: list[Any], expected: list[Any], said: str) -> None:
    found, notes = as_classes(labels, ["0", "1", "Ulmus", "acer_rubrum", "ulmus"])
    assert found == expected
    assert said in "; ".join(notes)
    assert bool(said) == bool(notes)


def test_new_folders_that_are_written_like_a_class_are_an_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted = practice.adapt(write(tmp_path / "own", {f"leaf_{n}": d for n, d in classes().items()}))
    new = write(tmp_path / "new", {f"Leaf {n}": d for n, d in classes(each=2, first=9).items()})
    evaluation = adapted.predict(new).evaluation()
    assert evaluation is not None
    assert (evaluation["pictures"], evaluation["accuracy"]) == (6, 1)
    assert "of_other_classes" not in evaluation
    assert "'Leaf a' as 'leaf_a'" in caplog.text


def encrypted(path: Path, only: str = "") -> Path:
    """A zip file whose entries, or those that begin with `only`, say that they are encrypted."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in classes().items():
            archive.writestr(name, data)
        entries = archive.infolist()
    whole = bytearray(path.read_bytes())
    place = whole.index(b"PK\x01\x02")
    for entry in entries:
        if entry.filename.startswith(only):
            whole[entry.header_offset + 6] |= 1
            whole[place + 8] |= 1
        place = whole.find(b"PK\x01\x02", place + 4)
    path.write_bytes(bytes(whole))
    return path


def test_encrypted_archives(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own\.zip is encrypted: unpack it first and give the folder"):
        practice.adapt(encrypted(tmp_path / "own.zip"))
    adapted = practice.adapt(encrypted(tmp_path / "some.zip", only="a/0"))
    assert adapted.support is not None
    ((file, reason),) = adapted.support.listing.skipped
    assert file == "a/0.png"
    assert "encrypted" in reason


def test_archives_in_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("data.zip", b"PK")
    with pytest.raises(InputError, match=r"data\.zip is an archive: unpack it first"):
        practice.adapt(tmp_path / "outer.zip")


def test_empty_folders_are_rows(tmp_path: Path) -> None:
    own = write(tmp_path / "own", classes())
    (own / "d").mkdir()
    adapted = practice.adapt(own)
    assert adapted.support is not None
    assert adapted.support.listing.skipped == [("d/", "is an empty folder")]
    assert "No picture of d can be used" in adapted.about["warnings"][0]


def test_an_out_that_is_a_link(tmp_path: Path, here: Here) -> None:
    write(tmp_path / "own", classes())
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    status, err = here("adapt.py", "support=own", "out=out")
    assert status == 1
    assert f"out=out is a link: give the folder that it leads to, {tmp_path / 'real'}" in err
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("adapt.py", ["--support", "own", "out=out"], "--support: write support=own (settings have no dashes)"),
        ("adapt.py", ["--batch-size=4"], "--batch-size=4: write batch_size=4 (settings have no dashes)"),
        ("evaluate.py", ["--test.episodes", "5"], "write test.episodes=5 (settings have no dashes)"),
        ("train.py", ["--seed", "--cfg", "job"], "--seed: write seed=VALUE (settings have no dashes)"),
    ],
)
def test_settings_with_dashes(script: str, arguments: list[str], said: str, here: Here) -> None:
    status, err = here(script, *arguments)
    assert status == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_the_flags_of_hydra_stay(here: Here) -> None:
    assert here("adapt.py", "--cfg", "job", "out=out")[0] == 0
