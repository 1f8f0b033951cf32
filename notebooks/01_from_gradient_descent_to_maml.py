# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From gradient descent to MAML
#
# Five labelled points are too few to train a classifier from scratch. They can be enough if the training
# *starts* in a good place. MAML, model-agnostic meta-learning (Finn, Abbeel and Levine, 2017), learns such
# a start from many small tasks.
#
# This notebook builds MAML for the smallest useful model, a linear classifier in the plane with three
# weights:
#
# 1. what a task is, and how far gradient descent from scratch gets on it;
# 2. why training on all tasks together is not MAML;
# 3. MAML in ten lines of torch;
# 4. its gradient three times: by hand, by autograd and by the library, equal to the last digits;
# 5. what the learned start does, in numbers and in pictures;
# 6. the first-order approximation beside the full gradient.
#
# You need linear algebra and a little torch. The notebook runs in under a minute. Statements about numbers
# are checked by an `assert` in the cell above them.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from scipy import stats

from innerloop.adaptation import GradientSteps
from innerloop.datamodule import EpisodeDataModule
from innerloop.episodes import Episode, Samples, tasks_of, weights_of
from innerloop.learners import MAML
from innerloop.metrics import summarize
from innerloop.nets import Linear
from innerloop.runs.report.style import BLUE, GREEN, GREY, INK, VERMILLION
from innerloop.tasks import Hyperplane

torch.set_num_threads(1)  # the tensors here are too small to be worth sharing among threads
plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. What a task is
#
# A **task** is a line in the plane. It divides the plane into two sides, and a point $x \in \mathbb{R}^2$
# has the label $y = 1$ on one side and $y = 0$ on the other. Of each task we see two sets of labelled
# points:
#
# - the **support set** $S$: 5 points to learn the task from. A support label is wrong with probability
#   0.05.
# - the **query set** $Q$: 15 other points of the same task. They measure how well the task was learned.
#   Their labels are all right.
#
# Support and query together are an **episode**. The library draws episodes from a *distribution* over
# tasks. In ours, the direction from side 0 to side 1 lies near one of three fixed directions, so tasks
# resemble each other. This is what a meta-learner can use. The next notebook uses the same distribution.

# %%
tasks = Hyperplane(dimensions=2, clusters=3, shots=5, queries=15, flip=0.05)
data = EpisodeDataModule(tasks)


def double(episode):
    """Return an episode with x in float64, so that results can be compared to the last digits."""
    return Episode(*(Samples(part.x.double(), part.y) for part in episode))


S, Q = double(data.episode("test", 0))
print("support x", tuple(S.x.shape), " y", S.y.tolist())
print("query   x", tuple(Q.x.shape), " y", Q.y.tolist())

# %% [markdown]
# Many tasks at once are a **meta-batch**: the same four tensors with one more dimension in front, which
# counts the tasks. Episodes for training and for testing come from separate random streams. An episode
# depends on the seed and its number only, so everything below is tested on the same 1000 tasks.

# %%
train_tasks = double(data.meta_batch("train", range(1000)))
test_tasks = double(data.meta_batch("test", range(1000)))
print("support x of 1000 tasks", tuple(test_tasks.support.x.shape))
assert torch.equal(test_tasks.support.x[0], S.x)
assert torch.equal(test_tasks.query.y[0], Q.y)

# %%
SIDES = ((0, VERMILLION, "s"), (1, BLUE, "o"))  # label, colour, marker

