"""scripts/gpu.py, tried out where there is no GPU: what it finds, and what it does about what fails."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_script
from torch import _inductor as inductor

sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_programs

from innerloop.adaptation import native


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What would be compiled runs as it is, so that no test takes minutes."""
    monkeypatch.setattr(native, "MOST", 0)
    monkeypatch.setattr(inductor, "compile", lambda function, _: function)
    with torch.compiler.config.patch(force_disable_caches=False):
        yield


def run(out: Path, *options: str) -> int:
    """The exit status of the script on the CPU."""
    where = ("--device", "cpu", "--tiny", "--rounds", "1", "--without-learn2learn")
    with pytest.raises(SystemExit) as end:
        run_script("gpu", "--out", out, *where, *options)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.slow
def test_everything_is_found_out_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(tmp_path, "--workload", "sinusoid_k1", "omniglot_5w1s_stride_q1") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(line["algo"], line["data"], line["holds"]) for line in found["learners"]] == [
        ("maml", "glyphs", True),
        ("maml", "sinusoid", True),
    ]
    assert {line["workload"] for line in found["speed"]} == {"sinusoid_k1", "omniglot_5w1s_stride_q1"}
    assert {line["engine"] for line in found["agreement"]} == {"loop", "vmap", "vmap, chunk 1", "compiled"}
    assert all(line["holds"] and line["largest_difference"] <= 1e-10 for line in found["agreement"])
    by_precision = {line["precision"]: line for line in found["precision"] if line["workload"] == "sinusoid_k1"}
    assert by_precision["32-true"]["distance"] < 1e-5 < by_precision["bf16-mixed"]["distance"] < 0.1
    assert all(line["wall_ms"] > 0 for line in found["speed"])
    assert [(line["algo"], line["precision"], line["mse"] > 0) for line in found["runs"]] == [
        ("maml", "32-true", True),
        ("maml", "bf16-mixed", True),
    ]
    table = (tmp_path / "gpu.md").read_text()
    assert "| sinusoid_k1 | vmap | tf32 |" in table


def test_what_fails_is_written_down_and_the_rest_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark_programs.meta_gradient

    def fails(*arguments: Any) -> torch.Tensor:
        if torch.float32 in arguments:
            raise RuntimeError("no kernel image is available\nfor this card")
        return right(*arguments)

    monkeypatch.setattr(benchmark_programs, "meta_gradient", fails)
    assert run(tmp_path, "--workload", "sinusoid_k5", "--part", "precision", "speed") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["precision"] == [
        {"workload": "sinusoid_k5", "holds": False, "error": "RuntimeError: no kernel image is available"},
    ]
    assert found["speed"]


def test_a_wrong_meta_gradient_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark_programs.meta_gradient

    def wrong(workload: Any, program: str, settings: dict[str, Any], *rest: Any) -> torch.Tensor:
        return right(workload, program, settings, *rest) + 1e-9 * ("chunk" in settings)

    monkeypatch.setattr(benchmark_programs, "meta_gradient", wrong)
    assert run(tmp_path, "--part", "agreement", "--workload", "omniglot_5w1s_pool_q1") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [line["holds"] for line in found["agreement"]] == [True, True, False]


def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    few = ("--workload", "omniglot_5w1s_pool_q1", "--part")
    assert run(tmp_path, *few, "agreement", "speed", "--minutes", "0") == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    line = {"workload": "omniglot_5w1s_pool_q1", "holds": False, "error": "left out: no time"}
    assert (found["agreement"], found["speed"]) == ([line], [line])
    assert run(tmp_path, *few, "agreement") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [found["speed"], len(found["agreement"])] == [[line], 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_script("gpu", "--out", tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err == "gpu.py: no GPU is visible to torch\n"
