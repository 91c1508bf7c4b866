"""Endless sources of conversations from data of any place: the Hub, Parquet, JSON, JSON lines, folders of images.

    open_source(Source("llava", parts=2, form="llava", path="llava_v1_5_mix665k.json", images="images"), seed=0)

A sample is made by the worker that needs it: its row (`train.rows`), its conversation (`train.formats`), its images.
Those are RGB as the processor would make them: turned upright, and on white where they are transparent.

Data on disk is checked before training: columns, markers against images, conversations that teach nothing, image files
that do not exist. Of streamed data the columns and the first row are, the others as they come. That an image is corrupt
shows when it is opened, in either.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from processing_unified.image_processing_unified import load_rgb
from processing_unified.layout_unified import split_into_spans
from train.conversations import Conversation, unprompted
from train.formats import FORMATS, Format, Row
from train.recipes.kinds import Source
from train.rows import Decoder, ParquetReader, StoredRows, StreamedRows, StreamReader

logger = logging.get_logger(__name__)

FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
BAD_IN_A_ROW = 100  # rows; more are not bad by accident
NAMED = 20  # image files that an error names
CHECKED_AT_ONCE = 1000  # rows


class RowSource:
    """`source[number]` for any number >= 0: the conversation of a row, its images opened, or their tokens in place of
    them where these have been computed (`tokens`, by `train.row_tokens`).

    `bad_rows` is the number of rows left out from the start. A row that turns out bad later is an error or, with
    `skip_bad_rows`, a warning, and the next row stands in for it.
    """

    def __init__(
        self,
        source: Source,
        rows: StoredRows | StreamedRows,
        seed: int,
        skip_bad_rows: bool,
        drop_prompt_share: float,
        bad_rows: int = 0,
    ):
        self.name, self.form, self.folder = source.name, form_of(source), image_folder(source)
        self.rows, self.seed, self.drop_prompt_share = rows, seed, drop_prompt_share
        self.skip_bad_rows, self.bad_rows = skip_bad_rows, bad_rows
        self.tokens = None

    def __getitem__(self, number: int) -> Conversation:
        for following in range(number, number + BAD_IN_A_ROW):
            row, values = self.rows.at(following)
            rng = Random(f"{self.seed}/{following}")
            try:
                conversation = drop_prompt(convert(self.form, values, rng), self.drop_prompt_share, rng)
                if self.tokens:
                    self.tokens.fill(row, conversation)
                return with_open_images(conversation, self.folder)
            except ValueError as error:
                message = f"row {row} of {self.name}: {error}"
                if not self.skip_bad_rows:
                    raise ValueError(f"{message}. Mend it, or pass --skip-bad-rows") from error
                logger.warning(f"{message}. The next row stands in for it")
        raise ValueError(
            f"{BAD_IN_A_ROW} rows of {self.name} in a row are bad: mend them, the warnings say what is wrong"
        )

    def describe_row(self, number: int) -> str:
        return f"row {self.rows.at(number)[0]} of {self.name}"


def open_source(source: Source, seed: int, skip_bad_rows: bool = False, drop_prompt_share: float = 0.0) -> RowSource:
    """Opens and checks.

    Args:
        source: its `path` is an id on the Hub; a file, or several (`data/*.parquet`), of Parquet, JSON or JSON lines;
            or a folder: of such files, of images (with sub-folders or metadata.jsonl), of COCO's or VQAv2's JSON, or
            written by `save_to_disk`. Paths in its rows are relative to `images`, by default to the folder of the data.
            With `streaming` nothing is stored, and rows are shuffled in blocks.
        seed: of the order of rows, and of what a sample chooses by chance.
        skip_bad_rows: whether bad rows are left out and counted.
        drop_prompt_share: of images asked for by words alone, those that are written without (`drop_prompt`).

    Raises:
        ValueError: naming the source: an unknown form, a path that cannot be opened, a split that it does not have
            (and those it has), columns that are missing (and those there are), the first bad row, image files that do
            not exist (how many, and the first 20).
    """
    try:
        if source.form not in FORMATS:
            raise ValueError(f"its form is {source.form!r}: there are {', '.join(FORMATS)}")
        if source.path is None:
            raise ValueError("it has no path: name its data")
        if source.streaming:
            opened = RowSource(source, open_stream(source, seed), seed, skip_bad_rows, drop_prompt_share)
            opened[0]  # a form that does not fit its rows shows at once
            return opened
        dataset = load_rows(source)
        bad = check_rows(dataset, form_of(source), image_folder(source), skip_bad_rows)
        rows = StoredRows(dataset, np.delete(np.arange(len(dataset)), bad), seed)
        return RowSource(source, rows, seed, skip_bad_rows, drop_prompt_share, len(bad))
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        cause = f" ({error.__cause__})" if isinstance(error, datasets.exceptions.DatasetGenerationError) else ""
        raise ValueError(f"source {source.name!r} ({source.path}): {error}{cause}") from error


# --- rows -----------------------------------------------------------------------------------------------------------


def form_of(source: Source) -> Format:
    return replace(FORMATS[source.form], renamed=source.columns)


def load_rows(source: Source) -> datasets.Dataset:
    """All rows, stored, with the columns that the form reads."""
    form, path = form_of(source), Path(source.path)
    if form.join:
        dataset = datasets.Dataset.from_list(form.join(path, source.split))
    elif is_saved(path):
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        check_split(source.split, list(splits))
        dataset = splits[source.split]
    else:
        builder = open_builder(source)
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=source.split)
    return dataset.select_columns(form.columns(dataset.column_names))


def open_stream(source: Source, seed: int) -> StreamedRows:
    """Rows as they come, with the columns that the form reads."""
    form = form_of(source)
    if form.join or is_saved(Path(source.path)):
        raise ValueError(f"{source.path} is read from disk as a whole: leave streaming off")
    builder = open_builder(source)
    stream = builder.as_streaming_dataset(split=source.split)
    present = stream.column_names or list(next(stream.iter(batch_size=1), {}))
    columns = form.columns(present)
    if isinstance(builder, Parquet):
        files = [file for split in source.split.split("+") for file in builder.config.data_files[split]]
        return StreamedRows(ParquetReader(files, columns, stream.features), seed)
    return StreamedRows(StreamReader(stream.select_columns(columns)), seed)


def open_builder(source: Source) -> datasets.DatasetBuilder:
    path = Path(source.path)
    if path.suffix in FILES and not path.is_dir():
        builder = datasets.load_dataset_builder(FILES[path.suffix], data_files=source.path)
    else:
        builder = datasets.load_dataset_builder(source.path, source.subset, revision=source.revision)
    check_split(source.split, list(builder.config.data_files))
    return builder


def is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in SAVED)


def check_split(split: str, splits: list[str]) -> None:
    """`datasets` also takes "train+validation" and, where it does not stream, "train[:10%]"."""
    unknown = [name for name in split.split("+") if name.split("[")[0] not in splits]
    if unknown:
        raise ValueError(f"it has no split {' or '.join(unknown)}: there are {', '.join(splits)}")


# --- conversations --------------------------------------------------------------------------------------------------


def convert(form: Format, values: Row, rng: Random) -> Conversation:
    """A row's conversation, its images not opened; ValueError if it is malformed or teaches nothing."""
    conversation = form.read(values, rng)
    spans = [span for span in split_into_spans(conversation) if span.written]
    if not any(span.kind == "image" or (span.kind == "text" and span.content.strip()) for span in spans):
        raise ValueError("the assistant writes nothing in it: there is nothing to learn")
    return conversation


