"""The processes that share a run, and the device of this one: `processes().process_index`, `.device`, ..."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """As `torchrun` or `accelerate launch` have started them; one alone otherwise. Where there is no accelerator, CPU
    processes meet over gloo, which accelerate does only if it is told."""
    return PartialState(cpu=not torch.accelerator.is_available())
