"""Residual dropout: what attention and MLP of each layer say is dropped in part before it is added to the stream.

UniToken's code trains with 0.05 of it. The backbone is an unmodified model of transformers, most of which have no such
dropout: so it is hung on its layers for the time of the training, and nothing of it is saved. It draws from torch's
global generator, whose state is in every checkpoint.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainerCallback

BRANCHES = ("self_attn", "mlp")  # of a layer, in the words of transformers


class ResidualDropout(TrainerCallback):
    """Drops a share `probability` of the branches' outputs while the model is in training mode.

    A backbone that norms the outputs of its branches (Gemma-2) has them dropped before that norm.

    Raises:
        ValueError: a probability outside [0, 1); at the beginning of the training, a backbone whose layers have no
            branches of these names.
    """

    def __init__(self, probability: float):
        if not 0 <= probability < 1:
            raise ValueError(f"dropout {probability} must be at least 0 and below 1")
        self.probability = probability
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        backbone = model.model.language_model
        for layer in getattr(backbone, "layers", [backbone]):
            missing = [name for name in BRANCHES if not hasattr(layer, name)]
            if missing:
                raise ValueError(
                    f"layers of {type(backbone).__name__} have no {' and no '.join(missing)}, whose outputs dropout "
                    f"{self.probability} is for: set dropout to 0, or use a backbone that has them"
                )
            self.handles += [getattr(layer, name).register_forward_hook(self._drop) for name in BRANCHES]

    def on_train_end(self, args, state, control, **kwargs):
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _drop(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: its output and its weights
            return self._drop(module, args, output[0]), *output[1:]
        return F.dropout(output, self.probability, module.training)