figure, axes = plt.subplots(1, 3, figsize=(9, 3.7), layout="constrained", sharey=True)
for ax, episode in zip(axes, tasks_of(test_tasks), strict=False):
    for label, colour, marker in SIDES:
        support, query = (part.x[part.y == label] for part in episode)
        filled = {"markersize": 9, "markeredgecolor": INK, "label": f"support, y = {label}"}
        hollow = {"markersize": 6, "fillstyle": "none", "label": f"query, y = {label}"}
        ax.plot(*support.T, marker, color=colour, **filled)
        ax.plot(*query.T, marker, color=colour, **hollow)
    ax.set(xlabel="$x_1$", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
axes[0].set_ylabel("$x_2$")
for i, ax in enumerate(axes):
    ax.set_title(f"test task {i}", fontsize=11)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# ### One task by gradient descent
#
# The classifier is $f(x) = w \cdot x + b$. It answers 1 where $f(x) > 0$, so its *decision line* is
# $f(x) = 0$. The number $\sigma(f(x)) = 1 / (1 + e^{-f(x)})$ is its probability of label 1. We write
# $\theta = (w_1, w_2, b)$ for all three weights, and $\tilde x = (x_1, x_2, 1)$, so that
# $f(x) = \theta \cdot \tilde x$.
#
# The logistic loss of a set of $n$ points and its gradient are
#
# $$L(\theta) = \frac1n \sum_j \Big(\log(1 + e^{f(x_j)}) - y_j f(x_j)\Big), \qquad
# \nabla L(\theta) = \frac1n \sum_j \big(\sigma(f(x_j)) - y_j\big)\, \tilde x_j .$$
#
# In code, $\log(1 + e^z)$ is `softplus(z)`. All functions take one task or a meta-batch.


# %%
def f(theta, x):
    """theta (..., 3) and x (..., n, 2) -> scores (..., n)."""
    return (x @ theta[..., :2, None]).squeeze(-1) + theta[..., 2:]


def loss(theta, samples):
    z = f(theta, samples.x)
    return (F.softplus(z) - samples.y * z).mean(-1)


def accuracy(theta, samples):
    return ((f(theta, samples.x) > 0) == samples.y).double().mean(-1)


def tilde(x):
    return F.pad(x, (0, 1), value=1.0)


def gradient(theta, samples):
    error = torch.sigmoid(f(theta, samples.x)) - samples.y
    return (error[..., None] * tilde(samples.x)).mean(-2)


theta = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
(by_autograd,) = torch.autograd.grad(loss(theta, S), theta)
print("gradient by hand    ", gradient(theta, S).tolist())
print("gradient by autograd", by_autograd.tolist())
assert torch.allclose(gradient(theta, S), by_autograd, rtol=0, atol=1e-12)

# %% [markdown]
# Gradient descent repeats $\theta \leftarrow \theta - \alpha \nabla L^S(\theta)$ on the support set. We run
# it from $\theta = 0$ on each of the 1000 test tasks separately, with the rate $\alpha = 1$. We watch the
# support loss, which it lowers, and the query loss, which tells us whether the task was learned.

# %%
scratch = torch.zeros(1000, 3, dtype=torch.float64)
curves = []
for _ in range(501):
    curves.append((loss(scratch, test_tasks.support).mean(), loss(scratch, test_tasks.query).mean()))
    scratch = scratch - 1.0 * gradient(scratch, test_tasks.support)
support_curve, query_curve = torch.tensor(curves).T

best = int(query_curve.argmin())
figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
steps = torch.arange(1, 501)
ax.plot(steps, support_curve[1:], color=GREY, label="support loss (5 points per task)")
ax.plot(steps, query_curve[1:], color=BLUE, label="query loss (15 points per task)")
ax.plot(best, query_curve[best], "o", color=BLUE)
ax.annotate(
    f"lowest: {query_curve[best]:.2f} after {best} steps",
    (best, query_curve[best]),
    xytext=(best, 0.6),
    ha="center",
    arrowprops={"arrowstyle": "-", "color": BLUE, "shrinkB": 5},
)
ax.set_xscale("log")
ax.set_xticks([1, 10, 100, 500], ["1", "10", "100", "500"])
ax.set(xlabel="steps of gradient descent", ylabel="loss (mean of 1000 tasks)", ylim=(0, 0.85), xlim=(1, 500))
ax.set_title("From scratch, gradient descent soon overfits five points")
ax.legend(frameon=False, loc="lower left")
plt.show()

print(f"before the first step both losses are log 2 = {float(query_curve[0]):.3f}")
assert bool((support_curve.diff() < 0).all())
assert query_curve[best] > 0.41
assert query_curve[-1] > query_curve[best] + 0.2

# %% [markdown]
# The support loss falls at every step. The query loss falls at first and then rises: the classifier becomes
# too sure of what five points say. Its lowest value on the way is 0.44.
#
# The start $\theta = 0$ contains nothing of what tasks have in common. A better start should need fewer
# steps.
#
# ## 2. Training on all tasks together is not MAML
#
# A first idea: put the points of many tasks into one pool and train one classifier on them. This minimises
#
# $$L^{\text{pool}}(\theta) = \operatorname{mean}_i L_i(\theta),$$
#
# where $L_i$ is the loss on all points of task $i$. The result is the best *single* classifier for all
# tasks. We can use it as a start, but $L^{\text{pool}}$ does not take into account that gradient steps will
# follow.
#
# MAML does. One step on the support set turns $\theta$ into the task's weights $\theta'_i$, and the query
# loss of *these* weights is minimised:
#
# $$\theta'_i = \theta - \alpha \nabla L_i^S(\theta), \qquad
# L^{\text{MAML}}(\theta) = \operatorname{mean}_i L_i^Q(\theta'_i).$$
#
# The step on $\theta$ for one task is the **inner step** with the inner rate $\alpha$. The minimisation
# over $\theta$ is the **outer loop**.
#
# Two tasks with one weight show that the two minima differ. Let
# $L_i(\theta) = \frac{h_i}{2} (\theta - c_i)^2$ be both the support and the query loss of task $i$. A step
# gives $\theta'_i - c_i = (1 - \alpha h_i)(\theta - c_i)$, so both objectives are sums of
# $(\theta - c_i)^2$ with different factors, and their minima are
#
# $$\theta^{\text{pool}} = \frac{\sum_i h_i c_i}{\sum_i h_i}, \qquad
# \theta^{\text{MAML}} = \frac{\sum_i h_i (1 - \alpha h_i)^2 c_i}{\sum_i h_i (1 - \alpha h_i)^2}.$$

# %%
h, c, rate = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.0, 1.0]).double(), 0.4


