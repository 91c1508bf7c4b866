"""Measures again what a result says, and compares all numbers: `python -m eval.rerun eval/results/NAME.json`.

The same code, model, data, packages and threads give the same numbers, to the last digit; what differs is listed. Of
what the time of day decides (seconds, environment), nothing is compared. Nothing is written but into a temporary
folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from .run import run

NOT_COMPARED = ("seconds", "environment", "seconds_per_image")


def numbers(record: Any, path: str = "") -> dict[str, Any]:
    """All leaves of nested JSON by path, without those that are never the same twice."""
    if isinstance(record, dict):
        children = {f"{path}/{key}": value for key, value in record.items() if key not in NOT_COMPARED}
    elif isinstance(record, list):
        children = {f"{path}/{index}": value for index, value in enumerate(record)}
    else:
        return {path: record}
    return {name: value for key, child in children.items() for name, value in numbers(child, key).items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each number that is not the same."""
    old, new = numbers(before), numbers(after)
    return [
        f"{path}: {old.get(path, 'absent')} before, {new.get(path, 'absent')} now"
        for path in sorted(old.keys() | new.keys())
        if path not in old or path not in new or repr(old[path]) != repr(new[path])  # NaN equals NaN
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result", type=Path, help="JSON that eval.run has written")
    path = parser.parse_args().result
    before = json.loads(path.read_text())
    if "arguments" not in before:
        parser.error(f"{path} does not say how it was made (no 'arguments'): run eval.run")
    threads = int(before["environment"]["machine"].split(" threads")[0].split()[-1])
    torch.set_num_threads(threads)  # sums are split among them
    with tempfile.TemporaryDirectory() as folder:
        after = run(output=Path(folder) / path.name, **before["arguments"])
    after = json.loads(json.dumps(after))
    changed = {
        name: (value, after["environment"][name])
        for name, value in before["environment"].items()
        if value != after["environment"][name]
    }
    for name, (old, new) in changed.items():
        print(f"measured with another {name}: {old} before, {new} now")
    found = differences(before, after)
    print("\n".join(found) or f"all {len(numbers(before))} numbers are the same")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
