"""Two processes train what one does: the same losses and weights for every row of the table, on batches of which one
process has no image too; and what two have begun, one goes on with."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROWS = {"ugen": {}, "unifluid": {"image_inputs": ["features", "latents"]}, "uvu": {}, "unitoken": {}}
PROBE, ROOT = Path(__file__).with_name("process_probe.py"), Path(__file__).parents[2]
STOP_AT = 3


def launch(processes: int, *arguments: str | Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, str(PROBE), *map(str, arguments)]
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(subprocess.Popen(command, env=environment | own, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def runs(make_tiny_config, make_tiny_processor, tmp_path_factory) -> dict[str, Path]:
    """Folders of the runs of one process, of two, and of two that were stopped and one that went on."""
    from modeling_unified import UnifiedForConditionalGeneration

    place = tmp_path_factory.mktemp("processes")
    for row, parts in ROWS.items():
        torch.manual_seed(0)
        config = make_tiny_config(row, **parts)
        UnifiedForConditionalGeneration(config).save_pretrained(place / "models" / row)
        make_tiny_processor(config).save_pretrained(place / "models" / row)
    for name in ("one", "two", "stopped"):
        (place / name).mkdir()
    launch(1, place / "models", place / "one", "--micro-batches", "2")
    launch(2, place / "models", place / "two")
    launch(2, place / "models", place / "stopped", "--stop-at", STOP_AT)
    stopped = {row: json.loads((place / "stopped" / f"{row}.json").read_text()) for row in ROWS}
    assert {row: history[-1]["step"] for row, history in stopped.items()} == dict.fromkeys(ROWS, STOP_AT + 1)
    launch(1, place / "models", place / "stopped", "--micro-batches", "2", "--resume")
    return {name: place / name for name in ("one", "two", "stopped")}


def history(folder: Path, row: str) -> list[dict]:
    return json.loads((folder / f"{row}.json").read_text())


@pytest.mark.parametrize("row", ROWS)
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
    """Otherwise nothing would be shown by its not hanging: a step without an image loss has no image in any process."""
    steps = [entry for entry in history(runs["one"], "unifluid") if "image_loss" not in entry]
    assert len(steps) < 6