def drop_prompt(conversation: Conversation, share: float, rng: Random) -> Conversation:
    """With a chance of `share` the image of a conversation that is no more than a prompt and its image comes first, as
    guidance needs it; any other conversation stays as it is."""
    parts = [(turn["role"], part["type"]) for turn in conversation for part in turn["content"]]
    if parts != [("user", "text"), ("assistant", "image")] or rng.random() >= share:
        return conversation
    (prompt,), (image,) = (turn["content"] for turn in conversation)
    return unprompted(image, prompt["text"])


def with_open_images(conversation: Conversation, folder: Path) -> Conversation:
    """Puts RGB images in place of what rows hold of them."""
    parts = [part for turn in conversation for part in turn["content"] if "image" in part]
    for number, part in enumerate(parts):
        part["image"] = open_image(part["image"], folder, number)
    return conversation


def open_image(stored: Any, folder: Path, number: int) -> Image.Image:
    path = path_of(stored, folder)
    if path is None:
        return load_rgb(stored["bytes"] if isinstance(stored, dict) else stored, number)
    if isinstance(path, Path):
        return load_rgb(str(path), number)
    try:
        with fsspec.open(path, "rb") as opened:
            return load_rgb(opened.read(), number)
    except OSError as error:
        raise ValueError(f"image {number} ({path}) cannot be read: {error}") from error


