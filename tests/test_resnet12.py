"""ResNet-12 and Conv4 in their published sizes; ResNet-12 is adapted exactly, in every engine and all of its norms."""

import pytest
import torch
from conftest import class_batch, cross_entropy, randomise
from test_meta_gradient import ENGINES, close, directional_check, in_engine, learners, meta_gradient
from torch import nn

from innerloop.episodes import InputError, features, weights_of
from innerloop.learners.task_relation import TaskRelation
from innerloop.nets import Conv4, ResNet12

TINY = (2, 3, 3, 4)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def residual_block(channels: int, width: int) -> int:
    """Two 3x3 convolutions after the first, a shortcut of 1x1, four batch norms, no bias."""
    return 9 * channels * width + 2 * 9 * width**2 + channels * width + 4 * 2 * width


def test_published_sizes() -> None:
    blocks = [residual_block(c, w) for c, w in [(3, 64), (64, 128), (128, 256), (256, 512)]]
    assert blocks == [76_160, 377_856, 1_509_376, 6_033_408]
    assert parameters(ResNet12((3, 84, 84), 5)) == sum(blocks) + 512 * 5 + 5 == 7_999_365
    # Lee et al. (2019) and those who took their net over count 12.4 million.
    assert parameters(ResNet12((3, 84, 84), 5, (64, 160, 320, 640)).body) == 12_424_320
    # Finn et al. (2017): Omniglot by strides and the mean; mini-ImageNet by pools, less the 4 * 32 biases before norms.
    omniglot, mini_imagenet = Conv4((1, 28, 28), 5), Conv4((3, 84, 84), 5, width=32, downsample="pool")
    assert parameters(omniglot) == 9 * 64 + 3 * 9 * 64**2 + 4 * 2 * 64 + 64 * 5 + 5 == 112_005
    assert parameters(mini_imagenet) == 9 * 3 * 32 + 3 * 9 * 32**2 + 4 * 2 * 32 + 25 * 32 * 5 + 5 == 32_901 - 128


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 84, 84), (2, 16, 40)])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_shapes(norm: str, shape: tuple[int, ...]) -> None:
    net, x = ResNet12(shape, 7, TINY, norm), torch.randn(3, *shape)
    assert net(x).shape == (3, 7)
    assert features(net, weights_of(net), x).shape == (3, net.feature_size) == (3, 4)
    assert (net.input_size, net.output_size) == (x[0].numel(), 7)
    biases = [name for name, _ in net.named_parameters() if name.endswith("conv.bias")]
    assert len(biases) == (0 if norm == "batch" else 16)


def test_a_block_is_what_its_papers_draw() -> None:
    """max-pool(leaky-relu(norm(conv(...)) + norm(conv1x1(x)))), in that order and from torch's own layers."""
    torch.manual_seed(0)
    net, x = ResNet12((2, 16, 16), 3, TINY), torch.randn(4, 2, 16, 16)
    randomise(net)
    block, leaky = net.body[0], nn.LeakyReLU(0.1)

    def conv_norm(part: nn.Module, h: torch.Tensor) -> torch.Tensor:
        h = nn.functional.conv2d(h, part.conv.weight, padding="same")
        return nn.functional.batch_norm(h, None, None, part.norm.weight, part.norm.bias, training=True)

    first, second, third = block.layers
    deep = conv_norm(third, leaky(conv_norm(second, leaky(conv_norm(first, x)))))
    expected = nn.functional.max_pool2d(leaky(deep + conv_norm(block.shortcut, x)), 2)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_film_finds_every_norm() -> None:
    net = ResNet12((1, 17, 17), 3, TINY)
    written = {*TaskRelation(writes="film", width=8).model(net).generator.whole}
    norms = {name for name, module in net.named_modules() if type(module).__name__ == "BatchNorm"}
    assert len(norms) == 16
    assert written == {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}


# As tests/test_meta_gradient.py does it for the other nets.

every_norm = pytest.mark.parametrize("norm", ["batch", "layer", "group"])
some_learners = pytest.mark.parametrize(("name", "steps"), [("maml", 2), ("hybrid", 1)])


@pytest.mark.usefixtures("float64")
@every_norm
@some_learners
def test_smooth_resnet12_agrees_with_finite_differences(
    name: str, steps: int, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twelve layers in front of max-pools have a kink within any difference; means in their place have none.
    monkeypatch.setattr(nn.functional, "max_pool2d", nn.functional.avg_pool2d)
    torch.manual_seed(0)
    net = ResNet12((1, 17, 17), 3, TINY, norm=norm, activation="tanh")
    batch = class_batch(tasks=2, ways=3, shots=2, queries=1)
    directional_check(learners(name, net, cross_entropy, steps), batch, ENGINES[1:])


@pytest.mark.usefixtures("float64")
@every_norm
@some_learners
def test_engines_agree_on_resnet12_as_it_ships(name: str, steps: int, norm: str) -> None:
    torch.manual_seed(0)
    learner = learners(name, ResNet12((1, 17, 17), 3, TINY, norm=norm), cross_entropy, steps)
    batch = class_batch(tasks=3, ways=3, shots=2, queries=1)
    first, *others = (meta_gradient(in_engine(learner, *engine), batch) for engine in ENGINES)
    largest = max(g.abs().max() for g in first[1])
    assert largest > 1e-2
    for value, gradient in others:
        close([value, *(g / largest for g in gradient)], [first[0], *(g / largest for g in first[1])])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (5,)}, r"needs images .* got inputs of shape \(5,\)"),
        ({"input_shape": (1, 15, 28)}, r"at least 16x16, got inputs of shape \(1, 15, 28\)"),
        ({"widths": (64, 128)}, r"widths must be four numbers above zero, got \[64, 128\]"),
        ({"widths": (64, 0, 1, 1)}, r"widths must be four numbers above zero"),
        ({"norm": "none"}, "unknown norm 'none'; choose one of batch, group, layer"),
        ({"activation": "gelu"}, "unknown activation 'gelu'; choose one of relu, leaky_relu"),
    ],
)
def test_what_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResNet12(**{"input_shape": (1, 28, 28), "output_size": 5} | settings)
