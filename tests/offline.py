"""Reads the files of an offline W&B run, by W&B's own public command."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OfflineRun:
    """One offline-run-* directory."""

    directory: Path

    def _inspect(self, *flags: str) -> str:
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *flags]
        return subprocess.run([*command, str(self.directory)], check=True, capture_output=True, text=True).stdout

    @cached_property
    def summary(self) -> dict[str, Any]:
        """state, exit_code, name, tags, config, summary, …"""
        return json.loads(self._inspect("--summary"))

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._inspect().splitlines()]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind: run, history, metric, stats, artifact, …"""
        return [record[kind] for record in self._records if record["type"] == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows in order; dots lead into what a value consists of."""
        return [record["item"] for record in self.records("history")]


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """The offline W&B runs of a run directory, the oldest first: one for each time that it was started."""
    return [OfflineRun(path) for path in sorted(run_dir.glob("wandb/offline-run-*"))]
