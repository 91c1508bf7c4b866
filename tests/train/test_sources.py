"""Sources of any place: the same samples from all of them, images opened late, and bad input told with its row."""

import json
import logging
from dataclasses import replace

import datasets
import fsspec
import pytest
from PIL import Image

from train.conversations import assistant, text, user
from train.recipes.kinds import Source
from train.sources import open_source, without_pixels


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def photos(tmp_path, make_image):
    """Six images of three labels in a folder for each."""
    for number in range(6):
        path = tmp_path / "photos" / ("bus", "cat", "cup")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(path)
    return tmp_path / "photos"


@pytest.fixture
def open_llava(tmp_path, make_image):
    """Opens rows written as LLaVA's JSON, or as JSON lines; 2.png is RGBA, 3.png no image."""
    folder = tmp_path / "images" / "coco"
    folder.mkdir(parents=True)
    for number in range(3):
        make_image(number).save(folder / f"{number}.png")
    transparent = make_image(2).convert("RGBA")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    transparent.save(folder / "2.png")
    (folder / "3.png").write_bytes(b"no image")

    def open_rows(rows, seed=0, skip_bad_rows=False, name="llava.json", **fields):
        lines = name.endswith("l")
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
        source = Source("llava", 1, form="llava", path=str(path), images=str(tmp_path / "images"))
        return open_source(Source(**vars(source) | fields), seed, skip_bad_rows)

    return open_rows


def row_of(number: int | None, question: str = "What?", **fields) -> dict:
    marker = "" if number is None else "<image>\n"
    turns = [{"from": "human", "value": marker + question}, {"from": "gpt", "value": "This."}]
    row = {"id": f"{number}", "image": f"coco/{number}.png", "conversations": turns} | fields
    return row if number is not None else {"id": 7, "conversations": turns}


def told(source, count: int) -> set:
    """All samples of one turn, images by their pixels."""
    return {repr(comparable(source[number])) for number in range(count)}


def comparable(conversation):
    return [
        [part | {"image": part["image"].tobytes()} if "image" in part else part for part in turn["content"]]
        for turn in conversation
    ]


def stored_everywhere(photos, tmp_path) -> dict[str, Source]:
    """The same labelled images in all places data may come from."""
    rows = datasets.load_dataset(str(photos), split="train")
    embedded = rows.map(lambda row: row, features=rows.features, writer_batch_size=2)
    embedded.to_parquet(str(tmp_path / "rows-0.parquet"), batch_size=2)
    rows.save_to_disk(str(tmp_path / "saved"))
    lines = [
        {"image": f"{path.parent.name}/{path.name}", "caption": path.parent.name} for path in photos.rglob("*.png")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "splits"))

    def source(path: str, **fields) -> Source:
        return Source(path, 1, form="caption_to_image", path=str(tmp_path / path), **fields)

    return {
        "folder": source("photos"),
        "streamed folder": source("photos", streaming=True),
        "parquet": source("rows-*.parquet"),
        "streamed parquet": source("rows-0.parquet", streaming=True),
        "saved": source("saved"),
        "saved splits": source("splits", split="test"),
        "lines": source("rows.jsonl", images=str(photos)),
        "streamed lines": source("rows.jsonl", images=str(photos), streaming=True),
    }


def test_all_places_give_the_same_samples(photos, tmp_path, make_image):
    expected = {
        repr(comparable([user(text(label)), assistant({"type": "image", "image": make_image(number)})]))
        for number, label in enumerate(["bus", "cat", "cup"] * 2)
    }
    for place, source in stored_everywhere(photos, tmp_path).items():
        opened = open_source(source, seed=0)
        assert told(opened, 6) == expected, place
        again, other = open_source(source, seed=0), open_source(source, seed=1)
        numbers = range(5, 17)  # from the middle of the first turn into the third
        rows = [opened.describe_row(number) for number in numbers]
        assert [again.describe_row(number) for number in numbers] == rows, place
        assert [other.describe_row(number) for number in numbers] != rows, place


