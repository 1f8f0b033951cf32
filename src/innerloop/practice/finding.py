"""A person's own pictures, found: in folders, zip files and tables. What is no picture is set aside with a reason."""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from innerloop.datasets.files import OTHER_ARCHIVES, entries
from innerloop.datasets.layouts import split_of, tables_in
from innerloop.datasets.pictures import PICTURES
from innerloop.datasets.places import NOWHERE, Places
from innerloop.datasets.tables import TABLES, read_table
from innerloop.devices.files import user_path
from innerloop.errors import InputError
from innerloop.practice.reading import Listing, Skipped

log = logging.getLogger("innerloop")


def find(source: Path, labelled: bool, label: str | None = None) -> Listing:
    """Return the pictures of a folder, a zip file, a table or a single file.

    The label of a picture in a folder is the outermost folder that it is in; common parent folders are skipped. A table
    has a column of files, relative to the table, and one of labels: see `innerloop.datasets.tables`. A folder or zip
    file of labelled pictures may hold one table of them instead of class folders.

    labelled: whether pictures without a label are set aside. label: the table's column of labels; None: the usual one.
    Raises InputError if nothing is there, or labelled pictures have no table with that column.
    """
    source = user_path(source)
    try:
        is_folder, exists = source.is_dir(), source.exists()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    if not exists:
        raise InputError(f"{source}: there is no such folder or file")
    if not is_folder and source.suffix.lower() in TABLES:
        return _from_table(source.parent, source.name, labelled, label)
    if not is_folder and not source.is_file():
        raise InputError(f"{source} is no file but a pipe, a socket or a device")
    if not is_folder and source.suffix.lower() != ".zip":
        if labelled:
            raise InputError(
                f"{source}: labelled pictures are a folder or zip file with a folder for each class, or a CSV"
            )
        return Listing(source.parent, [source.name], [None], [])
    names, refused = entries(source)
    if labelled and (tables := tables_in(source, names, label=label)):
        if len(tables) > 1:
            raise InputError(f"{source} holds several tables, {', '.join(tables)}: give one of them")
        return _from_table(source, tables[0], labelled, label, names, refused)
    if labelled and label is not None:
        raise InputError(f"label={label}: {source} has no table of pictures with such a column")
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    skipped = [Skipped(name, reason) for name, reason in refused.items()]
    skipped += [Skipped(n, _no_picture(n)) for n in names if not n.endswith("/") and not n.lower().endswith(PICTURES)]
    if labelled:
        skipped += [Skipped(n, "is an empty folder") for n in _empty_folders([*names, *refused]) if n not in refused]
    inner = _common_folder(pictures)
    labels = [_outermost(name.removeprefix(inner)) for name in pictures]
    if labelled:
        refuse_splits(sorted({label for label in labels if label is not None}))
    below = (name.removeprefix(inner) for name in (*names, *refused) if name.startswith(inner))
    given = frozenset(_outermost(name) or "" for name in below) - {"", ".."}
    listing = Listing(source, pictures, labels, skipped, given, warnings=_nested(pictures, inner) if labelled else [])
    return _without_unlabelled(listing, "is in no class folder") if labelled else listing


def _from_table(
    source: Path,
    table: str,
    labelled: bool,
    label: str | None,
    names: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> Listing:
    """names, refused: of the source, if it was given: a row may then name a file without its folders."""
    read = read_table(source / table, labelled, label, "; for a table of numbers give label=COLUMN")
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    places = Places(source, pictures)
    found: dict[str, set[tuple[str | None, str | None]]] = {}
    skipped: dict[str, str] = {}
    for row in read.rows:
        if not row.file:
            skipped[f"{table} (label {row.label})"] = "its row names no file"
            continue
        file, problem = places.find(table, row.file, by_name=bool(pictures))
        if problem and problem != NOWHERE:  # what is missing or cannot be read is said when it is read
            skipped[file] = problem
        else:
            found.setdefault(file, set()).add((row.label, row.individual))
    files, labels, individuals = list[str](), list[str | None](), list[str | None]()
    for file, given in sorted(found.items()):
        if len({name for name, _ in given}) > 1:
            skipped[file] = f"has several labels in {table}: {', '.join(sorted({str(name) for name, _ in given}))}"
            continue
        files.append(file)
        labels.append(next(iter(given))[0])
        individuals.append(min((name for _, name in given if name), default=None))
    skipped |= {name: f"is not in {table}" for name in pictures if name not in found} | dict(refused or {})
    listing = Listing(
        source,
        files,
        labels,
        [Skipped(*item) for item in skipped.items()],
        frozenset(row.label for row in read.rows if row.label),
        individuals if read.individual is not None else [],
        read.label,
    )
    if read.label is not None:
        log.warning("%s: the label is the column %s", source / table, read.label)
    if labelled and read.individual is not None:
        log.warning("pictures of one %s (that column of %s) are left out together", read.individual, table)
    return _without_unlabelled(listing, "has no label") if labelled else listing


def _without_unlabelled(listing: Listing, reason: str) -> Listing:
    kept = [i for i, label in enumerate(listing.labels) if label is not None]
    bare = [Skipped(f, reason) for f, label in zip(listing.files, listing.labels, strict=True) if label is None]
    some_of = listing.only(kept)
    return replace(
        listing,
        files=some_of.files,
        labels=some_of.labels,
        individuals=some_of.individuals,
        skipped=[*listing.skipped, *bare],
    )


def _no_picture(name: str) -> str:
    archive = name.lower().endswith((".zip", *OTHER_ARCHIVES))
    return "is an archive: unpack it first" if archive else "is of no picture format that is known"


def _empty_folders(names: Sequence[str]) -> list[str]:
    """Return the folders that hold nothing, of the paths of everything, in which those of folders end in "/"."""
    full = {folder for name in names for folder in _folders_above(name)}
    return [name for name in names if name.endswith("/") and name not in full]


def _folders_above(name: str) -> list[str]:
    parts = name.rstrip("/").split("/")
    return ["/".join(parts[:n]) + "/" for n in range(1, len(parts))]


def _nested(pictures: Sequence[str], inner: str) -> list[str]:
    """Return a warning if folders that are classes hold several folders of pictures, which may be the classes."""
    folders: dict[str, set[str]] = {}
    for name in pictures:
        outer, *rest = name.removeprefix(inner).split("/")
        if len(rest) > 1:
            folders.setdefault(outer, set()).add(rest[0])
    several = sorted(name for name, members in folders.items() if len(members) > 1)
    if not several:
        return []
    example = f"{several[0]}/{min(folders[several[0]])}"
    return [
        f"The classes are the outermost folders, such as {several[0]}. If the folders in them are the classes, such as "
        f"{example}, put these side by side, or give a CSV of files and labels."
    ]


def _outermost(name: str) -> str | None:
    folder, inside, _ = name.partition("/")
    return unicodedata.normalize("NFC", folder) if inside else None


def _common_folder(names: list[str]) -> str:
    """Return the folder, such as "a/b/", that holds all pictures and has several folders or pictures of its own."""
    inner = ""
    while names:
        rest = {name.removeprefix(inner).partition("/")[0] for name in names}
        if len(rest) > 1 or not all("/" in name.removeprefix(inner).partition("/")[2] for name in names):
            break
        inner += f"{rest.pop()}/"
    return inner


def refuse_splits(labels: list[str]) -> None:
    """Raise InputError if the classes are called like splits, such as train and test: one level too high was given."""
    if len(labels) > 1 and all(map(split_of, labels)):
        raise InputError(
            f"the folders {', '.join(labels)} are named like splits and not like classes: give one of them"
        )