def quadratic(t):
    return 0.5 * h * (t - c) ** 2


factors = (h, h * (1 - rate * h) ** 2)
minima = [float((factor * c).sum() / factor.sum()) for factor in factors]
print(f"minimum of the pooled loss: {minima[0]:.2f}")
print(f"minimum of MAML's loss:     {minima[1]:.2f}")

objectives = (lambda t: quadratic(t).mean(), lambda t: quadratic(t - rate * h * (t - c)).mean())
for minimum, objective in zip(minima, objectives, strict=True):
    point = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
    assert abs(torch.autograd.grad(objective(point), point)[0]) < 1e-12

# %% [markdown]
# The second task has its minimum at 1 and the larger curvature $h$, so the minimum of the pooled loss is
# near 1. The minimum of MAML's loss is nearer to the first task's minimum, 0. The inner step shrinks the
# distance to the minimum to 0.2 of what it was in the second task, but only to 0.8 in the first, so the
# first task needs the better start. If all $h_i$ were equal, the two minima would be the same. We come back
# to this in section 6.
#
# ## 3. MAML in ten lines
#
# The outer loop draws a meta-batch of 25 tasks, takes the inner step in all of them, and then takes one
# step on $\theta$ with the gradient of the mean query loss. `create_graph=True` keeps the inner gradient
# differentiable, because $\theta'_i$ depends on $\theta$ through it too.

# %%
alpha, beta = 4.0, 0.5  # inner and outer rate

theta = torch.zeros(3, dtype=torch.float64)
for t in range(400):
    support, query = double(data.meta_batch("train", range(25 * t, 25 * (t + 1))))
    theta.requires_grad_()
    w = theta.expand(25, 3)  # every task starts from theta
    (inner,) = torch.autograd.grad(loss(w, support).sum(), w, create_graph=True)
    w = w - alpha * inner  # the inner step
    (outer,) = torch.autograd.grad(loss(w, query).mean(), theta)
    theta = (theta - beta * outer).detach()  # the outer step

theta_maml = theta
print("learned start: w =", [round(v, 2) for v in theta[:2].tolist()], " b =", round(float(theta[2]), 2))

# %% [markdown]
# `loss(w, support).sum()` is a sum over tasks. Row $i$ of `w` belongs to task $i$ only, so row $i$ of the
# gradient of this sum is $\nabla L_i^S$.
#
# Now one step on the 1000 test tasks, once from zero and once from the learned start. ± is the half-width
# of a 95 % confidence interval over the tasks.


