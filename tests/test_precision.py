"""Reduced precision: meta-gradients are float32's but for rounding; what leans on small differences stays exact."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, class_batch, cross_entropy, loader, randomise, regression_batch, squared, trainer
from hydra import compose, initialize_config_dir
from test_commands import results, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from innerloop.adaptation import Adaptation, PrototypeHead, RidgeHead
from innerloop.devices import precision
from innerloop.episodes import Episode, Samples, weights_of
from innerloop.learners import (
    CAVIA,
    IMAML,
    LEO,
    MAML,
    R2D2,
    CNAPs,
    FineTune,
    Hybrid,
    HyperMAML,
    HyperNet,
    MAMLPlusPlus,
    MetaLearner,
    ProtoMAML,
    ProtoNet,
    Reptile,
    SimpleCNAPs,
)
from innerloop.nets import MLP, Conv4, Linear
from innerloop.nets.fused import fused_layers
from innerloop.nets.norm import BatchNorm
from innerloop.runs.trainer import make_trainer
from innerloop.tasks.base import Classification

INNER: dict[str, Any] = {"inner_steps": 2, "inner_lr": 0.1}
DENSE: dict[str, tuple[type[MetaLearner], dict[str, Any]]] = {
    "maml": (MAML, INNER),
    "fomaml": (MAML, {"first_order": True} | INNER),
    "meta_sgd": (MAML, {"learn_lr": "parameter"} | INNER),
    "recomputed": (MAML, {"checkpoint_inner_steps": True} | INNER),
    "reptile": (Reptile, INNER),
    "imaml": (IMAML, {"inner_steps": 4, "inner_lr": 0.1}),
    "hypernet": (HyperNet, {"width": 8, "encoder": "attention"}),
    "hybrid": (Hybrid, {"width": 8} | INNER),
    "alternating": (Hybrid, {"width": 8, "update": "alternating"} | INNER),
    "cavia": (CAVIA, INNER),
    "leo": (LEO, {"width": 8} | INNER),
    "r2d2": (R2D2, {}),
}
CONV: dict[str, tuple[type[MetaLearner], dict[str, Any]]] = {
    "maml": (MAML, INNER),
    "anil": (MAML, {"only": "head"} | INNER),
    "boil": (MAML, {"only": "body"} | INNER),
    "non-transductive": (MAML, {"transductive": False} | INNER),
    "maml_pp": (MAMLPlusPlus, {"per_step_norms": True, "running_statistics": True} | INNER),
    "hybrid": (Hybrid, {"width": 8} | INNER),
    "cnaps": (CNAPs, {"width": 8}),
    "simple_cnaps": (SimpleCNAPs, {"width": 8}),
    "hypermaml": (HyperMAML, {"width": 8}),
    "protonet": (ProtoNet, {}),
    "proto_maml": (ProtoMAML, INNER),
    "r2d2": (R2D2, {}),
    "finetune": (FineTune, {"training_outputs": 3, "inner_lr": 0.1, "eval_inner_steps": 2}),
}
EVERY = [("dense", name) for name in DENSE] + [("conv", name) for name in CONV]


FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1)}
FACTORS["convolution_backward"] = (0, 1, 2)


class Rounded(TorchDispatchMode):
    """Products as a GPU has them in TensorFloat-32: float32, of factors with 10 bits behind the point."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        factors = FACTORS.get(func.overloadpacket.__name__, ()) if precision.tensor_float() else ()
        args = [self.rounded(a) if i in factors else a for i, a in enumerate(args)]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(t: Tensor) -> Tensor:
        return (t.view(torch.int32) + 2**12 & -(2**13)).view(torch.float32) if t.dtype == torch.float32 else t


@contextmanager
def tensor_float() -> Iterator[None]:
    """As on a GPU with trainer.precision=tf32."""
    precision.set_tensor_float(True)
    try:
        with Rounded():
            yield
    finally:
        precision.set_tensor_float(False)


def batches(net: str) -> list[Episode]:
    if net == "dense":
        return [regression_batch(tasks=8, shots=6, queries=6)]
    return [class_batch(tasks=4, ways=3, shots=2, queries=4)]


def update(net: str, name: str, mode: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """What one outer step of SGD with rate 1 changes, the meta-gradient; and an evaluation's values before it."""
    torch.manual_seed(0)
    kind, own = (DENSE if net == "dense" else CONV)[name]
    module = MLP(3, [16, 16], 1, "tanh") if net == "dense" else Conv4((1, 17, 17), 3, width=8, activation="tanh")
    loss = squared if net == "dense" else cross_entropy
    learner = kind(module, loss, optimizer="sgd", outer_lr=1.0, **own, **settings)  # type: ignore[arg-type]
    randomise(learner, scale=0.1)
    before = [p.detach().clone() for p in learner.parameters()]
    t = trainer(max_steps=1, precision=mode, limit_val_batches=0)
    t.test(learner, loader(batches(net)), verbose=False)
    values = learner.curve.compute()
    t.fit(learner, loader(batches(net)))
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(learner.parameters(), before, strict=True)])
    return moved, values


