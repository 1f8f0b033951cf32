"""Nets must use the weights that they are called with, and metrics must have what runs are compared by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Here, class_batch, cross_entropy, regression_batch, squared, task
from torch import Tensor, nn

from innerloop.episodes import InputError
from innerloop.learners import MAML, MetaLearner
from innerloop.learners.reach import check_reach
from innerloop.nets import MLP, Conv4, ResNet12


class Plain(nn.Module):
    """A body and a head. What differs is how the body reaches its layer."""

    def __init__(self, input_shape: tuple[int, ...] = (1,), output_size: int = 1) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(input_shape[0], 5), nn.Tanh()), nn.Linear(5, output_size)
        self.feature_size = 5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Listed(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layers = list(self.body)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Bound(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.function = self.compute

    def compute(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Hooked(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Linear(1, 1)
        self.body.register_forward_hook(lambda module, inputs, output: output * (1 + self.scale.weight))


class Compiled(Plain):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body = torch.compile(self.body, backend="eager")  # type: ignore[assignment]


class Tied(Plain):
    """Has dropout, and a layer that occurs twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        again = nn.Linear(5, 5)
        self.body.extend([again, nn.Dropout(), nn.Tanh(), again])


def learner_of(net: nn.Module, **kwargs: Any) -> MetaLearner:
    return MAML(net, squared, inner_lr=0.1, engine="loop", **kwargs)


@pytest.mark.parametrize("kind", [Listed, Bound, Hooked, Compiled])
def test_a_net_that_does_not_use_its_weights_is_refused(kind: type[Plain]) -> None:
    with pytest.raises(InputError, match="does not use the weights that it is called with"):
        check_reach(learner_of(kind()), task(regression_batch(1, 4, 4, size=1), 0))


@pytest.mark.parametrize("kind", [Plain, Tied, lambda: MLP(1, [5], 1)])
def test_other_nets_are_as_before(kind: Callable[[], nn.Module]) -> None:
    net = kind()
    before, state = {name: w.clone() for name, w in net.state_dict().items()}, torch.get_rng_state()
    check_reach(learner_of(net), task(regression_batch(1, 4, 4, size=1), 0))
    assert all(torch.equal(w, before[name]) for name, w in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state) or kind is Tied, "the adaptation draws, the check does not"


@pytest.mark.parametrize(
    "net", [Conv4((1, 17, 17), 3, width=4), ResNet12((1, 17, 17), 3, widths=(4, 4, 4, 4))], ids=type
)
def test_our_nets_for_pictures_pass(net: nn.Module) -> None:
    check_reach(MAML(net, cross_entropy, inner_lr=0.1), task(class_batch(1, 3, 2, 2), 0))


def test_what_no_task_changes_may_be_anywhere() -> None:
    net, episode = Compiled(), task(regression_batch(1, 4, 4, size=1), 0)
    net.body.requires_grad_(False)
    check_reach(learner_of(net, only="head"), episode)


def test_a_net_that_takes_other_inputs_is_not_checked() -> None:
    class Policy(Listed):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no states")

    check_reach(learner_of(Policy(), inner_steps=0), task(regression_batch(1, 4, 4, size=1), 0))


class OnlyError(MAML):
    """Reports a metric that is not the tasks' own."""

    def __init__(self, net: nn.Module, loss: Any, metrics: Any = None, **maml: Any) -> None:
        super().__init__(net, loss, lambda net, weights, samples: {"mae": loss(net, weights, samples)}, **maml)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["net._target_=test_reach.Listed", "~net.hidden", "~net.activation"], "does not use the weights"),
        (["algo._target_=test_reach.OnlyError"], "the learner's metrics lack mse, by which runs are compared: got mae"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(words: list[str], said: str, here: Here, tmp_path: Path) -> None:
    status, err = here("train.py", *TINY, "logger=csv", "allow=[test_reach]", *words, "hydra.run.dir=run")
    assert status == 1
    assert said in err
    assert not (tmp_path / "run").exists()
