"""Sheets of small images with words on one PNG: cards in a grid, in titled sections; or strips below each other.

A card is an image with lines of text, below it or beside it, and where it was edited the result. Its images are
enlarged with a smooth filter, since they are small and are looked at as drawings. A strip is what one source made of
all headings; its images are enlarged pixel by pixel, since what codecs do to pixels is compared too. Sizes are pixels
of the sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

INK, SOFT, RIGHT, WRONG = "#1f2328", "#6e7781", "#1a7f37", "#b3261e"
PAPER, CARD, EDGE = "#f3f4f6", "#ffffff", "#d7dbe0"
WIDTH, MARGIN, GAP, PADDING = 1560, 36, 18, 12
IMAGE_SIZE = 192  # three times the 64 pixels of a scene
TEXT_SIZE, LEADING = 17, 22


class Line(NamedTuple):
    """A paragraph of a card; it is wrapped to the card's width."""

    text: str
    colour: str = INK


@dataclass(frozen=True)
class Card:
    """`result`: a second image, to the right of the text (in sections with `beside` only)."""

    image: Image.Image
    lines: Sequence[Line]
    result: Image.Image | None = None


@dataclass(frozen=True)
class Section:
    """Cards in `columns` columns under a title and a subtitle. `beside`: text to the right of the image, not below."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    columns: int
    beside: bool = False

    @property
    def card_width(self) -> int:
        return (WIDTH - 2 * MARGIN - (self.columns - 1) * GAP) // self.columns

    @property
    def text_width(self) -> int:
        images = self.beside + any(card.result is not None for card in self.cards)
        return self.card_width - 2 * PADDING - images * (IMAGE_SIZE + PADDING)


class Strip(NamedTuple):
    """An image for every heading, by one source, and whether each is right."""

    name: str
    images: Sequence[Image.Image]
    right: Sequence[bool]


def wrap(text: str, width: int) -> list[str]:
    """Breaks text at spaces so that no line is wider than `width`; a single longer word stays whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(TEXT_SIZE).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_sheet(title: str, sections: Sequence[Section], path: str | Path) -> None:
    """Draws the sections below each other and saves the sheet as PNG."""
    heights = [_row_heights(section) for section in sections]
    header = MARGIN + 58
    total = header + sum(78 + sum(rows) + GAP * len(rows) for rows in heights) + MARGIN
    sheet = Image.new("RGB", (WIDTH, total), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), title, INK, _font(38))
    top = header
    for section, rows in zip(sections, heights, strict=True):
        pen.text((MARGIN, top + 4), section.title, INK, _font(26))
        pen.text((MARGIN, top + 38), section.subtitle, SOFT, _font(TEXT_SIZE))
        top += 78
        for number, height in enumerate(rows):
            in_row = section.cards[number * section.columns : (number + 1) * section.columns]
            for column, card in enumerate(in_row):
                _draw_card(sheet, pen, section, card, MARGIN + column * (section.card_width + GAP), top, height)
            top += height + GAP
    sheet.save(path)


def draw_strips(
    title: str, subtitle: str, headings: Sequence[str], strips: Sequence[Strip], columns: int, path: str | Path
) -> None:
    """Draws all strips below each other, `columns` images wide, then the next columns of all strips; saves as PNG.

    Right images are framed green; wrong ones red, and lose a corner, for those who cannot tell red from green.
    """
    label_width = WIDTH - 2 * MARGIN - columns * (IMAGE_SIZE + GAP)
    words = [wrap(heading, IMAGE_SIZE) for heading in headings]
    bands = [words[start : start + columns] for start in range(0, len(words), columns)]
    above = [max(map(len, band)) * LEADING + PADDING for band in bands]
    introduction = wrap(subtitle, WIDTH - 2 * MARGIN)
    header = MARGIN + 54 + len(introduction) * LEADING + GAP
    total = header + sum(above) + len(bands) * (len(strips) * (IMAGE_SIZE + GAP) + GAP) + MARGIN - GAP
    sheet = Image.new("RGB", (WIDTH, total), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), title, INK, _font(38))
    _draw_lines(pen, introduction, SOFT, MARGIN, MARGIN + 50)
    top = header
    for number, band in enumerate(bands):
        lefts = [MARGIN + label_width + GAP + column * (IMAGE_SIZE + GAP) for column in range(len(band))]
        for left, lines in zip(lefts, band, strict=True):
            _draw_lines(pen, lines, INK, left, top + above[number] - PADDING - len(lines) * LEADING)
        top += above[number]
        for strip in strips:
            _draw_lines(pen, wrap(strip.name, label_width), INK, MARGIN, top)
            score = f"{sum(strip.right)} of {len(strip.right)} right"
            _draw_lines(pen, [score], SOFT, MARGIN, top + len(wrap(strip.name, label_width)) * LEADING)
            for item, left in enumerate(lefts, number * columns):
                _draw_judged(sheet, pen, strip.images[item], strip.right[item], left, top)
            top += IMAGE_SIZE + GAP
        top += GAP
    sheet.save(path)


def _draw_judged(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, right: bool, left: int, top: int
) -> None:
    sheet.paste(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST), (left, top))
    colour = RIGHT if right else WRONG
    pen.rectangle((left - 3, top - 3, left + IMAGE_SIZE + 2, top + IMAGE_SIZE + 2), outline=colour, width=3)
    if not right:
        end = left + IMAGE_SIZE
        pen.polygon([(end - 20, top), (end, top), (end, top + 20)], fill=colour)


def _draw_lines(pen: ImageDraw.ImageDraw, lines: Sequence[str], colour: str, left: int, top: int) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * LEADING), line, colour, _font(TEXT_SIZE))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _text_height(section: Section, card: Card) -> int:
    return sum(len(wrap(line.text, section.text_width)) for line in card.lines) * LEADING


def _row_heights(section: Section) -> list[int]:
    """The highest card of each row of cards."""
    heights = []
    for start in range(0, len(section.cards), section.columns):
        texts = [_text_height(section, card) for card in section.cards[start : start + section.columns]]
        content = max([IMAGE_SIZE, *texts]) if section.beside else IMAGE_SIZE + PADDING + max(texts)
        heights.append(content + 2 * PADDING)
    return heights


def _draw_card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, section: Section, card: Card, left: int, top: int, height: int
) -> None:
    pen.rounded_rectangle((left, top, left + section.card_width, top + height), 10, CARD, EDGE)
    image_left = left + PADDING if section.beside else left + (section.card_width - IMAGE_SIZE) // 2
    _draw_image(sheet, pen, card.image, image_left, top + PADDING)
    if card.result is not None:
        _draw_image(sheet, pen, card.result, left + section.card_width - PADDING - IMAGE_SIZE, top + PADDING)
    text_left = image_left + IMAGE_SIZE + PADDING if section.beside else left + PADDING
    y = top + PADDING + (0 if section.beside else IMAGE_SIZE + PADDING)
    for line in card.lines:
        for piece in wrap(line.text, section.text_width):
            pen.text((text_left, y), piece, line.colour, _font(TEXT_SIZE))
            y += LEADING


def _draw_image(sheet: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, left: int, top: int) -> None:
    sheet.paste(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), (left, top))
    # The canvas is mostly white, and where on it an object stands matters.
    pen.rectangle((left - 1, top - 1, left + IMAGE_SIZE, top + IMAGE_SIZE), outline=EDGE)
