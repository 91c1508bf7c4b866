"""A run that was stopped, by Ctrl-C or by a kill at the worst moment, goes on to the losses of one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from train.progress import StopOnSignal
from train.recipes import spark
from train.record import open_run

ROOT = Path(__file__).parents[2]


class SignalAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def losses(trainer) -> list[tuple]:
    keys = ("step", "loss", "text_loss", "image_loss", "grad_norm", "learning_rate", "active_codes", "mask_share")
    return [tuple(row[key] for key in keys) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("fields", [{}, {"micro_batches": 2}])
def test_ctrl_c_and_resume_equal_never_stopped(make_trainer, tmp_path, fields):
    whole = make_trainer(tmp_path / "whole", **fields)
    whole.train()

    handler = signal.getsignal(signal.SIGINT)
    stopped = make_trainer(tmp_path / "stopped", **fields)
    stopped.add_callback(StopOnSignal())
    stopped.add_callback(SignalAt(3))
    stopped.train()
    assert stopped.state.global_step == 4
    checkpoint = get_last_checkpoint(tmp_path / "stopped")
    assert checkpoint.endswith("checkpoint-4")
    assert signal.getsignal(signal.SIGINT) is handler

    resumed = make_trainer(tmp_path / "stopped", **fields)
    with torch.no_grad():  # whatever the model is before, the checkpoint decides
        resumed.model.lm_head.weight.zero_()
    resumed.add_callback(StopOnSignal())
    resumed.train(resume_from_checkpoint=checkpoint)
    assert losses(resumed) == losses(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_second_ctrl_c_stops_at_once(make_trainer, tmp_path):
    handlers = {number: signal.getsignal(number) for number in StopOnSignal.signals}
    trainer = make_trainer(tmp_path)
    trainer.add_callback(StopOnSignal())
    trainer.add_callback(SignalAt(1))
    trainer.add_callback(SignalAt(1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_checkpoint_that_was_not_finished_is_never_taken(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, save_every=2)
    save = trainer._save_rng_state

    def die_at_the_second_one(folder):
        if trainer.state.global_step == 4:
            raise SystemExit("killed while writing")
        save(folder)

    trainer._save_rng_state = die_at_the_second_one
    with pytest.raises(SystemExit):
        trainer.train()
    assert get_last_checkpoint(tmp_path).endswith("checkpoint-2")
    resumed = make_trainer(tmp_path, save_every=2)
    resumed.train(resume_from_checkpoint=get_last_checkpoint(tmp_path))
    assert resumed.state.global_step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_resuming_reads_no_sample_that_was_seen(make_trainer, tmp_path):
    make_trainer(tmp_path, steps=6).train()
    resumed = make_trainer(tmp_path, steps=6)
    read = []
    original = type(resumed.train_dataset).__getitem__
    resumed.train_dataset.__class__ = type(
        "Watched", (type(resumed.train_dataset),), {"__getitem__": lambda self, i: read.append(i) or original(self, i)}
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert read == list(range(30, 60))


def test_a_full_disk_is_told_before_training(make_trainer, tmp_path, monkeypatch):
    """Two checkpoints are kept and one is written beside them; each has the weights and two numbers more of those
    trained."""
    trainer = make_trainer(tmp_path, steps=6, save_every=1)
    numbers = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in trainer.model.state_dict().values())
    needed = 3 * (stored + 8 * numbers) + stored
    trainer.args.save_total_limit = 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(ValueError, match="3 checkpoints and the model need 0.0 GB more in .*keep fewer"):
        trainer.train()
    assert trainer.state.global_step == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    trainer.train()
    assert trainer.state.global_step == 6


def test_what_is_planned_is_enough(make_trainer, tmp_path):
    """A checkpoint is not larger than was counted, but for what is written about it."""
    trainer = make_trainer(tmp_path, steps=1, save_every=1)
    trainer.train()
    numbers = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in trainer.model.state_dict().values())
    files = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir()}
    assert files["model.safetensors"] + files["optimizer.pt"] < 1.1 * (stored + 8 * numbers) + 100_000


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/run cannot be written .Not a directory.: choose another --output"):
        open_run(spark.ugen(), tmp_path / "file" / "run", resume=False)
    with pytest.raises(ValueError, match="/proc cannot be written"):
        open_run(spark.ugen(), Path("/proc"), resume=False)


# The whole command on real texts and scenes, small enough for a test: text alone, then images, killed on the way.
COMMAND = """
import sys
from dataclasses import replace
import torch
from modeling_unified.codecs_unified import VQCodec
from modeling_unified.configuration_unified import VQCodecConfig
import train.language_model, train.run
from train.recipes import RECIPES

torch.set_num_threads(1)
torch.manual_seed(0)
train.language_model.TOKENIZER_SCENES = 50
folder = sys.argv[1]
shape = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512}
small = {"text_config": shape, "text_vocab_size": 600, "batch_size": 10, "log_every": 1, "save_every": 2,
         "sample_every": 1000, "scenes": 40, "bf16": False}
text, ugen = RECIPES["spark/text"](), RECIPES["spark/ugen"]()
RECIPES["spark/text"] = lambda: replace(text, steps=2, **small)
RECIPES["spark/ugen"] = lambda: replace(
    ugen, steps=12, steps_per_code=0.5, text_model=folder + "/text", codec=folder + "/vq", **small)
VQCodec(VQCodecConfig(block_out_channels=(16, 16, 16, 16), num_vq_embeddings=16)).save_pretrained(folder + "/vq")
sys.exit(train.run.main(sys.argv[2:]))
"""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, str(folder), *arguments]


@pytest.mark.slow
def test_the_command_survives_kill_nine(tmp_path):
    import json

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(command(tmp_path, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=1800)

    first = run("--recipe", "spark/text", "--output", str(tmp_path / "text"))
    assert first.returncode == 0, first.stderr
    whole = run("--recipe", "spark/ugen", "--output", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    for name in ("config.json", "model.safetensors", "training.json", "curves.png", "samples/step-000012.png"):
        assert (tmp_path / "whole" / name).exists(), name

    killed = ("--recipe", "spark/ugen", "--output", str(tmp_path / "killed"))
    process = subprocess.Popen(
        command(tmp_path, *killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not get_last_checkpoint_or_none(tmp_path / "killed"):
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "training.json").exists()
    resumed = run(*killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr

    def logged(name: str) -> list:
        state = json.loads((tmp_path / name / "checkpoint-12" / "trainer_state.json").read_text())
        return [
            {key: value for key, value in row.items() if "second" not in key and key != "mfu"}
            for row in state["log_history"]
        ]

    assert logged("killed") == logged("whole")


def get_last_checkpoint_or_none(folder: Path) -> str | None:
    return get_last_checkpoint(folder) if folder.exists() else None


def test_a_step_that_is_saved_again_replaces_its_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path / "run", steps=1, save_every=1)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "of the first").touch()
    trainer._save_checkpoint(trainer.model, None)
    assert not (checkpoint / "of the first").exists() and (checkpoint / "model.safetensors").is_file()
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "checkpoint" not in path.name) == []
