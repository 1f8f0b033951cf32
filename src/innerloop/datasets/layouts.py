"""The layouts that pictures come in: class folders, split folders, tables, and lists of classes."""

import logging
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from innerloop.datasets.files import OTHER_ARCHIVES, listing, reader
from innerloop.datasets.pictures import PICTURES
from innerloop.datasets.places import Places
from innerloop.datasets.tables import TABLES, names_pictures, read_table
from innerloop.episodes import SPLITS, InputError, Split
from innerloop.errors import some

log = logging.getLogger("innerloop")

LAYOUT = (
    "a folder or a zip file with a folder of pictures for each class, or with folders train, validation and test that "
    "contain such class folders, or with a CSV of files and labels"
)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "base": "train",
    "background": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "evaluation": "test",
    "novel": "test",
}
"""Names of splits, in any case: see `split_of`."""
FILLERS = ("", "split", "class", "classes", "image", "images", "data")
"""Words of a split's name that say nothing."""


@dataclass(frozen=True)
class Layout:
    """Pictures by class, and their splits if the source has any.

    classes: name -> paths, both sorted. splits: (split, name) of each class, or None. A name may be in several splits:
    whether that is allowed depends on what the splits are for. table: whether a table says which picture is of which
    class, and not its path: it may change while the pictures do not, so a cache of them has the order in its name.
    """

    classes: dict[str, list[str]]
    splits: list[tuple[Split, str]] | None
    table: bool = False


def find_layout(source: Path, class_level: int | None) -> Layout:
    """Return the classes of a folder, a zip file or a table.

    class_level: depth of the folder that is a class, after a folder that is a split: of species/site/1.jpg, 1 makes
    each species a class, and 2 each site. None: the innermost folder.

    Raises InputError if there is no class, a picture in no class, or a class without a picture.
    """
    found = _find_layout(source, class_level)
    if names := alike({name for _, name in found.splits} if found.splits else found.classes):
        log.warning("%s: %s; if these are one, its pictures may be in training and in the test", source, names)
    return found


def _find_layout(source: Path, class_level: int | None) -> Layout:
    if source.suffix.lower() in TABLES and source.is_file():
        return _from_tables(source.parent, [source.name])
    entries = listing(source)
    if tables := tables_in(source, entries, splits=True):
        return _from_tables(source, tables)
    lists = _split_lists(source, entries)
    folders = find_classes(source, entries, class_level, ignored=[posixpath.dirname(name) for name in lists])
    if class_level is None:
        warn_if_nested(folders)
    else:
        folders = at_level(folders, class_level)
    refuse_twice_named(source, list(folders))
    if lists:
        return Layout(folders, _by_lists(source, lists, folders))
    return Layout(folders, _by_folders(source, list(folders)))


def tables_in(source: Path, names: list[str], splits: bool = False, label: str | None = None) -> list[str]:
    """Return the tables of labelled pictures in a folder or a zip file, outside of all folders but a single outer one.

    names: of what it holds. A table that does not name files and labels counts where there are no class folders, and
    with `splits` beside another if it is named after a split: what is wrong with it is said when it is read.
    label: the column of labels; None: one of the usual names.
    """
    outer = {name.partition("/")[0] for name in names}
    top = f"{outer.pop()}/" if len(outer) == 1 and any("/" in name for name in names) else ""
    inner = [name.removeprefix(top) for name in names]
    tables = [top + name for name in inner if "/" not in name and name.lower().endswith((".csv", ".tsv"))]
    has_classes = len({name.partition("/")[0] for name in inner if "/" in name}) > 1
    readable = [name for name in tables if names_pictures(source / name, label, has_classes)]
    if not readable:
        return [] if has_classes else tables
    return [name for name in tables if name in readable or (splits and _split_of_file(name))]


