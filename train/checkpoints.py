"""Checkpoints that are whole or not there: killed at any moment, a run loses at most what came after the last one.

Processes that train together write one checkpoint, on a file system that they share. Those that share the weights
(`train.sharding`) write them in pieces, where SHARDED_STATE_DICT is asked for:

checkpoint-N/
  config.json, ...         of model and processor
  pytorch_model_fsdp_0/    the weights, a distributed checkpoint of PyTorch's: `train.consolidate` makes a model of it
  optimizer_0/             two numbers of Adam's for each weight, in the same format
"""

import os
import shutil
import time
from pathlib import Path

from peft import PeftModel
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from train.sharding import as_itself

STAGING = "incomplete"


class WholeCheckpoints:
    """Mixed into a `Trainer`: its folders `checkpoint-N` appear in one step, when everything in them is written."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `seconds` of training over all sessions of the run."""
        if "loss" in logs:
            before = [row for row in self.state.log_history if row["step"] <= self._initial_global_step]
            logs["seconds"] = max((row.get("seconds", 0.0) for row in before), default=0.0) + time.time() - start_time
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        self.check_room()
        return super().train(*args, **kwargs)

    def check_room(self) -> None:
        """Refuses a disk that cannot hold the run's checkpoints: those kept, one that is being written, and the model.

        A checkpoint has the weights that are saved, and for each number that is trained two of Adam's.

        Raises:
            ValueError: with the bytes that are needed and those that are free.
        """
        output, args = Path(self.args.output_dir), self.args
        output.mkdir(parents=True, exist_ok=True)
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        whole = sum(t.numel() * t.element_size() for t in self.model.state_dict().values())
        weights = trained if isinstance(self.model, PeftModel) else whole
        count = 1 + min(args.save_total_limit or args.max_steps, args.max_steps // max(1, int(args.save_steps)))
        written = sum(path.stat().st_size for path in output.glob("checkpoint-*/**/*") if path.is_file())
        needed = count * (weights + 2 * trained) + weights - written
        free = shutil.disk_usage(output).free
        if needed > free:
            raise ValueError(
                f"{count} checkpoints and the model need {needed / 1e9:.1f} GB more in {output}, where "
                f"{free / 1e9:.1f} GB are free: make room, or keep fewer (keep_checkpoints)"
            )

    def save_whole(self, folder: Path) -> None:
        """The model alone, loadable by `from_pretrained`. All processes call it, one writes."""
        weights = self.accelerator.get_state_dict(self.model_wrapped)  # of all of them, where they share it
        if self.is_world_process_zero():
            tied = {} if isinstance(self.model, PeftModel) else self.model.all_tied_weights_keys
            weights |= {name: weights[source] for name, source in tied.items()}  # gathered twice, stored once
            with as_itself(self.model):
                self.model.save_pretrained(folder, state_dict=weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with as_itself(self.model):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:  # a pickle that nothing reads; what is pushed holds none
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.args.should_save and self._in_pieces():  # then transformers writes nothing
            for part in (self.model.config, self.model.generation_config, self.processing_class):
                part.save_pretrained(output_dir)

    def _in_pieces(self) -> bool:
        """Whether checkpoints hold the weights of each process, and not one model."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return plugin is not None and "SHARDED" in str(plugin.state_dict_type)

    def _get_output_dir(self, trial) -> str:
        return getattr(self, "_staging_dir", None) or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Writes a checkpoint aside and renames it when whole: a folder `checkpoint-N` is never a half-written one."""
        output, first = Path(self.args.output_dir), self.is_world_process_zero()
        staging = output / STAGING
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()  # all write into it, none before it is empty
        self._staging_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging_dir = None
        self.accelerator.wait_for_everyone()
        if first:
            for checkpoint in list(staging.iterdir()):
                whole = output / checkpoint.name
                if whole.exists():  # the same step, saved before a resume; to delete it takes time, to move it none
                    os.replace(whole, staging / "replaced")
                os.replace(checkpoint, whole)
            shutil.rmtree(staging)
            rotate_checkpoints(str(output), save_total_limit=self.args.save_total_limit, use_mtime=True)
        self.accelerator.wait_for_everyone()


class ResumableTrainer(WholeCheckpoints, Trainer):
    """transformers' `Trainer` with whole checkpoints."""
