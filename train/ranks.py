"""Several processes at one task: what they know is added, compared and gathered with torch.distributed over gloo.

Started by `accelerate launch`, `torchrun` or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A
process alone needs none of them, and every function gives back what it was given.

Arrays have any shape; `gather` joins them along the first dimension, in the order of the ranks.
"""

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def join() -> None:
    """Meets the other processes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def add(array: np.ndarray) -> np.ndarray:
    """The sum over processes, in place; the same bits in every process."""
    return _reduce(array, dist.ReduceOp.SUM)


def largest(array: np.ndarray) -> np.ndarray:
    """The maximum over processes, in place."""
    return _reduce(array, dist.ReduceOp.MAX)


def _reduce(array: np.ndarray, operation: Any) -> np.ndarray:
    if world() > 1:
        dist.all_reduce(torch.from_numpy(array), operation)  # shares the array's memory
    return array


def gather(array: np.ndarray) -> np.ndarray:
    """Rows of all processes; each may bring another number of them."""
    return np.concatenate(gather_objects(array))


def gather_objects(value: Any) -> list[Any]:
    """One value of each process, in the order of the ranks."""
    values = [value]
    if world() > 1:
        values *= world()
        dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The value that the first process has."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]
