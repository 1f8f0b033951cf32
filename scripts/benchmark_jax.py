"""The meta-step of second-order MAML in JAX, for scripts/benchmark.py: one jitted function with its Adam update.

Only processes of its own import this module. JAX fixes its number of threads when it starts and has one switch for
64-bit numbers in a process, and where it is imported, a fork gives a warning.

What was fastest on two CPU cores: channels last; convolutions as one matrix product on patches (omniglot_5w1s_stride_q1
takes 162 ms, with XLA's own convolution 1073 ms, channels first 2141 ms).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from benchmark_programs import Workload, measured
from torch import Tensor

Arrays = list[jax.Array]
"""Of a net, each with torch's dimensions reversed: matrices (in, out), kernels (columns, rows, in, out)."""
Pair = tuple[jax.Array, jax.Array]
"""The x and y of a support or query set."""


def inputs(workload: Workload) -> tuple[Arrays, tuple[Pair, Pair]]:
    """Return the net's weights and the meta-batch (support, query), in float64 where that is switched on."""

    def array(t: Tensor) -> jax.Array:
        return jnp.array(t.detach().numpy(), jnp.result_type(float if t.is_floating_point() else int))

    sets = [(s.x.movedim(-3, -1) if workload.form else s.x, s.y) for s in workload.batch()]
    support, query = ((array(x), array(y)) for x, y in sets)
    return [array(p).T for p in workload.net().parameters()], (support, query)


def predict(form: str | None, parameters: Arrays, x: jax.Array) -> jax.Array:
    """Return the net's outputs. x: (n, 1) for the MLP, (n, height, width, channels) for convolutions."""
    *body, head, shift = parameters
    if form is None:
        for weight, bias in zip(body[::2], body[1::2], strict=True):
            x = jax.nn.relu(x @ weight + bias)
        return x @ head + shift
    size = 4 if form == "valid" else 3  # arrays of a block: only without padding has the convolution a bias
    for i in range(0, len(body), size):
        kernel, *bias, weight, offset = body[i : i + size]
        x = convolution(x, kernel, 2 if form == "stride" else 1, 0 if form == "valid" else 1)
        x = batch_norm(x + bias[0] if bias else x, weight, offset)
        x = jax.nn.relu(x if form == "stride" else max_pool(x))
    # torch flattens with channels first.
    x = x.mean((1, 2)) if form == "stride" else x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return x @ head + shift


def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Return the convolution as one matrix product, because XLA's own has slow derivatives on the CPU."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    w, h, _, width = kernel.shape
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    patches = [x[:, i : i + rows : stride, j : j + columns : stride] for j in range(w) for i in range(h)]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, width)


def batch_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) * (weight * jax.lax.rsqrt(variance + 1e-5)) + bias


def max_pool(x: jax.Array) -> jax.Array:
    """Return the largest of each 2x2 positions, by its place.

    The derivative of jnp.max compares values with their maximum. XLA computes the values anew for it, in fused
    operations that round in another way, so that none may equal the maximum and its gradient is lost.
    """
    n, rows, columns, channels = x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]
    windows = x[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2, channels)
    windows = windows.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, 4, channels)
    largest = jax.nn.one_hot(jnp.argmax(windows, 3), 4, axis=3, dtype=x.dtype)
    return (windows * largest).sum(3)


def loss(form: str | None, parameters: Arrays, x: jax.Array, y: jax.Array) -> jax.Array:
    prediction = predict(form, parameters, x)
    if form is None:
        return jnp.square(prediction - y).mean()
    return optax.softmax_cross_entropy_with_integer_labels(prediction, y).mean()


def query_loss(workload: Workload, parameters: Arrays, support: Pair, query: Pair) -> jax.Array:
    """Return one task's query loss after the inner steps."""
    weights = parameters
    for _ in range(workload.inner_steps):
        slopes = jax.grad(loss, 1)(workload.form, weights, *support)
        weights = [w - workload.inner_lr * slope for w, slope in zip(weights, slopes, strict=True)]
    return loss(workload.form, weights, *query)


def gradient(workload: Workload, parameters: Arrays, batch: tuple[Pair, Pair]) -> Arrays:
    """Return the meta-gradient. Tasks of convolutions run one after the other, so that one task's graph is kept."""
    if workload.form is None:
        losses = jax.vmap(functools.partial(query_loss, workload), (None, 0, 0))
        return jax.grad(lambda p: losses(p, *batch).mean())(parameters)

    def add(total: Arrays, task: tuple[Pair, Pair]) -> tuple[Arrays, None]:
        return jax.tree.map(jnp.add, total, jax.grad(query_loss, 1)(workload, parameters, *task)), None

    total, _ = jax.lax.scan(add, [jnp.zeros_like(p) for p in parameters], batch)
    return [t / workload.tasks for t in total]


def meta_gradient(workload: Workload) -> Tensor:
    """Return all entries of the meta-gradient in torch's order, in float64, which this process then has for good."""
    jax.config.update("jax_enable_x64", True)
    found = jax.jit(gradient, static_argnums=0)(workload, *inputs(workload))
    return torch.cat([torch.tensor(np.asarray(g).T).flatten() for g in found])


@functools.cache
def meta_step(workload: Workload) -> Callable[[], None]:
    """Return a function that takes one meta-step in float32. The new weights take the memory of the old ones."""
    adam = optax.adam(1e-7)  # see benchmark_programs.py

    def update(parameters: Arrays, state: Any, batch: tuple[Pair, Pair]) -> tuple[Arrays, Any]:
        updates, state = adam.update(gradient(workload, parameters, batch), state)
        return optax.apply_updates(parameters, updates), state

    parameters, batch = inputs(workload)
    held, jitted = (parameters, adam.init(parameters)), jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        nonlocal held
        held = jax.block_until_ready(jitted(*held, batch))

    return step


def measure(workload: Workload, repeats: int) -> np.ndarray:
    """Return `measured` of the workload's steps in this process."""
    return measured(meta_step(workload), repeats)
