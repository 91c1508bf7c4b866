"""Instruction tuning with TRL's `SFTTrainer`, by our losses.

TRL (1.16) replaces the loss of a model by its own: hidden states of the backbone times the matrix of the head, over
labels that are text. Image tokens that are vectors would teach nothing there, nor would labels on slots have a meaning.
Here TRL keeps what it does around the loss (its arguments, adapters, quantised models, memory), and the loss is that of
`UnifiedTrainer`: so the language model with its rows, the tower, the projector and the image head are all trained, and
by the same gradients.

Conversations come from a `Mixture`, in our format, and are laid out by our `Collator`: what the assistant says or draws
is predicted. TRL's options that would lay them out, or change the loss, are refused.
"""

from dataclasses import fields
from typing import Any

import datasets
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from train.mixture import Mixture
from train.trainer import LossesPerKind

WITHOUT_EFFECT = (
    "assistant_only_loss", "completion_only_loss", "dataset_kwargs", "label_smoothing_factor", "loss_type", "packing",
    "padding_free", "shuffle_dataset",
)  # fmt: skip


class UnifiedSFTTrainer(LossesPerKind, SFTTrainer):
    """TRL's `SFTTrainer` with our losses and whole checkpoints.

    Args:
        model: a `UnifiedForConditionalGeneration`, or a `PeftModel` around one (`train.lora`).
        args: a `SFTConfig`, or plain arguments of transformers' Trainer.
        train_dataset: a `Mixture`.
        others: of `LossesPerKind` and of `SFTTrainer`.

    Raises:
        ValueError: options of TRL that have no effect here.
    """

    def __init__(self, model: Any, args: TrainingArguments, train_dataset: Mixture, **others):
        refuse_without_effect(args)
        # TRL insists on a data set of its kind, looks at its first row and prepares it: none of this is for ours.
        stand_in = datasets.Dataset.from_list([{"index": 0}])
        super().__init__(model=model, args=args, train_dataset=stand_in, **others)
        self.train_dataset = train_dataset
        self.args.remove_unused_columns = False  # the collator takes whole samples

    def _prepare_dataset(self, dataset: datasets.Dataset, *args, **kwargs) -> datasets.Dataset:
        return dataset


def refuse_without_effect(args: TrainingArguments) -> None:
    defaults = {field.name: field.default for field in fields(SFTConfig)}
    changed = [name for name in WITHOUT_EFFECT if getattr(args, name, defaults[name]) != defaults[name]]
    if changed:
        given = ", ".join(f"{name}={getattr(args, name)!r}" for name in changed)
        raise ValueError(
            f"{given} has no effect here, where the Collator lays out conversations and the loss is the model's own: "
            "leave it out (samples share rows with packed_length of this trainer)"
        )
