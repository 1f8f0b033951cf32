"""What is possible without meta-learning, and the Bayes limit, on the synthetic tasks.

    python scripts/baselines.py data=hyperplane
    python scripts/baselines.py data=hyperplane data.clusters=0 test.episodes=2000
    python scripts/baselines.py data=multimodal

Mean and 95 % confidence interval over the test episodes that train.py and evaluate.py use (test.seed=0): the Bayes
prediction, and for classification a logistic regression for each task. Any value of the data's configuration can be
given. The Bayes prediction takes about 10 ms per episode.
"""

import sys
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from innerloop.episodes import episode_rng  # noqa: E402
from innerloop.errors import InputError  # noqa: E402
from innerloop.metrics import summarize  # noqa: E402
from innerloop.runs.build import DATA_MODULE_KEYS, make_tasks  # noqa: E402
from innerloop.tasks.baselines import baselines  # noqa: E402


def main(argv: list[str]) -> None:
    """Print one line for each baseline. Raises InputError for what is not possible."""
    torch.set_num_threads(1)  # for tensors this small, threads would only wait for each other
    overrides = OmegaConf.from_dotlist([a for a in argv if not a.startswith("data=")])
    name = next((a.removeprefix("data=") for a in argv if a.startswith("data=")), "hyperplane")
    path = ROOT / "conf" / "data" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"data={name}: there is no {path.relative_to(ROOT)}")
    data = cast(DictConfig, OmegaConf.merge(OmegaConf.load(path), overrides.get("data", {})))
    left_out = ("defaults", "test_episodes", *DATA_MODULE_KEYS)
    tasks = make_tasks({str(k): v for k, v in data.items() if k not in left_out})
    episodes = OmegaConf.select(overrides, "test.episodes", default=data.test_episodes)
    seed = OmegaConf.select(overrides, "test.seed", default=0)
    batch = tasks.draw("test", [episode_rng(seed, "test", i) for i in range(episodes)])
    found = baselines(tasks, batch)  # type: ignore[arg-type]
    print(f"data={name}, {episodes} test episodes, test.seed={seed}")
    for baseline, values in found.items():
        s = summarize(values)
        print(f"{baseline}: {tasks.metric} {s['mean']:.4f} ± {s['ci95']:.4f}, median {s['median']:.4f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"baselines.py: {error}")
