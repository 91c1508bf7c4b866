"""Build `glosses.parquet`: short English definitions, the plain text on which a model learns to read and write.

    python -m train.glosses --output train/data

Contract: one row per WordNet sense kept, sorted by (lemma, text):

    lemma  the word defined, e.g. "cat"
    text   its definition, "cat: feline mammal usually having thick soft fur and no ability to roar", and where WordNet
           shows the word in use, that too: 'bus: a vehicle carrying many passengers, as in "he always rode the bus"'
    split  "test" for 1 % of the lemmas (by a hash, so that all senses of a word fall on one side), else "train"

Of the 117,659 senses the ROWS in the plainest words are kept: a row ranks by its rarest word, counted over all of
WordNet's own definitions and examples. That measure is our choice; it makes the kept texts a small English that
explains itself, which a small vocabulary and a small model can learn. Names of persons and places are left out, being
facts rather than language, and so are insults.

The parquet file is committed, so this script (and apt, which it needs) is only for whoever wants to change it. Source
and licence: `train/data/NOTICE.md`.
"""

import argparse
import re
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

from datasets import Dataset, Features, Value
from tqdm import tqdm

from train.packages import fetch_deb, run

PACKAGE = "wordnet-base=1:3.0-37"
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
ROWS = 50_000
MAX_CHARACTERS = 120
TEST_PERCENT = 1

FEATURES = Features({"lemma": Value("string"), "text": Value("string"), "split": Value("string")})

PLAIN_LEMMA = re.compile(r"[a-z]+(?:[ '-][a-z]+)*")
PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9 ,.:'\"!?%/-]*")
PARENTHESIS = re.compile(r"\s*\([^()]*\)")
EXAMPLE = re.compile(r'"([^"]+)"')
WORD = re.compile(r"[a-z]+")
# WordNet says of a sense that it insults; a model that ships need not learn those.
INSULT = re.compile(r"offensive|obscen|vulgar|disparag|derogat|contempt|slur\b|slang|negative term|spiteful")


def fetch(folder: Path) -> Path:
    """Download and unpack the Debian package into `folder`; returns the folder of WordNet's data files."""
    run(["dpkg-deb", "-x", str(fetch_deb(PACKAGE, folder)), str(folder)], folder)
    return folder / "usr/share/wordnet"


def read_senses(path: Path) -> list[tuple[str, str]]:
    """(lemma, gloss) of each line of a data file; its format is wndb(5WN): fields, then a bar, then the gloss."""
    senses = []
    for line in path.read_text().splitlines():
        if line.startswith("  "):  # the licence at the top
            continue
        fields, gloss = line.split(" | ", 1)
        # Field 4 is the first of the synonyms; an adjective may carry its position, as in "galore(ip)".
        senses.append((PARENTHESIS.sub("", fields.split()[4]).replace("_", " "), gloss.strip()))
    return senses


def sentence(lemma: str, gloss: str) -> str | None:
    """One clean line for a sense, or None where it is no plain text of at most MAX_CHARACTERS.

    Remarks in parentheses, after a colon, and all but the first definition go, since they are notes for lexicographers.
    The example is the first that shows the lemma itself: WordNet's may show any of its synonyms.
    """
    definition = gloss.split('"')[0]
    while PARENTHESIS.search(definition):
        definition = PARENTHESIS.sub("", definition)
    definition = " ".join(re.split("[;:]", definition)[0].split()).strip(" ,.")
    text = f"{lemma}: {definition}"
    stem = lemma[: max(3, len(lemma) - 2)]  # so that "running" and "carries" show "run" and "carry"
    example = next((example for example in EXAMPLE.findall(gloss) if stem in example.lower()), None)
    if example:
        with_example = f'{text}, as in "{" ".join(example.split())}"'
        if len(with_example) <= MAX_CHARACTERS and PLAIN_TEXT.fullmatch(with_example):
            text = with_example
    plain = PLAIN_LEMMA.fullmatch(lemma) and PLAIN_TEXT.fullmatch(definition) and len(text) <= MAX_CHARACTERS
    return text if plain and not INSULT.search(gloss) else None


def split_of(lemma: str) -> str:
    return "test" if int(sha256(lemma.encode()).hexdigest(), 16) % 100 < TEST_PERCENT else "train"


def list_glosses(senses: list[tuple[str, str]], rows: int = ROWS) -> list[dict]:
    """The `rows` plainest of the senses, in the form and order of the contract above."""
    count = Counter(word for _, gloss in senses for word in WORD.findall(gloss.lower()))
    texts = {}
    for lemma, gloss in tqdm(senses, "glosses"):
        text = sentence(lemma, gloss)
        if text is not None:
            texts[text] = lemma
    if len(texts) < rows:
        raise ValueError(f"{len(texts)} plain glosses were found where {rows} were asked for; lower ROWS")

    def rank(text: str) -> tuple[int, str]:
        return -min(count[word] for word in WORD.findall(text.lower())), text

    chosen = sorted(texts, key=rank)[:rows]
    table = [{"lemma": texts[text], "text": text, "split": split_of(texts[text])} for text in chosen]
    return sorted(table, key=lambda row: (row["lemma"], row["text"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives glosses.parquet")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = fetch(Path(folder))
        senses = [sense for part in PARTS_OF_SPEECH for sense in read_senses(data / f"data.{part}")]
    rows = list_glosses(senses)
    partial = output / "glosses.partial"
    Dataset.from_list(rows, features=FEATURES).to_parquet(partial)
    partial.replace(output / "glosses.parquet")


if __name__ == "__main__":
    main()
