"""A recipe in the words of transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from train.recipes.kinds import Recipe


def training_arguments(recipe: Recipe, output: Path, report_to: Sequence[str] = ()) -> TrainingArguments:
    """Samples come in the order of their numbers: resuming skips those already seen without reading them. A batch is
    the same on any number of processes, which share it. Logs go to the services of `report_to` (`check_services`).

    Raises:
        ValueError: a batch that micro-batches and processes do not divide.
    """
    processes = processes_of_run().num_processes
    if recipe.batch_size % (recipe.micro_batches * processes):
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of micro_batches {recipe.micro_batches} x {processes} "
            "processes: change one of them"
        )
    return TrainingArguments(
        output_dir=str(output),
        seed=recipe.seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // recipe.micro_batches // processes,
        gradient_accumulation_steps=recipe.micro_batches,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.max_grad_norm,
        activation_checkpointing=recipe.activation_checkpointing,
        bf16=recipe.bf16 and has_bfloat16(),
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        save_total_limit=recipe.keep_checkpoints,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=list(report_to),
    )


def processes_of_run() -> PartialState:
    """Who else trains. Whoever asks first decides on which devices processes meet, and on CPUs that has to be said."""
    return PartialState(cpu=not torch.accelerator.is_available())


def has_bfloat16() -> bool:
    """Whether bfloat16 is in the hardware: on a CPU without AMX it is emulated, hundreds of times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.accelerator.is_available() or torch.cpu._is_amx_tile_supported()


def check_services(report_to: Sequence[str]) -> None:
    """Services are those that transformers has a callback for, and each needs a package of its own.

    Raises:
        ValueError: a service that transformers does not know (with those that it does), or whose package is missing.
    """
    for name in report_to:
        try:
            get_reporting_integration_callbacks([name])[0]()  # each looks for its package when it is made
        except (ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"--report-to {name}: {error}") from error
