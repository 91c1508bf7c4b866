"""The common public formats of data: one row becomes one conversation (`train.conversations`), and nothing is opened.

What is read is the user's, what is written the assistant's. Images stay what the row holds, a path, bytes, or
`{"bytes", "path"}` as `datasets` stores them; `train.sources` opens them when the sample is needed.

    form                     columns                                          sample
    conversations            messages or conversations; images or image       as it stands
    llava                    conversations; image                             LLaVA's JSON
    text                     text                                             written, as a page of plain text is
    image_to_caption         image, one of text, caption, captions, label     image read, caption written
    caption_to_image         the same                                         caption read, image written
    coco_captions            COCO's JSON                                      image read, caption written
    coco_captions_to_image   the same                                         caption read, image written
    vqav2                    VQAv2's two JSONs                                image and question read, answer written

Of columns joined by "or" the first that there is; those behind a semicolon may be missing. A folder of images has the
column `image` and `label`, the name of the sub-folder, or the columns of its metadata.jsonl: it is `image_to_caption`
or `caption_to_image`. Of several captions each sample has one, by chance; space around captions and beside `<image>`
is left out.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.conversations import Conversation, assistant, text, user

Row = dict[str, Any]

MARKER = "<image>"  # of an image in a text, in LLaVA's JSON and in what descends from it
CAPTIONS = ("text", "caption", "captions", "label")
LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
SPLIT = r"[a-z-]+\d{4}"  # as COCO's files name them: "val2014"


@dataclass(frozen=True)
class Format:
    """How rows are read.

    Args:
        convert: (row, rng) -> conversation; ValueError says what is wrong with the row. The rng is the sample's own.
        needs: columns, of each entry the first that there is.
        takes: the same, where there are such.
        join: (folder, split) -> rows, where published files are no rows yet.
        renamed: what the data call columns that have other names here, by the names here.
    """

    convert: Callable[[Row, random.Random], Conversation]
    needs: tuple[tuple[str, ...], ...]
    takes: tuple[tuple[str, ...], ...] = ()
    join: Callable[[Path, str], list[Row]] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def read(self, row: Row, rng: random.Random) -> Conversation:
        """The conversation of a row as the data hold it."""
        ours = {theirs: ours for ours, theirs in self.renamed.items()}
        return self.convert({ours.get(name, name): value for name, value in row.items()}, rng)

    def columns(self, present: Sequence[str]) -> list[str]:
        """Which of the columns are read, in the data's words.

        Raises:
            ValueError: with the columns that are needed and those there are.
        """
        if unknown := [theirs for theirs in self.renamed.values() if theirs not in present]:
            raise ValueError(f"it has the columns {', '.join(present)}, and no {', '.join(unknown)} to be renamed")
        given = [name for name in present if name not in self.renamed and name not in self.renamed.values()]
        present = [*given, *self.renamed]
        missing = [names for names in self.needs if not set(names) & set(present)]
        if missing:
            raise ValueError(
                f"it has the columns {', '.join(present)}, but {' and '.join(map(' or '.join, self.needs))} are "
                f"needed, and {' and '.join(map(' or '.join, missing))} is missing: say which they are "
                "(`columns`), or choose another form"
            )
        found = [[name for name in names if name in present][:1] for names in self.needs + self.takes]
        return [self.renamed.get(name, name) for names in found for name in names]


# --- converters -----------------------------------------------------------------------------------------------------


def from_messages(row: Row, rng: random.Random) -> Conversation:
    """Our own format, and that of TRL: images stand in their parts, or in a column of their own, in the order of parts
    `{"type": "image"}` or of `<image>` in contents that are strings. Where no content says where they stand, they come
    first in the first turn of the user, as in TRL."""
    messages = turns_of(row, "messages", "conversations")
    images = listed(row.get("images", row.get("image")))
    conversation = [{"role": message.get("role"), "content": parts_of(message.get("content"))} for message in messages]
    plain = all(isinstance(message.get("content"), str) for message in messages)
    first = next((turn for turn in conversation if turn["role"] == "user"), None)
    if plain and first and not markers_of(conversation):
        first["content"][:0] = [{"type": "image"} for _ in images]
    return with_images(conversation, images)


def from_llava(row: Row, rng: random.Random) -> Conversation:
    """LLaVA's JSON. An image stands where its `<image>` does, where LLaVA's own code moves it to the front."""
    conversation = []
    for turn in turns_of(row, "conversations"):
        if turn.get("from") not in LLAVA_ROLES:
            raise ValueError(f"a turn is from {turn.get('from')!r}: only {' and '.join(LLAVA_ROLES)} are known")
        conversation.append({"role": LLAVA_ROLES[turn["from"]], "content": parts_of(turn.get("value"))})
    return with_images(conversation, listed(row.get("image")))


def from_text(row: Row, rng: random.Random) -> Conversation:
    if not isinstance(row["text"], str):
        raise ValueError(f"its text is {row['text']!r}")
    return [assistant(text(row["text"]))]


def image_to_caption(row: Row, rng: random.Random) -> Conversation:
    return [user(only_image(row)), assistant(text(caption_of(row, rng)))]


def caption_to_image(row: Row, rng: random.Random) -> Conversation:
    return [user(text(caption_of(row, rng))), assistant(only_image(row))]


def from_question(row: Row, rng: random.Random) -> Conversation:
    if row["answer"] is None:
        raise ValueError(f"question {row['question_id']} has no annotation, hence no answer")
    return [user(only_image(row), text(row["question"])), assistant(text(row["answer"]))]


# --- what rows hold -------------------------------------------------------------------------------------------------


def turns_of(row: Row, *names: str) -> list[Row]:
    turns = next(row[name] for name in names if name in row)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"its conversation is {turns!r:.100}, not a list of turns")
    return turns


def parts_of(content: Any) -> list[dict[str, Any]]:
    """Parts of a turn. Of a string, texts and empty parts for its `<image>`; of a list, what is not null: `datasets`
    gives all parts the same fields."""
    if isinstance(content, str):
        if MARKER not in content:
            return [text(content)]
        parts: list[dict[str, Any]] = []
        for number, words in enumerate(content.split(MARKER)):
            parts += [{"type": "image"}] if number else []
            parts += [text(words.strip())] if words.strip() else []
        return parts
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"the content of a turn is {content!r:.100}, neither a string nor a list of parts")
    return [{key: value for key, value in part.items() if not is_empty(value)} for part in content]


def markers_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Image parts that no image stands in yet."""
    parts = [part for turn in conversation for part in turn["content"]]
    return [part for part in parts if part.get("type") == "image" and not {"image", "image_tokens"} & set(part)]


