"""What a run leaves behind: its recipe, checked on resume, and the record of how it went.

output/
  recipe.json     what is being run; a resumed run must be of the same recipe
  checkpoint-N/   whole checkpoints, the last two or as many as the recipe keeps
  training.json   when finished: recipe, steps, time, packages, last losses; of a language model also `samples` of each
                  source, those of this run alone: what the runs of `steps_before` have seen, their own records say
"""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

PROBE = ".can-be-written"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "diffusers", "tokenizers", "numpy")


def open_run(recipe: Any, output: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, if any. Only whole checkpoints carry that name (see `train.checkpoints`).

    Raises:
        ValueError: a folder that cannot be written, that holds a run already, or one of another recipe.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / PROBE).touch()
        (output / PROBE).unlink()
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}): choose another --output") from error
    checkpoint = get_last_checkpoint(output)
    if checkpoint and not resume:
        raise ValueError(f"{output} holds {Path(checkpoint).name} already: pass --resume, or choose another --output")
    record, wanted = output / "recipe.json", to_json(recipe)
    if checkpoint and record.exists():
        # A field that did not exist when the run began had the value that is now its default.
        stored = to_json(type(recipe)(name=recipe.name)) | json.loads(record.read_text())
        changed = sorted(key for key in wanted | stored if wanted.get(key) != stored.get(key))
        if changed:
            differences = ", ".join(f"{key} {stored.get(key)!r} -> {wanted.get(key)!r}" for key in changed)
            raise ValueError(f"{output} was started with another recipe ({differences}): choose another --output")
    write_json(record, wanted)
    return checkpoint


def describe_run(recipe: Any, trainer: Trainer, **extra: Any) -> dict[str, Any]:
    """The record of a finished run."""
    logs = [row for row in trainer.state.log_history if "seconds" in row]
    seconds = logs[-1]["seconds"]
    return {
        "recipe": to_json(recipe),
        "steps": trainer.state.global_step,
        "seconds": round(seconds),
        "sequences_per_second": round(trainer.state.global_step * recipe.batch_size / seconds, 1),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad),
        "last_log": logs[-1],
        "packages": {name: version(name) for name in PACKAGES},
        **extra,
    }


def to_json(recipe: Any) -> dict[str, Any]:
    """Plain JSON values: tuples become lists, infinity its name."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)), parse_constant=str)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
