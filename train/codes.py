"""Scenes and their image tokens, computed once and kept on disk as `datasets` folders.

The codec is frozen while the language model trains, so what it makes of a scene never changes. Texts are not stored:
they are drawn anew at training time, so that a scene met again gets other words. Work is done in shards; each is
written aside and renamed when whole, so a killed run goes on at the first shard that is missing.

The folder's name holds a fingerprint of the codec's weights and of a few rendered scenes: another codec, another seed,
other drawings or other rules of composition never meet the tokens of the old ones.

N scenes, L tokens of a scene, D numbers of a token that is a vector, C channels, H height, W width
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from train.mixture import readable_rows
from train.scenes import Drawings, HeldOut, Scene, render, sample_scene

SHARD = 4096
BATCH = 64


class EncodedScenes:
    """`scenes[row] -> (Scene, tokens)`, tokens [L] int64 codes or [L, D] float32 vectors, by place.

    `bad_rows` is the number of rows that could not be used.
    """

    def __init__(self, rows: datasets.Dataset, codec_config: Any, skip_bad_rows: bool = False):
        tokens_NX = rows.with_format("numpy")["tokens"][:]
        texts = rows["scene"][:]
        length = len(tokens_NX[0])

        def read(row: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
            text, tokens = row
            if len(tokens) != length:
                raise ValueError(f"{len(tokens)} numbers, expected {length}")
            if codec_config.num_codes and tokens.max(initial=0) >= codec_config.num_codes:
                raise ValueError(f"codes up to {tokens.max()}, expected codes below {codec_config.num_codes}")
            if not np.isfinite(tokens).all():
                raise ValueError(f"{int((~np.isfinite(tokens)).sum())} of {length} numbers are not finite")
            Scene.from_json(text)
            return text, tokens

        rows_read = tqdm(zip(texts, tokens_NX, strict=True), total=len(texts), desc="reading scenes", unit="scene")
        kept, self.bad_rows = readable_rows(rows_read, read, "encoded scenes", skip_bad_rows)
        self.texts = [text for text, _ in kept]
        self.tokens = np.stack([tokens for _, tokens in kept])
        if codec_config.num_codes:
            self.tokens = self.tokens.astype(np.int64)
        else:
            self.tokens = self.tokens.reshape(len(kept), -1, codec_config.token_size)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[Scene, torch.Tensor]:
        tokens = torch.from_numpy(self.tokens[row])
        return Scene.from_json(self.texts[row]), tokens.float() if tokens.is_floating_point() else tokens


def training_scene(seed: int, number: int, held_out: HeldOut) -> Scene:
    """Scene `number` of the endless list of training scenes; no held-out combination is among them."""
    return sample_scene(random.Random(f"scene/{seed}/{number}"), held_out, split="train")


def encode_scenes(
    codec: torch.nn.Module, scene_of: Callable[[int], Scene], count: int, cache: Path
) -> datasets.Dataset:
    """Rows `scene` (JSON) and `tokens` (uint16 [L], or float16 [L * D]) of the scenes number 0 to `count` - 1."""
    drawings = Drawings.load()
    codec.eval()
    folder = (
        cache / f"tokens-{fingerprint(codec, drawings, [scene_of(number) for number in range(min(64, count))])}-{count}"
    )
    shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    paths = [folder / f"{number:05d}" for number in range(len(shards))]
    with tqdm(total=count, desc="encoding scenes", unit="scene", smoothing=0) as progress:
        for numbers, path in zip(shards, paths, strict=True):
            if not path.exists():
                write_shard(codec, drawings, [scene_of(number) for number in numbers], path)
            progress.update(len(numbers))
    return datasets.concatenate_datasets([datasets.load_from_disk(str(path)) for path in paths])


def write_shard(codec: torch.nn.Module, drawings: Drawings, scenes: Sequence[Scene], path: Path) -> None:
    """Renders and encodes scenes into one `datasets` folder."""
    tokens = [
        encode_images(codec, [render(scene, drawings) for scene in scenes[start : start + BATCH]])
        for start in range(0, len(scenes), BATCH)
    ]
    tokens_NX = np.concatenate(tokens).reshape(len(scenes), -1)
    tokens_NX = tokens_NX.astype(np.uint16 if codec.config.num_codes else np.float16)
    features = datasets.Features(
        {
            "scene": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value(str(tokens_NX.dtype)), length=tokens_NX.shape[1]),
        }
    )
    rows = {"scene": [scene.to_json() for scene in scenes], "tokens": list(tokens_NX)}
    save_whole(datasets.Dataset.from_dict(rows, features=features), path)


def save_whole(shard: datasets.Dataset, path: Path) -> None:
    """As a `datasets` folder that appears only when it is whole."""
    staging = path.with_name(path.name + ".incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    datasets.disable_progress_bars()  # one bar, over all shards
    shard.save_to_disk(str(staging))
    os.replace(staging, path)


@torch.no_grad()
def encode_images(codec: torch.nn.Module, images: list[Image.Image]) -> np.ndarray:
    """Tokens, int64 [N, L] or float32 [N, L, D], of RGB images of one size, scaled as the processor scales them."""
    return codec.encode(to_pixels(images).to(codec.device, codec.dtype)).cpu().numpy()


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> float32 [N, C, H, W] in [-1, 1]."""
    pixels_NHWC = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def fingerprint(codec: torch.nn.Module, drawings: Drawings, scenes: Sequence[Scene]) -> str:
    """Twelve hex digits over all that decides the tokens: codec, drawings and rules of composition."""
    digest = digest_of(codec)
    for scene in scenes:
        digest.update(scene.to_json().encode() + render(scene, drawings).tobytes())
    return digest.hexdigest()[:12]


def digest_of(codec: torch.nn.Module) -> Any:
    """A hash of a codec's config and weights, to be updated with what it encodes."""
    digest = hashlib.sha256(codec.config.to_json_string().encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest
