"""Meta-Dataset's records: small shards in the official format, written here, read, drawn from, and damaged."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from pictures import drawing, encoded

from innerloop.datasets import meta_dataset, records
from innerloop.datasets.files import LARGEST_FILE
from innerloop.datasets.meta_dataset import load, spanned
from innerloop.datasets.pictures import picture
from innerloop.datasets.records import crc32c, example, masked, positions
from innerloop.episodes import InputError, episode_rng, tasks_of
from innerloop.runs import schemas
from innerloop.runs.build import build
from innerloop.tasks.images import FewShotImages
from innerloop.tasks.mixture import Mixture

schemas.register()
ROOT = Path(__file__).resolve().parents[1]
EACH = 8


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "innerloop" / "meta_dataset"


# The official format, written from its definition.


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def as_example(image: bytes, label: int, packed: bool = True) -> bytes:
    """tf.train.Example with {"image": bytes_list, "label": int64_list}."""
    value = message(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    features = {b"image": message(1, message(1, image)), b"label": message(3, value)}
    entries = [message(1, message(1, key) + message(2, feature)) for key, feature in features.items()]
    return message(1, b"".join(entries))


def framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def picture_of(label: int, number: int) -> bytes:
    return encoded(drawing(label, number), "png")


def shard(label: int, count: int = EACH) -> bytes:
    return b"".join(framed(as_example(picture_of(label, i), label)) for i in range(count))


def written(root: Path, spec: Mapping[str, Any], ids: Sequence[int], counts: Mapping[int, int] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_spec.json").write_text(json.dumps({**spec, "path": "/elsewhere", "file_pattern": "{}.tfrecords"}))
    for i in ids:
        (root / f"{i}.tfrecords").write_bytes(shard(i, (counts or {}).get(i, EACH)))
    return root


def flat(root: Path, name: str = "dtd", train: int = 6, validation: int = 5, test: int = 5, **counts: int) -> Path:
    total = train + validation + test
    spec = {
        "name": name,
        "classes_per_split": {"TRAIN": train, "VALID": validation, "TEST": test},
        "images_per_class": {str(i): counts.get(f"of_{i}", EACH) for i in range(total)},
        "class_names": {str(i): f"{name} {i}" for i in range(total)},
        "__class__": "DatasetSpecification",
    }
    return written(root, spec, range(total), {i: counts.get(f"of_{i}", EACH) for i in range(total)})


def bilevel(root: Path) -> Path:
    sizes = [5, 6, 2, 5, 7]  # three alphabets to train, one each for validation and the test
    spec = {
        "name": "omniglot",
        "superclasses_per_split": {"TRAIN": 3, "VALID": 1, "TEST": 1},
        "classes_per_superclass": {str(i): n for i, n in enumerate(sizes)},
        "images_per_class": {str(i): EACH for i in range(sum(sizes))},
        "superclass_names": {str(i): f"alphabet {i}" for i in range(5)},
        "class_names": {str(i): f"character {i}" for i in range(sum(sizes))},
        "__class__": "BiLevelDatasetSpecification",
    }
    return written(root, spec, range(sum(sizes)))


def node(name: str, children: str = "", parents: str = "") -> dict[str, Any]:
    return {"wn_id": name, "words": name, "children_ids": children.split(), "parents_ids": parents.split()}


def leaf(i: int) -> str:
    return f"n{i:08d}"


def dag(root: Path) -> Path:
    """TRAIN: two inner nodes that share two leaves, below a root. VALID and TEST: one inner node each."""
    leaves = [leaf(i) for i in range(18)]
    inner = {"a": leaves[:5], "b": leaves[3:8], "v": leaves[8:13], "t": leaves[13:]}
    graph = {
        "TRAIN": [
            node("root", "a b"),
            node("a", " ".join(inner["a"]), "root"),
            node("b", " ".join(inner["b"]), "root"),
        ],
        "VALID": [node("v", " ".join(inner["v"]))],
        "TEST": [node("t", " ".join(inner["t"]))],
    }
    counts: dict[str, dict[str, int]] = {}
    for split, own in {"TRAIN": leaves[:8], "VALID": inner["v"], "TEST": inner["t"]}.items():
        above = {n["wn_id"]: EACH * 5 for n in graph[split]}
        graph[split] += [node(x, "", " ".join(n for n, below in inner.items() if x in below)) for x in own]
        counts[split] = above | dict.fromkeys(own, EACH)
    spec = {
        "name": "ilsvrc_2012",
        "split_subgraphs": graph,
        "images_per_class": counts,
        "class_names": {str(i): leaf(i) for i in range(18)},
        "__class__": "HierarchicalDatasetSpecification",
    }
    return written(root, spec, range(18))


# Formats against what others write.


@pytest.mark.parametrize(
    ("data", "value"),
    [  # RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_castagnolis(data: bytes, value: int) -> None:
    assert crc32c(data) == value


def test_records_that_tensorboard_writes_are_read(tmp_path: Path) -> None:
    writer_module = pytest.importorskip("tensorboard.summary.writer.record_writer")
    contents = [b"", b"abc", bytes(range(256)) * 40]
    with (tmp_path / "file").open("wb") as file:
        writer = writer_module.RecordWriter(file)
        for content in contents:
            writer.write(content)
        writer.flush()
        found = [records.read_record(tmp_path / "file", *place) for place in positions(tmp_path / "file")]
    assert found == contents
    assert b"".join(map(framed, contents)) == (tmp_path / "file").read_bytes()


def test_examples_that_protocol_buffers_write_are_read() -> None:
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def add(name: str, *fields: tuple[str, int, int, str, bool]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, of, repeated in fields:
            named = {"type_name": of} if of else {}
            made.field.add(name=field, number=number, type=kind, label=3 if repeated else 1, **named)

    # tensorflow/core/example/{feature,example}.proto; a map is a repeated message of key and value
    add("BytesList", ("value", 1, 12, "", True))
    add("FloatList", ("value", 1, 2, "", True))
    add("Int64List", ("value", 1, 3, "", True))
    add(
        "Feature",
        ("bytes_list", 1, 11, ".t.BytesList", False),
        ("float_list", 2, 11, ".t.FloatList", False),
        ("int64_list", 3, 11, ".t.Int64List", False),
    )
    add("Entry", ("key", 1, 9, "", False), ("value", 2, 11, ".t.Feature", False))
    add("Features", ("feature", 1, 11, ".t.Entry", True))
    add("Example", ("features", 1, 11, ".t.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    made.features.feature.add(key="other").value.float_list.value.append(0.5)
    made.features.feature.add(key="label").value.int64_list.value.append(300)
    made.features.feature.add(key="image").value.bytes_list.value.append(b"pixels" * 100)
    assert example(made.SerializeToString(), "x") == (b"pixels" * 100, 300)
    for packed in (True, False):
        assert example(as_example(b"pixels", 7, packed), "x") == (b"pixels", 7)


# The three specifications.


def test_pictures_are_those_of_the_records(tmp_path: Path) -> None:
    data = load(str(flat(tmp_path / "dtd", of_2=11)), size=20, channels=1)
    assert data.images.shape == (16 * EACH + 3, 1, 20, 20)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [6, 5, 5]
    assert data.classes[7] == "dtd 7"
    for c in (0, 2, 3, 15):
        for i in (0, data.counts[c] - 1):
            (found,) = data.take(np.array([data.first[c] + i]))
            assert (found == picture(picture_of(c, int(i)), "x", 20, 1)).all()


def test_pictures_are_decoded_once_and_only_when_they_are_drawn(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = records.RecordPictures.decode
    monkeypatch.setattr(records.RecordPictures, "decode", lambda self, i: decoded.append(i) or original(self, i))
    root = str(flat(tmp_path / "dtd"))
    first = load(root, 20, 3)
    assert decoded == []
    wanted = np.array([3, 50, 3])
    images = first.take(wanted)
    assert sorted(decoded) == [3, 50]
    assert (load(root, 20, 3).take(wanted) == images).all()
    assert sorted(decoded) == [3, 50], "another process finds them in the cache"
    (file,) = cache.glob("*.pictures")
    whole = bytearray(file.read_bytes())
    whole[3 * (3 * 400 + 4) + 5] ^= 1
    file.write_bytes(bytes(whole[: 50 * (3 * 400 + 4) + 10]))
    assert (load(root, 20, 3).take(wanted) == images).all(), "damaged and cut off ones are decoded again"
    assert sorted(decoded) == [3, 3, 50, 50]
    # Without a place to write to, the same.
    monkeypatch.setattr(records.RecordPictures, "_descriptor", lambda self: -1)
    assert (load(root, 20, 3).take(wanted) == images).all()


def episodes(data: Any, count: int = 40, **settings: Any) -> list[tuple[set[int], set[int]]]:
    """For each training episode the label of each of its pictures, by their first pixels."""
    tasks = FewShotImages(data, sampler="meta_dataset", **settings)
    known = {data.take(np.array([i])).tobytes(): i for i in range(data.images.shape[0])}
    class_of = np.repeat(np.arange(len(data.classes)), data.counts)
    found = []
    for support, query in tasks_of(tasks.draw("train", [episode_rng(0, "train", i) for i in range(count)])):
        ids = [{known[(x * 255).round().byte().numpy()[None].tobytes()] for x in part.x} for part in (support, query)]
        assert not ids[0] & ids[1]
        found.append({int(class_of[i]) for i in ids[0] | ids[1]})
    return found  # type: ignore[return-value]


def test_the_alphabets_of_a_bilevel_specification_are_drawn_first(tmp_path: Path) -> None:
    data = load(str(bilevel(tmp_path / "omniglot")), 8, 1)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [13, 5, 7]
    assert data.groups is not None
    assert [g.tolist() for g in data.groups["train"]] == [[*range(5)], [*range(5, 11)], [11, 12]]
    found = episodes(data)
    assert all(ids <= {*range(5)} or ids <= {*range(5, 11)} for ids in found), "the third alphabet is too small"
    assert {5, 6} <= {*map(len, found)}


def test_the_nodes_of_a_graph_span_their_leaves(tmp_path: Path) -> None:
    data = load(str(dag(tmp_path / "ilsvrc_2012")), 8, 1)
    assert data.whole_groups
    assert data.classes[:8] == tuple(leaf(i) for i in range(8))
    found = [frozenset(ids) for ids in episodes(data, 60)]
    assert {*found} == {frozenset(range(5)), frozenset(range(3, 8)), frozenset(range(8))}
    assert {*map(frozenset, episodes(data, 40, limits={"max_span": 7}))} == {*found} - {frozenset(range(8))}


def test_spans_of_a_graph_with_two_ways_to_a_leaf() -> None:
    children = {"r": ["a", "b"], "a": ["c", "x"], "b": ["c"], "c": ["y", "z"], "x": [], "y": [], "z": []}
    found = spanned(children)
    assert found["a"] == {"x", "y", "z"}
    assert found["b"] == found["c"] == {"y", "z"}
    assert found["r"] == {"x", "y", "z"}
    assert found["y"] == {"y"}


def test_shards_of_one_class_are_joined(tmp_path: Path) -> None:
    root = flat(tmp_path / "dtd")
    spec = json.loads((root / "dataset_spec.json").read_text()) | {"file_pattern": "{}_{}.tfrecords"}
    (root / "dataset_spec.json").write_text(json.dumps(spec))
    for path in [*root.glob("*.tfrecords")]:
        whole, cut = path.read_bytes(), positions(path)[3][0] - 12
        path.with_name(f"{path.stem}_0.tfrecords").write_bytes(whole[:cut])
        path.with_name(f"{path.stem}_1.tfrecords").write_bytes(whole[cut:])
        path.unlink()
    (found,) = load(str(root), 20, 1).take(np.array([EACH + 5]))
    assert (found == picture(picture_of(1, 5), "x", 20, 1)).all()


# The mixture of sources.


def composed(root: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        small = ["data.size=16", "data.limits.max_support=60", "net.width=4", "algo=protonet"]
        return build(compose("train", ["data=meta_dataset", f"data.root={root}", *small, *overrides]))


def test_sources_without_training_classes_are_for_the_test(tmp_path: Path) -> None:
    for make, name in ((bilevel, "omniglot"), (dag, "ilsvrc_2012"), (flat, "dtd")):
        make(tmp_path / name)
    flat(tmp_path / "traffic_sign", "traffic_sign", 0, 0, 6)
    parts = composed(tmp_path, "data.sources=[omniglot,ilsvrc_2012,dtd,traffic_sign]")
    tasks = parts.tasks
    assert isinstance(tasks, Mixture)
    assert tasks.served["train"] == tasks.served["validation"] == ["omniglot", "ilsvrc_2012", "dtd"]
    assert tasks.served["test"] == ["omniglot", "ilsvrc_2012", "dtd", "traffic_sign"]
    assert tasks.input_shape == (3, 16, 16)
    batch = parts.data.meta_batch("test", range(8))
    assert isinstance(batch, list)
    assert all(5 <= int(e.query.y.max()) + 1 <= 7 for e in batch)


def test_ten_sources_are_expected(tmp_path: Path) -> None:
    flat(tmp_path / "aircraft", "aircraft")
    with pytest.raises(InputError, match=r"source ilsvrc_2012: data\.root=.*ilsvrc_2012: there is no such folder"):
        composed(tmp_path)
    with (
        pytest.raises(
            InputError, match=r"data=meta_dataset needs data\.root=FOLDER, with a folder for each source: ils"
        ),
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        build(compose("train", ["data=meta_dataset", "algo=protonet"]))


def test_a_split_that_is_not_the_published_one_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(str(flat(tmp_path / "dtd")))
    assert "the published split of dtd has 33, 7 and 7 classes" in caplog.text


# Files of strangers.


def spec_with(**changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "dataset_spec.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def file_of(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "3.tfrecords"
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change


def huge(length: int) -> bytes:
    head = struct.pack("<Q", length)
    return head + masked(head) + b"short"


def spec_is(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "dataset_spec.json").write_text(text) and None


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (lambda root: (root / "dataset_spec.json").unlink(), "is no source of Meta-Dataset: it has no dataset_spec.json"),
    (lambda root: (root / "3.tfrecords").unlink(), "3.tfrecords is missing, the records of class dtd 3"),
    (spec_is("{"), "is no specification of Meta-Dataset: JSONDecodeError"),
    (spec_is("[1]"), "is no specification of Meta-Dataset: TypeError"),
    (spec_is("[" * 100_000), "is no specification of Meta-Dataset: RecursionError"),
    (spec_with(__class__="os.system"), "__class__ 'os.system', which is none of DatasetSpecification"),
    (spec_with(file_pattern="../{}.tfrecords"), "file_pattern '../{}.tfrecords'"),
    (spec_with(classes_per_split={"TRAIN": 10**9, "VALID": 5, "TEST": 5}), "classes in the splits, and names of 16"),
    (spec_with(classes_per_split={"TRAIN": -1, "VALID": 5, "TEST": 5}), "-1 in the place of a number"),
    (spec_with(classes_per_split={"TRAIN": 6}), "KeyError: 'VALID'"),
    (spec_with(images_per_class={str(i): {"train": 5, "test": 3} for i in range(16)}), "pools of images"),
    (spec_with(images_per_class={str(i): EACH + (i == 2) for i in range(16)}), "has 8 records of class dtd 2, and"),
    (spec_with(class_names={str(i): "same" for i in range(16)}), "class same is there twice"),
    (file_of(b"PK\x03\x04 no records at all"), "3.tfrecords is no TFRecord file: the checksum of a record's length"),
    (file_of(lambda data: data[:-1]), "3.tfrecords is cut off in record 7"),
    (file_of(lambda data: data + b"12345"), "3.tfrecords is cut off after 8 records"),
    (file_of(lambda data: data + bytes(12)), "3.tfrecords is damaged after 8 records"),
    (file_of(huge(2**63)), f"record 0 is larger than {LARGEST_FILE // 2**20} MB"),
    (file_of(huge(10**6)), "3.tfrecords is cut off in record 0"),
    (file_of(framed(b"no example") * EACH), "the first record is no Example with an image and a label"),
    (file_of(framed(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")), "a field is longer than the message"),
    (file_of(framed(b"\x80" * 40)), "a number has more than ten bytes"),
    (file_of(shard(4)), "the first record has the label 4, and the file is of class 3, dtd 3"),
    (file_of(lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:]), "is damaged: its checksum is wrong"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_what_is_missing_cut_off_or_foreign_ends_in_one_line(
    change: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    root = flat(tmp_path / "dtd")
    change(root)
    with pytest.raises(InputError) as error:
        load(str(root), 20, 1)
    assert said in str(error.value)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("a", "b"), node("b", "a")], "CycleError"),
        ([node("a", "b")], "a has a child b that is not in the graph"),
        ([node(f"n{i}") for i in range(meta_dataset.MOST_NODES + 1)], "a graph of 5,001 nodes"),
        ([{"wn_id": "a"}], "KeyError: 'children_ids'"),
    ],
)
def test_graphs_that_are_none(nodes: list[dict], said: str, tmp_path: Path) -> None:
    root = dag(tmp_path / "ilsvrc_2012")
    graph = json.loads((root / "dataset_spec.json").read_text())["split_subgraphs"]
    spec_with(split_subgraphs={**graph, "TRAIN": nodes})(root)
    with pytest.raises(InputError) as error:
        load(str(root))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"no picture", "of no known format"),
        (b"", "the file is empty"),
        (b"P6 30000 30000 255\n" + bytes(100), "more than"),
    ],
)
def test_a_broken_picture_or_a_bomb_ends_in_one_line_when_it_is_drawn(image: bytes, said: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "dtd")
    bad = [framed(as_example(image if i == 5 else picture_of(3, i), 3)) for i in range(EACH)]
    (root / "3.tfrecords").write_bytes(b"".join(bad))
    data = load(str(root), 20, 1)
    data.take(np.array([3 * EACH]))
    with pytest.raises(InputError) as error:
        data.take(np.array([3 * EACH + 5]))
    assert said in str(error.value)
    assert "3.tfrecords: the record at byte" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "data.root=FOLDER is needed: a folder of Meta-Dataset's records"),
        ({"root": "/no/such"}, "data.root=/no/such: there is no such folder"),
        ({"root": ".", "channels": 2}, "data.channels=2: sizes are 1 to 4096, channels 1 or 3"),
        ({"root": ".", "size": 0}, "data.size=0"),
    ],
)
def test_settings_that_are_not_possible(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        load(**settings)
    assert said in str(error.value)
