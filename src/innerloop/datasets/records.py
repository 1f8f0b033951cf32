"""TFRecord files of pictures, read without TensorFlow: the framing with its checksums, and the Example message inside.

The formats are those of TensorFlow's `record_writer.h` and `example.proto`, and of protocol buffers' wire format. Files
may be somebody else's: every length is checked against what is there before anything of that length is read.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from innerloop.datasets.files import LARGEST_FILE, opened, too_large
from innerloop.datasets.pictures import picture
from innerloop.episodes import InputError

HEAD, TAIL = 12, 4
"""Bytes before a record, its length and the checksum of that, and after it, its own checksum."""
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""


def _table() -> tuple[int, ...]:
    values = list(range(256))
    for _ in range(8):
        values = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in values]
    return tuple(values)


TABLE = _table()


def crc32c(data: bytes) -> int:
    """Return the checksum CRC-32C (Castagnoli, 1993), reflected, as in RFC 3720."""
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    """Return the checksum of data as TFRecord files store it: rotated by 15 bits, with a constant added."""
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def positions(path: Path) -> list[tuple[int, int]]:
    """Return the offset and the length of every record of a file, from the heads of the records alone.

    Raises InputError, naming the file, if it is no TFRecord file, is cut off, or has a record of more than 256 MB.
    """
    found: list[tuple[int, int]] = []
    with opened(path) as file:
        size, start = os.fstat(file.fileno()).st_size, 0
        while start < size:
            head = file.read(HEAD)
            if len(head) < HEAD:
                raise InputError(f"{path} is cut off after {len(found)} records")
            (length,) = struct.unpack("<Q", head[:8])
            if masked(head[:8]) != head[8:]:
                what = "is no TFRecord file" if not found else f"is damaged after {len(found)} records"
                raise InputError(f"{path} {what}: the checksum of a record's length is wrong")
            if length > LARGEST_FILE:
                raise InputError(too_large(f"{path}: record {len(found)}"))
            if start + HEAD + length + TAIL > size:
                raise InputError(f"{path} is cut off in record {len(found)}")
            found.append((start + HEAD, length))
            start += HEAD + length + TAIL
            file.seek(start)
    return found


def read_record(path: Path, offset: int, length: int) -> bytes:
    """Return the content of a record. Raises InputError if it is not what its checksum says."""
    with opened(path) as file:
        file.seek(offset)
        data = file.read(length + TAIL)
    if len(data) < length + TAIL or masked(data[:length]) != data[length:]:
        raise InputError(f"{path}: the record at byte {offset} is damaged: its checksum is wrong")
    return data[:length]


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message. Raises ValueError if it is not well formed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == DELIMITED:
            size, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field is longer than the message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the message is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")


def parts(data: int | bytes, number: int) -> list[bytes]:
    """Return the values of a message's fields of this number, which are messages or strings themselves."""
    if isinstance(data, int):
        raise ValueError("a number in the place of a message")
    return [value for n, value in fields(data) if n == number and isinstance(value, bytes)]


def numbers(data: bytes) -> list[int]:
    """Return the values of an Int64List, each a field of its own or all packed into one."""
    found: list[int] = []
    for _, value in fields(data):
        at, packed = 0, b"" if isinstance(value, int) else value
        found += [value] if isinstance(value, int) else []
        while at < len(packed):
            number, at = _varint(packed, at)
            found.append(number)
    return found


def example(data: bytes, origin: str) -> tuple[bytes, int]:
    """Return the picture's bytes and the label of an Example with the features `image` and `label`.

    Raises InputError, naming the origin, if it is something else.
    """
    try:
        found: dict[bytes, bytes] = {}
        for features in parts(data, 1):
            for entry in parts(features, 1):
                (key,), (value,) = parts(entry, 1), parts(entry, 2)
                found[key] = value
        (image,) = [v for values in parts(found[b"image"], 1) for v in parts(values, 1)]
        (label,) = [n for values in parts(found[b"label"], 3) for n in numbers(values)]
    except (ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{origin} is no Example with an image and a label ({reason})") from error
    return image, label


class RecordPictures:
    """Pictures in TFRecord files, decoded when they are first asked for and kept in a file.

    paths: the files. index: "shard", "offset" and "length" of each picture's record, (N,).
    cache: the file of decoded pictures. Each has its checksum behind it, so that several processes may write to it, and
        one that was cut off is decoded again. Without a place to write to, pictures are decoded every time.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        index: Mapping[str, np.ndarray],
        size: int,
        channels: int,
        cache: Path,
    ) -> None:
        self.paths, self.index = paths, index
        self.shape = (len(index["shard"]), channels, size, size)
        self.bytes = channels * size * size
        self.cache = cache
        self.number: int | None = None

    def take(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for image, i in zip(images, indices.tolist(), strict=True):
            kept = self._kept(i)
            image[:] = self.decode(i) if kept is None else np.frombuffer(kept, np.uint8).reshape(image.shape)
        return images

    def decode(self, i: int) -> np.ndarray:
        """Return picture i, (C, H, W) uint8, from its record. Raises InputError if the record is damaged."""
        shard, offset, length = (int(self.index[name][i]) for name in ("shard", "offset", "length"))
        path = self.paths[shard]
        origin = f"{path}: the record at byte {offset}"
        data, _ = example(read_record(path, offset, length), origin)
        image = picture(data, origin, self.shape[2], self.shape[1])
        self._keep(i, image.tobytes())
        return image

    def _descriptor(self) -> int:
        """Return the descriptor of the open cache file, -1 if there can be none."""
        if self.number is None:
            try:
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                self.number = os.open(self.cache, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                self.number = -1
        return self.number

    def _kept(self, i: int) -> bytes | None:
        if (number := self._descriptor()) < 0:
            return None
        # pread and pwrite: processes that share the descriptor have no position in the file in common.
        record = os.pread(number, self.bytes + 4, i * (self.bytes + 4))
        data = record[:-4]
        return data if len(data) == self.bytes and zlib.crc32(data) == int.from_bytes(record[-4:], "little") else None

    def _keep(self, i: int, data: bytes) -> None:
        if (number := self._descriptor()) >= 0:
            try:
                os.pwrite(number, data + struct.pack("<I", zlib.crc32(data)), i * (self.bytes + 4))
            except OSError:  # a full disk: the picture is decoded again when it is needed
                self.number = -1
