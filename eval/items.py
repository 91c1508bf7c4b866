"""Reads the parquet files of an evaluation suite: one dictionary per row, images as RGB PIL images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet
from PIL import Image


def read_items(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a parquet file. Its `image` column, if any, holds encoded images as `datasets.Image` stores them."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: write the suite's files with `python -m train.suite --output eval/data`")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        if "image" in row:
            row["image"] = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    return rows
