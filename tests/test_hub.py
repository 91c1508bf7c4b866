"""A saved folder is complete: it loads through every Auto class and pipeline, with our package and without it.

One process without the package loads the folder as remote code, saves it again from there and loads that too.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_unified.configuration_unified import PARADIGMS

TESTS = Path(__file__).parent
PROBE = TESTS / "hub_probe.py"
ANSWERS = (
    "config", "processor", "image processor", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM", "text-generation", "image-text-to-text", "text-to-image",
)  # fmt: skip


@pytest.fixture(scope="module", params=PARADIGMS)
def saved(request, tmp_path_factory, make_tiny_row, make_tiny_processor) -> Path:
    from modeling_unified import UnifiedForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "model"
    config = make_tiny_row(request.param)
    UnifiedForConditionalGeneration(config).save_pretrained(folder)
    make_tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_package(saved) -> dict:
    return runpy.run_path(str(PROBE))["outputs"](str(saved))


@pytest.fixture(scope="module")
def without_package(saved) -> dict[str, dict]:
    """Keys "first" (the folder) and "second" (the same, saved again from remote code)."""
    place = saved.parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache")}
    command = [sys.executable, "-I", PROBE, saved, place / "again", place / "result.json"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((place / "result.json").read_text())


def python_files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.py")}


def test_folder_holds_all_shipped_files_and_no_pickle(saved):
    packages = [TESTS.parent / "modeling_unified", TESTS.parent / "processing_unified"]
    shipped = {path.name for package in packages for path in package.glob("*_unified.py")}
    assert python_files(saved) == shipped
    assert {path.suffix for path in saved.iterdir()} <= {".py", ".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("answer", ANSWERS)
def test_remote_code_answers_as_the_package_does(with_package, without_package, answer):
    assert without_package["first"][answer] == json.loads(json.dumps(with_package[answer]))


@pytest.mark.parametrize("answer", ANSWERS)
def test_saved_again_from_remote_code_answers_the_same(without_package, answer):
    assert without_package["second"][answer] == without_package["first"][answer]


def test_saved_again_folder_holds_the_same_files(saved, without_package):
    again = saved.parent / "again"
    assert {path.name for path in again.iterdir()} == {path.name for path in saved.iterdir()}


def test_answers_are_not_empty(with_package):
    single, batch = with_package["text-to-image"]
    assert len(batch) == 2 and batch[0] != batch[1]
    assert with_package["AutoModelForCausalLM"] == with_package["AutoModelForMultimodalLM"]