# %%
def adapted(theta, batch):
    """Return the weights of every task after the inner step, (tasks, 3)."""
    w = theta.expand(len(batch.support.x), 3)
    return w - alpha * gradient(w, batch.support)


def interval(values):
    """Return the mean over tasks and the half-width of its 95 % interval."""
    s = summarize(values)
    return s["mean"], s["ci95"]


def pm(values, sign=""):
    return f"{{:{sign}.3f}} ± {{:.3f}}".format(*interval(values))


zero = torch.zeros(3, dtype=torch.float64)
for name, start in (("zero", zero), ("the learned start", theta_maml)):
    after = loss(adapted(start, test_tasks), test_tasks.query)
    print(f"query loss after one step from {name:18} {pm(after)}")

mean, half = interval(after)
assert mean + half < float(query_curve.min())

# %% [markdown]
# One step from the learned start gives a lower query loss than gradient descent from zero had at any of its
# 500 steps. Its lowest was 0.44.
#
# ## 4. The meta-gradient, three times
#
# The gradient of the outer loop is called the meta-gradient. For one task the chain rule gives
#
# $$\nabla_\theta L^Q(\theta') = \Big(\frac{\partial \theta'}{\partial \theta}\Big)^\top \nabla L^Q(\theta')
# = (I - \alpha H)\, \nabla L^Q(\theta'), \qquad
# H = \nabla^2 L^S(\theta) = \frac1n \sum_j p_j (1 - p_j)\, \tilde x_j \tilde x_j^\top$$
#
# with $p_j = \sigma(f(x_j))$ on the support set. $H$ is the Hessian of the support loss, symmetric,
# $3 \times 3$, and known in closed form for the logistic loss. The meta-gradient of a meta-batch is the
# mean over its tasks. Here it is **by hand**, without autograd, for 25 tasks.


# %%
def hessian(theta, samples):
    """theta (..., 3) -> (..., 3, 3)."""
    p, x = torch.sigmoid(f(theta, samples.x)), tilde(samples.x)
    return (x * (p * (1 - p))[..., None]).mT @ x / x.shape[-2]


batch = double(data.meta_batch("train", range(25)))
theta = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)

identity = torch.eye(3, dtype=torch.float64)
H = hessian(theta, batch.support)
g = gradient(adapted(theta, batch), batch.query)
by_hand = ((identity - alpha * H) @ g[..., None]).squeeze(-1).mean(0)

# The closed form of H equals autograd's Hessian.
autograd_hessian = torch.autograd.functional.hessian(lambda t: loss(t, S), theta)
assert torch.allclose(hessian(theta, S), autograd_hessian, rtol=0, atol=1e-12)

# %% [markdown]
# **By autograd** it is the inside of the loop of section 3:


# %%
def meta_gradient(theta, batch, first_order=False):
    theta = theta.detach().requires_grad_()
    w = theta.expand(len(batch.support.x), 3)
    (inner,) = torch.autograd.grad(loss(w, batch.support).sum(), w, create_graph=not first_order)
    (outer,) = torch.autograd.grad(loss(w - alpha * inner, batch.query).mean(), theta)
    return outer


by_autograd = meta_gradient(theta, batch)

# %% [markdown]
# **By the library.** The net holds $\theta$, the tasks define the loss, and `MAML` has the inner loop. Its
# engine computes the mean query loss of a meta-batch and the gradient. Algorithms of the library differ in
# their *adaptation*, the map from a support set to the task's weights. MAML's is `GradientSteps`, and it
# can be called alone.

# %%
net = Linear(2, 1).double()


def set_weights(net, theta):
    with torch.no_grad():
        net.head.weight.copy_(theta[None, :2])
        net.head.bias.copy_(theta[2:])


set_weights(net, theta)
learner = MAML(net, tasks.loss, tasks.metrics, inner_lr=alpha, inner_steps=1)


def library_gradient(learner, batch):
    _, slopes, _ = learner.engine.value_and_grad(learner.query_objective, list(learner.parameters()), batch)
    return torch.cat([slope.flatten() for slope in slopes])


by_library = library_gradient(learner, batch)

for name, value in (("by hand", by_hand), ("by autograd", by_autograd), ("by the library", by_library)):
    print(f"{name:15}", "  ".join(f"{v:+.12f}" for v in value.tolist()))
