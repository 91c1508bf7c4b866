"""Rows of the public formats, written as they are published, become conversations with the right images in place."""

import json
import random

import pytest

from train.conversations import assistant, text, user
from train.formats import FORMATS, join_coco, join_vqav2


def convert(form: str, row: dict, seed: int = 0):
    return FORMATS[form].convert(row, random.Random(seed))


def shown(image) -> dict:
    return {"type": "image", "image": image}


QUESTION = {"role": "user", "content": [{"type": "image"}, text("How many?"), {"type": "image"}]}
ANSWER = {"role": "assistant", "content": [text("two")]}


def test_images_of_a_column_fill_the_parts_in_order():
    expected = [user(shown("a"), text("How many?"), shown("b")), assistant(text("two"))]
    assert convert("conversations", {"messages": [QUESTION, ANSWER], "images": ["a", "b"]}) == expected
    # `datasets` gives every part all fields, and has bytes and path of an image.
    stored = {"bytes": b"", "path": None}
    nulls = [part | {"text": part.get("text"), "image": None} for part in QUESTION["content"]]
    row = {"messages": [{"role": "user", "content": nulls}, ANSWER], "images": [stored, "b"]}
    assert convert("conversations", row) == [
        user(shown(stored), text("How many?"), shown("b")),
        assistant(text("two")),
    ]


def test_images_in_place_need_no_column():
    turns = [user(shown("a"), text("And this?"), {"type": "image"}), assistant(shown("c"))]
    row = {"conversations": turns, "image": "b"}
    assert convert("conversations", row) == [user(shown("a"), text("And this?"), shown("b")), assistant(shown("c"))]
    codes = [assistant({"type": "image", "image_tokens": [1, 2]})]
    assert convert("conversations", {"messages": codes}) == codes


def test_strings_hold_markers_or_the_images_come_first():
    written = [{"role": "user", "content": "From <image> draw\n<image>"}, {"role": "assistant", "content": "<image>"}]
    assert convert("conversations", {"messages": written, "images": ["a", "b", "c"]}) == [
        user(text("From"), shown("a"), text("draw"), shown("b")),
        assistant(shown("c")),
    ]
    plain = [{"role": "user", "content": "Compare."}, {"role": "assistant", "content": "Equal."}]
    assert convert("conversations", {"messages": plain, "images": ["a", "b"]}) == [
        user(shown("a"), shown("b"), text("Compare.")),
        assistant(text("Equal.")),
    ]


# As in llava_v1_5_mix665k.json: ids of two types, rows with and without an image.
LLAVA = [
    {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
            {"from": "gpt", "value": "The bus in the image is white and red."},
            {"from": "human", "value": "What feature can be seen on the back of the bus?"},
            {"from": "gpt", "value": "The back of the bus features an advertisement."},
        ],
    },
    {
        "id": 2357,
        "image": "gqa/images/2405722.jpg",
        "conversations": [
            {"from": "human", "value": "What is this bird called?\n<image>"},
            {"from": "gpt", "value": "Parrot"},
        ],
    },
    {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": [{"from": "human", "value": "Write a title."}, {"from": "gpt", "value": "A title"}],
    },
]


def test_llava():
    bus, bird, title = (convert("llava", row) for row in LLAVA)
    first = shown("coco/train2017/000000033471.jpg")
    assert bus[0] == user(first, text("What are the colors of the bus in the image?"))
    assert [turn["role"] for turn in bus] == ["user", "assistant"] * 2
    assert bird == [
        user(text("What is this bird called?"), shown("gqa/images/2405722.jpg")),
        assistant(text("Parrot")),
    ]
    assert title == [user(text("Write a title.")), assistant(text("A title"))]
    with pytest.raises(ValueError, match="from 'bing': only human and gpt"):
        convert("llava", {"conversations": [{"from": "bing", "value": "Hello"}]})


@pytest.mark.parametrize(
    ("form", "row", "numbers"),
    [
        ("conversations", {"messages": [QUESTION, ANSWER], "images": ["a"]}, "2 markers of images, but 1 images"),
        ("conversations", {"messages": [ANSWER], "images": ["a"]}, "0 markers of images, but 1 images"),
        ("llava", {**LLAVA[2], "image": "a"}, "0 markers of images, but 1 images"),
        ("llava", {**LLAVA[0], "image": None}, "1 markers of images, but 0 images"),
    ],
)
def test_markers_that_differ_from_images_are_counted(form, row, numbers):
    with pytest.raises(ValueError, match=numbers):
        convert(form, row)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("conversations", {"messages": None}, "its conversation is None"),
        ("conversations", {"messages": [{"role": "user", "content": None}]}, "content of a turn is None"),
        ("text", {"text": None}, "its text is None"),
        ("image_to_caption", {"image": None, "text": "a cat"}, "it has 0 images"),
        ("image_to_caption", {"image": "a", "text": " "}, "captions are"),
        ("caption_to_image", {"image": "a", "captions": []}, "captions are"),
    ],
)
def test_a_row_that_lacks_something_says_what(form, row, message):
    with pytest.raises(ValueError, match=message):
        convert(form, row)


def test_text_is_written():
    assert convert("text", {"text": "a page\n"}) == [assistant(text("a page\n"))]


def test_pairs_go_both_ways():
    for column in ("text", "caption", "label"):
        row = {"image": "a", column: "a cat "}
        assert convert("image_to_caption", row) == [user(shown("a")), assistant(text("a cat"))]
        assert convert("caption_to_image", row) == [user(text("a cat")), assistant(shown("a"))]