def test_columns_may_have_other_names(photos, tmp_path):
    """In all places, and beside another column of the form's own name."""
    rows = datasets.load_dataset(str(photos), split="train")
    rows = rows.add_column("words", [f"no. {number}" for number in range(len(rows))]).rename_column("image", "photo")
    rows.to_parquet(str(tmp_path / "renamed.parquet"))
    rows.save_to_disk(str(tmp_path / "renamed"))
    names = {"image": "photo", "label": "words"}
    told_of = []
    for path, streaming in (("renamed.parquet", False), ("renamed.parquet", True), ("renamed", False)):
        source = Source("own", 1, "image_to_caption", str(tmp_path / path), columns=names, streaming=streaming)
        opened = open_source(source, seed=0)
        told_of.append({opened[number][1]["content"][0]["text"] for number in range(6)})
        with pytest.raises(ValueError, match="it has the columns photo, label, words, and no caption to be renamed"):
            open_source(replace(source, columns={"label": "caption"}), seed=0)
    assert told_of == [{f"no. {number}" for number in range(6)}] * 3


def test_a_subset_is_the_one_that_is_named(tmp_path):
    """As on the Hub, where a card lists them."""
    for name in ("plain", "long"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"a {name} text"}))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("plain", "long"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    opened = open_source(Source("own", 1, "text", str(tmp_path), subset="long"), seed=0)
    assert opened[0][0]["content"][0]["text"] == "a long text"


def test_a_folder_with_captions_in_its_metadata(photos):
    lines = [
        {"file_name": f"{path.parent.name}/{path.name}", "text": f"no. {path.stem}"} for path in photos.rglob("*.png")
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    opened = open_source(Source("photos", 1, form="image_to_caption", path=str(photos)), seed=0)
    assert {opened[number][1]["content"][0]["text"] for number in range(6)} == {f"no. {number}" for number in range(6)}


def test_some_images_come_without_their_prompts(photos):
    """As many as asked for, the same ones each time, and only where words alone ask for an image alone."""
    drawn = open_source(Source("photos", 1, "caption_to_image", str(photos)), seed=0, drop_prompt_share=0.3)
    bare = [number for number in range(300) if drawn[number][0]["role"] == "assistant"]
    assert 60 < len(bare) < 120
    assert [number for number in range(300) if drawn[number][0]["role"] == "assistant"] == bare
    image, caption = drawn[bare[0]][0]["content"]
    assert image["type"] == "image" and caption["text"] in ("bus", "cat", "cup")
    read = open_source(Source("photos", 1, "image_to_caption", str(photos)), seed=0, drop_prompt_share=1.0)
    assert all(read[number][0]["role"] == "user" for number in range(12))


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_with_and_without_images_in_one_file(open_llava, name, streaming, make_image):
    source = open_llava([row_of(0), row_of(None), row_of(2)], name=name, streaming=streaming)
    samples = {len(conversation[0]["content"]): conversation for conversation in (source[0], source[1], source[2])}
    assert set(samples) == {1, 2} and samples[1] == [user(text("What?")), assistant(text("This."))]
    assert sorted(source.describe_row(number) for number in range(3)) == [f"row {row} of llava" for row in range(3)]
    images = [source[number][0]["content"][0].get("image") for number in range(3)]
    assert {image.tobytes() for image in images if image} >= {make_image(0).tobytes()}


@pytest.mark.parametrize("streaming", [False, True])
def test_contents_may_be_strings_here_and_parts_there(open_llava, streaming, make_image):
    shown = {"type": "image"}
    answer = {"role": "assistant", "content": "Yes."}
    rows = [
        {"messages": [{"role": "user", "content": [shown, text("Seen?")]}, answer], "images": ["coco/0.png"]},
        {"messages": [{"role": "user", "content": "Heard?"}, answer]},
    ]
    source = open_llava(rows, form="conversations", name="rows.jsonl", streaming=streaming)
    image = {"type": "image", "image": make_image(0)}
    expected = [[user(image, text("Seen?")), assistant(text("Yes."))], [user(text("Heard?")), assistant(text("Yes."))]]
    assert told(source, 2) == {repr(comparable(conversation)) for conversation in expected}


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_column_of_lists_are_opened_late(tmp_path, streaming, make_image):
    turns = [user({"type": "image"}, {"type": "image"}), assistant(text("Two."))]
    make_image(0).save(tmp_path / "0.png")
    stored = {"bytes": (tmp_path / "0.png").read_bytes(), "path": "0.png"}
    columns = {"messages": [turns] * 2, "images": [[stored] * 2, [stored, stored | {"bytes": b"no image"}]]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    source = Source("pairs", 1, path=str(tmp_path / "rows.parquet"), streaming=streaming)
    opened = open_source(source, seed=0)
    assert [opened.describe_row(number) for number in range(2)] == ["row 0 of pairs", "row 1 of pairs"]
    assert [part["image"].tobytes() for part in opened[0][0]["content"]] == [make_image(0).tobytes()] * 2
    with pytest.raises(ValueError, match="row 1 of pairs: image 1 cannot be read"):
        opened[1]


def test_images_may_lie_at_a_url(open_llava, make_image):
    with fsspec.open("memory://data6/0.png", "wb") as file:
        make_image(0).save(file, format="png")
    source = open_llava([row_of(0, image="memory://data6/0.png")])
    assert source[0][0]["content"][0]["image"].tobytes() == make_image(0).tobytes()
    with pytest.raises(ValueError, match="memory://data6/1.png.* cannot be read"):
        open_llava([row_of(0, image="memory://data6/1.png")])[0]


def test_images_are_upright_and_on_white(open_llava, tmp_path, make_image):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "images" / "turned.jpg", exif=exif)
    (seen,) = open_llava([row_of(2)])[0][0]["content"][:1]
    assert seen["image"].mode == "RGB" and seen["image"].getpixel((0, 0)) == (255, 255, 255)
    assert seen["image"].getpixel((1, 0)) == make_image(2).getpixel((1, 0))
    (turned,) = open_llava([row_of(0, image="turned.jpg")])[0][0]["content"][:1]
    assert turned["image"].size == (2, 4)


def test_coco_is_joined_and_its_images_found(tmp_path, make_image):
    make_image(0).save(tmp_path / "COCO_val2014_000000000042.jpg")
    image = {"license": 3, "file_name": "COCO_val2014_000000000042.jpg", "height": 8, "width": 8, "id": 42}
    annotations = [{"image_id": 42, "id": number, "caption": f"caption {number}"} for number in range(5)]
    published = {"info": {}, "images": [image], "licenses": [], "annotations": annotations}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(published))
    source = Source("coco", 1, form="coco_captions", path=str(tmp_path), split="val")
    opened, again = open_source(source, seed=0), open_source(source, seed=0)
    captions = [opened[number][1]["content"][0]["text"] for number in range(40)]
    assert set(captions) == {f"caption {number}" for number in range(5)}
    assert [again[number][1]["content"][0]["text"] for number in range(20, 40)] == captions[20:]
    with pytest.raises(ValueError, match="source 'coco' .*: .*: there are val2014"):
        open_source(Source(**vars(source) | {"split": "train"}), seed=0)
    with pytest.raises(ValueError, match="leave streaming off"):
        open_source(Source(**vars(source) | {"streaming": True}), seed=0)


def test_the_check_reads_no_pixels(photos):
    rows = datasets.load_dataset(str(photos), split="train").cast_column("image", datasets.Image(decode=False))
    held = rows.map(lambda row: {"image": {"bytes": b"pixels", "path": None}, "images": [row["image"]] * 2})
    held = held.cast_column("images", datasets.List(datasets.Image()))
    for row, light in zip(rows, without_pixels(held), strict=True):
        assert light["image"] == {"bytes": b"", "path": None}
        assert light["images"] == [row["image"]] * 2


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_columns_are_told_with_those_there_are(open_llava, streaming):
    with pytest.raises(
        ValueError, match="source 'llava' .*: it has the columns id, image, text, but conversations are"
    ):
        open_llava([{"id": 1, "image": "a", "text": "b"}], name="a.jsonl", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_does_not_exist(open_llava, streaming):
    with pytest.raises(ValueError, match="source 'llava' .*: it has no split val: there are train"):
        open_llava([row_of(0)], split="train+val", streaming=streaming)


def test_all_missing_images_are_told_at_once(open_llava):
    rows = [row_of(number) for number in range(2)] + [row_of(number) for number in range(100, 130)] + [row_of(100)]
    with pytest.raises(ValueError) as error:
        open_llava(rows)
    assert "30 image files of 31 rows do not exist" in str(error.value)
    assert "coco/119.png\n  …" in str(error.value) and "coco/120.png" not in str(error.value)
    left = open_llava(rows, skip_bad_rows=True)
    assert left.bad_rows == 31
    assert {left.describe_row(number) for number in range(4)} == {"row 0 of llava", "row 1 of llava"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of(1, image=None), "1 markers of images, but 0 images"),
        (row_of(1, question="And <image>?"), "2 markers of images, but 1 images"),
        (row_of(1, conversations=[]), "0 markers"),
        (row_of(1, image=None, conversations=[]), "the conversation is empty"),
        (row_of(1, conversations=[{"from": "human", "value": "<image>"}]), "the assistant writes nothing"),
        (row_of(1, conversations=[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " "}]), "nothing"),
    ],
)
def test_a_bad_row_is_named_at_the_start_or_left_out_and_counted(open_llava, row, message):
    rows = [row_of(0), row, row_of(1), row]
    with pytest.raises(ValueError, match=f"source 'llava' .*: row 1: .*{message}.*--skip-bad-rows"):
        open_llava(rows)
    left = open_llava(rows, skip_bad_rows=True)
    assert left.bad_rows == 2 and len(told(left, 10)) == 2


