"""What a process is told about its own memory."""

import json
import subprocess
import sys

import pytest

from innerloop import memory

BALLAST = 300  # 10^6 bytes
CHILD = "from innerloop.memory import largest_resident_set; print(largest_resident_set())"
PARENT = f"import subprocess, sys; b = b'1' * {BALLAST}_000_000; subprocess.run([sys.executable, '-c', {CHILD!r}])"
RISE = f"""
import json, pathlib
from innerloop import memory
if not TOLD_BY_THE_KERNEL:
    memory.STATUS = pathlib.Path("none")
found = [memory.largest_resident_set()]
ballast = b"1" * {BALLAST}_000_000
found.append(memory.largest_resident_set())
del ballast
print(json.dumps([*found, memory.largest_resident_set()]))
"""


def printed_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


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
