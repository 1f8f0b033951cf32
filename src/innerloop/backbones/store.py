"""The vectors of pictures, kept on disk: a file for each backbone, a record for each picture."""

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from innerloop.backbones.backbone import Backbone
from innerloop.datasets.images import cache_folder

log = logging.getLogger("innerloop")

BATCH = 16
"""Number of pictures that a backbone sees at once."""
KEY = 16
"""Bytes of a picture's digest."""


class Store:
    """A file of records: a picture's digest, its vector as float32, and a checksum of both.

    Records are only appended, each batch by one write, so that several processes may share the file and one that is
    stopped loses one batch at most. Records that are damaged or cut off are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[bytes, np.ndarray]:
        """Return digest -> vector of all records. None that cannot be read is among them."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return {}
        size = KEY + 4 * struct.unpack("<I", data[:4])[0] + 4 if len(data) >= 4 else 1
        records = (data[start : start + size] for start in range(4, len(data) - size + 1, size))
        return {
            record[:KEY]: np.frombuffer(record[KEY:-4], "<f4")
            for record in records
            if zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little")
        }

    def append(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Add records. keys: digests. vectors: (n, dimensions) float32."""
        size, start = KEY + 4 * vectors.shape[1] + 4, struct.pack("<I", vectors.shape[1])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(0)
            if file.read(len(start)) != start:  # new, or damaged at the start
                file.truncate(0)
            end = file.seek(0, os.SEEK_END)
            head = start if end == 0 else b""
            # A record that a crash has cut off is filled up, so that the next one starts where it is looked for.
            fill = b"" if end == 0 else bytes(-(end - 4) % size)
            records = [key + v.astype("<f4").tobytes() for key, v in zip(keys, vectors, strict=True)]
            file.write(head + fill + b"".join(r + struct.pack("<I", zlib.crc32(r)) for r in records))


def picture_digest(image: np.ndarray) -> bytes:
    """Return the digest of a picture's pixels, (channels, h, w) uint8."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()[:KEY]


def finish(
    batch: dict[bytes, np.ndarray], backbone: Backbone, known: dict[bytes, np.ndarray], store: Store | None
) -> bool:
    """Put the vectors of a batch of pictures among those known and in the store. Return False if none can be kept."""
    vectors = backbone(torch.from_numpy(np.stack(list(batch.values())))).numpy()
    known.update(zip(batch, vectors, strict=True))
    if store is None:
        return False
    try:
        store.append(list(batch), vectors)
    except OSError as error:
        log.warning("%s cannot be written (%s): vectors are not kept", store.path, error.strerror)
        return False
    return True


def features(backbone: Backbone, images: Iterable[np.ndarray], total: int, folder: Path | None = None) -> Tensor:
    """Return the vectors of pictures, (total, dimensions) float32: those on disk, and the others from the backbone.

    images: each (channels, h, w) uint8, all of one shape; they need not fit in memory together. total: their number,
    above zero. folder: where vectors are kept; None: the user's cache folder. If nothing can be written there, a
    warning is logged.
    """
    store = Store((folder or cache_folder("features")) / f"{backbone.digest}.bin")
    known, keys, batch, writable = store.read(), list[bytes](), dict[bytes, np.ndarray](), True
    with tqdm(total=total, desc=f"features by {backbone.name}", unit="picture", disable=None, leave=False) as bar:
        for image in images:
            keys.append(picture_digest(image))
            if keys[-1] not in known:
                batch[keys[-1]] = image
            if len(batch) == BATCH or len(keys) == total:
                if batch:
                    writable = finish(batch, backbone, known, store if writable else None)
                batch.clear()
            bar.update()
    return torch.from_numpy(np.stack([known[key] for key in keys]))