def test_a_corrupt_image_is_told_when_it_is_read(open_llava):
    source = open_llava([row_of(3)])
    with pytest.raises(ValueError, match=r"row 0 of llava: image 0 \(.*3.png\) cannot be read.*--skip-bad-rows"):
        source[0]
    with pytest.raises(ValueError, match="100 rows of llava in a row are bad"):
        open_llava([row_of(3)], skip_bad_rows=True)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_bad_only_when_read_is_told_and_replaced(open_llava, streaming, caplog):
    rows = [row_of(0), row_of(3), row_of(1)]
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # transformers' own does not hand on
    source = open_llava(rows, skip_bad_rows=True, streaming=streaming)
    caplog.clear()
    samples = [comparable(source[number]) for number in range(6)]
    logger.removeHandler(caplog.handler)
    assert len({repr(sample) for sample in samples}) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "row 1 of llava" in caplog.text and "3.png" in caplog.text
    bad = next(number for number in range(6) if source.describe_row(number) == "row 1 of llava")
    assert comparable(source[bad]) == comparable(source[bad + 1])


def test_streamed_rows_are_checked_as_they_come(open_llava):
    rows = [row_of(0), row_of(1, image=None), row_of(50)]
    source = None
    for seed in range(9):
        try:
            source = open_llava(rows, seed=seed, streaming=True)
        except ValueError as error:
            assert "of llava" in str(error)
    for number in range(3):
        bad = source.describe_row(number)
        message = {"row 1 of llava": "1 markers", "row 2 of llava": "no such file"}.get(bad)
        if message:
            with pytest.raises(ValueError, match=f"{bad}: .*{message}"):
                source[number]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "sharegpt"}, "form is 'sharegpt': there are conversations, llava"),
        ({"path": None}, "no path"),
        ({"path": "nowhere/rows.parquet"}, "nowhere/rows.parquet"),
        ({"path": "nowhere/at/all"}, "nowhere/at/all"),
        ({"images": "nowhere"}, "images are in nowhere, which is no folder"),
    ],
)
def test_what_cannot_be_opened_is_told(open_llava, fields, message):
    with pytest.raises(ValueError, match=f"source 'llava' .*: .*{message}"):
        open_llava([row_of(0)], **fields)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_is_no_json_is_told(open_llava, tmp_path, streaming):
    (tmp_path / "broken.json").write_text('[{"conversations": [}')
    with pytest.raises(ValueError, match="source 'llava' .*broken.json.: ."):
        open_llava([row_of(0)], path=str(tmp_path / "broken.json"), streaming=streaming)
