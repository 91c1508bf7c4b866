"""Makes tasks of `lm_eval` of BIG-bench's files: `python -m eval.bigbench .../NAME/task.json --output runs/bigbench`.

The files are in the source distribution `bigbench` 1.0.0 of PyPI (358 MB; `benchmark_tasks/NAME/task.json`), so that
language models can be measured where the Hub cannot be reached. They ask not to be trained on (their canary), and we
only measure with them. Written are NAME.jsonl and NAME.yaml, which `eval.text` and `lm_eval` itself take.

A question stands between "Q: " and "A:" on two lines, BIG-bench's default (from memory of its `json_task.py`, not
checked against the file). Choices are *not* listed in the question, though some files ask for it
(`append_choices_to_input`): our choice, since what is compared are the log-likelihoods of their texts. Numbers are
therefore no BIG-bench scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


def multiple_choice(examples: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """`{"question", "choices", "right"}` of each example: all choices with the best score are right.

    Raises:
        ValueError: an example without choices, or whose choices are all as good.
    """
    rows = []
    for number, example in enumerate(examples):
        scores = example.get("target_scores", {})
        best = [place for place, score in enumerate(scores.values()) if score == max(scores.values())]
        if len(best) == len(scores):
            raise ValueError(
                f"example {number} of {name} has {len(scores)} choices, {len(best)} of them right: only tasks of "
                "multiple choice can be converted"
            )
        rows.append({"question": example["input"], "choices": list(scores), "right": best})
    return rows


def convert(path: Path, output: Path) -> Path:
    """Writes the two files of a task into the folder `output`; returns the YAML file."""
    task = json.loads(path.read_text())
    name, data = task["name"], output / f"{task['name']}.jsonl"
    rows = multiple_choice(task["examples"], name)
    output.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    configuration = {
        "task": f"bigbench_local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    written = output / f"{name}.yaml"
    written.write_text(yaml.safe_dump(configuration, sort_keys=False))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", type=Path, nargs="+", help="task.json of BIG-bench")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    print("\n".join(str(convert(path, arguments.output)) for path in arguments.tasks))


if __name__ == "__main__":
    main()
