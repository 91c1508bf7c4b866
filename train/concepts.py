"""A small domain to teach a pretrained text model: a dozen concepts, and texts by which it stays what it was.

    python -m train.concepts --text-model HuggingFaceTB/SmolLM2-135M-Instruct --output runs/concepts-data

output/
  drawings/      PNG files of 32x32 pixels, and metadata.jsonl with `file_name` and `caption`: each concept in each hand
  texts.jsonl    `text`: first words of definitions, and how the text model itself goes on

The texts are the model's own, so that training on them beside the drawings asks it to stay as it is, and teaches it
nothing of the definitions by which it is judged: they begin others (rehearsal of what was learned by the model's own
samples; Robins 1995 calls it pseudorehearsal).
"""

import argparse
import json
from pathlib import Path

import datasets
import torch
from PIL import Image
from tqdm import tqdm

from eval.facts import HANDS, vocabulary
from train.pretrained import load_text_model, load_tokenizer
from train.scenes import DATA, Drawings

CONCEPTS = (
    "cat", "fish", "butterfly", "tree", "mushroom", "apple", "pizza", "car", "house", "umbrella", "clock", "red heart",
)  # fmt: skip
TEXTS = 768
FIRST_WORDS = 3
NEW_TOKENS = 24
BATCH = 64


def write_drawings(folder: Path) -> None:
    """A small drawing of each concept in each hand, with its caption in the words of `eval.facts`."""
    folder.mkdir(parents=True)
    drawings, rows = Drawings.load(), []
    for concept in CONCEPTS:
        for hand in HANDS:
            name = f"{concept.replace(' ', '-')}-{hand}.png"
            Image.fromarray(drawings.pixels(concept, hand, large=False)).save(folder / name)
            rows.append({"file_name": name, "caption": f"{vocabulary()[concept].with_article}, {hand} style"})
    write_lines(folder / "metadata.jsonl", rows)


@torch.no_grad()
def write_texts(text_model: str, path: Path, seed: int = 0) -> None:
    """What the model writes, token by token from its whole distribution, after the first words of definitions."""
    model, tokenizer = load_text_model(text_model).eval(), load_tokenizer(text_model)
    rows = datasets.Dataset.from_parquet(str(DATA / "glosses.parquet"))
    texts = rows.filter(lambda split: split == "train", input_columns="split").shuffle(seed)["text"][:TEXTS]
    starts = [" ".join(text.split()[:FIRST_WORDS]) for text in texts]
    torch.manual_seed(seed)
    written = []
    for first in tqdm(range(0, len(starts), BATCH), desc="writing texts", unit="batch"):
        begun = [tokenizer.bos_token + start for start in starts[first : first + BATCH]]
        inputs = tokenizer(begun, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS)
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
    write_lines(path, [{"text": text} for text in written])


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.concepts", description=__doc__.splitlines()[0])
    arguments.add_argument("--text-model", required=True, help="folder, Hub id or GGUF file that writes the texts")
    arguments.add_argument("--output", required=True, type=Path, help="folder of the data; new")
    args = arguments.parse_args(argv)
    if args.output.exists():
        raise ValueError(f"{args.output} exists already: choose another --output")
    write_drawings(args.output / "drawings")
    write_texts(args.text_model, args.output / "texts.jsonl")


if __name__ == "__main__":
    main()