assert torch.allclose(by_autograd, by_hand, rtol=0, atol=1e-12)
assert torch.allclose(by_library, by_hand, rtol=0, atol=1e-12)

step = GradientSteps(tasks.loss, steps=1, inner_lr=alpha)
weights = step(net, weights_of(net), tasks_of(batch)[0].support)
print({name: tuple(w.shape) for name, w in weights.items()})
ours = adapted(theta, batch)[0]
assert torch.allclose(torch.cat([w.flatten() for w in weights.values()]), ours, rtol=0, atol=1e-12)

# %% [markdown]
# The three agree to twelve digits. What follows is therefore true of the library's MAML and of our ten
# lines alike.
#
# ## 5. What the learned start does
#
# ### Two landscapes
#
# Both objectives are functions of three weights. We minimise each over the same 1000 training tasks and
# draw them in the plane of $w$, with the bias of the respective minimum.


# %%
def pooled(theta):
    """Return the loss of one classifier on all points of the training tasks."""
    w = theta.expand(1000, 3)
    return (5 * loss(w, train_tasks.support).mean() + 15 * loss(w, train_tasks.query).mean()) / 20


def maml(theta):
    return loss(adapted(theta, train_tasks), train_tasks.query).mean()


def minimised(objective, start, steps=500, rate=1.0):
    for _ in range(steps):
        start = start.detach().requires_grad_()
        (slope,) = torch.autograd.grad(objective(start), start)
        start = start - rate * slope
    assert float(slope.norm()) < 1e-4
    return start.detach()


starts = {
    "zero": zero,
    "pooled": minimised(pooled, zero),
    "MAML": minimised(maml, zero),
}
for name, start in starts.items():
    print(f"{name:7}", [round(v, 2) for v in start.tolist()])

# %%
axis = [torch.linspace(-0.7, 3.2, 60).double(), torch.linspace(-3.6, 0.7, 60).double()]
w1, w2 = torch.meshgrid(*axis, indexing="xy")


def surface(objective, b):
    with torch.no_grad():
        rows = [objective(torch.stack([u, v, b])) for u, v in zip(w1.flatten(), w2.flatten(), strict=True)]
    return torch.stack(rows).reshape(w1.shape)


figure, axes = plt.subplots(1, 2, figsize=(9, 4.7), layout="constrained", sharey=True)
panels = (("pooled", pooled, "Loss without adaptation"), ("MAML", maml, "Query loss after one inner step"))
markers = {
    "pooled": ("o", 9, VERMILLION, "minimum of the pooled loss"),
    "MAML": ("*", 15, BLUE, "minimum of MAML's loss"),
}
for ax, (own, objective, title) in zip(axes, panels, strict=True):
    values = surface(objective, starts[own][2])
    low = float(values.min())
    levels = [low + d for d in (0.004, 0.015, 0.035, 0.07, 0.12, 0.2, 0.32, 0.5, 0.8)]
    lines = ax.contour(w1, w2, values, levels=levels, colors=GREY, linewidths=0.9)
    ax.clabel(lines, levels[1::2], fmt="%.2f", fontsize=8, colors=INK)
    for centre in tasks.centres:
        ax.annotate("", centre, (0, 0), arrowprops={"arrowstyle": "->", "color": GREEN, "lw": 1.8})
    for name, (marker, size, colour, label) in markers.items():
        look = {"color": colour, "markersize": size, "markeredgecolor": "white", "label": label}
        ax.plot(*starts[name][:2], marker, **look)
    ax.plot([], [], color=GREEN, lw=1.8, label="the three directions of tasks")
    ax.set(title=title, xlabel="$w_1$", aspect="equal")
axes[0].set_ylabel("$w_2$")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
plt.show()

distance = float((starts["pooled"] - starts["MAML"]).norm())
print(f"distance between the minima: {distance:.2f}")
assert distance > 0.5
assert starts["MAML"].norm() > 1.2 * starts["pooled"].norm()
angles = torch.atan2(*torch.tensor(tasks.centres).T.flip(0))
for name in markers:
    assert angles.min() < torch.atan2(starts[name][1], starts[name][0]) < angles.max()

