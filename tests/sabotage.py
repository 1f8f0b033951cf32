"""Sinusoids that, in one chosen training, kill or interrupt their process or raise: what sweeps are to survive."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.episodes import Episode, Split
from innerloop.tasks.sinusoid import Sinusoid


class Sabotaged(Sinusoid):
    """plan: a file that may be missing: {"do": kill | interrupt | raise, "draw": n, "run": m, "always": b, "after": p}.

    Acts at the n-th training meta-batch, in the m-th training of this process (any, if there is no "run"), once, and
    not before the plan p, if one is named, has been carried out.
    """

    trained = 0

    def __init__(self, plan: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.plan, self.drawn, self.number = Path(plan), 0, -1

    def draw(self, split: Split, rngs: Sequence[np.random.Generator]) -> Episode:
        self.drawn += split == "train"
        if split == "train" and self.drawn == 1:
            self.number = Sabotaged.trained
            Sabotaged.trained += 1
        if split == "train" and self.plan.exists():
            plan: dict[str, Any] = json.loads(self.plan.read_text())
            if self.drawn == plan["draw"] and plan.get("run", self.number) == self.number:
                while "after" in plan and (self.plan.parent / plan["after"]).exists():
                    time.sleep(0.01)
                if not plan.get("always"):
                    self.plan.unlink()
                if plan["do"] == "raise":
                    raise ArithmeticError("sabotage\nin two lines")
                os.kill(os.getpid(), signal.SIGKILL if plan["do"] == "kill" else signal.SIGINT)
        return super().draw(split, rngs)
