"""Image tokens of data of one's own, computed once and kept on disk as `datasets` folders.

    store_tokens(source, model, processor.image_processor, cache)

The codec is frozen while the language model trains, so what it makes of an image never changes. Afterwards pixels are
opened for a vision tower alone, and images that cannot be read are known before training. Work is done in shards, each
of which appears only when it is whole, so a killed run goes on at the first shard that is missing.

The folder's name holds a fingerprint of all that decides the tokens: the codec's weights, what the image processor does
before it, the rows, and size and time of change of the image files that they name. Whatever of it changes, the tokens
are computed anew.

L tokens of an image, D numbers of a token that is a vector, C channels, H height, W width
"""

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from train.codes import digest_of, save_whole
from train.conversations import Conversation
from train.rows import StoredRows
from train.sources import RowSource, convert, image_files, with_open_images, without_pixels

SHARD = 1024  # rows
BATCH = 64  # images that are encoded at once
SLOTS = {"codes", "latents"}  # of `image_inputs`: an image that is read has a slot for each of its tokens


class RowTokens:
    """`tokens.fill(row, conversation)` puts its tokens into each image that has slots, and takes out what the row holds
    of its pixels where no tower looks at them.

    Args:
        stored: `row` and its `tokens`, those of all its images one behind another.
        shape: of the tokens of one image, [L] or [L, D].
        image_inputs: of the model.
        features_of_written: whether the tower looks at images that are written, too.
    """

    def __init__(
        self, stored: datasets.Dataset, shape: tuple[int, ...], image_inputs: list[str], features_of_written: bool
    ):
        self.stored, self.shape = stored.with_format("numpy"), shape
        self.places = {row: place for place, row in enumerate(stored["row"])}
        self.image_inputs = image_inputs
        self.looked_at = {"assistant": features_of_written, "user": bool(set(image_inputs) - SLOTS)}

    def fill(self, row: int, conversation: Conversation) -> None:
        tokens = torch.from_numpy(np.array(self.stored[self.places[row]]["tokens"])).reshape(-1, *self.shape)
        tokens = tokens.float() if tokens.is_floating_point() else tokens.long()
        for (role, part), of_image in zip(with_slots(conversation, self.image_inputs), tokens, strict=True):
            part["image_tokens"] = of_image
            if not self.looked_at[role]:
                del part["image"]


def with_slots(conversation: Conversation, image_inputs: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(role, part) of images that have a slot for each token: all that are written, and read ones by `image_inputs`."""
    parts = [(turn["role"], part) for turn in conversation for part in turn["content"] if "image" in part]
    return [(role, part) for role, part in parts if role == "assistant" or SLOTS & set(image_inputs)]


def store_tokens(
    source: RowSource, model: Any, image_processor: Any, cache: Path, features_of_written: bool = False
) -> None:
    """Computes the tokens of a source's images, or finds them in `cache`, and gives them to it, in place.

    Rows with an image that cannot be read are left out and counted, as the source does with bad rows.

    Raises:
        ValueError: such a row, where the source was opened without `skip_bad_rows`.
    """
    rows, image_inputs, codec = source.rows, model.config.image_inputs, model.model.codec.eval()
    folder = cache / f"rows-{fingerprint(source, codec, image_processor)}-{len(rows.kept)}"
    shards = [rows.kept[start : start + SHARD] for start in range(0, len(rows.kept), SHARD)]
    paths = [folder / f"{number:05d}" for number in range(len(shards))]
    with tqdm(total=len(rows.kept), desc=f"encoding {source.name}", unit="row", smoothing=0) as progress:
        for numbers, path in zip(shards, paths, strict=True):
            if not path.exists():
                save_whole(encode(source, numbers.tolist(), codec, image_processor, image_inputs), path)
            progress.update(len(numbers))
    stored = datasets.concatenate_datasets([datasets.load_from_disk(str(path)) for path in paths])
    bad = [(row, problem) for row, problem in zip(stored["row"], stored["problem"], strict=True) if problem]
    if bad and not source.skip_bad_rows:
        row, problem = bad[0]
        raise ValueError(
            f"{len(bad)} rows of {source.name} hold images that cannot be read, row {row} for one: {problem}. Mend "
            "them, or pass --skip-bad-rows"
        )
    if bad:
        source.rows = StoredRows(rows.dataset, np.setdiff1d(rows.kept, [row for row, _ in bad]), source.seed)
        source.bad_rows += len(bad)
    source.tokens = RowTokens(stored, shape_of(codec, image_processor), image_inputs, features_of_written)


def encode(
    source: RowSource, numbers: list[int], codec: torch.nn.Module, image_processor: Any, image_inputs: list[str]
) -> datasets.Dataset:
    """Rows `row`, `tokens` (flat, uint16 or uint32 codes or float16 vectors), `problem` ("" or why it has none)."""
    images: list[Image.Image] = []
    counts, problems = [], []
    for number in numbers:
        try:
            opened = images_with_slots(source, number, image_inputs)
            problems.append("")
        except ValueError as error:
            opened = []
            problems.append(str(error))
        counts.append(len(opened))
        images += opened
    codes = codec.config.num_codes
    dtype = np.dtype(("uint16" if codes <= 2**16 else "uint32") if codes else "float16")
    tokens = [each.astype(dtype).ravel() for each in tokens_of(images, codec, image_processor)]
    of_rows = np.split(np.arange(len(images)), np.cumsum(counts)[:-1])
    flat = [np.concatenate([tokens[place] for place in places]) if len(places) else [] for places in of_rows]
    features = datasets.Features(
        {
            "row": datasets.Value("int64"),
            "tokens": datasets.List(datasets.Value(str(dtype))),
            "problem": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict({"row": numbers, "tokens": flat, "problem": problems}, features=features)


def images_with_slots(source: RowSource, number: int, image_inputs: list[str]) -> list[Image.Image]:
    """Which they are does not depend on what a row says by chance."""
    values = source.rows.values(number)
    conversation = convert(source.form, values, Random(0))
    parts = [part for _, part in with_slots(conversation, image_inputs)]
    with_open_images(conversation, source.folder)
    return [part["image"] for part in parts]


@torch.no_grad()
def tokens_of(images: list[Image.Image], codec: torch.nn.Module, image_processor: Any) -> Iterable[np.ndarray]:
    """Codes [L] or vectors [L, D] of each image."""
    for start in range(0, len(images), BATCH):
        pixels_BCHW = image_processor(images[start : start + BATCH], return_tensors="pt")["pixel_values"]
        yield from codec.encode(pixels_BCHW.to(codec.device, codec.dtype)).cpu().numpy()


def shape_of(codec: torch.nn.Module, image_processor: Any) -> tuple[int, ...]:
    """Of the tokens of an image."""
    return next(iter(tokens_of([Image.new("RGB", (1, 1))], codec, image_processor))).shape


def fingerprint(source: RowSource, codec: torch.nn.Module, image_processor: Any) -> str:
    """Twelve hex digits over all that decides the tokens of the source's rows."""
    digest = digest_of(codec)
    digest.update(image_processor.to_json_string().encode() + source.rows.dataset._fingerprint.encode())
    digest.update(source.rows.kept.tobytes())
    kept = set(source.rows.kept.tolist())
    for number, values in enumerate(without_pixels(source.rows.dataset)):
        if number not in kept:
            continue
        for path in image_files(convert(source.form, values, Random(0)), source.folder):
            changed = path.stat()
            digest.update(f"{path}/{changed.st_size}/{changed.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
