"""Scenes and their image codes, computed once and kept on disk as `datasets` folders.

The codec is frozen while the language model trains, so what it makes of a scene never changes. Texts are not stored:
they are drawn anew at training time, so that a scene met again gets other words. Work is done in shards; each is
written aside and renamed when whole, so a killed run goes on at the first shard that is missing.

The folder's name holds a fingerprint of the codec's weights and of a few rendered scenes: another codec, another seed,
other drawings or other rules of composition never meet the codes of the old ones.

N scenes, L codes of a scene, C channels, H height, W width
"""

import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

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
    """`scenes[row] -> (Scene, codes [L] int64)`; `len`, and `bad_rows`, the number of rows that could not be used."""

    def __init__(self, rows: datasets.Dataset, num_codes: int, skip_bad_rows: bool = False):
        codes_NL = rows.with_format("numpy")["codes"][:]
        texts = rows["scene"][:]
        length = len(codes_NL[0])

        def read(row: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
            text, codes = row
            largest = codes.max(initial=0)
            if len(codes) != length or largest >= num_codes:
                raise ValueError(f"{len(codes)} codes up to {largest}, expected {length} below {num_codes}")
            Scene.from_json(text)
            return text, codes

        rows_read = tqdm(zip(texts, codes_NL, strict=True), total=len(texts), desc="reading scenes", unit="scene")
        kept, self.bad_rows = readable_rows(rows_read, read, "encoded scenes", skip_bad_rows)
        self.texts = [text for text, _ in kept]
        self.codes_NL = np.stack([codes for _, codes in kept]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[Scene, torch.Tensor]:
        return Scene.from_json(self.texts[row]), torch.from_numpy(self.codes_NL[row])


def training_scene(seed: int, number: int, held_out: HeldOut) -> Scene:
    """Scene `number` of the endless list of training scenes; no held-out combination is among them."""
    return sample_scene(random.Random(f"scene/{seed}/{number}"), held_out, split="train")


def encode_scenes(codec: torch.nn.Module, count: int, seed: int, cache: Path) -> datasets.Dataset:
    """Rows `scene` (JSON) and `codes` (uint16 [L]) of the first `count` training scenes of `seed`."""
    drawings, held_out = Drawings.load(), HeldOut.load()
    codec.eval()
    folder = cache / f"scenes-{fingerprint(codec, drawings, held_out, seed)}-seed{seed}-{count}"
    shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    paths = [folder / f"{number:05d}" for number in range(len(shards))]
    with tqdm(total=count, desc="encoding scenes", unit="scene", smoothing=0) as progress:
        for numbers, path in zip(shards, paths, strict=True):
            if not path.exists():
                scenes = (training_scene(seed, number, held_out) for number in numbers)
                write_shard(codec, drawings, scenes, path)
            progress.update(len(numbers))
    return datasets.concatenate_datasets([datasets.load_from_disk(str(path)) for path in paths])


def write_shard(codec: torch.nn.Module, drawings: Drawings, scenes: Iterator[Scene], path: Path) -> None:
    """Renders and encodes scenes into one `datasets` folder that appears only when it is whole."""
    scenes = list(scenes)
    codes = [
        encode_images(codec, [render(scene, drawings) for scene in scenes[start : start + BATCH]])
        for start in range(0, len(scenes), BATCH)
    ]
    features = datasets.Features(
        {"scene": datasets.Value("string"), "codes": datasets.List(datasets.Value("uint16"), length=codes[0].shape[1])}
    )
    rows = {"scene": [scene.to_json() for scene in scenes], "codes": list(np.concatenate(codes).astype(np.uint16))}
    staging = path.with_name(path.name + ".incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    datasets.disable_progress_bars()  # one bar, over all shards
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(staging))
    os.replace(staging, path)


@torch.no_grad()
def encode_images(codec: torch.nn.Module, images: list[Image.Image]) -> np.ndarray:
    """Codes int64 [N, L] of RGB images of one size, scaled to [-1, 1] as the processor scales them."""
    return codec.encode(to_pixels(images).to(codec.device, codec.dtype)).cpu().numpy()


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> float32 [N, C, H, W] in [-1, 1]."""
    pixels_NHWC = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def fingerprint(codec: torch.nn.Module, drawings: Drawings, held_out: HeldOut, seed: int) -> str:
    """Twelve hex digits over all that decides the codes: weights, drawings and rules of composition."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for number in range(64):
        scene = training_scene(seed, number, held_out)
        digest.update(scene.to_json().encode() + render(scene, drawings).tobytes())
    return digest.hexdigest()[:12]
