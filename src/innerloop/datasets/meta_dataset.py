"""The sources of Meta-Dataset, in the records that its authors' conversion writes.

Triantafillou et al.: Meta-Dataset: a dataset of datasets for learning to learn from few examples. ICLR, 2020. A source
is a folder with dataset_spec.json and a TFRecord file for each class. The specification has the published split, and
for Omniglot the alphabets and for ILSVRC-2012 the part of WordNet above its classes (`dataset_spec.py` of
google-research/meta-dataset).
"""

import graphlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.datasets.files import digest, opened
from innerloop.datasets.images import LabelledImages, cache_folder, cached
from innerloop.datasets.records import RecordPictures, example, positions, read_record
from innerloop.devices.files import user_path
from innerloop.episodes import SPLITS, InputError, Split

log = logging.getLogger("innerloop")

SPEC = "dataset_spec.json"
KEYS: dict[Split, str] = {"train": "TRAIN", "validation": "VALID", "test": "TEST"}
PATTERNS = ("{}.tfrecords", "{}_{}.tfrecords")
MOST_NODES = 5000
"""Limit on the nodes of a split's graph; ILSVRC-2012 has about a thousand."""
LARGEST_SPEC = 64 * 2**20
"""Bytes of a specification: the largest published one, of ILSVRC-2012, has less than one."""
PUBLISHED: dict[str, tuple[int, int, int]] = {
    "ilsvrc_2012": (712, 158, 130),
    "omniglot": (883, 81, 659),
    "aircraft": (70, 15, 15),
    "cu_birds": (140, 30, 30),
    "dtd": (33, 7, 7),
    "quickdraw": (241, 52, 52),
    "fungi": (994, 200, 200),
    "vgg_flower": (71, 15, 16),
    "traffic_sign": (0, 0, 43),
    "mscoco": (0, 40, 40),
}
"""Source -> the published numbers of training, validation and test classes."""
# Part of the names of the processed files. Raise it when their content changes.
FORMAT = 1


@dataclass(frozen=True)
class Spec:
    """A specification. ids: of the classes, in the order of the splits. names, counts: of each, in that order.

    splits, groups: positions in that order. groups: alphabets, or the classes below each inner node (`whole`).
    """

    name: str
    pattern: str
    ids: list[int]
    names: list[str]
    counts: list[int]
    splits: dict[Split, np.ndarray]
    groups: dict[Split, list[np.ndarray]] | None = None
    whole: bool = False


def load(root: str | None = None, size: int = 84, channels: int = 3) -> LabelledImages:
    """Return the pictures of one source, (N, channels, size, size), which are decoded when they are first drawn.

    root: the folder of the source. size, channels: every picture is squeezed to a square, in grey (1) or colour (3).
    The decoded pictures are kept in the user's cache folder.

    Raises InputError for a specification or records that are missing, cut off, foreign or do not fit together.
    """
    if root is None:
        raise InputError(f"data.root=FOLDER is needed: a folder of Meta-Dataset's records, with {SPEC}")
    if channels not in (1, 3) or not 1 <= size <= 4096:
        raise InputError(f"data.size={size}, data.channels={channels}: sizes are 1 to 4096, channels 1 or 3")
    folder = user_path(root)
    if not folder.is_dir():
        raise InputError(f"data.root={root}: there is no such folder")
    spec = read_spec(folder / SPEC)
    files = [[folder / name for name in names] for names in _files(folder, spec)]
    state = digest(folder, [path.name for paths in files for path in paths] + [SPEC])
    place = cache_folder("meta_dataset")
    index = cached(place / f"{state}-index-v{FORMAT}.npz", lambda: _index(spec, files))
    pictures = RecordPictures(
        [path for paths in files for path in paths],
        index,
        size=size,
        channels=channels,
        cache=place / f"{state}-{channels}x{size}x{size}-v{FORMAT}.pictures",
    )
    found = tuple(len(spec.splits[split]) for split in SPLITS)
    sizes = (folder, pictures.shape[0], len(spec.ids), *found)
    log.info("%s: %d pictures of %d classes, %d for train, %d for validation, %d for test", *sizes)
    if found != PUBLISHED.get(spec.name, found):
        log.warning("%s: the published split of %s has %d, %d and %d classes", folder, spec.name, *PUBLISHED[spec.name])
    return LabelledImages(
        images=pictures,
        classes=tuple(spec.names),
        counts=np.array(spec.counts),
        splits=spec.splits,
        groups=spec.groups,
        whole_groups=spec.whole,
    )