def test_columns_are_the_first_there_are_or_both_lists_are_told():
    assert FORMATS["image_to_caption"].columns(["label", "image", "caption", "width"]) == ["image", "caption"]
    assert FORMATS["llava"].columns(["id", "conversations"]) == ["conversations"]
    assert FORMATS["conversations"].columns(["images", "messages"]) == ["messages", "images"]
    with pytest.raises(ValueError, match=r"columns jpg, txt, but image and text or caption .* is missing: say which"):
        FORMATS["caption_to_image"].columns(["jpg", "txt"])


@pytest.fixture
def coco(tmp_path):
    """captions_val2014.json of two images, as COCO publishes it."""
    number = {"a.jpg": 391895, "b.jpg": 60623}
    images = [
        {
            "license": 3,
            "file_name": f"COCO_val2014_{image:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/val2014/COCO_val2014_{image:012d}.jpg",
            "height": 360,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": image,
        }
        for image in number.values()
    ]
    annotations = [
        {"image_id": image, "id": 770337 + 10 * place + image, "caption": f"Caption {place} of {image}. "}
        for place in range(5)
        for image in number.values()
    ]
    info = {"description": "COCO 2014 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2014}
    licenses = [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "A License"}]
    published = {"info": info, "images": images, "licenses": licenses, "annotations": annotations}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(published))
    return tmp_path


def test_coco_rows_have_five_captions_of_which_a_sample_has_one(coco):
    rows = join_coco(coco, "val2014")
    assert rows == join_coco(coco, "val")
    assert [row["image"] for row in rows] == ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000060623.jpg"]
    assert rows[1]["captions"] == [f"Caption {place} of 60623. " for place in range(5)]
    samples = [convert("coco_captions", rows[1], seed) for seed in range(50)]
    assert samples == [convert("coco_captions", rows[1], seed) for seed in range(50)]
    assert {sample[0]["content"][0]["image"] for sample in samples} == {"COCO_val2014_000000060623.jpg"}
    chosen = {sample[1]["content"][0]["text"] for sample in samples}
    assert chosen == {f"Caption {place} of 60623." for place in range(5)}
    drawn = convert("coco_captions_to_image", rows[0])
    assert [turn["content"][0]["type"] for turn in drawn] == ["text", "image"]


def test_a_split_without_a_file_is_told_with_those_that_have_one(coco):
    with pytest.raises(ValueError, match="split 'train' fits no file in .*: there are val2014"):
        join_coco(coco, "train")
    (coco / "captions_val2017.json").write_text("{}")
    with pytest.raises(ValueError, match="split 'val' fits captions_val2014.json, captions_val2017.json"):
        join_coco(coco, "val")
    with pytest.raises(ValueError, match="no folder"):
        join_coco(coco / "captions_val2014.json", "val")


def test_captions_of_images_that_are_not_listed(coco):
    published = json.loads((coco / "captions_val2014.json").read_text())
    del published["images"][0]
    (coco / "captions_val2014.json").write_text(json.dumps(published))
    with pytest.raises(ValueError, match="captions of 1 images that are not listed: 391895"):
        join_coco(coco, "val")


@pytest.fixture
def vqav2(tmp_path):
    """Questions and annotations of two questions, as VQAv2 publishes them."""
    answers = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(["down", "at table", "down", "skateboard"] + ["down"] * 6, start=1)
    ]
    asked = [(262148, 262148000, "Where is he looking?"), (393225, 393225001, "What website copyrighted it?")]
    common = {
        "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
        "data_type": "mscoco",
        "data_subtype": "val2014",
    }
    questions = [{"image_id": image, "question": words, "question_id": number} for image, number, words in asked]
    annotations = [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": answer,
            "answers": answers,
            "image_id": image,
            "answer_type": "other",
            "question_id": number,
        }
        for (image, number, _), answer in zip(asked, ["down", "foodiebakercom"], strict=True)
    ][::-1]
    files = {"OpenEnded_mscoco_val2014_questions": {**common, "task_type": "Open-Ended", "questions": questions}}
    files["mscoco_val2014_annotations"] = {**common, "annotations": annotations}
    for name, published in files.items():
        (tmp_path / f"v2_{name}.json").write_text(json.dumps(published))
    return tmp_path


def test_vqav2_joins_questions_and_answers(vqav2):
    rows = join_vqav2(vqav2, "val2014")
    assert [row["answer"] for row in rows] == ["down", "foodiebakercom"]
    image = shown("COCO_val2014_000000262148.jpg")
    assert convert("vqav2", rows[0]) == [user(image, text("Where is he looking?")), assistant(text("down"))]
    for path in list(vqav2.iterdir()):  # as the first version named them
        path.rename(path.with_name(path.name.removeprefix("v2_")))
    assert join_vqav2(vqav2, "val") == rows


def test_questions_and_annotations_that_do_not_meet(vqav2):
    path = vqav2 / "v2_mscoco_val2014_annotations.json"
    published = json.loads(path.read_text())
    del published["annotations"][0]
    path.write_text(json.dumps(published))
    rows = join_vqav2(vqav2, "val2014")
    with pytest.raises(ValueError, match="question 393225001 has no annotation"):
        convert("vqav2", rows[1])
    published["annotations"].append({**published["annotations"][0], "question_id": 7})
    path.write_text(json.dumps(published))
    with pytest.raises(ValueError, match="annotations of 1 questions not asked: 7"):
        join_vqav2(vqav2, "val2014")
    path.unlink()
    with pytest.raises(ValueError, match="no .*annotations.json"):
        join_vqav2(vqav2, "val2014")
