"""Sharded checkpoints are read whole or refused, and nothing in them is run. (That they are what processes have
trained: test_processes.py.)"""

import os
import pickle
import re

import pytest
import torch
import torch.distributed.checkpoint as distributed

from train.consolidate import METADATA, PIECES, consolidate, read_model


@pytest.fixture
def sharded(tiny_model, tiny_processor, tmp_path):
    """A checkpoint as one process writes it."""
    return write(tiny_model, tiny_processor, tmp_path / "checkpoint-1", tiny_model.state_dict())


def write(model, processor, folder, weights):
    for part in (model.config, model.generation_config, processor):
        part.save_pretrained(folder)
    (folder / PIECES).mkdir()
    distributed.save({"model": weights}, storage_writer=distributed.FileSystemWriter(folder / PIECES), no_dist=True)
    return folder


def test_it_is_read_bit_by_bit(sharded, tiny_model):
    model = read_model(sharded)
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in model.model.codec.parameters())


def test_a_whole_model_is_read_as_it_is(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert torch.equal(read_model(tmp_path).lm_head.weight, tiny_model.lm_head.weight)
    with pytest.raises(ValueError, match="is no sharded checkpoint, it has no pytorch_model_fsdp_0/: from_pretrained"):
        consolidate(tmp_path, tmp_path / "model")


def test_deepspeeds_is_left_to_its_own_script(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(ValueError, match="no sharded checkpoint.*zero_to_fp32.py"):
        consolidate(tmp_path, tmp_path / "model")


def test_an_incomplete_one_is_refused(sharded, tmp_path):
    file = next((sharded / PIECES).glob("*.distcp"))
    size = file.stat().st_size
    os.truncate(file, size // 2)
    with pytest.raises(ValueError, match=rf"1 of 1 files .* too short, {file.name} \({size // 2} of \d+ bytes"):
        consolidate(sharded, tmp_path / "model")
    file.unlink()
    with pytest.raises(ValueError, match=rf"missing or too short, {file.name} \(0 of"):
        consolidate(sharded, tmp_path / "model")
    (sharded / PIECES / METADATA).unlink()
    with pytest.raises(ValueError, match="the list of its tensors, cannot be read .*No such file"):
        consolidate(sharded, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_other_weights_than_the_config_asks_for_are_refused(tiny_model, tiny_processor, tmp_path):
    weights = tiny_model.state_dict()
    weights["lm_head.lora_A"] = weights.pop("lm_head.weight")
    folder = write(tiny_model, tiny_processor, tmp_path / "checkpoint-1", weights)
    with pytest.raises(ValueError, match="2 differ in name or shape: lm_head.lora_A, lm_head.weight.*FULL_STATE_DICT"):
        read_model(folder)


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_it_is_run(sharded, tmp_path):
    with open(sharded / PIECES / METADATA, "wb") as file:
        pickle.dump(Attack(tmp_path / "ran"), file)
    with pytest.raises(ValueError, match=re.escape("it names posix.mkdir, which no list of tensors needs")):
        read_model(sharded)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(AttributeError):  # PyTorch's own reader runs it, and then finds that it is no list
        distributed.FileSystemReader(sharded / PIECES).read_metadata()
    assert (tmp_path / "ran").exists()


def test_an_output_with_files_is_left_alone(sharded, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ValueError, match="model is not empty: choose another --output"):
        consolidate(sharded, tmp_path / "model")