def path_of(stored: Any, folder: Path) -> Path | str | None:
    """Where an image lies: a file, or a URL in the words of fsspec; None if the row holds its bytes."""
    path = stored["path"] if isinstance(stored, dict) and stored["bytes"] is None else stored
    if isinstance(path, str):
        return path if "://" in path else folder / path
    if isinstance(stored, dict | bytes):
        return None
    raise ValueError(f"an image is {stored!r:.100}, neither a path nor bytes")


def image_files(conversation: Conversation, folder: Path) -> list[Path]:
    """Of images that are not opened yet, those that lie in files."""
    images = [part["image"] for turn in conversation for part in turn["content"] if "image" in part]
    return [path for path in (path_of(stored, folder) for stored in images) if isinstance(path, Path)]


def image_folder(source: Source) -> Path:
    """What the paths of images are relative to."""
    if source.images is not None:
        if not Path(source.images).is_dir():
            raise ValueError(f"its images are in {source.images}, which is no folder")
        return Path(source.images)
    path = Path(source.path)
    return path.parent if path.suffix in FILES and not path.is_dir() else path


# --- the check of what is stored ------------------------------------------------------------------------------------


def check_rows(dataset: datasets.Dataset, form: Format, folder: Path, skip_bad_rows: bool) -> list[int]:
    """Goes over all rows once and gives back the bad ones, which `skip_bad_rows` allows.

    Raises:
        ValueError: a bad row, or image files that do not exist, after all have been looked for.
    """
    bad, exists = [], {}
    rows = tqdm(without_pixels(dataset), total=len(dataset), desc="checking rows", unit="row", delay=1)
    for number, values in enumerate(rows):
        try:
            conversation = convert(form, values, Random(0))
            files = image_files(conversation, folder)
        except ValueError as error:
            if not skip_bad_rows:
                raise ValueError(f"row {number}: {error}. Mend it, or pass --skip-bad-rows") from error
            bad.append(number)
            continue
        exists |= {path: path.is_file() for path in files if path not in exists}
        if not all(exists[path] for path in files):
            bad.append(number)
    missing = [path for path, found in exists.items() if not found]
    if missing and not skip_bad_rows:
        named = "".join(f"\n  {path}" for path in missing[:NAMED]) + ("\n  …" if len(missing) > NAMED else "")
        raise ValueError(
            f"{len(missing)} image files of {len(bad)} rows do not exist. Name the folder they are in (`images`), or "
            f"pass --skip-bad-rows:{named}"
        )
    return bad


def without_pixels(dataset: datasets.Dataset) -> Iterator[Row]:
    """Rows of whose images it is only known whether and where there are any: hundreds of GB are not read for that."""
    decode = Decoder(dataset.features)
    images = [
        name for name, kind in dataset.features.items() if isinstance(getattr(kind, "feature", kind), datasets.Image)
    ]
    for table in dataset.with_format("arrow").iter(batch_size=CHECKED_AT_ONCE):
        columns = {name: table[name] for name in table.column_names}
        columns = {name: as_found(column) if name in images else column.to_pylist() for name, column in columns.items()}
        for values in zip(*columns.values(), strict=True):
            yield decode(dict(zip(columns, values, strict=True)))


def as_found(column: pa.ChunkedArray) -> list[Any]:
    """Stored images, or lists of them, their bytes left out but for the fact that there are some."""
    if pa.types.is_struct(column.type):
        paths, held = pc.struct_field(column, "path"), pc.is_valid(pc.struct_field(column, "bytes"))
        pairs = zip(paths.to_pylist(), held.to_pylist(), strict=True)
        return [{"path": path, "bytes": b"" if there else None} for path, there in pairs]
    images = iter(as_found(pc.list_flatten(column)))
    return [list(islice(images, length or 0)) for length in pc.list_value_length(column).to_pylist()]