def read_spec(path: Path) -> Spec:
    """Return a specification of any of the three kinds. Raises InputError if it is missing or is none."""
    if not path.is_file():
        raise InputError(f"{path.parent} is no source of Meta-Dataset: it has no {SPEC}")
    with opened(path) as file:
        data = file.read(LARGEST_SPEC + 1)
    if len(data) > LARGEST_SPEC:
        raise InputError(f"{path} is larger than {LARGEST_SPEC // 2**20} MB")
    try:
        content = json.loads(data)
        kind = content["__class__"]
        if content["file_pattern"] not in PATTERNS:
            raise ValueError(f"file_pattern {content['file_pattern']!r}")
        if kind not in KINDS:
            raise ValueError(f"__class__ {kind!r}, which is none of {', '.join(KINDS)}")
        return KINDS[kind](content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no specification of Meta-Dataset: {type(error).__name__}: {reason}") from error


def _flat(content: Mapping[str, Any]) -> Spec:
    """Return a DatasetSpecification: classes are numbered through, split by split."""
    return _numbered(content, [_number(content["classes_per_split"][KEYS[split]]) for split in SPLITS])


def _bilevel(content: Mapping[str, Any]) -> Spec:
    """Return a BiLevelDatasetSpecification: superclasses are numbered through, and so are their classes."""
    per_split = [_number(content["superclasses_per_split"][KEYS[split]]) for split in SPLITS]
    if sum(per_split) > len(content["classes_per_superclass"]):
        raise ValueError("more superclasses in the splits than there are")
    sizes = [_number(content["classes_per_superclass"][str(i)]) for i in range(sum(per_split))]
    if sum(sizes) > len(content["class_names"]):
        raise ValueError(f"{sum(sizes)} classes in the superclasses, and names of {len(content['class_names'])}")
    edges = np.cumsum([0, *per_split])
    members = (
        np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sum(sizes) <= len(content["class_names"]) else []
    )
    spec = _numbered(content, [sum(sizes[a:b]) for a, b in itertools.pairwise(edges)])
    groups = {split: members[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}
    return Spec(**{**vars(spec), "groups": groups})


def _hierarchical(content: Mapping[str, Any]) -> Spec:
    """Return a HierarchicalDatasetSpecification: the leaves of a graph for each split, grouped by its inner nodes."""
    ids_of = {str(name): _number(int(i)) for i, name in content["class_names"].items()}
    ids: list[int] = []
    names: list[str] = []
    counts: list[int] = []
    splits, groups = {}, {}
    for split in SPLITS:
        spans = spanned({n["wn_id"]: n["children_ids"] for n in content["split_subgraphs"][KEYS[split]]})
        leaves = sorted(node for node, below in spans.items() if below == {node})
        place = {leaf: len(names) + i for i, leaf in enumerate(leaves)}
        splits[split] = np.array(sorted(place.values()), np.int64)
        groups[split] = [np.array(sorted(place[x] for x in spans[n])) for n in sorted(spans) if n not in place]
        ids += [ids_of[leaf] for leaf in leaves]
        names += leaves
        counts += [_number(content["images_per_class"][KEYS[split]][leaf]) for leaf in leaves]
    _refuse_twice(names)
    return Spec(str(content["name"]), content["file_pattern"], ids, names, counts, splits, groups, whole=True)


def spanned(children: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return for each node of a directed graph without cycles the leaves that it spans; a leaf spans itself.

    children: of each node. Raises ValueError for a cycle, a child that is no node, and too many.
    """
    if len(children) > MOST_NODES:
        raise ValueError(f"a graph of {len(children):,} nodes, more than the {MOST_NODES:,} that are read")
    for node, below in children.items():
        for child in below:
            if child not in children:
                raise ValueError(f"{node} has a child {child} that is not in the graph")
    found: dict[str, set[str]] = {}
    for node in graphlib.TopologicalSorter(children).static_order():
        below = children[node]
        found[node] = set().union(*(found[child] for child in below)) if below else {node}
    return found


KINDS = {
    "DatasetSpecification": _flat,
    "BiLevelDatasetSpecification": _bilevel,
    "HierarchicalDatasetSpecification": _hierarchical,
}


def _numbered(content: Mapping[str, Any], per_split: Sequence[int]) -> Spec:
    total, names = sum(per_split), content["class_names"]
    if total > len(names):
        raise ValueError(f"{total} classes in the splits, and names of {len(names)}")
    parts = np.split(np.arange(total), np.cumsum(per_split)[:-1])
    called = [str(names[str(i)]) for i in range(total)]
    _refuse_twice(called)
    counts = [_number(content["images_per_class"][str(i)]) for i in range(total)]
    splits = dict(zip(SPLITS, parts, strict=True))
    return Spec(str(content["name"]), content["file_pattern"], list(range(total)), called, counts, splits)


def _number(value: Any) -> int:
    if isinstance(value, Mapping):
        raise ValueError("pools of images, which Meta-Dataset's ten sources do not have")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} in the place of a number")
    return value


def _refuse_twice(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class {twice} is there twice")


def _files(folder: Path, spec: Spec) -> list[list[str]]:
    """Return the names of each class's files. Raises InputError for a class without one."""
    there = {path.name for path in folder.iterdir()}
    found = []
    for i, name in zip(spec.ids, spec.names, strict=True):
        names = [spec.pattern.format(i, 0)]
        if spec.pattern == PATTERNS[1]:
            while (more := spec.pattern.format(i, len(names))) in there:
                names.append(more)
        if names[0] not in there:
            raise InputError(f"{folder}: {names[0]} is missing, the records of class {name}")
        found.append(names)
    return found


def _index(spec: Spec, files: Sequence[Sequence[Path]]) -> dict[str, np.ndarray]:
    """Return the place of every picture. Raises InputError for files that are not what the specification says.

    The first record of every class is read whole, so that a foreign file is found before any work.
    """
    found: list[np.ndarray] = []
    number = 0
    for i, name, count, paths in zip(spec.ids, spec.names, spec.counts, files, strict=True):
        total = 0
        for path in paths:
            places = np.array(positions(path), np.int64).reshape(-1, 2)
            found.append(np.column_stack([np.full(len(places), number), places]))
            total += len(places)
            if len(places):
                origin = f"{path}: the first record"
                _, label = example(read_record(path, *places[0].tolist()), origin)
                if label != i:
                    raise InputError(f"{origin} has the label {label}, and the file is of class {i}, {name}")
            number += 1
        if total != count:
            raise InputError(f"{paths[0]} has {total} records of class {name}, and {SPEC} says {count}")
    table = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
    kinds = {"shard": np.int32, "offset": np.int64, "length": np.int32}
    return {name: column.astype(kind) for (name, kind), column in zip(kinds.items(), table.T, strict=True)}