def engines(net: str) -> Sequence[str]:
    return ("vmap", "loop") if net == "dense" else ("vmap", "threads")


@pytest.mark.parametrize(("net", "name"), EVERY)
def test_the_meta_gradient_is_that_of_float32_but_for_rounding(net: str, name: str) -> None:
    for engine in engines(net):
        expected, values = update(net, name, "32-true", engine=engine)
        found, rounded = update(net, name, "bf16-mixed", engine=engine)
        assert expected.norm() > 1e-3
        assert torch.cosine_similarity(found, expected, 0) > 0.98
        assert found.norm() / expected.norm() == pytest.approx(1, abs=0.05)
        torch.testing.assert_close(rounded, values, rtol=0.1, atol=0.05)
        # There is something rounded, except for implicit gradients: those are float32's.
        assert torch.equal(found, expected) == (name == "imaml")
        assert not torch.equal(rounded, values)


@pytest.mark.parametrize(("net", "name"), EVERY)
def test_the_meta_gradient_in_tensor_float_is_that_of_float32_but_for_rounding(net: str, name: str) -> None:
    expected, values = update(net, name, "32-true", engine="loop")
    with tensor_float():
        found, rounded = update(net, name, "32-true", engine="loop")
    assert torch.cosine_similarity(found, expected, 0) > 0.9999
    assert found.norm() / expected.norm() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(rounded, values, rtol=0.02, atol=0.01)
    assert torch.equal(found, expected) == (name == "imaml")
    assert not torch.equal(rounded, values)


def test_a_run_rounds_products_where_its_precision_says_so(tmp_path: Path) -> None:
    learner = MAML(MLP(1, [4], 1), squared, inner_steps=1)
    try:
        for mode, rounds in (("tf32", True), ("32-true", False), ("tf32", True), ("bf16-mixed", False)):
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                cfg = compose("train", ["trainer=cpu", f"trainer.precision={mode}"])
            made = make_trainer(cfg, learner, tmp_path, logger=False)
            assert made.precision == ("32-true" if rounds else mode)
            assert precision.tensor_float() == torch.backends.cudnn.allow_tf32 == rounds
    finally:
        precision.set_tensor_float(False)


def test_products_are_rounded_to_ten_bits_and_exact_ones_are_not() -> None:
    one = torch.ones(1, 1)
    for bit, kept in ((2**-10, 2**-10), (2**-12, 0)):
        with tensor_float():
            assert (one + bit) @ one - 1 == kept
            assert precision.exact(one + bit) @ precision.exact(one) - 1 == bit
    assert (one + 2**-12) @ one - 1 == 2**-12


@pytest.mark.parametrize("head", [RidgeHead(), PrototypeHead()], ids=["ridge", "prototypes"])
def test_heads_in_closed_form_are_solved_exactly(head: Adaptation) -> None:
    net = Linear(12, 3)  # whose features are its inputs, in which autocast rounds nothing
    batch = class_batch(tasks=3, ways=3, shots=3, queries=1, shape=(12,))

    def solved(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {n: w for n, w in head(net, weights_of(net), Samples(x, y)).items() if n.startswith("head.")}

    expected = torch.vmap(solved)(*batch.support)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.vmap(solved)(*batch.support)
        alone = [solved(x, y) for x, y in zip(*batch.support, strict=True)]
    with tensor_float():
        alone += [solved(x, y) for x, y in zip(*batch.support, strict=True)]
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        for i, one in enumerate(alone):
            torch.testing.assert_close(one[name], value[i % 3], rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_its_statistics_in_float32() -> None:
    norm = BatchNorm(4)
    x = (100 + torch.randn(64, 4, 5, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    expected = norm(x.float())
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)
    with fused_layers():
        torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-4)


class ThreeWays(Classification):
    output_size = 3

    def draw(self, *_: Any) -> Any:
        raise NotImplementedError


def test_accuracy_is_counted_in_float32() -> None:
    net = Linear(2, 3)
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x).argmax(-1)
        y[:89] = (y[:89] + 1) % 3
        found = ThreeWays().metrics(net, weights_of(net), Samples(x, y))
    assert found["accuracy"].item() == pytest.approx(211 / 300, abs=1e-6)  # 0.703; the nearest bfloat16 is 0.7031
    assert found["loss"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["maml", "hypernet", "hybrid"])
def test_mixed_precision_trains_as_well_as_float32(algo: str, tmp_path: Path) -> None:
    settings = (f"algo={algo}", "trainer=cpu", "trainer.max_steps=1500", "logger=csv")
    for mode in ("32-true", "bf16-mixed"):
        run("train.py", *settings, f"trainer.precision={mode}", f"hydra.run.dir={mode}", cwd=tmp_path)
    single, mixed = (results(tmp_path / name)["test"]["mse"]["mean"] for name in ("32-true", "bf16-mixed"))
    assert abs(mixed / single - 1) < 0.1
    assert mixed != single
