"""The folder that an adaptation leaves: written whole or not at all, and never over somebody's files."""

import csv
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from innerloop.devices.files import write_whole, writing
from innerloop.errors import InputError

FILES = ("predictions.csv", "summary.json", "skipped.csv", "report.html", "adapted.pt")
"""Everything that an adaptation writes."""


def check_out(out: Path, overwrite: bool) -> None:
    """Raise InputError if a folder cannot be written to: it is a file, or holds files that may not be replaced.

    Raises WriteError if nothing can be written where it is to be, which is found out by writing.
    """
    if "\0" in str(out):
        raise InputError(f"out={str(out)!r} holds a NUL character")
    if Path(os.path.abspath(out)) in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"out={out} is the working directory or above it: choose a folder in it")
    with writing(out):
        _check_content(out, overwrite)
        draft = _beside(Path(os.path.abspath(out)), "tmp")
        made = [folder for folder in (draft, *draft.parents) if not os.path.lexists(folder)]
        try:
            draft.mkdir(parents=True)
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def _check_content(out: Path, overwrite: bool) -> None:
    # One look for each question: another process may move the folder in between.
    with suppress(OSError):
        mode = os.lstat(out).st_mode
        if stat.S_ISLNK(mode):
            raise InputError(f"out={out} is a link: give the folder that it leads to, {os.path.realpath(out)}")
        if not stat.S_ISDIR(mode):
            raise InputError(f"out={out} is there and is no folder")
    try:
        found = sorted(os.listdir(out))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return  # whoever writes there says so
        raise InputError(f"out={out} cannot be read: {error.strerror}") from error
    others = [name for name in found if name not in FILES]
    if others:
        raise InputError(f"out={out} holds {others[0]}, which is not of an adaptation: choose another folder")
    if found and not overwrite:
        raise InputError(f"out={out} is there: choose another folder, or set overwrite=true")


def write_out(out: Path, contents: Mapping[str, bytes | str], overwrite: bool) -> None:
    """Write the files of an adaptation as a folder. An earlier one is replaced at once, and only if that may be.

    contents: name, one of FILES -> content. Raises InputError as `check_out` does, also if another process has written
    the folder meanwhile, and WriteError that names what cannot be written; the folder is then as it was.
    """
    check_out(out, overwrite)
    out = Path(os.path.abspath(out))
    draft, earlier, whole = _beside(out, "tmp"), _beside(out, "old"), False
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
        for name, content in contents.items():
            write_whole(draft / name, content)
        with writing(out):
            while not _placed(draft, out):
                _check_content(out, overwrite)
                _set_aside(out, earlier)
        whole = True
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):  # what was set aside goes back, unless another process has written the folder since
            whole = whole or (earlier.exists() and not _placed(earlier, out))
        if whole:
            shutil.rmtree(earlier, ignore_errors=True)


def _beside(out: Path, word: str) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.{word}")


def _placed(draft: Path, out: Path) -> bool:
    """Rename a folder, which never replaces one that holds files. Return False if there is one."""
    try:
        draft.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _set_aside(out: Path, earlier: Path) -> None:
    shutil.rmtree(earlier, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process does the same
        out.rename(earlier)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """Return a table as CSV text.

    Text that a spreadsheet would take for a formula, such as a file's name that begins with =, has an apostrophe before
    it.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([map(_no_formula, columns), *([_no_formula(row[name]) for name in columns] for row in rows)])
    return file.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