def find_classes(
    source: Path, entries: list[str], class_level: int | None = None, ignored: list[str] | None = None
) -> dict[str, list[str]]:
    """Return folder -> the paths of its pictures within `source`, both sorted. Common parent folders are in no name.

    class_level: depth of the folder that is a class, below which folders may hold pictures and folders; None: no folder
    may hold both. ignored: folders that hold no class.
    Raises InputError if there is no class, a picture outside of class folders, or a class folder without a picture.
    """
    folders: dict[str, list[str]] = {}
    for entry in entries:
        if entry.lower().endswith(PICTURES):
            folders.setdefault(posixpath.dirname(entry), []).append(entry)
    if not folders:
        archives = [name for name in entries if name.lower().endswith((".zip", *OTHER_ARCHIVES))]
        found = f"; unpack {archives[0]} in it and give that folder" if archives else ""
        if archives and source.is_dir() and archives[0].lower().endswith(".zip"):
            found = f"; give {source / archives[0]} itself"
        raise InputError(f"{source} holds no pictures ({', '.join(PICTURES)}); it must be {LAYOUT}{found}")
    warn_of_other_files(source, entries)
    parents = {""}.union(*map(_parents, folders))
    common = posixpath.commonpath(folders)
    for folder in sorted(parents.intersection(folders)):
        inner = "" if folder == common else folder.removeprefix(f"{common}/")
        depth = len(inner.split("/")) if inner else 0  # a folder of a split is no level
        if class_level is None or depth - (inner != without_split(inner)) < class_level:
            raise InputError(f"{source}: {folders[folder][0]} is in no class folder; there must be {LAYOUT}")
    known = parents | set(folders) | {f for name in ignored or () for f in (name, *_parents(name))}
    for folder in sorted(set(map(posixpath.dirname, entries)) - known):
        if not folders.keys() & _parents(folder):  # other folders within a class folder are ignored
            raise InputError(f"{source}: the folder {folder} holds no pictures ({', '.join(PICTURES)})")
    above = posixpath.commonpath(map(posixpath.dirname, folders))
    return {folder.removeprefix(f"{above}/"): members for folder, members in sorted(folders.items())}


def at_level(folders: dict[str, list[str]], level: int) -> dict[str, list[str]]:
    """Return the classes by the first `level` folders of their paths, after a folder that is a split."""
    found: dict[str, list[str]] = {}
    for name, members in folders.items():
        parts = name.split("/")
        start = 1 if len(parts) > 1 and split_of(parts[0]) else 0
        found.setdefault("/".join(parts[: start + level]), []).extend(members)
    return {name: sorted(members) for name, members in sorted(found.items())}


def refuse_twice_named(source: Path, classes: list[str]) -> None:
    """Raise InputError if two classes have one name in different forms of Unicode, as macOS and others write it."""
    seen: dict[str, str] = {}
    for name in classes:
        if (other := seen.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise InputError(
                f"{source}: the folders {other} and {name} have one name in two forms of Unicode; join them"
            )


def alike(names: Iterable[str]) -> str:
    """Return what is said of names that differ in capitals, spaces, underscores or the form of Unicode alone, or ""."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(alike_key(name), []).append(name)
    found = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return f"the classes {some(found)} differ in capitals or spaces alone" if found else ""


def alike_key(name: str) -> str:
    """Return what names have in common that differ in capitals, spaces, underscores or the form of Unicode alone."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def warn_if_nested(folders: dict[str, list[str]]) -> None:
    """Log a warning if folders that one may take for classes hold several class folders."""
    names = [without_split(name) for name in folders]
    outer = {name.partition("/")[0] for name in names if "/" in name}
    if outer and len(outer) < len(names):
        example = next(name for name in names if "/" in name)
        log.warning(
            "%d classes, which are the innermost folders, such as %s. If %s is one class, its pictures may now be in "
            "training and in the test: set data.class_level=1",
            len(names),
            example,
            example.partition("/")[0],
        )


def warn_of_other_files(source: Path, entries: list[str]) -> None:
    """Log a warning that counts the files that are no pictures of a known format, by their suffix."""
    others = [e for e in entries if not e.endswith("/") and not e.lower().endswith(PICTURES)]
    if others:
        counts = Counter(posixpath.splitext(name)[1].lower() or "no suffix" for name in others)
        listed = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common(5))
        log.warning("%s: %d files are no pictures of a known format and are left out: %s", source, len(others), listed)


def without_split(name: str) -> str:
    """Return the name of a class without the folder of its split, such as "owl" for "train/owl"."""
    first, _, rest = name.partition("/")
    return rest if rest and split_of(first) else name


def split_of(name: str) -> Split | None:
    """Return the split that a folder's or a file's name stands for, None if it is not the name of a split.

    "meta" before it, "set" after it, a number in front and words such as "images" and "classes" make no difference:
    meta_train, 1_train, TrainSet and images_background are all "train".
    """
    words = re.split(r"[\W_]+", re.sub(r"^\d+[\W_]+", "", name.strip().lower()))
    words = [word for w in words if (word := w.removeprefix("meta").removesuffix("set")) not in FILLERS]
    return SPLIT_NAMES.get(words[0]) if len(words) == 1 else None


