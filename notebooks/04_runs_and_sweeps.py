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
# # Runs and sweeps
#
# The other notebooks use innerloop as a library. This one uses its commands, as an experiment with several
# learners and seeds would:
#
# 1. train three learners with two seeds each, in one sweep;
# 2. read the sweep as a table and as figures;
# 3. load one of its runs and adapt it to data of our own;
# 4. look at what Weights & Biases receives.
#
# Everything is written to a temporary folder, which the last cell deletes. The notebook takes about a minute.

# %%
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image
from matplotlib.ticker import MaxNLocator

import innerloop
from innerloop.episodes import Samples
from innerloop.runs.report.style import log_where_wide
from innerloop.sweeps import summary

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "train.py").exists())
folder = tempfile.TemporaryDirectory()
WORK = Path(folder.name)

plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"


def command(script, *arguments):
    """Run a script of the repository in the temporary folder and return what it prints."""
    environment = os.environ | {"WANDB_MODE": "offline"}
    call = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(call, cwd=WORK, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# %% [markdown]
# ## A sweep
#
# In a terminal the next cell would be
#
# ```bash
# python train.py -m algo=maml,hypernet,hybrid seed=0,1 trainer.max_steps=800 \
#     trainer.val_every=200 test.episodes=500 trainer.accelerator=cpu sweep=sweep
# ```
#
# `-m` asks for a sweep, and every value with commas is varied: three algorithms times two seeds are six runs.
# The tasks are sine waves, `data=sinusoid`, which is the default. We train for 800 meta-batches instead of
# the default's thousands, with four validations.

# %%
SWEEP = (
    "-m",
    "algo=maml,hypernet,hybrid",
    "seed=0,1",
    "trainer.max_steps=800",
    "trainer.val_every=200",
    "test.episodes=500",
    "trainer.accelerator=cpu",
    "sweep=sweep",
)
printed = command("train.py", *SWEEP)
print(printed.splitlines()[-1].partition(" in ")[0])

runs = sorted(path.name for path in (WORK / "sweep").glob("*-sinusoid_seed*"))
print("\n".join(runs))
assert len(runs) == 6

# %% [markdown]
# Each run has a directory with everything that is known about it. `results.json` has the result, and
# `config.yaml`, `overrides.yaml` and `environment.json` say how it was obtained.

# %%
for path in sorted((WORK / "sweep" / runs[0]).iterdir()):
    print(path.name + "/" * path.is_dir())

# %% [markdown]
# A sweep may be killed at any time, and the same command continues it. Our sweep is finished, so the same
# command starts no run. It leaves all files as they are.

# %%
before = {path: path.stat().st_mtime_ns for path in (WORK / "sweep").glob("*/results.json")}
print(command("train.py", *SWEEP).splitlines()[-1].partition(" in ")[0])
assert before == {path: path.stat().st_mtime_ns for path in (WORK / "sweep").glob("*/results.json")}

# %% [markdown]
# ## The sweep as a table
#
# `scripts/summarize.py` prints one row for each configuration, averaged over its seeds. It works while a sweep
# runs, too.

# %%
printed = command("scripts/summarize.py", "sweep")
print(printed[: printed.index("best by validation")].rstrip())

# %% [markdown]
# From Python the same table is a list of dictionaries. All runs were tested on the same 500 tasks, so the
# difference to MAML is paired: it is computed task by task, and its interval is narrower than the intervals of
# the two means suggest.

# %%
table = {row["algo"]: row for row in summary(WORK / "sweep", against="algo=maml")}
for algo, row in table.items():
    line = f"{algo:9} test MSE {row['test']:.3f} ± {row['test_over_episodes_ci95']:.3f}"
    if row["difference"] is not None:
        line += f"   to maml {row['difference']:+.3f} ± {row['difference_over_episodes_ci95']:.3f}"
    print(line)

for algo in ("hypernet", "hybrid"):
    unpaired = np.hypot(table["maml"]["test_over_episodes_ci95"], table[algo]["test_over_episodes_ci95"])
    assert table[algo]["difference"] < -table[algo]["difference_over_episodes_ci95"]
    assert table[algo]["difference_over_episodes_ci95"] < unpaired
assert [algo for algo, row in table.items() if row["best"]] == ["hybrid"]

# %% [markdown]
# With this small budget the hypernetwork has a lower error than MAML, and the hybrid has the lowest. The
# star in the table marks the best configuration by *validation* error. To choose by test error and then report
# that same error would make it look better than it is.
#
# `summarize.py` also draws figures into `sweep/summary`. The first shows the test error of each seed with the
# interval over seeds; with two seeds this interval is very wide, so it is better to train more seeds
# before claiming anything about the algorithms.

# %%
Image(WORK / "sweep" / "summary" / "bars.png", width=720)

# %% [markdown]
# The second shows the validation error during training. The band spans the two seeds.

# %%
Image(WORK / "sweep" / "summary" / "curves.png", width=720)

# %% [markdown]
# ## Load a run
#
# `innerloop.load` returns a run with its trained learner, its tasks, its configuration and its results. The
# directory may have been moved, and may come from another machine.

# %%
run = innerloop.load(next((WORK / "sweep").glob("*_hybrid-sinusoid_seed0")))
mse = run.results["test"]["mse"]
print(f"{run.config['algo']['name']} after {run.results['steps']} meta-batches")
print(f"test MSE {mse['mean']:.3f} ± {mse['ci95']:.3f}, reported after {run.step} inner steps")

# %% [markdown]
# `run.adapt(support)` returns the weights of a task, and `run.predict(weights, x)` the predictions under these
# weights. On a test task this repeats what the test computed: the error equals the one recorded in
# `test_episodes.csv`.

# %%
support, query = run.data.episode("test", 0)
weights = run.adapt(support)
error = float((run.predict(weights, query.x) - query.y).square().mean())

with open(run.path / "test_episodes.csv") as file:
    rows = [row for row in csv.DictReader(file) if row["episode"] == "0"]
recorded = float(next(row["mse"] for row in rows if row["step"] == str(run.step)))
print(f"computed {error:.6f}, recorded {recorded:.6f}")
assert np.isclose(error, recorded, rtol=1e-5)

# %% [markdown]
# ## Adapt it to data of our own
#
# The learner was trained on sine waves $y = A \sin(x - \varphi)$ without noise. Our data are twelve measurements of
# such a wave with noise of standard deviation 0.2. A support set is a `Samples` of inputs `(n, 1)` and targets
# `(n, 1)`.

# %%
rng = np.random.default_rng(0)
x = np.sort(rng.uniform(-5, 5, 12))
y = 2.5 * np.sin(x - 1.0) + 0.2 * rng.standard_normal(12)
measured = Samples(torch.tensor(x, dtype=torch.float32)[:, None], torch.tensor(y, dtype=torch.float32)[:, None])

grid = torch.linspace(-5, 5, 200)[:, None]
truth = 2.5 * torch.sin(grid - 1.0)
curves = {steps: run.predict(run.adapt(measured, steps=steps), grid) for steps in (0, 1, 10)}
errors = {steps: float((curve - truth).square().mean()) for steps, curve in curves.items()}

figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
ax.plot(grid, truth, color=GREY, linestyle="--", label="true function")
labels = {0: "written by the hypernetwork", 1: "after 1 gradient step", 10: "after 10 gradient steps"}
for (steps, curve), colour in zip(curves.items(), (GREEN, VERMILLION, BLUE), strict=True):
    ax.plot(grid, curve, color=colour, label=f"{labels[steps]}: MSE {errors[steps]:.3f}")
ax.plot(x, y, "o", color="black", markersize=5, label="our measurements")
ax.set(xlabel="x", ylabel="y", xlim=(-5, 5), title="A trained run, adapted to twelve measurements")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

assert errors[10] < errors[0]
assert errors[10] < 0.5 * float(truth.square().mean())

# %% [markdown]
# The gradient steps bring the function closer to the truth than what the hypernetwork wrote.
#
# ## Evaluate it on other tasks
#
# `run.evaluate` repeats the test with other values of the data's settings, here with 5 instead of 10 support
# points. In a terminal: `python evaluate.py run=RUN data.shots=5 test.episodes=500`.

# %%
by_shots = {shots: run.evaluate(episodes=500, data={"shots": shots})["test"]["mse"] for shots in (5, 10, 20)}
for shots, value in by_shots.items():
    print(f"{shots:2} support points: test MSE {value['mean']:.3f} ± {value['ci95']:.3f}")
assert by_shots[5]["mean"] > by_shots[10]["mean"] > by_shots[20]["mean"]
assert by_shots[10]["mean"] == mse["mean"]

# %% [markdown]
# With 10 points it is exactly the recorded result: the test episodes are a function of the seed, and of
# nothing else. Fewer points give a larger error.
#
# ## What Weights & Biases receives
#
# Every run logged to W&B. This notebook set `WANDB_MODE=offline`, so the data wait in `RUN/wandb/offline-run-*` until
# `wandb sync` uploads them. W&B's own command `wandb leet inspect` reads such a file.

# %%
wandb = str(Path(sys.executable).with_name("wandb"))


def offline(directory, *flags):
    """Return what W&B's command prints about the offline run of a run directory."""
    (path,) = directory.glob("wandb/offline-run-*")
    call = [wandb, "leet", "inspect", "--json", *flags, str(path)]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


received = json.loads(offline(run.path, "--summary"))
print("name: ", received["name"])
print("tags: ", ", ".join(sorted(received["tags"])))
records = [json.loads(line) for line in offline(run.path).splitlines()]
history = [record["history"]["item"] for record in records if record["type"] == "history"]
names = sorted({name for item in history for name in item if name.count("/") == 1})
logged = [name for name in names if name.startswith(("train/", "val/", "adaptation/"))]
print("logged:", ", ".join(logged))
assert {"train/loss", "val/mse", "adaptation/mse_mean"} <= set(logged)

# %% [markdown]
# The runs of a sweep share a group, so that a W&B page shows them together. The training and validation
# curves, and the error over the inner steps of adaptation, are among what the page draws:

# %%
shown = {
    "train/mse": ("trainer/global_step", "meta-batches"),
    "val/mse": ("trainer/global_step", "meta-batches"),
    "adaptation/mse_mean": ("adaptation/step", "inner steps on test tasks"),
}
figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
for ax, (name, (over, label)) in zip(axes, shown.items(), strict=True):
    points = np.array([(item[over], item[name]) for item in history if name in item])
    ax.plot(*points.T, marker="o", markersize=3, color=BLUE)
    ax.set(title=name, xlabel=label)
    log_where_wide(ax, "mse", points[:, 1])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
axes[0].set_ylabel("mean squared error")
plt.show()

# %%
folder.cleanup()

# %% [markdown]
# Next: [docs/sweeps.md](../docs/sweeps.md) describes searches by Optuna and launchers that run several jobs at a
# time, and [docs/tracking.md](../docs/tracking.md) everything that is logged.
