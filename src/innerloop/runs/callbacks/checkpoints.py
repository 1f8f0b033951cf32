"""The checkpoints of a run, in a directory that may be moved or copied."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from innerloop.runs.record import read_checkpoint, write_checkpoint


class RunCheckpointIO(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoints by `read_checkpoint` and `write_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose state survives a move of the run directory.

    Lightning records absolute paths and, in another place, forgets how good the best checkpoint was. Then the next
    validation would overwrite it, however bad.
    """

    @cached_property
    def state_key(self) -> str:  # asked for in every hook of every step
        # The key under which checkpoints have the state of Lightning's own class.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        here = Path(self.dirpath)

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths = {name: moved(state_dict[name]) for name in names}
        models = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath})
