"""The vectors of pictures, kept on disk: a file for each backbone, a record for each picture."""

import fcntl
import hashlib
import logging
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
EVERY = 60.0
"""Seconds between lines on the progress, where there is no terminal for a bar."""
KEY = 16
"""Bytes of a picture's digest."""


class Store:
    """A file of records: a picture's digest, its vector as float32, and a checksum of both.

    Records are only appended, each batch under a lock and by one write, so that several processes may share the file
    and one that is stopped loses one batch at most. Records that are damaged or cut off are left out.
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
            fcntl.flock(file, fcntl.LOCK_EX)  # else what another process writes now may be taken for damage
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


def features(
    backbone: Backbone, images: Iterable[np.ndarray], total: int, folder: Path | None = None, batch_size: int = BATCH
) -> Tensor:
    """Return the vectors of pictures, (n, dimensions) float32: those on disk, and the others from the backbone.

    As many batches run at once as torch has threads, each on one thread: a batch's small convolutions gain nothing from
    several.

    images: at least one, each (channels, h, w) uint8, all of one shape; they need not fit in memory together.
    total: about their number, for the progress bar. folder: where vectors are kept; None: the user's cache folder. If
    nothing can be written there, a warning is logged. batch_size: number of pictures that the backbone sees at once.
    """
    store = Store((folder or cache_folder("features")) / f"{backbone.digest}.bin")
    keys, batch = list[bytes](), dict[bytes, np.ndarray]()
    with (
        tqdm(total=total, desc=f"features by {backbone.name}", unit="picture", disable=None, leave=False) as bar,
        _batches(backbone, store) as batches,
    ):
        said = time.monotonic()
        for image in images:
            if bar.disable and time.monotonic() - said >= EVERY:  # no terminal: a job's log has a line now and then
                said = time.monotonic()
                log.info("features by %s: %d of %d pictures", backbone.name, len(keys), total)
            keys.append(picture_digest(image))
            if keys[-1] not in batches:
                batch[keys[-1]] = image
            if len(batch) == batch_size:
                batches.start(batch)
            bar.update()
        if batch:
            batches.start(batch)
    return torch.from_numpy(np.stack([batches.known[key] for key in keys]))


class _Batches:
    """Batches of pictures that run at once. known: digest -> vector of those that are finished."""

    def __init__(self, backbone: Backbone, store: Store, pool: ThreadPoolExecutor, threads: int) -> None:
        self.backbone, self.store, self.pool, self.threads = backbone, store, pool, threads
        self.known, self.begun = store.read(), set[bytes]()
        self.waiting: deque[tuple[list[bytes], Future[Tensor]]] = deque()
        self.writable = True

    def __contains__(self, key: bytes) -> bool:
        return key in self.known or key in self.begun

    def start(self, batch: dict[bytes, np.ndarray]) -> None:
        """Start a batch, which is then empty, and finish the oldest one if enough are running."""
        stacked = torch.from_numpy(np.stack(list(batch.values())))
        self.waiting.append((list(batch), self.pool.submit(_alone, self.backbone, stacked)))
        self.begun.update(batch)
        batch.clear()
        if len(self.waiting) > self.threads:
            self.finish()

    def finish(self) -> None:
        """Put the vectors of the oldest batch among those known and, as long as it can be written, in the store."""
        keys, job = self.waiting.popleft()
        vectors = job.result().numpy()
        self.known.update(zip(keys, vectors, strict=True))
        if not self.writable:
            return
        try:
            self.store.append(keys, vectors)
        except OSError as error:
            log.warning("%s cannot be written (%s): vectors are not kept", self.store.path, error.strerror)
            self.writable = False


def _alone(backbone: Backbone, images: Tensor) -> Tensor:
    torch.set_num_threads(1)
    return backbone(images)


@contextmanager
def _batches(backbone: Backbone, store: Store) -> Iterator[_Batches]:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    batches = _Batches(backbone, store, pool, threads)
    try:
        yield batches
        while batches.waiting:
            batches.finish()
    except KeyboardInterrupt:  # what has begun is kept
        while batches.waiting:
            batches.finish()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread has set is also the default of threads that start later
