"""Two processes train what one does: the same losses and weights for every row of the table, on batches of which one
process has no image too; and what two have begun, one goes on with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_unified.configuration_unified import PARADIGMS

PROBE = Path(__file__).with_name("process_probe.py")
STOP_AT = 3


@pytest.fixture(scope="module")
def launch(start):
    def launch(processes: int, *arguments: str | Path) -> None:
        command = [sys.executable, str(PROBE), *map(str, arguments)]
        started = start(command, processes, stderr=subprocess.PIPE, text=True)
        try:
            for process in started:
                _, errors = process.communicate(timeout=600)
                assert process.returncode == 0, errors[-4000:]
        finally:
            for process in started:
                process.kill()

    return launch


@pytest.fixture(scope="module")
def runs(launch, make_tiny_row, make_tiny_processor, tmp_path_factory) -> dict[str, Path]:
    """Folders of the runs of one process, of two, and of two that were stopped and one that went on."""
    from modeling_unified import UnifiedForConditionalGeneration

    place = tmp_path_factory.mktemp("processes")
    for row in PARADIGMS:
        torch.manual_seed(0)
        config = make_tiny_row(row)
        UnifiedForConditionalGeneration(config).save_pretrained(place / "models" / row)
        make_tiny_processor(config).save_pretrained(place / "models" / row)
    for name in ("one", "two", "stopped"):
        (place / name).mkdir()
    launch(1, place / "models", place / "one", "--micro-batches", "2")
    launch(2, place / "models", place / "two")
    launch(2, place / "models", place / "stopped", "--stop-at", STOP_AT)
    stopped = {row: json.loads((place / "stopped" / f"{row}.json").read_text()) for row in PARADIGMS}
    assert {row: history[-1]["step"] for row, history in stopped.items()} == dict.fromkeys(PARADIGMS, STOP_AT + 1)
    launch(1, place / "models", place / "stopped", "--micro-batches", "2", "--resume")
    return {name: place / name for name in ("one", "two", "stopped")}


def history(folder: Path, row: str) -> list[dict]:
    return json.loads((folder / f"{row}.json").read_text())


@pytest.mark.parametrize("row", PARADIGMS)
@pytest.mark.parametrize("other", ["two", "stopped"])
def test_losses_and_weights_are_those_of_one_process(runs, row, other):
    one, two = history(runs["one"], row), history(runs[other], row)
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == list(range(1, 7))
    for expected, entry in zip(one, two, strict=True):
        for key in ("loss", "text_loss", "image_loss", "grad_norm"):
            assert (key in entry) == (key in expected)
            if key in expected:
                assert entry[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), (key, entry["step"])
    weights, others = (load_file(runs[name] / f"{row}.safetensors") for name in ("one", other))
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        torch.testing.assert_close(others[name], values, rtol=1e-3, atol=1e-4, msg=name)


def test_some_process_had_no_image(runs):
    """While the other had one: otherwise nothing would be shown by its not hanging."""
    steps = json.loads((runs["two"] / "kinds.json").read_text())
    assert any(("text" in kinds) and set(kinds) != {"text"} for kinds in steps)
