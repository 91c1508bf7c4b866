"""Checkpoints that are whole or not there: killed at any moment, a run loses at most what came after the last one.

Processes that train together write one checkpoint, on a file system that they share.
"""

import os
import shutil
import time
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

STAGING = "incomplete"


class WholeCheckpoints:
    """Mixed into a `Trainer`: its folders `checkpoint-N` appear in one step, when everything in them is written."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `seconds` of training over all sessions of the run."""
        if "loss" in logs:
            before = [row for row in self.state.log_history if row["step"] <= self._initial_global_step]
            logs["seconds"] = max((row.get("seconds", 0.0) for row in before), default=0.0) + time.time() - start_time
        super().log(logs, start_time)

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
            for checkpoint in staging.iterdir():
                shutil.rmtree(output / checkpoint.name, ignore_errors=True)  # the same step, saved before a resume
                os.replace(checkpoint, output / checkpoint.name)
            os.rmdir(staging)
            rotate_checkpoints(str(output), save_total_limit=self.args.save_total_limit, use_mtime=True)
        self.accelerator.wait_for_everyone()


class ResumableTrainer(WholeCheckpoints, Trainer):
    """transformers' `Trainer` with whole checkpoints."""
