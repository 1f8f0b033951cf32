"""Statistics over episodes, against numpy."""

import math

import numpy as np
import pytest
import torch

from innerloop.metrics import AdaptationCurve, summarize


@pytest.mark.parametrize("episodes", [2, 3, 50])
def test_mean_interval_and_median_are_numpys(episodes: int) -> None:
    values = np.random.default_rng(episodes).normal(3, 2, episodes)
    found = summarize(torch.from_numpy(values))
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["ci95"] == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(episodes), rel=1e-12)
    assert found["median"] == pytest.approx(np.median(values), rel=1e-12)


def test_one_episode_has_no_interval() -> None:
    found = summarize(torch.tensor([2.0]))
    assert (found["mean"], found["median"]) == (2.0, 2.0)
    assert math.isnan(found["ci95"])


def test_the_curve_keeps_each_episode_in_its_order_and_in_double_precision() -> None:
    curve = AdaptationCurve()
    parts = [{"mse": torch.rand(n, 4), "mae": torch.rand(n, 4)} for n in (3, 1, 2)]
    for part in parts:
        curve.update(part)
    found = curve.compute()
    assert curve.names == ("mse", "mae")
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.cat([torch.stack([part["mse"], part["mae"]], -1) for part in parts]).double())
    curve.reset()
    curve.update({"mse": torch.ones(1, 2)})
    assert curve.compute().shape == (1, 2, 1)
