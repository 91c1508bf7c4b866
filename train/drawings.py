"""Build `drawings.parquet`: every base emoji as a 64x64 picture in three hands, with its name.

    python -m train.drawings --output train/data

Contract: one row per (hexcode, hand), sorted by that pair, with the columns of `FEATURES`:

    hexcode   code points of the emoji as emojibase spells them, e.g. "1F408"      emoji   the character itself
    label     its CLDR name, e.g. "cat"       keywords  further words       group  e.g. "animals & nature"
    hand      who drew it: a key of `HANDS`   image     64x64 RGBA WebP; alpha is kept, so any ground can lie behind
    held_out  true for a concept (in all its hands) that no model is trained on; these test the codec

The same versions of the packages, of Pillow and of pyarrow give the same bytes.

The parquet file is committed, so this script (and npm, which it needs) is only for whoever wants to change it. Sources,
credits and licences: `train/data/NOTICE.md`.
"""

import argparse
import io
import json
import random
import tarfile
import tempfile
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tqdm import tqdm

from train.packages import fetch_npm

SIZE = 64
WEBP = {"format": "WEBP", "quality": 90}
TEXTS = "emojibase-data@17.0.0"
# hand -> (npm package, folder of the pictures in it)
HANDS = {
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/"),
}
# 2 % of the 1,911 concepts. Our choice: enough for a stable mean PSNR, few enough to cost training nothing.
HELD_OUT_CONCEPTS = 38
COLOURS = frozenset("red orange yellow green blue purple brown black white grey pink".split())

FEATURES = Features(
    {
        "hexcode": Value("string"),
        "emoji": Value("string"),
        "label": Value("string"),
        "keywords": List(Value("string")),
        "group": Value("string"),
        "hand": Value("string"),
        "image": Image(),
        "held_out": Value("bool"),
    }
)


def read_members(archive: Path, prefix: str) -> dict[str, bytes]:
    """The files directly in the folder `prefix` of a .tgz, by file name."""
    with tarfile.open(archive) as tar:
        members = (m for m in tar if m.isfile() and m.name.startswith(prefix) and "/" not in m.name[len(prefix) :])
        return {member.name[len(prefix) :]: tar.extractfile(member).read() for member in members}


def code_points(name: str) -> str:
    """Key on which all packages agree: upper-case code points without FE0F, which not every package writes."""
    return Path(name).stem.upper().replace("_", "-").replace("-FE0F", "")


def read_concepts(archives: dict[str, Path]) -> dict[str, dict]:
    """Code points -> text columns of the base emoji: those the Noto package lists, with skin tones nested inside."""
    texts = read_members(archives[TEXTS], "package/en/")
    groups = json.loads(read_members(archives[TEXTS], "package/meta/")["groups.json"])["groups"]
    noto, _ = HANDS["noto"]
    base = {code_points(row["unified"]) for row in json.loads(read_members(archives[noto], "package/")["emoji.json"])}
    return {
        code_points(row["hexcode"]): {
            "hexcode": row["hexcode"],
            "emoji": row["emoji"],
            "label": row["label"],
            "keywords": row["tags"],
            "group": groups[str(row["group"])].replace("-", " & "),
        }
        for row in json.loads(texts["data.json"])
        if code_points(row["hexcode"]) in base
    }


def choose_held_out(concepts: dict[str, dict], drawn_by_all: set[str]) -> set[str]:
    """Seeded choice of code points among rarely named things.

    Everyday things have names of one or two words, and coloured shapes are building blocks of the scenes; so the choice
    is among labels of three words or more that name no colour.
    """
    candidates = []
    for key in sorted(drawn_by_all):
        words = concepts[key]["label"].lower().split()
        if len(words) >= 3 and COLOURS.isdisjoint(words):
            candidates.append(key)
    return set(random.Random(0).sample(candidates, HELD_OUT_CONCEPTS))


def encode(picture: bytes) -> bytes:
    """Any picture -> SIZE x SIZE RGBA WebP; Fluent comes at 256 px, the others already at 64."""
    image = PILImage.open(io.BytesIO(picture)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **WEBP)
    return buffer.getvalue()


def list_drawings(archives: dict[str, Path]) -> list[dict]:
    """All rows in order, with the pictures still as the packages hold them."""
    concepts = read_concepts(archives)
    pictures = {}
    for hand, (package, prefix) in HANDS.items():
        found = {code_points(name): data for name, data in read_members(archives[package], prefix).items()}
        pictures[hand] = {key: found[key] for key in concepts if key in found}
    held_out = choose_held_out(concepts, set.intersection(*(set(found) for found in pictures.values())))
    rows = [
        {**concepts[key], "hand": hand, "image": {"bytes": picture, "path": None}, "held_out": key in held_out}
        for hand, found in pictures.items()
        for key, picture in found.items()
    ]
    return sorted(rows, key=lambda row: (row["hexcode"], row["hand"]))


def write_drawings(rows: list[dict], path: Path) -> None:
    """Encode the pictures of `rows` and write them as one parquet file, whole or not at all."""
    rows = [{**row, "image": {"bytes": encode(row["image"]["bytes"]), "path": None}} for row in tqdm(rows, "encoding")]
    partial = path.with_suffix(".partial")
    Dataset.from_list(rows, features=FEATURES).to_parquet(partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives drawings.parquet")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    packages = [TEXTS, *(package for package, _ in HANDS.values())]
    with tempfile.TemporaryDirectory() as folder:
        archives = {package: fetch_npm(package, Path(folder)) for package in tqdm(packages, "npm pack")}
        rows = list_drawings(archives)
    write_drawings(rows, output / "drawings.parquet")


if __name__ == "__main__":
    main()
