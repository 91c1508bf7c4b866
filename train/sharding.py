"""Weights, gradients and the optimiser's numbers shared by all processes (PyTorch's FSDP2), as `accelerate launch` asks
for with `train/launch/fsdp2.yaml`.

Groups, each gathered and given back as one:

    layers     every layer of the language model is a group, gathered when it is called
    the rest   embedding, head, tower, projector, image head, in the root's group: gathered when the model is called,
               kept until its backward pass has ended
    codec      not shared: it is frozen, small beside the rest, and stays in float32

accelerate (1.15) would make groups of their own of embedding and head. Those are gathered once for each call, and how
often a process calls them depends on its batch: one without an image, or with fewer chunks of text, then waits for
gradients while the others wait for weights. In the root's group the head is a plain matrix too while it is used, so
that `modeling_unified.language_head_unified` makes its losses and gradients at once.

What no image of a process's batch has used gets no gradient there. It is counted as zero where another process has one
(`set_reduce_scatter_unused_params`), and left out of the update where none has, as one process leaves it out: Adam
would move it by what it remembers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


def share_weights(model: nn.Module, unified: Any, accelerator: Accelerator) -> None:
    """Shares the weights of `model` in place: of `unified`, a `UnifiedForConditionalGeneration`, or of adapters around
    it. To be called before the optimiser is made. accelerate takes the model as it is then.

    With bfloat16 weights are gathered in it, while gradients are added up in float32 and losses stay float32.

    Raises:
        ValueError: a backbone that does not say which its layers are.
    """
    plugin = accelerator.state.fsdp_plugin
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    options = {
        # Inputs are not cast: pixels would lose what tells their codes apart.
        "mp_policy": MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False),
        "offload_policy": plugin.cpu_offload,
        "ignored_params": set(unified.model.codec.parameters()),
    }
    backbone = unified.model.language_model
    kinds = set(backbone._no_split_modules or ())
    layers = [module for module in backbone.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ValueError(
            f"{type(backbone).__name__} has no layers of the kinds {sorted(kinds)} that it names as its layers "
            "(_no_split_modules): its weights cannot be shared, use another backbone or train/launch/ddp.yaml"
        )
    unified.model.codec.to(accelerator.device)
    for layer in layers:
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)
    model.set_reduce_scatter_unused_params(True)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, the root's group is whole on every process, all of which must enter. Nothing happens to a model that is
    not shared."""
    shared = isinstance(model, FSDPModule)
    if shared:
        model.unshard()
    try:
        yield
    finally:
        if shared:
            model.reshard()


@contextmanager
def as_itself(model: nn.Module) -> Iterator[None]:
    """Within, a shared model has its own class, whose files `save_pretrained` shall write: `fully_shard` has given it
    one of PyTorch's, made of both."""
    shared = type(model)
    if issubclass(shared, FSDPModule):
        model.__class__ = next(base for base in shared.__bases__ if base is not FSDPModule)
    try:
        yield
    finally:
        model.__class__ = shared


class LeaveOutUnused(TrainerCallback):
    """Takes the gradient from parameters of the root's group that no process has used since the last update."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.model, self.accelerator = model, accelerator
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.watched: set[str] = set()
        self.used: set[str] = set()

    def watch(self) -> None:
        """To be called after a forward pass, when the parameters of the root's group are whole: from then on it notes
        which of them get a gradient."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in self.watched and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.used.add(name))
                self.watched.add(name)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        used_N = torch.tensor([name in self.used for name in self.names], device=self.accelerator.device)
        used_by_any_N = self.accelerator.reduce(used_N.int(), "sum").tolist()
        for name, parameter in self.model.named_parameters():
            if name in self.watched and not used_by_any_N[self.names.index(name)]:
                parameter.grad = None
        self.used.clear()
