"""What a process is told about its own memory."""

import json
import os
import platform
import subprocess
import sys

import pytest

from innerloop.devices import memory

BALLAST = 300  # 10^6 bytes
CHILD = "from innerloop.devices.memory import largest_resident_set; print(largest_resident_set())"
PARENT = f"import subprocess, sys; b = b'1' * {BALLAST}_000_000; subprocess.run([sys.executable, '-c', {CHILD!r}])"
RISE = f"""
import json, pathlib
from innerloop.devices import memory
if not TOLD_BY_THE_KERNEL:
    memory.STATUS = pathlib.Path("none")
found = [memory.largest_resident_set()]
ballast = b"1" * {BALLAST}_000_000
found.append(memory.largest_resident_set())
del ballast
print(json.dumps([*found, memory.largest_resident_set()]))
"""


FAULTS = """
import resource, sys, threading
from innerloop.devices.memory import LARGE, keep_freed
if "keep" in sys.argv:
    keep_freed(LARGE if "large" in sys.argv else LARGE - 1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for i in range(20):
        block = bytearray(40_000_000)
        if i == 3:
            start = faults()
        del block
    print(faults() - start)

use()
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""
"""Pages taken anew for 16 blocks of 10,000 pages, in the main thread and in another."""


def printed_by(program: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    env = os.environ | environment
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="no kernel that tells it")
def test_a_process_is_not_charged_for_its_parent() -> None:
    assert 1 < float(printed_by(PARENT)) < BALLAST / 2


@pytest.mark.parametrize("told_by_the_kernel", [True, False])
def test_it_is_in_megabytes_and_does_not_fall(told_by_the_kernel: bool) -> None:
    before, with_ballast, after = json.loads(printed_by(RISE.replace("TOLD_BY_THE_KERNEL", str(told_by_the_kernel))))
    if told_by_the_kernel:
        assert with_ballast - before == pytest.approx(BALLAST, rel=0.1)
    assert max(before, BALLAST) <= with_ballast < before + 2 * BALLAST  # of a parent as large as pytest with torch
    assert after == pytest.approx(with_ballast, rel=0.02)  # the kernel's counters are a little behind


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other mallocs have other settings")
@pytest.mark.alone
def test_what_is_freed_is_kept_for_the_next_tensor_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert min(map(int, printed_by(FAULTS).split())) > 100_000
    assert max(map(int, printed_by(FAULTS, "keep", "large").split())) < 10_000
    # With small inputs the main thread keeps as much; others have arenas of their own.
    assert int(printed_by(FAULTS, "keep").split()[0]) < 10_000
    # Whoever sets these has chosen.
    assert min(map(int, printed_by(FAULTS, "keep", MALLOC_PERTURB_="0").split())) > 100_000


HOLES = """
import sys
from innerloop.devices.memory import STATUS, return_freed
if "return" in sys.argv:
    return_freed()

def resident():
    return int(STATUS.read_text().partition("VmRSS:")[2].split()[0]) * 1024 / 1e6

bytearray(30_000_000)  # where nothing was said, glibc then takes smaller blocks from its heap
before = resident()
blocks = [bytearray(b"1") * 1_000_000 for _ in range(100)]
del blocks[:-1]
print(resident() - before)
"""
"""Megabytes that stay behind when 99 of 100 blocks are freed, and the last one keeps the heap as high as it was."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other mallocs have other settings")
@pytest.mark.alone
def test_what_is_freed_can_be_told_to_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert float(printed_by(HOLES)) > 90
    assert float(printed_by(HOLES, "return")) < 5