# %% [markdown]
# The two objectives are different functions with different minima. Both lie between the outer two of the
# three directions. MAML's has the larger $w$: before the inner step this classifier is more sure of its
# answers than the pooled one.
#
# Now the comparison on the 1000 test tasks. All starts are tested on the same tasks, so we can compute
# differences task by task. Such *paired* differences have narrower intervals than the means suggest.

# %%
print("start    loss before       loss after        accuracy before   accuracy after")
scores = {}
for name, start in starts.items():
    before, after = start.expand(1000, 3), adapted(start, test_tasks)
    scores[name] = [score(w, test_tasks.query) for score in (loss, accuracy) for w in (before, after)]
    print(f"{name:8}", "     ".join(map(pm, scores[name])))

print("\nMAML minus pooled, task by task")
for what, m, p in zip(("loss before", "loss after"), scores["MAML"], scores["pooled"], strict=False):
    print(f"{what:12} {pm(m - p, '+')}")

before, after = (interval(m - p) for m, p in zip(scores["MAML"][:2], scores["pooled"][:2], strict=True))
assert before[0] > before[1]  # without adaptation pooled training is better
assert after[0] < -after[1]  # with it MAML is better
assert interval(scores["pooled"][1] - scores["zero"][1])[0] < -0.04  # both are much better than zero
assert after[0] > -0.04  # and not far apart

# %% [markdown]
# Without adaptation the pooled classifier has the lower loss, after one inner step MAML has. Each is better
# at what it was trained for. The difference is small here, because one classifier already does well on
# tasks with similar directions, and both are much better starts than zero. On sine waves, where the mean
# over tasks says nothing about a task, pooled training fails: it is `algo=finetune` in [the
# tables](../docs/regression-results.md).
#
# ### Decision lines before and after the inner step
#
# These are the first six test tasks. The pale dots are 500 points of each task with their true labels. The
# library draws the same tasks and the same support sets when it is asked for more queries.

# %%
many = EpisodeDataModule(Hyperplane(dimensions=2, clusters=3, shots=5, queries=500, flip=0.05))
shown = double(many.meta_batch("test", range(6)))
assert torch.equal(shown.support.x, test_tasks.support.x[:6])
assert torch.equal(shown.query.y[:, :15], test_tasks.query.y[:6])

theta = starts["MAML"]
after = adapted(theta, shown)


def decision_line(ax, theta, **style):
    """Draw the line f(x) = 0."""
    w, b = theta[:2], theta[2]
    normal = w / w.norm()
    foot = -b / w.norm() * normal
    along = torch.stack([-normal[1], normal[0]])
    ends = torch.stack([foot - 9 * along, foot + 9 * along])
    ax.plot(*ends.T, **style)


figure, axes = plt.subplots(2, 3, figsize=(9, 6.7), layout="constrained", sharex=True, sharey=True)
for i, ax in enumerate(axes.flat):
    support, query = (Samples(*(v[i] for v in part)) for part in shown)
    for label, colour, marker in SIDES:
        ax.plot(*query.x[query.y == label].T, ".", color=colour, markersize=3, alpha=0.25)
        ax.plot(*support.x[support.y == label].T, marker, color=colour, markersize=9, markeredgecolor=INK)
    decision_line(ax, theta, color=INK, linestyle="--", linewidth=1.4, label="line before")
    decision_line(ax, after[i], color=INK, linewidth=2.2, label="line after one inner step")
    changed = [100 * float(accuracy(w, query)) for w in (theta, after[i])]
    ax.set_title("task {}: {:.0f} % right, then {:.0f} %".format(i, *changed), fontsize=11)
    ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
for ax in axes[1]:
    ax.set_xlabel("$x_1$")
for ax in axes[:, 0]:
    ax.set_ylabel("$x_2$")
for label, colour, marker in SIDES:
    look = {"color": colour, "markeredgecolor": INK, "markersize": 9, "label": f"support, y = {label}"}
    axes[0, 0].plot([], [], marker, **look)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()

before, after = (accuracy(w, test_tasks.query) for w in (theta.expand(1000, 3), adapted(theta, test_tasks)))
shares = {sign: float(((after - before).sign() == sign).double().mean()) for sign in (1, 0, -1)}
print("test tasks better after the step: {:.0%}, equal: {:.0%}, worse: {:.0%}".format(*shares.values()))
assert shares[1] > 2 * shares[-1] > 0

