"""The three layouts, id by id, and what is refused."""

import pytest

from processing_unified.layout_unified import IGNORE_INDEX, Span, SpecialIds, lay_out, read_back, split_into_spans

IDS = SpecialIds(sos=1, eos=2, soi=3, eoi=4, slot=6, feature=7)
MASK = 5
DOT = IGNORE_INDEX


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(*parts):
    return {"role": "assistant", "content": list(parts)}


def text(string):
    return {"type": "text", "text": string}


IMAGE = {"type": "image", "image": object()}


def laid_out(*messages, read=(6, 6), written=(6, 6)):
    """Each character is its code point, each image two slots if nothing else is said."""
    contents = {
        "text": lambda span: [ord(x) for x in span.content],
        "image": lambda span: list(written if span.written else read),
        "end": lambda span: None,
    }
    return lay_out([s._replace(content=contents[s.kind](s)) for s in split_into_spans(messages)], IDS)


A, B, NEWLINE = ord("a"), ord("b"), ord("\n")


@pytest.mark.parametrize(
    "messages, input_ids, labels",
    [
        ([assistant(text("ab"))], [1, A, B, 2], [DOT, A, B, 2]),
        (
            [user(IMAGE), assistant(text("a"))],
            [1, 3, 6, 6, 4, A, 2],
            [DOT, DOT, DOT, DOT, DOT, A, 2],
        ),
        (
            [user(text("a")), assistant(IMAGE)],
            [1, A, 3, 6, 6, 4, 2],
            [DOT, DOT, 3, 6, 6, 4, 2],
        ),
        (
            [user(IMAGE, text("a")), assistant(text("b"))],
            [1, 3, 6, 6, 4, A, NEWLINE, B, 2],
            [DOT, DOT, DOT, DOT, DOT, DOT, DOT, B, 2],
        ),
        (
            [user(text("a")), assistant(text("b"), IMAGE, text("a"), text("b"))],
            [1, A, NEWLINE, B, 3, 6, 6, 4, A, B, 2],
            [DOT, DOT, DOT, B, 3, 6, 6, 4, A, B, 2],
        ),
        (
            [user(text("a")), user(text("b")), assistant(IMAGE), user(text("a")), assistant(text("b"))],
            [1, A, B, 3, 6, 6, 4, 2, A, NEWLINE, B, 2],
            [DOT, DOT, DOT, 3, 6, 6, 4, 2, DOT, DOT, B, 2],
        ),
        ([assistant(IMAGE)], [1, 3, 6, 6, 4, 2], [DOT, 3, 6, 6, 4, 2]),
    ],
    ids=["text", "image to text", "text to image", "question", "interleaved", "two turns", "image alone"],
)
def test_layout(messages, input_ids, labels):
    assert laid_out(*messages) == (input_ids, labels)


def test_an_image_read_through_features():
    assert laid_out(user(IMAGE), assistant(text("aba")), read=(7, 7)) == (
        [1, 3, 7, 7, 4, A, B, A, 2],
        [DOT, DOT, DOT, DOT, DOT, A, B, A, 2],
    )


def test_editing_is_laid_out_as_drawn():
    messages = user(IMAGE, text("aba")), assistant(IMAGE)
    assert laid_out(*messages, read=(7, 7, 6, 6, 6, 6), written=(6, 6, 6, 6)) == (
        [1, 3, 7, 7, 6, 6, 6, 6, 4, A, B, A, 3, 6, 6, 6, 6, 4, 2],
        [DOT] * 12 + [3, 6, 6, 6, 6, 4, 2],
    )


def test_a_string_is_one_text_part():
    assert laid_out({"role": "assistant", "content": "ab"}) == laid_out(assistant(text("ab")))


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "system", "content": "x"}], "message 0 has the role 'system'"),
        ([user(text("a")), {"role": "assistant"}], "content of message 1 is NoneType"),
        ([user({"type": "video"})], "message 0 holds the part {'type': 'video'}"),
        ([user({"type": "text"})], "message 0 holds the part {'type': 'text'}"),
        ([], "the conversation is empty"),
    ],
)
def test_a_malformed_conversation_is_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        split_into_spans(messages)


def test_read_back_tells_given_images_from_written_ones():
    ids = [1, 3, 6, 6, 4, A, 3, 70, 71, 4, B, 2]
    assert read_back(ids, IDS) == [
        Span("text", False, [1]),
        Span("image", False, [6, 6]),
        Span("text", False, [A]),
        Span("image", True, [70, 71]),
        Span("text", False, [B, 2]),
    ]


@pytest.mark.parametrize("given", [[6, 6], [7, 7], [7, 7, 6, 6], [6, 6, 7, 7]])
@pytest.mark.parametrize("written", [[70, 71], [MASK, MASK]], ids=["codes", "vectors"])
def test_read_back_with_every_kind_of_placeholder(given, written):
    spans = read_back([1, 3, *given, 4, 3, *written, 4, A], IDS)
    images = [span for span in spans if span.kind == "image"]
    assert images == [Span("image", False, given), Span("image", True, written)]


def test_read_back_refuses_half_an_image():
    with pytest.raises(ValueError, match="4 ids ends inside the image that begins at 1"):
        read_back([1, 3, 70, 71], IDS)
