"""Asks lm_eval by hand, in a process that cannot import our packages:
`python -I text_probe.py MODEL TASK RESULT.json`."""

import importlib.util
import json
import sys

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

torch.set_num_threads(1)
folder, task, output = sys.argv[1:]
assert importlib.util.find_spec("modeling_unified") is None
results = simple_evaluate(
    "hf",
    model_args={"pretrained": folder, "dtype": "float32", "trust_remote_code": True},
    tasks=[task],
    task_manager=TaskManager(include_defaults=False),
    device="cpu",
    batch_size=8,
    bootstrap_iters=0,
)
with open(output, "w") as file:
    json.dump(
        {"results": results["results"], "answers": [s["filtered_resps"] for s in results["samples"]["animals"]]}, file
    )