# %% [markdown]
# The dashed line is the learned start, the same in every task. One step on five points turns and moves it
# towards the task. The step does not help in every task: five points can mislead, and one of them may have
# a wrong label.
#
# ## 6. First order beside second order
#
# Finn et al. (2017) also tried to leave out the second derivative, that is, to set $H = 0$ in the
# meta-gradient:
#
# $$\underbrace{(I - \alpha H)\, \nabla L^Q(\theta')}_{\text{second order, MAML}} \qquad
# \underbrace{\nabla L^Q(\theta')}_{\text{first order, FOMAML}}$$
#
# The inner step stays as it is. In large nets this saves memory and time. How different are the two
# gradients? We compute both, as means over the 1000 training tasks, at three points, and compare their
# lengths and directions.

# %%
points = {"zero": zero, "(1, -0.5, 0.2)": torch.tensor([1.0, -0.5, 0.2]).double(), "pooled": starts["pooled"]}
print("at theta         length: second  first    angle between them    |eigenvalues| of I - alpha mean(H)")
for name, theta in points.items():
    second, first = meta_gradient(theta, train_tasks), meta_gradient(theta, train_tasks, first_order=True)
    angle = torch.rad2deg(torch.arccos(F.cosine_similarity(second, first, dim=0)))
    eigenvalues = torch.linalg.eigvalsh(identity - alpha * hessian(theta, train_tasks.support).mean(0)).abs()
    listed = "  ".join(f"{v:.2f}" for v in eigenvalues.tolist())
    print(f"{name:18} {second.norm():12.3f} {first.norm():6.3f} {angle:13.0f} degrees        {listed}")
    assert first.norm() > 1.4 * second.norm()
    assert angle < 20
    assert eigenvalues.max() < 0.8

# The library computes the same first-order gradient.
set_weights(net, theta)
fomaml = MAML(net, tasks.loss, tasks.metrics, inner_lr=alpha, inner_steps=1, first_order=True)
ours = meta_gradient(theta, batch, first_order=True)
assert torch.allclose(library_gradient(fomaml, batch), ours, rtol=0, atol=1e-12)

# %% [markdown]
# The eigenvalues of $I - \alpha H$ are far from 1, so leaving out $H$ is not a small change, and the
# first-order gradient is much longer. But its direction is nearly the same.
#
# ### Training with both
#
# We train with both, ten times each. Every run has its own random start and its own training tasks, and
# within a run both see the same ones. Pooled training is the third method. After every ten outer steps we
# measure the query loss after one inner step on the 1000 test tasks.


# %%
def pooled_gradient(theta, batch):
    theta = theta.detach().requires_grad_()
    w = theta.expand(len(batch.support.x), 3)
    value = (5 * loss(w, batch.support).mean() + 15 * loss(w, batch.query).mean()) / 20
    return torch.autograd.grad(value, theta)[0]


