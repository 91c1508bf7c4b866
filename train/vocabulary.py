"""Progressive vocabulary learning (UGen, arXiv 2503.21193, Algorithm 1) as a callback of the Trainer.

The active set of image codes starts empty and grows during training. A code outside it is `[MASK]` in inputs and
targets and cannot be sampled; the model does that itself by looking at the bool buffer `image_head.active_codes [K]`,
and this callback is the only writer of that buffer.

Two functions describe a way to grow:
    schedule: step -> how many codes are active at that step (never decreasing; rounded down, at most K)
    order:    which code joins at which place (a permutation of 0..K-1)
The paper's is `every(k)` with `random_order(K, seed)`. Others are one line, e.g. `linear(steps, K)` and
`by_frequency(codes, K)`.
The vanilla baseline (all codes active from step 0) has no such callback; `every(math.inf)` never activates any.

K codes
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

logger = logging.get_logger(__name__)


def every(steps_per_code: float) -> Callable[[int], float]:
    """One code every `steps_per_code` steps (the paper's k); below 1 several join per step, `math.inf` is never."""
    if not steps_per_code > 0:
        raise ValueError(f"steps_per_code is {steps_per_code}, it must be above 0; math.inf activates no code ever")
    return lambda step: step / steps_per_code


def linear(steps: int, num_codes: int) -> Callable[[int], float]:
    """All `num_codes` codes are active after `steps` steps, at an even pace."""
    return lambda step: num_codes * step / steps


def random_order(num_codes: int, seed: int) -> list[int]:
    """Draws without replacement, as one permutation fixed by the seed."""
    return np.random.default_rng([seed, num_codes]).permutation(num_codes).tolist()


def by_frequency(codes: Sequence[int] | np.ndarray, num_codes: int) -> list[int]:
    """The most frequent code of `codes` (any shape) first; ties by code number."""
    counts = np.bincount(np.asarray(codes).reshape(-1), minlength=num_codes)
    return np.argsort(-counts, kind="stable").tolist()


class ProgressiveVocabulary(TrainerCallback, ExportableState):
    """Sets `active_codes` before every step. Its state is written to each checkpoint; a resumed run keeps the order it
    was started with, so it has the active set of a run that never stopped.

    Args:
        order: permutation of the codes; its length is the number of codes K.
        schedule: step -> number of active codes before that step's forward pass.
    """

    def __init__(self, order: Sequence[int], schedule: Callable[[int], float]):
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order has {len(order)} places for {len(set(order))} codes: name each of 0..K-1 once")
        self.order = list(order)
        self.schedule = schedule
        self.num_active = 0

    def state(self) -> dict:
        """JSON for the checkpoint. The schedule is a function and comes from the recipe again."""
        return {"args": {"order": self.order}, "attributes": {"num_active": self.num_active}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        head = model.model.image_head
        if len(self.order) != head.active_codes.numel():
            raise ValueError(f"the order names {len(self.order)} codes, the model has {head.active_codes.numel()}")
        if state.global_step:
            self.order = state.stateful_callbacks[type(self).__name__]["args"]["order"]
        self._activate(head, self.count_at(state.global_step))
        if self.count_at(state.max_steps) < len(self.order):
            logger.warning(
                f"after all {state.max_steps} steps {self.count_at(state.max_steps)} of {len(self.order)} codes are "
                "active: the others will stay masked and cannot be drawn"
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        count = self.count_at(state.global_step)
        if count != self.num_active:
            self._activate(model.model.image_head, count)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        # The schedule is asked before a step; a run whose last step completes the set must not end one step short.
        self._activate(model.model.image_head, self.count_at(state.global_step))

    def count_at(self, step: int) -> int:
        """Number of active codes when `step` updates have been made."""
        return min(len(self.order), math.floor(self.schedule(step)))

    def _activate(self, head: torch.nn.Module, count: int) -> None:
        active_K = torch.zeros_like(head.active_codes)
        active_K[self.order[:count]] = True
        head.active_codes.copy_(active_K)
        self.num_active = count
