"""What a process imports before it trains."""

import subprocess
import sys

CODE = """
import sys
from innerloop.devices.startup import fast_imports
with fast_imports():
    import lightning, torch
unused = [name for name in ("scipy.signal", "scipy.stats") if name in sys.modules]
import scipy.signal
from scipy.signal import windows
print(unused, scipy.signal is sys.modules["scipy.signal"], round(windows.hamming(3)[0], 2), scipy.signal.__file__[-10:])
"""


def test_what_no_run_uses_is_not_imported_and_still_there() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True 0.08 _init__.py"
