"""A run is killed again and again while it writes a checkpoint; nothing of what was whole is ever lost."""

import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from train.checkpoints import STAGING

KILLS, STEPS = 20, 60


def start(make_trainer, folder) -> int:
    """Trains on in a process of its own, a checkpoint after every step."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        trainer = make_trainer(folder, steps=STEPS, batch_size=2, save_every=1)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    finally:
        os._exit(0)


def kill_while_it_saves(child: int, folder, rng: random.Random) -> bool:
    """False if it ended before: after some checkpoints, at a moment of the next one's writing."""
    for _ in range(rng.randint(1, 3)):
        while not (folder / STAGING).exists():
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
        time.sleep(rng.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.mark.slow
def test_killed_again_and_again_while_saving(make_trainer, tmp_path):
    rng, folder = random.Random(0), tmp_path / "killed"
    folder.mkdir()
    last, in_the_middle = 0, 0
    for _ in range(KILLS):
        if not kill_while_it_saves(start(make_trainer, folder), folder, rng):
            break
        in_the_middle += (folder / STAGING).exists()
        if checkpoint := get_last_checkpoint(folder):
            step = int(checkpoint.rpartition("-")[2])
            assert step >= last
            last = step
            load_file(f"{checkpoint}/model.safetensors")
            torch.load(f"{checkpoint}/optimizer.pt", weights_only=True)
            assert {"scheduler.pt", "trainer_state.json", "rng_state.pth"} <= set(os.listdir(checkpoint))
    assert in_the_middle > KILLS / 4 and last > 0
    os.waitpid(start(make_trainer, folder), 0)
    whole = make_trainer(tmp_path / "whole", steps=STEPS, batch_size=2, save_every=STEPS)
    whole.train()
    ours, theirs = (
        load_file(path / f"checkpoint-{STEPS}" / "model.safetensors") for path in (folder, tmp_path / "whole")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
