"""Reads the parquet files of an evaluation suite: one dictionary per row, images as RGB PIL images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet
from PIL import Image


def read_items(path: str | Path, filters: list[tuple] | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet file. Its `image` column, if any, holds encoded images as `datasets.Image` stores them.

    Transparent images are set on white, as the scenes are. `filters` are pyarrow's: `[("split", "==", "test")]`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; `python -m train.suite` and `python -m train.drawings` write the data"
        )
    rows = pyarrow.parquet.read_table(path, filters=filters).to_pylist()
    for row in rows:
        if "image" in row:
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")
            row["image"] = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return rows
