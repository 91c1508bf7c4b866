"""From a conversation to one sequence: which ids stand where, and which of them the model learns to write.

Contract: `split_into_spans` checks a conversation and cuts it into spans; `lay_out` turns spans, their texts already
tokenized, into `input_ids` and `labels` of equal length; `image_script` says which ids an image's tokens stand among;
`feature_script` the same of its features; `read_back` finds text and images in a generated sequence.
Pure functions over plain values; nothing is truncated. `CHAT_TEMPLATE` renders a conversation to the same ids (held by
a test).

Legend: T ids of the sequence, L slots of one image (one per image token, in raster order), M features of one image.

    text document        assistant: text
        ids     [SOS] t t t [EOS]
        labels    .   t t t [EOS]

    image to text        user: image; assistant: text
        ids     [SOS] [SOI] s s s s [EOI] t t t [EOS]
        labels    .     .   . . . .   .   t t t [EOS]

    text to image        user: text; assistant: image
        ids     [SOS] t t t [SOI] s s s s [EOI] [EOS]
        labels    .   . . . [SOI] s s s s [EOI] [EOS]

    image to text        user: image, read through features; assistant: text
        ids     [SOS] [SOI] f f [EOI] t t t [EOS]
        labels    .     .   . .   .   t t t [EOS]

    editing              user: image, read through features and latents, text; assistant: image
        ids     [SOS] [SOI] f f s s s s [EOI] t t t [SOI] s s s s [EOI] [EOS]
        labels    .     .   . . . . . .   .   . . . [SOI] s s s s [EOI] [EOS]

    image to text        the same with visual supervision (UVU)
        ids     [SOS] [SOI] f f [EOI] t t t [EOS]
        labels    .     .   f f   .   t t t [EOS]

    image to text        read through codes and features, with sizes and newlines (UniToken); two rows of two slots
        ids     [SOS] [SOI] h w s s n s s n [SEP] f f [EOI] t t t [EOS]
        labels    .     .   . . . . . . . .   .   . .   .   t t t [EOS]

    image to text        the same in tiles (AnyRes): features of the whole image, then rows of those of its tiles
        ids     [SOS] [SOI] h w s s n s s n [SEP] f f f f n f f n [EOI] t t t [EOS]
        labels    .     .   . . . . . . . .   .   . . . . . . . .   .   t t t [EOS]

    text to image        read as the first of these, the image's own features behind its codes, in training alone
        ids     [SOS] t t t [SOI] h w s s n s s n [SEP] f f [EOI] [EOS]
        labels    .   . . . [SOI] h w s s n s s n [SEP] . . [EOI] [EOS]

`t` is a text id, `s` the slot id `<|image_slot|>`, `f` the id of one feature `<|image_feature|>`, `h`, `w` and `n` ids
for height, width and the end of a row, `.` is -100 (no loss). In `labels` a slot says "an image token is predicted
here", and so does a feature: the token of what the feature shows. The model resolves both to codes or vectors.
Labels stand at the position of the id itself: the shift by one happens in the model. The first three are the layouts of
the UGen paper. UniFluid's figure 1 shows features before the text, without `[SOI]` and `[EOI]`; how it lays out editing
is not known to us. One frame around every image, whatever it is read through, is our choice: the model is told where an
image begins, and it is found again in a sequence. Everything else follows from three rules:

- What the assistant writes has labels, `[SOI]`, `[EOI]` and the `[EOS]` that ends its turn included; what the user
  gives has none. There are no role tokens.
- A written image is L slots; a read one is what the model's readers take, one after the other. Features have no labels,
  nor has the newline that ends a row of them.
- Where an assistant's text directly follows a user's text, one newline stands between them. It belongs to the user:
  it is the end of the prompt. (Our choice; the paper shows no question answering. A role token would change the three
  layouts above.)

        ids     [SOS] [SOI] s s s s [EOI] how many cats ? \\n two [EOS]
        labels    .     .   . . . .   .    .   .    .   .  .  two [EOS]
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

IGNORE_INDEX = -100
PROMPT_END = "\n"

# The template twin of `split_into_spans` and `lay_out`: bos once, parts as they are, eos after an assistant's turn, and
# one newline where an assistant's text meets a user's. `generation_mode` says what the answer will be.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set state = namespace(prompt_ends_in_text=false) -%}
{%- for message in messages -%}
    {%- if message.role not in ("user", "assistant") -%}
        {{- raise_exception('A message has the role "' ~ message.role ~ '": only "user" and "assistant" exist') -}}
    {%- endif -%}
    {%- set content = message.content -%}
    {%- if content is string -%}{%- set content = [{"type": "text", "text": content}] -%}{%- endif -%}
    {%- for part in content -%}
        {%- if part.type == "image" -%}
            {{- image_token -}}
            {%- set state.prompt_ends_in_text = false -%}
        {%- elif part.type == "text" -%}
            {%- if message.role == "assistant" and state.prompt_ends_in_text -%}{{- "\\n" -}}{%- endif -%}
            {{- part.text -}}
            {%- set state.prompt_ends_in_text = message.role == "user" -%}
        {%- else -%}
            {{- raise_exception('A part has the type "' ~ part.type ~ '": only "text" and "image" exist') -}}
        {%- endif -%}
    {%- endfor -%}
    {%- if message.role == "assistant" -%}
        {{- eos_token -}}
        {%- set state.prompt_ends_in_text = false -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and state.prompt_ends_in_text and (generation_mode or "text") == "text" -%}
    {{- "\\n" -}}
{%- endif -%}
"""


