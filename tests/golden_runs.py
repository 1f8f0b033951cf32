"""Short runs whose numbers are kept in golden.json: python tests/golden_runs.py CHECKOUT OUT runs them all.

OUT gets a golden.json with the results and with digests of weights and files. On one machine a refactoring changes none
of them. Across machines the results agree to the tolerance that test_golden.py states.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHORT = (
    "trainer=cpu",
    "trainer.max_steps=12",
    "trainer.val_every=6",
    "trainer.val_episodes=6",
    "trainer.log_every=3",
    "trainer.threads=1",
    "test.episodes=10",
    "data.meta_batch_size=4",
    "logger=csv",
    "seed=3",
)
LEARNERS = ("maml", "hypernet", "hybrid")
DATA = ("sinusoid", "multimodal", "hyperplane", "glyphs")
GOLDEN: dict[str, tuple[str, ...]] = {
    **{f"{algo}-{data}": (f"algo={algo}", f"data={data}") for algo in LEARNERS for data in DATA},
    "alternating": ("algo=hybrid", "data=hyperplane", "algo.update=alternating", "algo.generator_lr=0.001"),
    "ragged": ("algo=protonet", "data=glyphs", "data.min_ways=2", "data.shots=3", "data.min_shots=1"),
    "bf16-mixed": ("algo=maml", "data=glyphs", "trainer.precision=bf16-mixed", "algo.inner_steps=2"),
    "two-ranks": ("algo=maml", "data=sinusoid", "trainer=ddp_cpu", "trainer.devices=2"),
}
UNREPEATABLE = ("train_seconds", "train_cpu_seconds", "steps_per_second", "peak_memory_mb", "peak_gpu_memory_mb")


def overrides(name: str, run_dir: Path, cache: Path) -> list[str]:
    """What the golden run of this name is trained with. cache: where the glyphs are drawn."""
    chosen = GOLDEN[name]
    glyphs = [f"data.cache={cache}"] if "data=glyphs" in chosen else []
    return [*SHORT, *chosen, *glyphs, f"hydra.run.dir={run_dir}"]


def results_of(run_dir: Path) -> dict[str, Any]:
    """results.json without times and memory."""
    found = json.loads((run_dir / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in UNREPEATABLE}


def digests_of(run_dir: Path) -> dict[str, str]:
    """Digests of the weights of both checkpoints, and of the files that hold nothing but numbers of the run."""
    import torch

    found = {}
    for name in ("best", "last"):
        weights = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=False)["state_dict"]
        digest = hashlib.sha256()
        for key in sorted(weights):
            digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
        found[f"{name}.ckpt"] = digest.hexdigest()
    for name in ("metrics.csv", "test_episodes.csv"):
        found[name] = hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
    return found


def main(checkout: Path, out: Path) -> None:
    """Runs all golden runs with a checkout's train.py, in processes of their own; out: a new folder."""
    found = {}
    for name in GOLDEN:
        run_dir = out / name
        command = [sys.executable, str(checkout / "train.py"), *overrides(name, run_dir, out / "cache")]
        subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
        found[name] = {"results": results_of(run_dir), "digests": digests_of(run_dir)}
        print(name, found[name]["digests"]["last.ckpt"][:12], file=sys.stderr, flush=True)
    (out / "golden.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