methods = {
    "pooled training": pooled_gradient,
    "first order (FOMAML)": lambda theta, batch: meta_gradient(theta, batch, first_order=True),
    "second order (MAML)": meta_gradient,
}
runs, steps, every = 10, 400, 10
curves = {name: torch.zeros(runs, steps // every + 1) for name in methods}
for seed in range(runs):
    stream = EpisodeDataModule(tasks, seed=1 + seed)
    batches = [double(stream.meta_batch("train", range(25 * t, 25 * (t + 1)))) for t in range(steps)]
    start = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name, slope in methods.items():
        theta = start
        for t in range(steps + 1):
            if t % every == 0:
                curves[name][seed, t // every] = loss(adapted(theta, test_tasks), test_tasks.query).mean()
            if t < steps:
                theta = theta - beta * slope(theta, batches[t])

# %%
t_value = stats.t.ppf(0.975, runs - 1)


def over_runs(values):
    """Return the mean over runs and the half-width of its 95 % interval, from values (runs, ...)."""
    return values.mean(0), t_value * values.std(0) / runs**0.5


styles = {
    "pooled training": (GREY, ":"),
    "first order (FOMAML)": (VERMILLION, "--"),
    "second order (MAML)": (BLUE, "-"),
}
x = torch.arange(0, steps + 1, every)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
for name, values in curves.items():
    mean, half = over_runs(values)
    colour, line = styles[name]
    axes[0].plot(x, mean, color=colour, linestyle=line, label=name)
    axes[0].fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
axes[0].set(ylabel="query loss after one inner step", title="Test tasks during training", ylim=(0.38, 0.56))
axes[0].legend(frameon=False)
mean, half = over_runs(curves["first order (FOMAML)"] - curves["second order (MAML)"])
axes[1].axhline(0, color=GREY, linewidth=1)
axes[1].plot(x, mean, color=INK)
axes[1].fill_between(x, mean - half, mean + half, color=INK, alpha=0.15, linewidth=0)
axes[1].set(ylabel="difference of the losses", title="First order minus second order", ylim=(-0.04, 0.02))
for ax in axes:
    ax.set(xlabel="outer steps", xlim=(0, steps))
plt.show()

print("query loss after one inner step, means over ten runs")
print(f"first minus second order after  50 steps: {mean[5]:+.4f} ± {half[5]:.4f}")
print(f"first minus second order after 400 steps: {mean[-1]:+.4f} ± {half[-1]:.4f}")
gain, gain_half = over_runs(curves["second order (MAML)"] - curves["pooled training"])
print(f"second order minus pooled after 400 steps: {gain[-1]:+.4f} ± {gain_half[-1]:.4f}")
assert mean[5] + half[5] < 0  # first order is ahead at first
assert abs(mean[-1]) < 0.005  # in the end there is no difference that matters
assert gain[-1] + gain_half[-1] < -0.01  # and both are better than pooled training

# %% [markdown]
# Lines are means over the ten runs and bands their 95 % intervals. First order is as good here as second
# order. At the same outer rate it even gets there sooner, because its gradient is longer.
#
# ### Why they end in the same place
#
# $H = \frac1n \sum_j p_j (1 - p_j)\, \tilde x_j \tilde x_j^\top$ contains the support points and not their
# labels. If all tasks had the *same* support points, they would have the same $H$, and it could be taken
# out of the mean:
#
# $$\operatorname{mean}_i\, (I - \alpha H)\, \nabla L_i^Q(\theta'_i)
# = (I - \alpha H)\, \operatorname{mean}_i \nabla L_i^Q(\theta'_i).$$
#
# With $I - \alpha H$ invertible, one side is zero where the other is, so both methods would stop at the
# same points. This is the case of equal $h_i$ in section 2.

# %%
same_points = Samples(batch.support.x[:1].expand(25, 5, 2), batch.support.y)
same = Episode(same_points, batch.query)
theta = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
factor = identity - alpha * hessian(theta, same_points)[0]
second, first = meta_gradient(theta, same), meta_gradient(theta, same, first_order=True)
print("second order         ", [round(v, 12) for v in second.tolist()])
print("(I - alpha H) first  ", [round(v, 12) for v in (factor @ first).tolist()])
assert torch.allclose(second, factor @ first, rtol=0, atol=1e-12)

# %% [markdown]
# Our tasks have different support points, but these are drawn without regard to the task's line, so $H_i$
# differs only by chance. In deep nets there is no such argument. There, too, first order is often nearly as
# good (Finn et al., 2017, table 1), but it has to be measured.
#
# ## Where to go from here
#
# - [The second notebook](02_the_task_relation_model.ipynb) writes the weights of a task by a network that
#   reads the support set.
# - `MAML` is a `LightningModule`. To train it with Lightning's `Trainer`, see "Use it from Python" in [the
#   README](../README.md). From the command line, these tasks are
#   `python train.py algo=maml data=hyperplane data.dimensions=2 data.clusters=3 data.shots=5`.
# - Things to try here: more inner steps, other inner rates (what happens at $\alpha = 10$?), and directions
#   without clusters, `clusters=0`.
#
# ### References
#
# - C. Finn, P. Abbeel, S. Levine. Model-agnostic meta-learning for fast adaptation of deep networks. ICML
#   2017.
# - A. Nichol, J. Achiam, J. Schulman. On first-order meta-learning algorithms. arXiv:1803.02999, 2018.