def _split_of_file(path: str) -> Split | None:
    return split_of(posixpath.splitext(posixpath.basename(path))[0])


def _parents(folder: str) -> set[str]:
    """Return the folders within the source that a folder is in."""
    parts = folder.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}


def _by_folders(source: Path, classes: list[str]) -> list[tuple[Split, str]] | None:
    """Return split and name of each class if the outer folders are named after splits, else None."""
    outer = [name.partition("/") for name in classes]
    if not any(rest and split_of(first) for first, _, rest in outer):
        return None
    placed: list[tuple[Split, str]] = []
    for name, (first, _, rest) in zip(classes, outer, strict=True):
        split = split_of(first)
        if not rest or split is None:
            raise InputError(f"{source}: the folder {name} is in none of train, validation (or val) and test")
        placed.append((split, rest))
    return placed


def _split_lists(source: Path, entries: list[str]) -> dict[str, Split]:
    """Return path -> split of text files such as splits/bertinetto/train.txt, if all three are in one folder.

    Raises InputError if several folders have them.
    """
    found: dict[str, dict[str, Split]] = {}
    for name in entries:
        split = _split_of_file(name) if name.lower().endswith(".txt") else None
        if split is not None:
            found.setdefault(posixpath.dirname(name), {})[name] = split
    complete = {folder: lists for folder, lists in found.items() if len(lists) == len(set(lists.values())) == 3}
    if len(complete) > 1:
        raise InputError(f"{source} has lists of classes in {' and in '.join(complete)}: leave one folder of them")
    return next(iter(complete.values()), {})


def _by_lists(source: Path, lists: Mapping[str, Split], folders: dict[str, list[str]]) -> list[tuple[Split, str]]:
    """Return split and name of each class from lists of class names, one a line, as CIFAR-FS is published."""
    given: dict[str, Split] = {}
    with reader(source) as content:
        for file, split in lists.items():
            for line in filter(None, map(str.strip, content(file).decode("utf-8-sig", "replace").splitlines())):
                if given.setdefault(line, split) != split:
                    raise InputError(f"{source}: class {line} is in the lists of {given[line]} and {split}")
    missing = sorted(set(folders) - set(given))
    if missing:
        raise InputError(f"{source}: the folder {missing[0]} is in none of the lists {', '.join(lists)}")
    unknown = sorted(set(given) - set(folders))
    if unknown:
        raise InputError(f"{source}: the lists name {unknown[0]}, and there is no such class folder")
    return [(given[name], name) for name in folders]


def _from_tables(source: Path, tables: list[str]) -> Layout:
    """Return the classes of one table, or of tables that are named after splits, such as train.csv."""
    of_name = {table: _split_of_file(table) for table in tables}
    if len(tables) > 1 and not all(of_name.values()):
        raise InputError(f"{source} holds several tables, {', '.join(tables)}: give one of them as data.root")
    places = Places(source)
    classes: dict[tuple[str, Split | None], set[str]] = {}
    for table in tables:
        found = read_table(source / table)
        log.info("%s: the label is the column %s", source / table, found.label)
        for row in found.rows:
            if row.label is None:
                raise InputError(f"{source / table}: {row.file} has no label")
            split = split_of(row.split) if row.split else of_name[table]
            if row.split and split is None:
                raise InputError(f"{source / table}: {row.file} is in the split {row.split}, which is not a known one")
            path, problem = places.find(table, row.file)
            if problem:
                raise InputError(f"{source / table} names {row.file}, which {problem}")
            classes.setdefault((row.label, split), set()).add(path)
    without = sorted(label for label, split in classes if split is None)
    if without and len(without) < len(classes):
        raise InputError(f"{source}: class {without[0]} has no split, and others have one")
    twice = [path for path, n in Counter(p for members in classes.values() for p in members).items() if n > 1]
    if twice:
        raise InputError(f"{source}: {twice[0]} has several labels or splits")
    several = Counter(label for label, _ in classes)
    order = sorted(classes, key=lambda key: (key[0], SPLITS.index(key[1]) if key[1] else 0))
    named = {f"{split}/{label}" if several[label] > 1 else label: (label, split) for label, split in order}
    members = {name: sorted(classes[key]) for name, key in named.items()}
    return Layout(members, [(split, label) for label, split in order if split] or None, table=True)
