"""The processor: conversations, text and images to model inputs; generated ids and pixels to text and images.

Contract: three ways in, one layout (`layout_unified.py` draws it), and one way out.

    processor(images=, text=)              raw text with placeholders -> a prompt, padded on the left
    processor.apply_chat_template(...)     a conversation             -> a prompt, padded on the left
    processor.encode_conversations(...)    conversations              -> a training batch with labels
    processor.post_process_multimodal_output(...)                     -> text, PIL images, or both in order

An image is one `<|image_slot|>` in text; it becomes `[SOI]`, placeholders, `[EOI]`. No network runs here: the model
fills the placeholders, which depend on how it reads an image (`image_inputs`, in the order written):

    "codes", "latents"   one `<|image_slot|>` per image token         from `pixel_values` or `image_tokens`
    "features"           one `<|image_feature|>` per vision feature   from `feature_pixel_values`
    a written image      one `<|image_slot|>` per image token         from `pixel_values` or `image_tokens`

Each tensor holds only the images that have its placeholders, in reading order, and is left out where there are none.
With `max_features` every image is read at its own size, with `feature_tiles` at the size of the tiles it fits best:
`feature_sizes` then tell pixels from padding.
All images of a prompt are read, those of an earlier answer too: raw text does not say who drew an image.

Legend: B conversations or texts, T sequence, N images of the whole batch that have slots, R those that have features, L
slots and M features per image, D numbers in an image token that is a vector, H and W pixels of an image, h and w pixels
of the view for features, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_unified import features_along, load_rgb, native_size, tiled_size
from .layout_unified import (
    CHAT_TEMPLATE,
    IGNORE_INDEX,
    Lines,
    Span,
    SpecialIds,
    Tiles,
    feature_script,
    image_script,
    lay_out,
    read_back,
    split_into_spans,
)

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
# How an image is read -> the tokenizer's attribute of the placeholder that is filled.
SLOT, FEATURE = "image_token", "image_feature_token"
PLACEHOLDERS = {"codes": SLOT, "latents": SLOT, "features": FEATURE}


class UnifiedProcessorKwargs(ProcessingKwargs, total=False):
    """generation_mode: what the chat template is told of the answer. Accepted in every call, since pipelines pass it
    beside templates that do not ask for it; a raw prompt is the same for each."""

    generation_mode: str | None


class UnifiedProcessor(ProcessorMixin):
    """Wraps an image processor and a tokenizer that knows the special tokens.

    Args:
        image_processor: a `UnifiedImageProcessor`.
        tokenizer: a fast tokenizer with the attributes `boi_token`, `eoi_token`, `image_token`, `image_feature_token`
            beside `pad_token`, `bos_token`, `eos_token`, `mask_token`.
        chat_template: jinja source; by default the one whose sequences equal those of `encode_conversations`. It is set
            on the tokenizer too, and padding on the left, for pipelines that use the tokenizer by itself.
        image_stride: pixels per image token and side, as of the codec; by default that of the image processor, which is
            set to it otherwise.
        image_inputs: what an image is read through, in order: "codes", "latents", "features"; as in the model's config.
        feature_stride: pixels per feature and side, as in the model's config; needed for "features".
        feature_size: `{"height":, "width":}` in pixels that the view for features is resized to, whatever the size that
            the codec sees; by default the features are read from the same pixels.
        max_features: instead, the view for features keeps an image's own size and aspect ratio, to whole features, and
            is made smaller only where it had more of them than this. For towers that take any size (SigLIP-2 NaFlex).
        feature_tiles: instead, `{"tile_size":, "tile_grids":, "newline_token_id":}` as in the model's config (its
            `feature_tiles`): the view for features is scaled, in its own aspect ratio, to fit the grid of tiles that
            suits it best. The model cuts the tiles. For towers of one size (SigLIP) and images of any.
        image_lines: `{"newline_token_id":, "size_token_offset":, "size_token_unit":, "max_image_side":}` as in the
            model's config where its order is "lines"; by default nothing stands between the slots.
        sep_token_id: as in the model's config, between slots and features of one image.

    Raises:
        ValueError: a tokenizer without one of the tokens; image inputs that are unknown, none, or two for the same
            placeholders; features without a stride, of a size that the stride does not divide, or of two kinds of size;
            tiles smaller than a feature, or no grids of them.
    """

    valid_processor_kwargs = UnifiedProcessorKwargs
    text_kwargs = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template=None,
        image_stride: int | None = None,
        image_inputs: Sequence[str] = ("codes",),
        feature_stride: int | None = None,
        feature_size: dict[str, int] | None = None,
        max_features: int | None = None,
        feature_tiles: dict[str, Any] | None = None,
        image_lines: dict[str, int] | None = None,
        sep_token_id: int | None = None,
    ):
        missing = [name for name in SPECIAL_TOKEN_ATTRIBUTES if getattr(tokenizer, name, None) is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}: load it with extra_special_tokens={{name: token, ...}} or "
                "train one with train.tokenizer.train_tokenizer"
            )
        chat_template = chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        tokenizer.chat_template, tokenizer.padding_side = chat_template, "left"
        if image_stride is not None:
            image_processor.stride = image_stride
        self.image_stride = image_processor.stride
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.image_feature_token = tokenizer.image_feature_token
        self.image_feature_token_id = tokenizer.image_feature_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        self.special_ids = SpecialIds(
            sos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            soi=tokenizer.boi_token_id,
            eoi=tokenizer.eoi_token_id,
            slot=tokenizer.image_token_id,
            feature=tokenizer.image_feature_token_id,
        )
        self.image_inputs, self.feature_stride = list(image_inputs), feature_stride
        self.feature_size, self.max_features = feature_size, max_features
        self.image_lines, self.sep_token_id = image_lines, sep_token_id
        self._lines = image_lines and Lines(**image_lines)
        self.feature_tiles, self._tiles = feature_tiles, feature_tiles and Tiles(**feature_tiles)
        self._check_image_inputs()
        self.read_placeholders = [PLACEHOLDERS[name] for name in self.image_inputs]
        self.reads_slots = SLOT in self.read_placeholders
        self.reads_features = FEATURE in self.read_placeholders

    @property
    def model_input_names(self) -> list[str]:
        names = ["feature_pixel_values"] * self.reads_features + ["feature_sizes"] * self._sizes_differ
        return super().model_input_names + names

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs) -> BatchFeature:
        """Raw prompts to model inputs.

        Args:
            images: one image, a list (in the order of the placeholders over all texts), or one list per text.
            text: a str or a list of str, with one `<|image_slot|>` per image. `[SOS]` is put in front where a text does
                not begin with it (not with `add_special_tokens=False`); nothing else is added.
            kwargs: as of any processor, for example `return_tensors` ("pt" by default), `size={"height":, "width":}`.

        Returns:
            `input_ids`, `attention_mask` [B,T], padded on the left; with images also `pixel_values` [N,3,H,W] where the
            model reads codes or latents, `feature_pixel_values` [R,3,h,w] where it reads features, and `feature_sizes`
            [R,2] where the images are of different sizes in it.

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
        """The text of one read image, from the views of all."""
        views = {key: values[image_idx : image_idx + 1] for key, values in image_inputs.items()}
        features = next(iter(self._feature_ids(views)), [])
        ids = self._image_ids(self.read_placeholders, self._grid_of(views), features)
        return self.boi_token + "".join(self.tokenizer.convert_ids_to_tokens(ids)) + self.eoi_token

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        """Every text has as many placeholders as images (a list of lists is checked text by text)."""
        if text is not None:
            self._check_placeholders(images, [sample.count(self.image_token) for sample in text])
        super().validate_inputs(images=images, text=text, **kwargs)

    def encode_conversations(
        self,
        conversations: Sequence[Sequence[dict]],
        padding_side: str = "right",
        max_length: int | None = None,
        supervise_features: bool = False,
        features_of_written: bool = False,
    ) -> BatchFeature:
        """Conversations to one training batch.

        Args:
            conversations: B lists of messages. An image part holds `image` (anything the image processor takes),
                `image_tokens` (its L codes, 1-D integers, or its L vectors, 2-D floats), or both. Tokens, where given,
                fill the slots, then pixels only the features. The slots of one batch are filled from one of the two.
            padding_side: "right" for training; "left" is for scoring beside generated sequences.
            max_length: most tokens of a conversation; none by default.
            supervise_features: whether the model shall predict what it reads, too: labels on every feature (UVU's
                visual supervision).
            features_of_written: whether an image that is written is followed by its own features, which then needs
                `image`. UniToken trains so; when it draws there are none.

        Returns:
            `input_ids`, `attention_mask`, `labels` [B,T] int64 (labels: see `layout_unified.py`; -100 at padding) and,
            where there are images with slots, `pixel_values` [N,3,H,W] or `image_tokens` ([N,L] int64, [N,L,D]
            float32), with features `feature_pixel_values` [R,3,h,w] and, with `max_features` or `feature_tiles`,
            `feature_sizes` [R,2].

        Raises:
            ValueError: naming the conversation by its index: malformed, too long, a special token written out in its
                text; naming the image by its place in the batch: slots filled from pixels here and from tokens there,
                tokens of different shapes, features to be read without `image`. Features to supervise that are
                not read, or are in tiles.
        """
        if (supervise_features or features_of_written) and not self.reads_features:
            raise ValueError(f"image_inputs is {self.image_inputs}: there are no features to supervise or to add")
        if supervise_features and self._tiles:
            raise ValueError("features in tiles show a scaled image, of which there are no codes: they have no labels")
        if padding_side not in ("left", "right"):
            raise ValueError(f'padding_side is {padding_side!r}: pass "left" or "right"')
        rows = [
            _named(f"conversation {index}", split_into_spans, conversation)
            for index, conversation in enumerate(conversations)
        ]
        written = [SLOT, FEATURE] if features_of_written else [SLOT]
        images = [span for row in rows for span in row if span.kind == "image"]
        image_inputs = self._encode_images(images, features_of_written)
        grid, features = self._grid_of(image_inputs), iter(self._feature_ids(image_inputs))
        token_ids = iter(self._encode_texts(rows))

        def image_ids(span: Span) -> list[int]:
            placeholders = written if span.written else self.read_placeholders
            return self._image_ids(placeholders, grid, next(features) if FEATURE in placeholders else [])

        input_ids, labels = [], []
        for index, row in enumerate(rows):
            contents = {
                "text": lambda span: next(token_ids),
                "image": image_ids,
                "end": lambda span: None,
            }
            spans = [span._replace(content=contents[span.kind](span)) for span in row]
            ids_T, labels_T = lay_out(spans, self.special_ids, supervise_features)
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

    def _check_image_inputs(self) -> None:
        if unknown := [name for name in self.image_inputs if name not in PLACEHOLDERS]:
            raise ValueError(f"image_inputs holds {unknown}: choose of {', '.join(PLACEHOLDERS)}")
        if not self.image_inputs or len({PLACEHOLDERS[name] for name in self.image_inputs}) < len(self.image_inputs):
            raise ValueError(
                f"image_inputs is {self.image_inputs}: an image has slots once, for codes or for latents, and features "
                "once; pass one of them, or two in their order"
            )
        if "features" not in self.image_inputs:
            return
        if not self.feature_stride:
            raise ValueError(
                f"image_inputs is {self.image_inputs}, but feature_stride is {self.feature_stride}: pass the pixels "
                "per feature and side, the patch size of the vision tower"
            )
        if self.max_features is not None and (self.max_features < 1 or self.feature_size is not None):
            raise ValueError(
                f"max_features is {self.max_features}, feature_size {self.feature_size}: pass one of them, and "
                "max_features of at least 1"
            )
        if self._tiles:
            self._check_tiles()
        if self.feature_size is None:
            return  # the size is that of the call, and checked there
        size = self.feature_size if isinstance(self.feature_size, Mapping) else {}
        sides = [size.get("height") or 0, size.get("width") or 0]
        if any(side <= 0 or side % self.feature_stride for side in sides):
            raise ValueError(
                f"feature_size is {self.feature_size}, feature_stride is {self.feature_stride}: pass "
                f'{{"height":, "width":}}, both multiples of {self.feature_stride}'
            )

    def _check_tiles(self) -> None:
        size, grids, _ = self._tiles
        if (self.feature_size, self.max_features) != (None, None):
            raise ValueError(
                f"feature_tiles are of {size} pixels, feature_size is {self.feature_size}, max_features "
                f"{self.max_features}: pass one of them"
            )
        if size < self.feature_stride or not grids or any(len(grid) != 2 or min(grid) < 1 for grid in grids):
            raise ValueError(
                f"feature_tiles has tiles of {size} pixels in grids {grids}: pass at least the {self.feature_stride} "
                "pixels of a feature, and at least one [rows, columns], both at least 1"
            )

    def _check_special_mm_tokens(self, text: list[str], text_inputs: BatchFeature, modalities: list[str]) -> None:
        """Truncation must not cut features off either, which transformers' check does not know."""
        super()._check_special_mm_tokens(text, text_inputs, [*modalities, "image_feature"])

    def _process_images(self, images: Any, **kwargs) -> tuple[dict, list[str]]:
        """The views of a prompt's images, and the text that replaces the placeholder of each."""
        views = dict(self.image_processor(images, **kwargs)) if self.reads_slots else {}
        if self.reads_features:
            views |= self._view_for_features(images, **kwargs)
        count = len(next(iter(views.values())))
        return views, [self.replace_image_token(views, image_idx=index) for index in range(count)]

    def _view_for_features(self, images: Any, **kwargs) -> dict[str, torch.Tensor]:
        """Pixels [R,3,h,w] in [-1,1], the range SigLIP was trained with too (mean and std of 0.5), and their sizes."""
        kwargs |= {"stride": self.feature_stride, "return_tensors": "pt"}
        if self.feature_size is not None:
            kwargs |= {"size": self.feature_size, "do_resize": True}
        if not self._sizes_differ:
            view = _named("view for features", self.image_processor, images, **kwargs)
            return {"feature_pixel_values": view["pixel_values"]}
        pixels, kwargs["do_resize"] = [], True
        if self._tiles:
            kwargs["stride"] = 1  # what is missing to whole tiles is put in by the model
        for index, image in enumerate(_flatten(self.image_processor.fetch_images(images))):
            height, width = _named(f"image {index}", self._size_for_features, image.height, image.width)
            view = self.image_processor(image, **kwargs | {"size": {"height": height, "width": width}})
            pixels.append(view["pixel_values"][0])
        sizes_R2 = torch.tensor([pixels_CHW.shape[-2:] for pixels_CHW in pixels])
        height, width = sizes_R2.amax(0).tolist()
        padded = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in pixels]
        return {"feature_pixel_values": torch.stack(padded), "feature_sizes": sizes_R2}

    @property
    def _sizes_differ(self) -> bool:
        """Whether the images of one view for features have sizes of their own."""
        return bool(self.max_features or self._tiles)

    def _size_for_features(self, height: int, width: int) -> tuple[int, int]:
        if self._tiles:
            return tiled_size(height, width, self._tiles.tile_size, self._tiles.tile_grids)
        return native_size(height, width, self.feature_stride, self.max_features)

    def _grid_of(self, image_inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of image tokens of each image that has slots; they share one size."""
        if "pixel_values" in image_inputs:
            height, width = image_inputs["pixel_values"][0].shape[-2:]
            return height // self.image_stride, width // self.image_stride
        if "image_tokens" not in image_inputs:
            return 0, 0
        length = len(image_inputs["image_tokens"][0])
        if self._lines is None:
            return 1, length  # where no row ends, any grid is as good
        size = self.image_processor.size
        rows, columns = (size[side] // self.image_stride for side in ("height", "width"))
        if rows * columns != length:
            raise ValueError(
                f"image_tokens of {length} are not the {rows}x{columns} of the image processor's size, so that their "
                "rows are not known: give the images as `image`"
            )
        return rows, columns

    def _feature_ids(self, image_inputs: Mapping[str, Any]) -> list[list[int]]:
        """Ids of the features of each image that is read through them."""
        sizes = [pixels_CHW.shape[-2:] for pixels_CHW in image_inputs.get("feature_pixel_values", [])]
        if "feature_sizes" in image_inputs:
            sizes = [tuple(map(int, size)) for size in image_inputs["feature_sizes"]]
        feature, stride = self.image_feature_token_id, self.feature_stride
        if self._tiles is None:
            return [[feature] * ((height // stride) * (width // stride)) for height, width in sizes]
        side, _, newline = self._tiles
        whole = features_along(side, side, stride) ** 2
        grids = [tuple(features_along(pixels, side, stride) for pixels in size) for size in sizes]
        return [feature_script(whole, grid, feature, newline) for grid in grids]

    def _image_ids(self, placeholders: list[str], grid: tuple[int, int], features: list[int]) -> list[int]:
        """What stands between [SOI] and [EOI] of an image that has these placeholders, in their order."""
        parts = {
            SLOT: image_script(grid, self.image_stride, self.image_token_id, self._lines),
            FEATURE: features,
        }
        ids = list(parts[placeholders[0]])
        for name in placeholders[1:]:
            ids += [self.sep_token_id] * (self.sep_token_id is not None) + parts[name]
        return ids

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

    def _encode_images(self, images: list[Span], features_of_written: bool) -> dict[str, torch.Tensor]:
        """Image spans to `pixel_values` or `image_tokens`, and `feature_pixel_values`; each only where it is needed."""
        parts = {
            index: {key: image.content[key] for key in ("image", "image_tokens") if image.content.get(key) is not None}
            for index, image in enumerate(images)
        }
        with_slots = {i: part for i, part in parts.items() if images[i].written or self.reads_slots}
        with_features = {
            i: part
            for i, part in parts.items()
            if self.reads_features and (features_of_written or not images[i].written)
        }
        source = _one_source(with_slots)
        for index, part in with_features.items():
            if "image" not in part:
                raise ValueError(
                    f"image {index} of the batch is given by {' and '.join(part) or 'nothing'}: pass `image` as well: "
                    "the features are read from pixels"
                )
        seen = with_features | (with_slots if source == "image" else {})
        pixels = {index: load_rgb(part["image"], index) for index, part in seen.items()}
        inputs = {}
        if source == "image":
            view = self.image_processor([pixels[index] for index in with_slots], return_tensors="pt")
            inputs["pixel_values"] = view["pixel_values"]
        elif source == "image_tokens":
            inputs["image_tokens"] = _stack({index: part["image_tokens"] for index, part in with_slots.items()})
        if with_features:
            images_read = [pixels[index] for index in with_features]
            inputs |= self._view_for_features(images_read)
        return inputs

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


def _one_source(parts: dict[int, dict]) -> str | None:
    """What fills the slots of all of these images, "image" or "image_tokens"; None where there are none."""
    kinds = ("image_tokens", "image")
    sources = {index: next((kind for kind in kinds if kind in part), "nothing") for index, part in parts.items()}
    first = next(iter(sources), None)
    for index, source in sources.items():
        if source == "nothing" or source != sources[first]:
            raise ValueError(
                f"image {index} of the batch is given by {source}, image {first} by {sources[first]}: give all of a "
                "batch that have slots as `image`, or all as `image_tokens`"
            )
    return sources.get(first)


def _stack(tokens: dict[int, Any]) -> torch.Tensor:
    """Codes [L] of each image to [N,L] int64, or vectors [L,D] to [N,L,D] float32."""
    arrays = {index: _as_array(values) for index, values in tokens.items()}
    first, expected = next(iter(arrays.items()))
    for index, array in arrays.items():
        if (array.ndim, array.dtype.kind) not in ((1, "i"), (1, "u"), (2, "f")) or array.shape != expected.shape:
            raise ValueError(
                f"image_tokens of image {index} of the batch are {array.dtype} of shape {list(array.shape)}, those of "
                f"image {first} have {list(expected.shape)}: pass 1-D integers or 2-D floats, as many for every image"
            )
    stacked = np.stack(list(arrays.values()))
    return torch.from_numpy(stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int64))


def _as_array(tokens: Any) -> np.ndarray:
    if isinstance(tokens, torch.Tensor):
        tokens = tokens.detach().cpu()
        tokens = tokens.float() if tokens.is_floating_point() else tokens  # numpy has no bfloat16
    return np.asarray(tokens)


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


def _flatten(images: Any) -> list[Image.Image]:
    return [leaf for entry in images for leaf in _flatten(entry)] if isinstance(images, list | tuple) else [images]


def _is_batch(images: Any) -> bool:
    return isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4


__all__ = ["UnifiedProcessor"]
