"""The number of torch's threads that a run computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from innerloop.devices.ranks import share_of_cores
from innerloop.learners import MetaLearner


def is_dense(learner: MetaLearner) -> bool:
    """Return True if the learner's tensors are so small that even the CPU runs all tasks at once."""
    return learner.engine.resolve(torch.device("cpu")) == "vmap"


def set_threads(trainer: DictConfig, learner: MetaLearner) -> None:
    """Set the number of torch's threads of a run."""
    # The tensors of dense nets are too small to share: threads would only wait for each other, long on a busy machine.
    threads = trainer.threads or (1 if is_dense(learner) else share_of_cores(trainer))
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def threads_of(trainer: DictConfig, learner: MetaLearner) -> Iterator[None]:
    """Compute with the run's number of threads, and with those of before after that."""
    before = torch.get_num_threads()
    set_threads(trainer, learner)
    try:
        yield
    finally:
        torch.set_num_threads(before)
