"""What a person's folders may hold: each kind of bad input is one clear line, or a row among what was set aside."""

import codecs
import io
import os
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import classes, drawing, encoded, small, tiny, write, zip_of
from PIL import Image

from innerloop import practice
from innerloop.datasets import files as data_files
from innerloop.datasets.pictures import FORMATS, PICTURES
from innerloop.episodes import InputError

__all__ = ["small"]
Files = dict[str, bytes]


def set_aside(support: Path, **settings: Any) -> dict[str, str]:
    """File -> reason, of labelled pictures beside twelve good ones, which are used."""
    adapted = practice.adapt(support, **settings)
    assert adapted.support is not None
    assert {f"{name}/{i}.png" for name in "abc" for i in range(4)} <= set(adapted.support.files) | {"a/0.png"}
    assert adapted.about["validation"]["accuracy"] >= 0.9
    return {skipped.file: skipped.reason for skipped in adapted.support.listing.skipped}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def zipped(files: Files, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a/x.png", b"", "not a readable PNG: the file is empty"),
        ("a/x.png", encoded(noise(40, 40))[:700], "not a readable PNG"),
        ("a/x.jpg", encoded(noise(90, 90), "jpg")[:-800], "not a readable JPG: image file is truncated"),
        ("a/x.jpg", b"<html>not found</html>", "not a readable JPG: it is of no known format"),
        ("a/x.webp", os.urandom(300), "not a readable WEBP"),
        ("a/notes.txt", b"by hand", "is of no picture format"),
        ("a/model.pkl", b"\x80\x04", "is of no picture format"),
        ("x.png", encoded(drawing(1, 1)), "is in no class folder"),
        ("a/x.tif", encoded(Image.new("F", (5, 5), 700), "tif"), "real values that are not from 0 to 1"),
        ("a/x.tif", encoded(Image.new("I", (5, 5), 2**20), "tif"), "more than 16 bits per channel"),
        ("b/x.png", classes()["a/0.png"], r"is the same picture as a/0\.png, of another class"),
        ("a/x.png", classes()["a/0.png"], r"is the same picture as a/0\.png"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_set_aside(packed: bool, name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    files = {**classes(), name: data}
    support = zipped(files, tmp_path / "own.zip") if packed else write(tmp_path / "own", files)
    found = set_aside(support)
    assert list(found) == (["a/0.png", name] if name == "b/x.png" else [name])
    assert reason.replace("\\", "") in found[name]


def animated(suffix: str) -> bytes:
    frames = [drawing(ord("a"), i) for i in (7, 8, 9)]
    return encoded(frames[0], suffix, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.png", encoded(drawing(ord("a"), 7).convert("CMYK").convert("RGB"))),
        ("x.jpg", encoded(drawing(ord("a"), 7).convert("CMYK"), "jpg", quality=95)),
        ("x.gif", encoded(drawing(ord("a"), 7).quantize(64), "gif")),
        ("x.png", encoded(drawing(ord("a"), 7).convert("RGBA"))),
        ("x.gif", animated("gif")),
        ("x.webp", animated("webp")),
        ("x.png", encoded(drawing(ord("a"), 7, (30_000, 12)))),
        ("x.jpg", encoded(drawing(ord("a"), 7))),  # a PNG by another name
        ("x.JPEG", encoded(drawing(ord("a"), 7), "jpg", quality=95)),
        ("x.jfif", encoded(drawing(ord("a"), 7), "jpg", quality=95)),
        ("x.bmp", encoded(drawing(ord("a"), 7), "bmp")),
        ("x.tif", encoded(drawing(ord("a"), 7), "tif")),
        ("x.png", encoded(Image.fromarray(np.asarray(drawing(ord("a"), 7).convert("L")).astype(np.uint16) * 257))),
    ],
)
def test_pictures_of_all_kinds_are_read(name: str, data: bytes, tmp_path: Path) -> None:
    """Colours, depths, formats and shapes: the picture is that of its class all the same, if it has colours."""
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    found = adapted.predict(write(tmp_path / "new", {name: data}))
    assert found.files == [name]
    if Image.open(io.BytesIO(data)).mode not in ("L", "I;16"):
        assert found.rows()[0]["predicted"] == "a"


def test_pictures_of_telephones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC with its extra; without it, a row that names the extra."""
    files = classes()
    support = write(tmp_path / "own", {**files, "a/x.heic": b"\x00\x00\x00\x18ftypheic"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        assert 'needs a package: pip install -e ".[heic]"' in set_aside(support)["a/x.heic"]
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    encoded_picture = io.BytesIO()
    drawing(ord("a"), 7, (64, 64)).save(encoded_picture, "HEIF", quality=95)
    new = write(tmp_path / "new", {"x.HEIC": encoded_picture.getvalue()})
    (row,) = practice.adapt(write(tmp_path / "two", files)).predict(new).rows()
    assert (row["file"], row["predicted"]) == ("x.HEIC", "a")


def test_a_turned_picture_has_the_features_of_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = drawing(ord("a"), 7, (48, 24))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    new = write(tmp_path / "new", {"up.png": encoded(upright), "turned.png": encoded(turned, exif=exif)})
    found = practice.adapt(write(tmp_path / "own", classes())).predict(new)
    assert found.files == ["turned.png", "up.png"]
    np.testing.assert_allclose(found.probabilities[0], found.probabilities[1], rtol=0, atol=1e-12)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support = write(tmp_path / "own", {**classes(), "a/bomb.png": encoded(Image.new("1", (3000, 3000)))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert "more than 1,000,000 pixels; make it smaller" in set_aside(support)["a/bomb.png"]
    monkeypatch.undo()
    small_files = write(tmp_path / "two", {**classes(), "a/bomb.png": bytes(2**20 + 1)})
    monkeypatch.setattr("innerloop.runs.build.named", tiny)
    monkeypatch.setattr("innerloop.backbones.store.cache_folder", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(data_files, "LARGEST_FILE", 2**20)
    assert "larger than 1 MB" in set_aside(small_files)["a/bomb.png"]


def test_hidden_and_system_files_are_no_pictures(tmp_path: Path) -> None:
    hidden = (".DS_Store", "a/.x.png", "a/Thumbs.db", "__MACOSX/a/._0.png", ".git/a/0.png", "a/desktop.ini")
    assert set_aside(write(tmp_path / "own", classes() | dict.fromkeys(hidden, b"x"))) == {}


def test_links_and_pipes(tmp_path: Path) -> None:
    support = write(tmp_path / "own", classes())
    (support / "a" / "loop").symlink_to(support)
    (support / "a" / "x.png").symlink_to(support / "b" / "0.png")
    (support / "dead.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(support / "a" / "pipe.png")
    found = set_aside(support)
    assert sorted(found) == ["a/loop", "a/pipe.png", "a/x.png", "dead.png"]
    assert "no file but a pipe" in found.pop("a/pipe.png")
    assert all("is a link" in reason for reason in found.values())
    table = tmp_path / "table.csv"
    rows = [f"own/{name},{name[0]}" for name in classes()] + ["own/a/pipe.png,a"]
    table.write_text("file,label\n" + "\n".join(rows))
    found = {s.file: s.reason for s in practice.adapt(table).support.listing.skipped}  # type: ignore[union-attr]
    assert found == {"own/a/pipe.png": "is no file"}


def test_unreadable_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support = write(tmp_path / "own", {**classes(), "a/x.png": b"secret", "locked/y.png": b"secret"})
    opened, scan = os.open, os.scandir

    def refuse(path: Any, *rest: Any) -> int:
        if str(path).endswith("x.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest)

    def refuse_folder(path: Any) -> Any:
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    assert set_aside(support) == {
        "a/x.png": "cannot be read: Permission denied",
        "locked/": "cannot be read: Permission denied",
    }


def table_of(separator: str = ",", end: str = "\n", head: str = "file{0}label") -> str:
    rows = [f"{name}{separator}{name[0]}" for name in classes()]
    return end.join([head.format(separator), *rows, ""])


@pytest.mark.parametrize(
    "text",
    [
        table_of().encode(),
        table_of(";").encode(),
        table_of("\t").encode(),
        table_of("|").encode(),
        table_of(end="\r\n").encode(),
        table_of(end="\r").encode(),
        codecs.BOM_UTF8 + table_of(";", "\r\n").encode(),
        table_of("\t", "\r\n").encode("utf-16"),
        table_of(head="Path{0}Species").encode(),
        table_of(head=" FILENAME {0} Class ").encode(),
        table_of().replace("a/0.png", r"a\0.png").encode(),
        (table_of() + "\n\n,\n").encode(),
        ("\n \r\n" + table_of()).encode(),
        table_of(", ").replace("a", '"a"').replace('"a"/', "a/").replace('l"a"bel', "label").encode(),
        table_of().replace("a/0.png", "./a/../a/0.png").encode(),
    ],
)
def test_tables(text: bytes, tmp_path: Path) -> None:
    write(tmp_path, classes())
    (tmp_path / "table.csv").write_bytes(text)
    adapted = practice.adapt(tmp_path / "table.csv")
    assert adapted.about["support"] == {"pictures": 12, "skipped": 0, "classes": {"a": 4, "b": 4, "c": 4}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,name\na/0.png,a\n", r"has no column label \(or class, .*\), only file, name"),
        (b"a/0.png,a\nb/0.png,b\n", r"has no column file \(or filename, .*\), only a/0\.png, a"),
        (b"file,label\n", "has no rows below"),
        (b"", "has no column file .*, only none"),
        (table_of().encode() + b"x.png," + b"a" * 256, "the label 'a.*'… has a line break or more than 255 characters"),
        (table_of().encode() + b'x.png,"a\nb"', "the label .* has a line break .* is a quotation mark not closed"),
        (table_of().encode() + b"x.png," + b"a" * 200_000, "is no table: field larger than field limit"),
        (b"file,label\nx.png,caf\xe9\n", "is no UTF-8 text .* save it as UTF-8"),
        (b"file,label\nx/0.png,a\ny/0.png,b\n", r"holds no picture that can be used: x/0\.png cannot be read: No such"),
    ],
)
def test_tables_that_cannot_be(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        practice.adapt(tmp_path / "table.csv")


def test_rows_that_cannot_be(tmp_path: Path) -> None:
    write(tmp_path, classes())
    more = "a/9.png,a\nb/0.png,c\n,a\na/1.png,\n"
    (tmp_path / "table.csv").write_text(table_of() + more)
    adapted = practice.adapt(tmp_path / "table.csv")
    assert {s.file: s.reason for s in adapted.support.listing.skipped} == {  # type: ignore[union-attr]
        "a/9.png": "cannot be read: No such file or directory",
        "b/0.png": "has several labels in table.csv: b, c",
        "table.csv (label a)": "its row names no file",
        "a/1.png": "has several labels in table.csv: None, a",
    }


def test_a_table_may_be_in_the_folder_of_its_pictures(tmp_path: Path) -> None:
    """As `data=folder` reads it; what it does not name is set aside, and what is not there is a row."""
    flat = {f"images/{name.replace('/', '_')}": data for name, data in classes().items()}
    own = write(
        tmp_path / "own", {**flat, "images/more.png": classes()["a/0.png"], "notes.csv": b"day,place\n1,here\n"}
    )
    rows = [f"{name.removeprefix('images/')},{name[7]}" for name in flat]
    (own / "labels.csv").write_text("\n".join(["file,label", *rows, "none.png,a"]))
    adapted = practice.adapt(own)
    assert adapted.about["support"]["classes"] == {"a": 4, "b": 4, "c": 4}
    assert {s.file: s.reason for s in adapted.support.listing.skipped} == {  # type: ignore[union-attr]
        "images/more.png": "is not in labels.csv",
        "none.png": "cannot be read: No such file or directory",
    }
    shutil.copy(own / "labels.csv", own / "more.csv")
    with pytest.raises(InputError, match=r"holds several tables, labels\.csv, more\.csv: give one of them"):
        practice.adapt(own)
    (own / "more.csv").unlink()
    (own / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"notes\.csv has no column file"):
        practice.adapt(own)
    assert practice.adapt(write(tmp_path / "folders", {**classes(), "notes.csv": b"day\n1\n"})).classes == [
        "a",
        "b",
        "c",
    ]


def test_names_of_files_in_either_form_of_unicode(tmp_path: Path) -> None:
    """macOS writes an accent behind its letter, and tables are typed with whole letters."""
    own = write(tmp_path / "own", {f"e\u0301/{name}": data for name, data in classes().items()})
    (own / "labels.csv").write_text("\n".join(["file,label", *(f"\u00e9/{n},e\u0301 {n[0]}" for n in classes())]))
    assert practice.adapt(own / "labels.csv").about["support"]["classes"] == {f"\u00e9 {c}": 4 for c in "abc"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_without_a_usable_picture_is_said(
    packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**classes(), "d/0.png": b"", "e/0.tga": b"", "f/0.png": classes()["a/0.png"], "f/sub/1.tga": b""}
    own = write(tmp_path / "own", files)
    (own / "g").mkdir()
    if packed:
        own = Path(shutil.make_archive(str(own), "zip", own))
    adapted = practice.adapt(own)
    assert adapted.classes == ["a", "b", "c"]
    warning = "No picture of d, e, f, g can be used, so the model has no such class: see skipped.csv."
    assert adapted.about["warnings"] == [warning]
    assert warning in caplog.text
    if not packed:
        (tmp_path / "own.csv").write_text("\n".join(["file,label", *(f"own/{n},{n[0]}" for n in files)]))
        assert "No picture of d, e, f can be used" in practice.adapt(tmp_path / "own.csv").about["warnings"][0]


def test_classes_whose_names_are_alike_are_said(tmp_path: Path) -> None:
    own = write(tmp_path / "own", {**classes(), **{f"A{n[1:]}": d for n, d in classes("d").items()}})
    expected = "The classes 'A' and 'a' differ in capitals or spaces alone: if these are one, give them one name."
    assert practice.adapt(own).about["warnings"] == [expected]


def test_every_format_that_is_decoded_has_a_suffix() -> None:
    """A format without one would be read under a wrong name, and set aside under its own."""
    Image.init()
    suffixes = {format: [s for s, f in Image.EXTENSION.items() if f == format] for format in FORMATS}
    del suffixes["MPO"]  # JPEG of some cameras, whose files end in .jpg
    assert not {format for format, own in suffixes.items() if not set(own) & set(PICTURES) and format in Image.OPEN}


Make = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "there is no such folder or file"),
        (lambda p: write(p, {"own/a/0.txt": b""}) / "own", r"holds no picture .* a/0\.txt is of no picture format"),
        (lambda p: write(p, {"own/.hidden": b""}) / "own", "holds no picture that can be used: it is empty"),
        (lambda p: write(p, classes("a")), "has one class, a: there must be two or more"),
        (lambda p: write(p, {**classes("a"), "b/0.png": b""}), r"one class, a: .* \(1 files were set aside: b/0\.png"),
        (lambda p: write(p, {"0.png": classes()["a/0.png"]}), r"0\.png is in no class folder"),
        (
            lambda p: write(p, {f"{s}/{n}": d for s in ("train", "Test") for n, d in classes(s[0]).items()}),
            "like splits",
        ),
        (lambda p: write(p, {"a.png": classes()["a/0.png"]}) / "a.png", "a folder for each class, or a CSV"),
        (lambda p: write(p, {"a.zip": b"PK\x03\x04"}) / "a.zip", "is not a valid zip file"),
        (lambda p: write(p, {"a.tar": b""}) / "a.tar", "a folder for each class, or a CSV"),
        (lambda p: write(p, {"a" * 200 + ".csv": b"file"}) / ("b" * 300), "cannot be read|no such folder"),
    ],
)
def test_supports_that_cannot_be(make: Make, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        practice.adapt(make(tmp_path / "given"))


def test_a_zip_file_that_leads_elsewhere(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name, data in classes().items():
            archive.writestr(name, data)
        archive.writestr("../out.png", classes()["a/0.png"])
        archive.writestr("/etc/x.png", classes()["a/0.png"])
        archive.writestr(link, "/etc/passwd")
    assert list(set_aside(tmp_path / "own.zip")) == ["../out.png", "/etc/x.png", "a/link.png"]
    assert not (tmp_path.parent / "out.png").exists()


def test_common_folders_are_no_class(tmp_path: Path) -> None:
    write(tmp_path, {f"my/pictures/{name}": data for name, data in classes().items()})
    assert practice.adapt(tmp_path / "my").classes == ["a", "b", "c"]
    deep = write(tmp_path / "deep", {name.replace("/", "/site 1/"): data for name, data in classes().items()})
    assert practice.adapt(deep).classes == ["a", "b", "c"]


def test_one_picture_of_each_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes(each=1)))
    assert adapted.threshold is None
    assert "validation" not in adapted.about
    assert any("nobody knows how good" in record.getMessage() for record in caplog.records)
    found = adapted.predict(write(tmp_path / "new", classes(each=2, first=5)))
    assert [row["predicted"] for row in found.rows()] == ["a", "a", "b", "b", "c", "c"]
    assert found.look().count("unlike every class") == 0
    some = practice.adapt(write(tmp_path / "some", {**classes("ab"), **classes("c", each=1)}))
    assert some.about["validation"]["pictures"] == 8
    assert any("One class has one picture" in line for line in some.about["warnings"])


def test_pictures_of_the_support_among_the_new_ones(tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    new = write(tmp_path / "new", {"a/old.png": classes()["a/1.png"], **classes("ab", each=1, first=9)})
    found = adapted.predict(new)
    assert found.in_support.tolist() == [False, True, False]
    assert found.look()[1] == "among the labelled pictures"
    evaluation = found.evaluation()
    assert evaluation is not None
    assert evaluation["pictures"] == 2, "a picture that it was adapted to is no test"


def test_pipes_in_the_place_of_tables_and_archives(tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    for name in ("f.csv", "f.zip", "f.png"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="is no file"):
            adapted.predict(tmp_path / name)
        with pytest.raises(InputError, match="is no file"):
            practice.adapt(tmp_path / name)


def test_what_pillow_raises_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever type, and formats that start other programs are not tried at all."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    dds = b"DDS " + (124).to_bytes(4, "little") + bytes(120)
    support = write(tmp_path / "own", {**classes(), "a/eps.png": eps, "a/dds.png": dds})
    assert all("no known format" in reason for reason in set_aside(support).values())
    opened = Image.open

    def broken(file: Any, *rest: Any, **options: Any) -> Image.Image:
        if file.getbuffer()[:2] == b"BM":
            raise RuntimeError("Failed to decode image: Missing item")
        return opened(file, *rest, **options)

    monkeypatch.setattr(Image, "open", broken)
    found = set_aside(write(tmp_path / "two", {**classes(), "a/x.bmp": encoded(drawing(1, 1), "bmp")}))
    assert found == {"a/x.bmp": "is not a readable BMP: Failed to decode image: Missing item"}


def test_damaged_entries_of_a_zip_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in classes().items():
            archive.writestr(name, data)
        archive.writestr("a/x.png", os.urandom(3000))
        start = archive.getinfo("a/x.png").header_offset
    whole = bytearray(path.read_bytes())
    whole[start + 80 : start + 400] = bytes(320)
    path.write_bytes(bytes(whole))
    found = set_aside(path)
    assert list(found) == ["a/x.png"]
    assert "cannot be read" in found["a/x.png"]


def test_a_zip_file_of_an_old_tool_for_windows(tmp_path: Path) -> None:
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in classes().items():
            entry = zipfile.ZipInfo("x")
            entry.filename = "own\\" + name.replace("/", "\\")
            archive.writestr(entry, data)
    assert practice.adapt(path).classes == ["a", "b", "c"]


@pytest.mark.parametrize("outer", ["", "own/"])
def test_a_zip_file_of_pictures_and_a_table_of_them(outer: str, tmp_path: Path) -> None:
    root = write(tmp_path / "own", {f"images/{n.replace('/', '_')}": data for n, data in classes().items()})
    rows = [f"{n.replace('/', '_')},kind {n[0]}" for n in classes()]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows, "none.png,kind a"]))
    folder, archive = practice.adapt(root), practice.adapt(zip_of(root, outer))
    assert archive.classes == folder.classes == ["kind a", "kind b", "kind c"]
    assert torch.equal(archive.support.x, folder.support.x)
    assert [item.file for item in archive.support.listing.skipped] == ["none.png" if not outer else "own/none.png"]


def test_more_tables(tmp_path: Path) -> None:
    write(tmp_path, classes())
    (tmp_path / "table.csv").write_text("sep=;\r\n" + table_of(";", "\r\n"))
    assert practice.adapt(tmp_path / "table.csv").classes == ["a", "b", "c"]
    (tmp_path / "table.csv").write_text(table_of() + "a\0b.png,a\n")
    (found,) = practice.adapt(tmp_path / "table.csv").support.listing.skipped  # type: ignore[union-attr]
    assert found.reason == "cannot be read: embedded null byte"
    (tmp_path / "table.csv").write_text(table_of().replace("b/0.png", '"b/0.png'))
    with pytest.raises(InputError, match="is a quotation mark not closed"):
        practice.adapt(tmp_path / "table.csv")


def test_a_folder_around_the_classes_of_new_pictures_is_no_class(tmp_path: Path) -> None:
    adapted = practice.adapt(write(tmp_path / "own", classes()))
    new = write(tmp_path / "new", {f"leaves/2024/{n}": d for n, d in classes(each=2, first=9).items()})
    evaluation = adapted.predict(new).evaluation()
    assert evaluation is not None
    assert evaluation["pictures"] == 6
