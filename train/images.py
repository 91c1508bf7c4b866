"""Where the images of a patch codebook come from. A source is iterable again and again, always in one order, and yields
(name for messages, function that opens the image): an image that is not wanted is never opened.
"""

import io
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from train.recipes import spark

SPARK_IMAGES = 10_000

NamedImage = tuple[str, Callable[[], Image.Image]]


def open_images(source: str, seed: int = 0) -> Iterable[NamedImage]:
    """Images by the source's name, iterable again and again in one order.

    "spark" are the images of the project's own codecs, "spark/held-out" drawings that none of them trains on. Any other
    name is a folder of images (searched through its sub-folders), a folder written by `Dataset.save_to_disk`, a parquet
    file, or the id of a data set on the Hub; data sets are streamed, their split "train" and first column of images.

    Raises:
        ValueError: a folder without images, a data set without a column of images.
    """
    if source == "spark":
        return SparkImages(seed)
    if source == "spark/held-out":
        return HeldOutDrawings()
    path = Path(source)
    if path.is_dir() and not (path / "dataset_info.json").exists():
        return FolderImages(path)
    return DatasetImages(source)


class FolderImages:
    """Every file below a folder whose name ends as an image's. Walked, not listed: millions take no memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not any(True for _ in self):
            raise ValueError(
                f"{folder} holds no file that is named like an image ({', '.join(sorted(suffixes())[:8])}…)"
            )

    def __iter__(self) -> Iterator[NamedImage]:
        for where, folders, files in os.walk(self.folder):
            folders.sort()
            for name in sorted(files):
                path = Path(where, name)
                if path.suffix.lower() in suffixes():
                    yield str(path), partial(Image.open, path)


@cache
def suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


class DatasetImages:
    """Rows of a `datasets` set, streamed; those not wanted are never decoded."""

    def __init__(self, source: str):
        import datasets  # folders of images need no second to import it

        if Path(source).is_dir():
            rows = datasets.load_from_disk(source)
            rows = (rows["train"] if isinstance(rows, datasets.DatasetDict) else rows).to_iterable_dataset()
        elif source.endswith(".parquet"):
            rows = datasets.load_dataset("parquet", data_files=source, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(source, split="train", streaming=True)
        columns = [name for name, kind in (rows.features or {}).items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise ValueError(f"{source} has no column of images among {list(rows.features or {})}")
        self.source, self.column = source, columns[0]
        rows = rows.select_columns(self.column)
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False))

    def __iter__(self) -> Iterator[NamedImage]:
        for number, row in enumerate(self.rows):
            yield f"row {number} of {self.source}", partial(open_stored, row[self.column])


def open_stored(stored: dict[str, Any] | None) -> Image.Image:
    """An image as `datasets` stores it: its bytes, or where it lies."""
    if not stored:
        raise ValueError("the row has no image")
    return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"])


class SparkImages:
    """The first `SPARK_IMAGES` images of those that the other codecs of this project are trained on."""

    def __init__(self, seed: int):
        from train.codec import CodecImages  # it decodes thousands of drawings

        self.images = CodecImages(replace(spark.vq(), seed=seed))

    def __iter__(self) -> Iterator[NamedImage]:
        return ((f"scene {number}", partial(self.images.image, number)) for number in range(SPARK_IMAGES))


class HeldOutDrawings:
    """Each drawing of the codecs' test, over the whole canvas or in a quarter of it."""

    def __init__(self):
        from train.codec import load_drawings, on_canvas

        rng = random.Random("held-out drawings")
        self.images = [on_canvas(drawing, rng) for drawing in load_drawings(held_out=True)]

    def __iter__(self) -> Iterator[NamedImage]:
        return ((f"held-out drawing {n}", image.copy) for n, image in enumerate(self.images))