class Span(NamedTuple):
    """A stretch of one kind by one author."""

    kind: str  # "text", "image" or "end" (of an assistant's turn)
    written: bool  # by the assistant, hence predicted
    content: Any = None  # which of its forms (text or ids, image part or ids) each function says


class SpecialIds(NamedTuple):
    sos: int
    eos: int
    soi: int
    eoi: int
    slot: int
    feature: int


class Lines(NamedTuple):
    """What stands between the slots of an image, in the words of the model's config."""

    newline_token_id: int
    size_token_offset: int
    size_token_unit: int
    max_image_side: int


class Tiles(NamedTuple):
    """How an image is cut for a vision tower of one size, in the words of the model's config."""

    tile_size: int
    tile_grids: list[list[int]]
    newline_token_id: int


def image_script(grid: tuple[int, int], stride: int, slot: int, lines: Lines | None = None) -> list[int]:
    """Ids of one image's tokens, between `[SOI]` and `[EOI]`: a slot for each; with `lines`, the ids of height and
    width before them and a newline after each row.

    Args:
        grid: rows and columns of image tokens, each of `stride` pixels a side.

    Raises:
        ValueError: a side that no id names.
    """
    rows, columns = grid
    if lines is None:
        return [slot] * (rows * columns)
    sides = [count * stride for count in grid]
    for side in sides:
        if side % lines.size_token_unit or side > lines.max_image_side:
            raise ValueError(
                f"no token names a side of {side} pixels: choose multiples of {lines.size_token_unit} up to "
                f"{lines.max_image_side}"
            )
    size = [lines.size_token_offset + side // lines.size_token_unit for side in sides]
    return [*size, *([slot] * columns + [lines.newline_token_id]) * rows]


def feature_script(whole: int, grid: tuple[int, int], feature: int, newline: int) -> list[int]:
    """Ids of one image's features in tiles: `whole` features of all of it, without newlines, then those of the map that
    the tiles make together, on a `grid` of rows and columns, with a newline after each row."""
    rows, columns = grid
    return [feature] * whole + ([feature] * columns + [newline]) * rows


def split_into_spans(conversation: Sequence[dict]) -> list[Span]:
    """Cuts a conversation into spans; joins neighbouring texts of one author, puts in the newline after a prompt.

    Args:
        conversation: messages `{"role": "user" | "assistant", "content": str | list of parts}`; a part is
            `{"type": "text", "text": str}` or `{"type": "image", ...}`, whose other keys are not looked at.

    Raises:
        ValueError: naming the message and what is wrong with it.
    """
    spans: list[Span] = []
    for index, message in enumerate(conversation):
        role = message.get("role")
        if role not in ("user", "assistant"):
            raise ValueError(f'message {index} has the role {role!r}: only "user" and "assistant" exist')
        written = role == "assistant"
        for part in _parts(message.get("content"), index):
            if part.get("type") == "image":
                spans.append(Span("image", written, part))
            elif part.get("type") == "text" and isinstance(part.get("text"), str):
                _append_text(spans, part["text"], written)
            else:
                raise ValueError(
                    f'message {index} holds the part {part!r}: a part is {{"type": "text", "text": str}} or '
                    '{"type": "image", "image": ...}'
                )
        if written:
            spans.append(Span("end", written))
    if not spans:
        raise ValueError("the conversation is empty: pass at least one message with content")
    return spans


def lay_out(spans: Sequence[Span], ids: SpecialIds, supervise_features: bool = False) -> tuple[list[int], list[int]]:
    """Lays spans out as `(input_ids, labels)`, two lists of length T.

    Args:
        spans: as from `split_into_spans`, where `content` of a text is now its list of ids, of an image the list of its
            ids between `[SOI]` and `[EOI]`: those of L slots, of M features, or of both in either order (of a written
            one slots come first).
        ids: the tokenizer's ids of the special tokens.
        supervise_features: whether features have labels too.
    """
    predicted = {ids.feature} if supervise_features else set()  # of what the user gives
    input_ids, labels = [ids.sos], [IGNORE_INDEX]
    for kind, written, content in spans:
        if kind == "text":
            added = content
        elif kind == "image":
            added = [ids.soi, *content, ids.eoi]
        else:
            added = [ids.eos]
        input_ids.extend(added)
        for before, token in pairwise([None, *added]):
            seen = token == ids.feature or (before == ids.feature and token != ids.eoi)  # or the end of a row of them
            labels.append(token if (written and not seen) or token in predicted else IGNORE_INDEX)
    return input_ids, labels


def read_back(ids_T: list[int], ids: SpecialIds) -> list[Span]:
    """Finds texts and images in a finished sequence, the reverse of `lay_out`.

    Returns:
        spans in order. `content` of a text is its list of ids (special ones such as `[SOS]` included), of an image its
        list of ids between `[SOI]` and `[EOI]`. An image was given in the prompt where these hold slots or features,
        else it is `written`: generated image tokens stand there as ids of codes, or as `[MASK]` where they are vectors.

    Raises:
        ValueError: if the sequence ends inside an image.
    """
    placeholders = {ids.slot, ids.feature}
    spans, start = [], 0
    while ids.soi in ids_T[start:]:
        begin = ids_T.index(ids.soi, start)
        if ids.eoi not in ids_T[begin:]:
            raise ValueError(f"the sequence of {len(ids_T)} ids ends inside the image that begins at {begin}")
        end = ids_T.index(ids.eoi, begin)
        image_T = ids_T[begin + 1 : end]
        spans += [Span("text", False, ids_T[start:begin]), Span("image", placeholders.isdisjoint(image_T), image_T)]
        start = end + 1
    return [*spans, Span("text", False, ids_T[start:])]


def _parts(content: Any, index: int) -> list[dict]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"the content of message {index} is {type(content).__name__}: pass a str or a list of parts")
    return list(content)


def _append_text(spans: list[Span], text: str, written: bool) -> None:
    previous = spans[-1] if spans else None
    if previous is not None and previous.kind == "text":
        if previous.written == written:
            spans[-1] = previous._replace(content=previous.content + text)
            return
        # Only a user's text can stand here: an assistant's turn closes with an "end".
        spans[-1] = previous._replace(content=previous.content + PROMPT_END)
    spans.append(Span("text", written, text))