def with_images(conversation: Conversation, images: list[Any]) -> Conversation:
    markers = markers_of(conversation)
    if len(markers) != len(images):
        raise ValueError(f"it has {len(markers)} markers of images, but {len(images)} images")
    for part, image in zip(markers, images, strict=True):
        part["image"] = image
    return conversation


def listed(images: Any) -> list[Any]:
    """A column of one image, of several, or of none as a list."""
    images = images if isinstance(images, list) else [images]
    return [image for image in images if not is_empty(image)]


def is_empty(value: Any) -> bool:
    """What `datasets` puts where a row has no value, or no image."""
    return value is None or (isinstance(value, dict) and all(inner is None for inner in value.values()))


def only_image(row: Row) -> dict[str, Any]:
    images = listed(row["image"])
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} images, not one")
    return {"type": "image", "image": images[0]}


def caption_of(row: Row, rng: random.Random) -> str:
    captions = next(row[name] for name in CAPTIONS if name in row)
    captions = captions if isinstance(captions, list) else [captions]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError(f"its captions are {captions!r:.100}")
    return rng.choice(captions).strip()


# --- files that are joined to rows ----------------------------------------------------------------------------------


def join_coco(folder: Path, split: str) -> list[Row]:
    """Rows `image`, `captions` of `captions_<split>.json` as COCO publishes it (info, licenses, images, annotations).

    Raises:
        ValueError: a folder without the file, captions of images that the file does not list.
    """
    published = json.loads(published_file(folder, "captions_{}.json", split).read_text())
    captions = defaultdict(list)
    for annotation in published["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    rows = [{"image": image["file_name"], "captions": captions.pop(image["id"], [])} for image in published["images"]]
    if captions:
        raise ValueError(f"{folder}, {split}: captions of {len(captions)} images that are not listed: {some(captions)}")
    return rows


def join_vqav2(folder: Path, split: str) -> list[Row]:
    """Rows `question_id`, `image`, `question`, `answer` of VQAv2's questions and annotations of a split; the answer is
    the `multiple_choice_answer`, the one most frequent among the ten.

    Raises:
        ValueError: a folder without one of the files, annotations of questions that are not asked.
    """
    asked = json.loads(published_file(folder, "*OpenEnded_mscoco_{}_questions.json", split).read_text())
    answered = json.loads(published_file(folder, "*mscoco_{}_annotations.json", split).read_text())
    answers = {
        annotation["question_id"]: annotation["multiple_choice_answer"] for annotation in answered["annotations"]
    }
    rows = [
        {
            "question_id": question["question_id"],
            "image": f"COCO_{asked['data_subtype']}_{question['image_id']:012d}.jpg",
            "question": question["question"],
            "answer": answers.pop(question["question_id"], None),
        }
        for question in asked["questions"]
    ]
    if answers:
        raise ValueError(f"{folder}, {split}: annotations of {len(answers)} questions not asked: {some(answers)}")
    return rows


def published_file(folder: Path, name: str, split: str) -> Path:
    """The file of a split; "val" is "val2014" where there is no other year."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the one that {name.format(split)} lies in")
    files = {}
    for path in sorted(folder.glob(name.format("*"))):
        if found := re.fullmatch(name.replace("*", ".*").format(f"({SPLIT})"), path.name):
            files.setdefault(found[1], []).append(path)
    fitting = [path for year, paths in files.items() if split in (year, year[:-4]) for path in paths]
    if len(fitting) != 1:
        there = ", ".join(path.name for path in fitting) or "no file"
        names = f"there are {', '.join(files)}" if files else f"there is no {name.format('*')}"
        raise ValueError(f"split {split!r} fits {there} in {folder}: {names}")
    return fitting[0]


def some(values: Any) -> str:
    return ", ".join(map(str, list(values)[:5])) + (", …" if len(values) > 5 else "")


PAIR = (("image",), CAPTIONS)
FORMATS = {
    "conversations": Format(from_messages, needs=(("messages", "conversations"),), takes=(("images", "image"),)),
    "llava": Format(from_llava, needs=(("conversations",),), takes=(("image",),)),
    "text": Format(from_text, needs=(("text",),)),
    "image_to_caption": Format(image_to_caption, needs=PAIR),
    "caption_to_image": Format(caption_to_image, needs=PAIR),
    "coco_captions": Format(image_to_caption, needs=PAIR, join=join_coco),
    "coco_captions_to_image": Format(caption_to_image, needs=PAIR, join=join_coco),
    "vqav2": Format(from_question, needs=(("question_id",), ("image",), ("question",), ("answer",)), join=join_vqav2),
}
