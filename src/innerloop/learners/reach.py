"""A check that a net uses the weights that it is called with, wherever its code takes its parts from."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from innerloop.devices.random_state import random_state
from innerloop.episodes import Episode, InputError, apply, weights_of
from innerloop.learners.learner import MetaLearner


@torch.no_grad()
def check_reach(learner: MetaLearner, episode: Episode) -> None:
    """Raise InputError if a learner's net does not use other weights that it is called with.

    `innerloop.episodes.apply` calls a copy of the net, so code that reaches the net itself, by a list of its layers for
    example, finds its own weights there. `torch.func.functional_call` puts the weights into the net itself, so the two
    differ. A net that it cannot call on the episode's x is not checked.
    """
    net, x = learner.net, episode.query.x
    theta, adapted = weights_of(net), learner.adaptation(net, weights_of(net), episode.support)
    # Frozen weights that no task changes, such as a backbone's, may be anywhere.
    used = {name: w for name, w in theta.items() if w.requires_grad or adapted.get(name, w) is not w}
    rng = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(w.shape, generator=rng).to(w) for name, w in used.items()}
    other = {name: w + 0.1 * (w.abs().mean() + 0.1) * noise[name] for name, w in used.items() if w.numel()}
    # torch (2.13) does not put all parameters back into a net in which a module occurs twice.
    before = {module: (module.training, dict(module._parameters)) for module in net.modules()}
    again = random_state()

    def output(call: Callable[[], Tensor]) -> Tensor:
        with again():
            return call()

    try:
        for module in before:
            module.training = False
        try:
            expected = output(lambda: functional_call(net, other, (x,)))
        except Exception:  # a policy, for example, whose x are no states
            return
        finally:
            for module, (_, parameters) in before.items():
                module._parameters.update(parameters)
        found = output(lambda: apply(net, other, x))
    finally:
        for module, (mode, _) in before.items():
            module.training = mode
    if not torch.allclose(found, expected.to(found.dtype), rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(
            "this net does not use the weights that it is called with: keep its parts as submodules, not in plain "
            "lists, bound methods, closures or torch.compile"
        )
