"""Nothing runs that was not asked for: pickles are refused with a word on why, code stays where it is unless it is
trusted, and file names do not lead out of a folder. (What shipped code may import: test_architecture.py.)"""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForMultimodalLM


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def pickled(tiny_model, tmp_path):
    """A saved model whose weights are a pickle instead, as files of old are."""
    folder = tmp_path / "pickled"
    tiny_model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMultimodalLM])
def test_a_pickle_is_refused_with_a_word_on_why(pickled, auto):
    with pytest.raises(ValueError, match="pickled holds no weights as safetensors. A pickle .* may run code"):
        auto.from_pretrained(pickled)


def test_a_pickle_can_be_trusted_and_saved_again(pickled, tiny_model, tmp_path):
    model = AutoModelForMultimodalLM.from_pretrained(pickled, use_safetensors=None)
    model.save_pretrained(tmp_path / "safe")
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "safe")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tiny_model.state_dict().items())


def test_a_pickle_that_would_run_something_runs_nothing(pickled, tmp_path):
    with open(pickled / "pytorch_model.bin", "wb") as file:
        pickle.dump(Attack(tmp_path / "ran"), file)
    for options in ({}, {"use_safetensors": None}):
        with pytest.raises((ValueError, pickle.UnpicklingError, OSError)):
            AutoModelForMultimodalLM.from_pretrained(pickled, **options)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "nowhere")


TRY = """
import sys
sys.modules["modeling_unified"] = sys.modules["processing_unified"] = None
from transformers import AutoConfig, AutoModelForMultimodalLM
for auto in (AutoConfig, AutoModelForMultimodalLM):
    try:
        auto.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == "trusted")
    except ValueError as error:
        print("refused:", error)
"""


def test_no_code_runs_unless_it_is_trusted(tiny_model, tmp_path):
    folder, mark = tmp_path / "model", tmp_path / "ran"
    tiny_model.save_pretrained(folder)
    with (folder / "configuration_unified.py").open("a") as file:
        file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["HF_HOME"] = str(tmp_path / "cache")
    for trust in ("untrusted", "trusted"):
        command = [sys.executable, "-I", "-c", TRY, str(folder), trust]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-2000:]
        assert mark.exists() == (trust == "trusted")
        assert done.stdout.count("trust_remote_code=True") == (0 if trust == "trusted" else 2)
