"""The processes of the other ranks of a run: started, given their task, watched, and ended with the first rank."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from innerloop.devices.ranks import TrainerSettings, launched, ranks, share_of_cores
from innerloop.errors import DivergedError, InputError, RankError, Stopped

GRACE = 60.0
"""Seconds that a run has to end by itself once one of its ranks has died."""

PROGRAM = """
from innerloop.devices.startup import fast_imports
with fast_imports():
    from {module} import {function}
{function}()
"""


@contextmanager
def all_ranks(trainer: TrainerSettings, task: Mapping[str, Any], entry: str) -> Iterator[None]:
    """Run the body as the first of the trainer's ranks; the other ranks call `entry`, "module:function".

    The other ranks are sent `task`, not a command line to compose it from, so all ranks of a sweep's job or of a
    search's trial train with the same configuration. They end together with this process, however it ends.
    Raises RankError if one of them was the first to fail.
    """
    count = 1 if launched() else ranks(trainer).total
    if count == 1:
        try:
            yield
        finally:
            leave_group()
        return
    before = dict(os.environ)
    children: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    try:
        os.environ |= _rendezvous(count, share_of_cores(trainer))
        for rank in range(1, count):
            children.append(_start(rank, task, entry))
        threading.Thread(target=_watch, args=(children, over), daemon=True).start()
        yield
        for child in children:
            child.wait()
    except (DivergedError, Stopped, InputError):
        raise  # all ranks raise these alike
    except RuntimeError as error:
        failed = _first_failed(children)
        if failed is None:
            raise
        raise RankError(failed) from error
    finally:
        over.set()
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        leave_group()
        os.environ.clear()
        os.environ.update(before)


def run_as_rank(run: Callable[[Any], object]) -> None:
    """Read the task that `all_ranks` sends and run it. The process ends when the first rank's process does."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(task)
    except (DivergedError, Stopped):
        pass  # all ranks raise these alike, and the first one reports them
    finally:
        leave_group()


def leave_group() -> None:
    """Leave torch's process group, if this process has joined one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _rendezvous(count: int, threads: int | None) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # With LOCAL_RANK set Lightning starts no processes, and with OMP_NUM_THREADS set it chooses no number of threads.
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _start(rank: int, task: Mapping[str, Any], entry: str) -> subprocess.Popen[bytes]:
    module, _, function = entry.partition(":")
    # sys.path is handed on because a configuration may name classes in files beside the script.
    environment = os.environ | {"LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", PROGRAM.format(module=module, function=function)]
    # In a process group of its own, so that Ctrl-C reaches the first rank only, which then stops all of them together.
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0)
    assert child.stdin is not None
    child.stdin.write(json.dumps(task).encode() + b"\n")
    child.stdin.flush()
    return child


def _end_with_parent() -> None:
    # Nothing more is ever sent: the read returns when the other end closes, on purpose or because its process has died.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _watch(children: Sequence[subprocess.Popen[bytes]], over: threading.Event) -> None:
    # Gloo reports a lost rank to the others at once. Under NCCL they would wait forever.
    while not over.wait(0.5):
        if any(child.poll() for child in children):
            if not over.wait(GRACE):
                print(f"\n{_first_failed(children)}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _first_failed(children: Sequence[subprocess.Popen[bytes]]) -> str | None:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for rank, child in enumerate(children, 1):
            status = child.poll()
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"rank {rank} {how}, which ended the run; its own message is above"
        time.sleep(0.05)
    return None
