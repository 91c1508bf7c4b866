"""Measures the tests' benchmark, as one of several processes or alone: `harness_probe.py MODEL DATA OUTPUT`."""

import json
import sys
from pathlib import Path

import torch

from eval import harness
from eval.load import HubModel
from tests.eval.test_harness import IDENTITY, READING

torch.set_num_threads(1)
model, data, output = sys.argv[1:]
measured = harness.measure(HubModel.load(model, batch_size=2), READING, READING.items(data), Path(output), IDENTITY)
if measured:
    Path(output).write_text(json.dumps(measured.scores))
