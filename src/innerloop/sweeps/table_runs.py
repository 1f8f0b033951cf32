"""The runs of a table, trained in processes of their own, several at a time; they may be killed and resumed."""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from innerloop.errors import InputError
from innerloop.sweeps.tables import CHECKOUT, TableJob


def run_all(jobs: Sequence[TableJob], at_once: int) -> list[str]:
    """Train all jobs in order, `at_once` at a time. Returns a message for each that failed.

    Ctrl-C and SIGTERM let the running ones save their state, then raise KeyboardInterrupt.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    waiting, failed = list(jobs), []
    running: dict[subprocess.Popen[bytes], tuple[TableJob, float, TextIO]] = {}
    try:
        while waiting or running:
            while len(running) < at_once and (job := _ready(waiting, [job for job, *_ in running.values()])):
                waiting.remove(job)
                print(f"{job.label}: {'resumed' if job.is_begun else 'started'}, {len(waiting)} waiting", flush=True)
                try:
                    process, log = _start(job)
                    running[process] = (job, time.monotonic(), log)
                except InputError as error:
                    failed.append(f"{job.label}: {error}")
            for process in [p for p in running if p.poll() is not None]:
                job, since, log = running.pop(process)
                log.close()
                if process.returncode == 0:
                    print(f"{job.label}: done in {time.monotonic() - since:.0f} s", flush=True)
                else:
                    failed.append(f"{job.label} failed, see {job.directory}.log")
                    print(failed[-1], flush=True)
            time.sleep(0.1)
    finally:
        if running:
            print(f"stopping {len(running)} runs, which save their state; Ctrl-C again kills them", flush=True)
            _stop(list(running))
    return failed


def _ready(waiting: Sequence[TableJob], running: Sequence[TableJob]) -> TableJob | None:
    """Return the first job that does not begin with the run of one that is still to end, if there is one."""
    unfinished = {job.directory for job in (*waiting, *running)}
    return next((job for job in waiting if job.after not in unfinished), None)


def _start(job: TableJob) -> tuple[subprocess.Popen[bytes], TextIO]:
    """Train a job in a process of its own, its output in a file beside its directory.

    Raises InputError if another process trains it, and for what `TableJob.check` finds.
    """
    job.check()
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{job.directory}.log").open("a")  # noqa: SIM115, it stays open as long as the run
    try:
        # Every process that has the file open holds the lock, so the run holds it even if this process is killed.
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise InputError("another process is training it") from None
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / job.script), *job.command()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it only through `_stop`, because a second one would lose the state
    )
    return process, log


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()
