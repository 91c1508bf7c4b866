"""The processor: conversations, text and images to model inputs; generated ids and pixels to text and images.

Contract: three ways in, one layout (`layout_unified.py` draws it), and one way out.

    processor(images=, text=)              raw text with placeholders -> a prompt, padded on the left
    processor.apply_chat_template(...)     a conversation             -> a prompt, padded on the left
    processor.encode_conversations(...)    conversations              -> a training batch with labels
    processor.post_process_multimodal_output(...)                     -> text, PIL images, or both in order

An image is one `<|image_slot|>` in text; it becomes `[SOI]`, one slot per image token, `[EOI]`. No network runs here:
the model fills the slots from `pixel_values` or `image_tokens`.

Legend: B conversations or texts, T sequence, N images of the whole batch in reading order, L slots per image, H and W
pixels of an image, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .layout_unified import CHAT_TEMPLATE, IGNORE_INDEX, Span, SpecialIds, lay_out, read_back, split_into_spans

SPECIAL_TOKEN_ATTRIBUTES = (
    "pad_token",
    "bos_token",
    "eos_token",
    "mask_token",
    "boi_token",
    "eoi_token",
    "image_token",
    "image_feature_token",
)


class UnifiedProcessorKwargs(ProcessingKwargs, total=False):
    generation_mode: str | None


class UnifiedProcessor(ProcessorMixin):
    """Wraps an image processor and a tokenizer that knows the special tokens.

    Args:
        image_processor: a `UnifiedImageProcessor`.
        tokenizer: a fast tokenizer with the attributes `boi_token`, `eoi_token`, `image_token`, `image_feature_token`
            beside `pad_token`, `bos_token`, `eos_token`, `mask_token`.
        chat_template: jinja source; by default the one whose sequences equal those of `encode_conversations`. It is set
            on the tokenizer too, for pipelines that know nothing of images.
        image_stride: pixels per image token and side, as of the codec; by default that of the image processor, which is
            set to it otherwise.
    """

    valid_processor_kwargs = UnifiedProcessorKwargs
    text_kwargs = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor, tokenizer, chat_template=None, image_stride: int | None = None):
        missing = [name for name in SPECIAL_TOKEN_ATTRIBUTES if getattr(tokenizer, name, None) is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}: load it with extra_special_tokens={{name: token, ...}} or "
                "train one with train.tokenizer.train_tokenizer"
            )
        chat_template = chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        tokenizer.chat_template = chat_template
        if image_stride is not None:
            image_processor.stride = image_stride
        self.image_stride = image_processor.stride
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        self.special_ids = SpecialIds(
            sos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            soi=tokenizer.boi_token_id,
            eoi=tokenizer.eoi_token_id,
            slot=tokenizer.image_token_id,
        )

    def __call__(self, images=None, text=None, generation_mode: str | None = None, **kwargs) -> BatchFeature:
        """Raw prompts to model inputs.

        Args:
            images: one image, a list (in the order of the placeholders over all texts), or one list per text.
            text: a str or a list of str, with one `<|image_slot|>` per image. `[SOS]` is put in front where a text does
                not begin with it (not with `add_special_tokens=False`); nothing else is added.
            generation_mode: accepted since pipelines pass it; a prompt is the same for each.
            kwargs: as of any processor, for example `return_tensors` ("pt" by default), `size={"height":, "width":}`.

        Returns:
            `input_ids`, `attention_mask` [B,T], padded on the left; with images also `pixel_values` [N,3,H,W].

        Raises:
            ValueError: if the numbers of images and placeholders differ, a text is longer than the tokenizer's
                `model_max_length`, or an image cannot be used.
        """
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            if not text or not all(isinstance(sample, str) for sample in text):
                raise ValueError(f"text holds {sorted({type(sample).__name__ for sample in text})}: pass a str or strs")
            if kwargs.pop("add_special_tokens", True):
                sos = self.tokenizer.bos_token
                text = [sample if sample.startswith(sos) else sos + sample for sample in text]
            kwargs["add_special_tokens"] = False
        if isinstance(images, list | tuple) and not images:
            images = None
        inputs = super().__call__(images=images, text=text, **kwargs)
        limit = self.tokenizer.model_max_length
        for index, mask_T in enumerate(inputs.get("attention_mask", [])):
            if int(sum(mask_T)) > limit:
                raise ValueError(
                    f"text {index} has {int(sum(mask_T))} tokens with its images, but the model takes {limit}: "
                    "shorten it or raise tokenizer.model_max_length"
                )
        return inputs

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self.boi_token + self.image_token * self._num_slots(height, width) + self.eoi_token

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        """Every text has as many placeholders as images (a list of lists is checked text by text)."""
        if text is not None:
            self._check_placeholders(images, [sample.count(self.image_token) for sample in text])
        super().validate_inputs(images=images, text=text, **kwargs)

    def encode_conversations(
        self, conversations: Sequence[Sequence[dict]], padding_side: str = "right", max_length: int | None = None
    ) -> BatchFeature:
        """Conversations to one training batch.

        Args:
            conversations: B lists of messages. An image part holds either `image` (anything the image processor takes)
                or `image_tokens` (its L codes, 1-D integers); one batch holds one of the two kinds.
            padding_side: "right" for training; "left" is for scoring beside generated sequences.
            max_length: most tokens of a conversation; none by default.

        Returns:
            `input_ids`, `attention_mask`, `labels` [B,T] int64 (labels: see `layout_unified.py`; -100 at padding) and,
            where there are images, `pixel_values` [N,3,H,W] or `image_tokens` [N,L] int64.

        Raises:
            ValueError: naming the conversation by its index: malformed, too long, a special token written out in its
                text, both kinds of images in one batch, codes of different lengths.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f'padding_side is {padding_side!r}: pass "left" or "right"')
        rows = [
            _named(f"conversation {index}", split_into_spans, conversation)
            for index, conversation in enumerate(conversations)
        ]
        image_inputs, num_slots = self._encode_images(
            [span.content for row in rows for span in row if span.kind == "image"]
        )
        token_ids = iter(self._encode_texts(rows))
        input_ids, labels = [], []
        for index, row in enumerate(rows):
            contents = {"text": lambda: next(token_ids), "image": lambda: num_slots, "end": lambda: None}
            ids_T, labels_T = lay_out([span._replace(content=contents[span.kind]()) for span in row], self.special_ids)
            if max_length is not None and len(ids_T) > max_length:
                raise ValueError(
                    f"conversation {index} has {len(ids_T)} tokens, but max_length is {max_length}: shorten it"
                )
            input_ids.append(ids_T)
            labels.append(labels_T)
        return BatchFeature(
            {
                "input_ids": _pad(input_ids, self.tokenizer.pad_token_id, padding_side),
                "attention_mask": _pad([[1] * len(ids_T) for ids_T in input_ids], 0, padding_side),
                "labels": _pad(labels, IGNORE_INDEX, padding_side),
                **image_inputs,
            }
        )

    def post_process_multimodal_output(
        self, sequences, images=None, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ) -> list:
        """What a model generated, for people.

        Args:
            sequences: ids [B,T] as from `generate`; in mode "image" pixels in [-1,1], as from `decode_image_tokens`.
            images: in mode "interleaved" the generated images of every row: B lists of [3,H,W] in [-1,1].
            generation_mode: "text" (also None): B str. "image": a flat list of PIL images. "interleaved": per row its
                texts and generated images in order; images that were given in the prompt are left out.
            kwargs: go to the tokenizer's `decode`.

        Raises:
            ValueError: unknown mode; a row with more or fewer generated images in its ids than in `images`.
        """
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(sequences, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return self.image_processor.postprocess(sequences)
        if generation_mode != "interleaved":
            raise ValueError(f'generation_mode is {generation_mode!r}: pass "text", "image" or "interleaved"')
        rows = _as_rows(sequences)
        images = [[] for _ in rows] if images is None else images
        if len(images) != len(rows):
            raise ValueError(f"{len(rows)} sequences but images of {len(images)} rows: pass one list of images per row")
        kwargs["skip_special_tokens"] = skip_special_tokens
        return [
            _named(f"sequence {index}", self._interleave, ids_T, row, **kwargs)
            for index, (ids_T, row) in enumerate(zip(rows, images, strict=True))
        ]

    def post_process_image_text_to_text(self, sequences, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Ids [B,T] or [T] to B texts. Image codes lie beyond the tokenizer's ids and have no text."""
        return [
            self.tokenizer.decode(
                [token for token in ids_T if token < len(self.tokenizer)],
                skip_special_tokens=skip_special_tokens,
                **kwargs,
            )
            for ids_T in _as_rows(sequences)
        ]

    def _num_slots(self, height: int, width: int) -> int:
        return (height // self.image_stride) * (width // self.image_stride)

    def _check_placeholders(self, images: Any, placeholders: list[int]) -> None:
        given = _images_per_text(images, placeholders)
        for index, (expected, actual) in enumerate(zip(placeholders, given, strict=True)):
            if expected != actual:
                raise ValueError(
                    f"text {index} has {expected} placeholders {self.image_token} but {actual} images: write one "
                    "placeholder per image, where it stands in the text"
                )

    def _encode_texts(self, rows: list[list[Span]]) -> list[list[int]]:
        """One call of the tokenizer for all texts; text that would become a control token is refused."""
        texts = [(index, span.content) for index, row in enumerate(rows) for span in row if span.kind == "text"]
        if not texts:
            return []
        token_ids = self.tokenizer([text for _, text in texts], add_special_tokens=False, return_attention_mask=False)
        special = set(self.tokenizer.all_special_ids)
        for (index, text), ids in zip(texts, token_ids["input_ids"], strict=True):
            if not special.isdisjoint(ids):
                token = self.tokenizer.convert_ids_to_tokens(next(i for i in ids if i in special))
                raise ValueError(
                    f"conversation {index} writes {token} out in its text {text!r}: take it out of the text"
                )
        return token_ids["input_ids"]

    def _encode_images(self, parts: list[dict]) -> tuple[dict[str, torch.Tensor], int]:
        """Image parts to `pixel_values` or `image_tokens`, and the slots L that each takes."""
        kinds = [tuple(key for key in ("image", "image_tokens") if part.get(key) is not None) for part in parts]
        if not parts:
            return {}, 0
        for index, kind in enumerate(kinds):
            if len(kind) != 1 or kind != kinds[0]:
                raise ValueError(
                    f"image {index} of the batch is given by {' and '.join(kind) or 'nothing'}, image 0 by "
                    f"{' and '.join(kinds[0]) or 'nothing'}: give all of a batch as `image`, or all as `image_tokens`"
                )
        if kinds[0] == ("image",):
            pixel_values = self.image_processor([part["image"] for part in parts], return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixel_values}, self._num_slots(*pixel_values.shape[-2:])
        codes = [np.asarray(part["image_tokens"]) for part in parts]
        for index, codes_L in enumerate(codes):
            if codes_L.ndim != 1 or codes_L.dtype.kind not in "iu" or codes_L.shape != codes[0].shape:
                raise ValueError(
                    f"image_tokens of image {index} of the batch are {codes_L.dtype} of shape {list(codes_L.shape)}, "
                    f"those of image 0 have {list(codes[0].shape)}: pass 1-D integers, as many for every image"
                )
        return {"image_tokens": torch.from_numpy(np.stack(codes).astype(np.int64))}, len(codes[0])

    def _interleave(self, ids_T: list[int], images: Any, **kwargs) -> list[str | Image.Image]:
        """Texts and generated images of one row, in order."""
        spans = read_back(ids_T, self.special_ids)
        written = sum(span.kind == "image" and span.written for span in spans)
        if written != len(images):
            raise ValueError(f"the ids hold {written} generated images, but {len(images)} images are given")
        images = iter(self.image_processor.postprocess(list(images)))
        parts: list[str | Image.Image] = []
        for span in spans:
            if span.kind == "image":
                parts += [next(images)] if span.written else []
            elif text := self.post_process_image_text_to_text([span.content], **kwargs)[0]:
                parts.append(text)
        return parts


def _named(name: str, function: Callable, *args, **kwargs) -> Any:
    """Calls `function`; an error it raises about its input says which input it was."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    """B lists to [B,T] int64 with T the longest."""
    longest = max(map(len, rows), default=0)
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([row + f if side == "right" else f + row for row, f in zip(rows, fill, strict=True)])


def _as_rows(sequences: Any) -> list[list[int]]:
    """Ids [T] or [B,T], tensor or lists (of tensors), as B lists."""
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in sequences]
    return [rows] if rows and not isinstance(rows[0], list) else rows


def _images_per_text(images: Any, placeholders: list[int]) -> list[int]:
    """How many images each text gets. A flat list is dealt out by placeholders; what is left goes to the last text."""
    if isinstance(images, list | tuple) and all(isinstance(row, list | tuple) for row in images):
        if len(images) == len(placeholders):
            return [len(row) for row in images]
        images = [image for row in images for image in row]
    left = 0 if images is None else len(images) if _is_batch(images) else 1
    given = []
    for expected in placeholders:
        given.append(min(expected, left))
        left -= given[-1]
    given[-1] += left
    return given


def _is_batch(images: Any) -> bool:
    return isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4


__all__ = ["UnifiedProcessor"]
