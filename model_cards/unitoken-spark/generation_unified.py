"""The border of decoding: one `generate` for text, for images, and for both in turn.

Arguments are checked and completed here. Plain text is then decoded by transformers; everything else by the loop of
`decoding_unified`.

B rows asked for, T sequence, N images, C channels, H height, W width, L image tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import TextIteratorStreamer
from transformers.utils import ModelOutput

from .decoding_unified import Decoding, Request
from .orders_unified import check_order, raster

GENERATION_MODES = ("text", "image", "interleaved")


@dataclass
class UnifiedGenerateOutput(ModelOutput):
    """`sequences` [B, T]: prompt, text and image codes ([MASK] for image tokens that are vectors, hence have no id);
    for each row the `images` drawn, [C, H, W] each, and their `image_tokens`, [L] or [L, D] each, by place."""

    sequences: torch.LongTensor | None = None
    images: list[list[torch.Tensor]] | None = None
    image_tokens: list[list[torch.Tensor]] | None = None


class UnifiedStreamer(TextIteratorStreamer):
    """Iterate over it while `generate` runs in a thread: pieces of text (str) and whole images (PIL), as they come."""

    def __init__(self, processor: Any, skip_prompt: bool = True, timeout: float | None = None, **decode_kwargs):
        super().__init__(processor.tokenizer, skip_prompt, timeout, **{"skip_special_tokens": True, **decode_kwargs})
        self.processor = processor

    def put_image(self, pixels_CHW: torch.Tensor) -> None:
        """Queues a whole image, after the text that was still waiting for the end of its word."""
        if self.token_cache:
            self.on_finalized_text(self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[self.print_len :])
            self.token_cache, self.print_len = [], 0
        image = self.processor.post_process_multimodal_output([pixels_CHW], generation_mode="image")[0]
        self.text_queue.put(image, timeout=self.timeout)

    def __next__(self):
        value = self.text_queue.get(timeout=self.timeout)
        if value is self.stop_signal:
            raise StopIteration
        return value


class BlockedIds(LogitsProcessor):
    """Never writes the ids marked in `blocked_V`: placeholders, image codes, special tokens out of place."""

    def __init__(self, blocked_V: torch.Tensor):
        self.blocked_V = blocked_V

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.blocked_V.to(scores.device), -torch.inf)


def seeded_generators(seed: int | list[int] | None, rows: int) -> list[torch.Generator] | None:
    """One CPU generator for each row; an int s stands for s, s + 1, s + 2, ...; None for torch's global one."""
    if seed is None:
        return None
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows: pass one seed for each image asked for")
    return [torch.Generator().manual_seed(int(s)) for s in seeds]


class UnifiedGenerationMixin(GenerationMixin):
    """`generate` for models with a language model (`model`), an `lm_head`, an image head and a codec."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_mode: str | None = "text",
        seed: int | list[int] | None = None,
        guidance_scale: float | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        image_size: tuple[int, int] | None = None,
        image_sampling: dict[str, Any] | None = None,
        image_order: str | torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_pixel_values: torch.Tensor | None = None,
        feature_sizes: torch.Tensor | None = None,
        logits_processor: LogitsProcessorList | None = None,
        streamer: Any = None,
        **kwargs,
    ) -> torch.LongTensor | UnifiedGenerateOutput:
        """Continues a batch of left-padded prompts with text, with an image, or with both in turn.

        Args:
            generation_mode: "text"; "image": one image for each row, [SOI] is added here; "interleaved": text in which
                the model begins images where it wants to.
            seed: one for each row (rows x num_return_sequences); the same seed gives the same row in any batch.
            guidance_scale: s of l_u + s (l_c - l_u) for image tokens; 1 is the plain conditional path. In "text" mode
                transformers' own guidance.
            negative_prompt_ids, negative_prompt_attention_mask: left-padded [B, T], what the unconditional rows see
                instead of [SOS] alone.
            image_size: (height, width) in pixels; the config's by default.
            image_sampling: settings of image tokens, as the image head's `sampling_defaults` names them; those left out
                come from `generation_config.image_sampling`. In "image" mode these keys are plain arguments too.
            image_order: "raster", or permutations [rows, L] of an image's places; by default the model's own order. A
                model that has learned raster only draws in no other.
            pixel_values, image_tokens, feature_pixel_values, feature_sizes: the prompts' images, as
                `get_image_features` takes them.
            streamer: gets text as it comes (`put`) and images when they are whole (`put_image`, where it has one).
            kwargs: everything `GenerationMixin.generate` takes; `max_new_tokens` has no say over the length of an
                image, and an image that would not fit any more is not begun.

        Returns:
            Sequences [B, T], prompt first, image tokens as code ids between [SOI] and [EOI]; a `UnifiedGenerateOutput`
            with `return_dict_in_generate=True` (in modes that draw).

        Raises:
            ValueError: an unknown mode, a prompt that exceeds the context, sizes or counts that disagree.
        """
        mode = generation_mode or "text"
        if mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode {mode!r}: choose one of {', '.join(GENERATION_MODES)}")
        if any(given is not None for given in (pixel_values, image_tokens, feature_pixel_values)):
            # Not left to transformers: it would look for one kind of pixels, and count one kind of placeholder.
            images = self.model.get_image_features(
                pixel_values, image_tokens, feature_pixel_values, feature_sizes, return_dict=True
            )
            kwargs["mm_encoder_outputs"] = {"image": images}
        if mode == "text" and seed is None:
            guidance = {
                "guidance_scale": guidance_scale,
                "negative_prompt_ids": negative_prompt_ids,
                "negative_prompt_attention_mask": negative_prompt_attention_mask,
            }
            kwargs.update({key: value for key, value in guidance.items() if value is not None})
            return self._generate_text(inputs, logits_processor, streamer, kwargs)
        if mode == "text" and guidance_scale not in (None, 1.0):
            raise ValueError(f"guidance_scale {guidance_scale} of text does not go with a seed: leave one of them out")

        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if input_ids is None:
            raise ValueError(f"generation_mode {mode!r} needs input_ids, at least [[bos_token_id]]")
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        config = kwargs.get("generation_config") or self.generation_config
        rows = len(input_ids) * (kwargs.get("num_return_sequences") or config.num_return_sequences or 1)
        if kwargs.get("num_beams", 1) not in (None, 1):
            raise ValueError(f"num_beams {kwargs['num_beams']}: beams exist only in 'text' mode without a seed")
        if streamer is not None and rows > 1:
            raise ValueError(f"a streamer follows one row, not {rows}")
        grid = self.model.codec.grid(*(image_size or self.config.image_size))
        generators = seeded_generators(seed, rows)
        request = Request(
            mode=mode,
            grid=grid,
            script_S=self.model.image_order.script(grid).to(self.device),
            sampling=self._image_sampling(mode, guidance_scale, image_sampling, kwargs),
            generators=generators,
            order_BL=self._image_order(image_order, rows, grid[0] * grid[1], generators),
            negative_ids=negative_prompt_ids,
            negative_mask=negative_prompt_attention_mask,
            streamer=streamer,
        )
        if negative_prompt_ids is not None and not request.guided:
            raise ValueError(
                f"a negative prompt in {mode!r} mode at guidance_scale {request.sampling['guidance_scale']}: it has a "
                "say over images only, where guidance_scale is not 1; pass another scale or leave it out"
            )
        if mode == "image":
            begun = int((input_ids[:, -1] == self.config.boi_token_id).sum())
            if 0 < begun < len(input_ids):
                raise ValueError(f"{begun} of {len(input_ids)} prompts end in [SOI] (boi_token_id): all must, or none")
            if not begun:
                input_ids = torch.cat([input_ids, torch.full_like(input_ids[:, :1], self.config.boi_token_id)], 1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            # transformers allows several rows of a prompt only where it knows that they are sampled.
            kwargs = {**kwargs, "do_sample": request.sampling.get("do_sample", True)}
            kwargs |= {"max_new_tokens": request.steps + 1, "max_length": None, "min_new_tokens": None}
        room = self._room(input_ids.shape[1], needed=request.steps + 1 if mode == "image" else 1)
        if mode == "interleaved" and not {"max_new_tokens", "max_length", "generation_config"} & kwargs.keys():
            kwargs["max_new_tokens"] = room

        def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **prepared):
            mask = prepared.get("attention_mask")
            decoding = Decoding(
                self,
                request,
                input_ids,
                attention_mask=torch.ones_like(input_ids) if mask is None else mask,
                processors=logits_processor,
                stopping=stopping_criteria,
                settings=generation_config,
                cache=prepared.get("past_key_values"),
                images=(prepared.get("mm_encoder_outputs") or {}).get("image"),
            )
            sequences = decoding.run()
            whole = UnifiedGenerateOutput(
                sequences=sequences, images=decoding.images, image_tokens=decoding.image_tokens
            )
            return whole if generation_config.return_dict_in_generate else sequences

        return super().generate(
            input_ids, attention_mask=mask, logits_processor=logits_processor, custom_generate=decode, **kwargs
        )

    def _generate_text(self, inputs, logits_processor, streamer, kwargs):
        """transformers' own decoding, beams and all, kept from writing anything but text."""
        prompts = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((x for x in prompts if x is not None), None)
        if prompt is not None:
            self._room(prompt.shape[1], needed=1)
        processors = LogitsProcessorList([BlockedIds(self.blocked_ids(images=False)), *(logits_processor or [])])
        return super().generate(inputs, logits_processor=processors, streamer=streamer, **kwargs)

    def _image_sampling(self, mode, guidance_scale, image_sampling, kwargs) -> dict[str, Any]:
        """Settings for image tokens, the most specific first: argument, `image_sampling`, generation config."""
        config, head = kwargs.get("generation_config") or self.generation_config, self.model.image_head
        defaults = head.sampling_defaults
        sampling = {**defaults, **(getattr(config, "image_sampling", None) or {}), **(image_sampling or {})}
        if mode == "image":
            sampling.update({key: kwargs.pop(key) for key in defaults if kwargs.get(key) is not None})
        if guidance_scale is not None:
            sampling["guidance_scale"] = guidance_scale
        if unknown := sampling.keys() - defaults.keys():
            raise ValueError(f"image_sampling has no {sorted(unknown)}; it takes {sorted(defaults)}")
        head.check_sampling(sampling)
        return sampling

    def _image_order(
        self, order: str | torch.Tensor | None, rows: int, length: int, generators: list[torch.Generator] | None
    ) -> torch.Tensor:
        """Permutations int64 [rows, length] of an image's places."""
        if isinstance(order, str) and order not in ("raster", self.config.image_order):
            raise ValueError(
                f"image_order {order!r}: this model draws in {self.config.image_order!r} or 'raster' order"
            )
        if isinstance(order, str) and order == "raster":
            return raster(rows, length, self.device)
        if order is None or isinstance(order, str):
            return self.model.image_order.draw(rows, length, self.device, generators)
        order = order.to(self.device)
        check_order(order, length)
        if len(order) != rows:
            raise ValueError(f"{len(order)} orders for {rows} rows: pass one for each image asked for")
        if self.config.image_order != "random" and not bool((order[:, 1:] > order[:, :-1]).all()):
            raise ValueError("this model has learned raster order only: leave image_order out")
        return order

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeats rows with their images. transformers would count one kind of placeholder only."""
        images = (model_kwargs.get("mm_encoder_outputs") or {}).get("image")
        if images is None or input_ids is None or expand_size == 1:
            return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        del model_kwargs["mm_encoder_outputs"]
        config, left, repeated = self.config, list(images.pooler_output), []
        holes_B = ((input_ids == config.image_token_id) | (input_ids == config.image_feature_token_id)).sum(-1)
        for holes in holes_B.tolist():
            row = []
            while left and sum(map(len, row)) < holes:
                row.append(left.pop(0))
            repeated += row * expand_size
        images.pooler_output = repeated + left  # what no row has room for is counted, and refused, later
        ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return ids, {**model_kwargs, "mm_encoder_outputs": {"image": images}}

    def _room(self, prompt: int, needed: int) -> int:
        """Positions left after the prompt; an error if what is asked for does not fit."""
        context = self.config.get_text_config().max_position_embeddings
        if prompt + needed > context:
            raise ValueError(f"a prompt of {prompt} tokens and {needed} to generate exceed the context of {context}")
        return context - prompt

    def blocked_ids(self, images: bool) -> torch.Tensor:
        """Ids that cannot be written as text, bool [V]; with `images`, [SOI] can."""
        config = self.config
        blocked_V = torch.zeros(self.lm_head.weight.shape[0], dtype=torch.bool, device=self.lm_head.weight.device)
        blocked_V[config.code_offset : config.code_offset + config.num_codes] = True
        end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        blocked_V[sorted(config.special_token_ids - set(end))] = True
        blocked_V[config.boi_token_id] = not images
        return blocked_V

    @torch.no_grad()
    def decode_image_tokens(
        self, sequences: torch.Tensor, image_size: tuple[int, int] | None = None
    ) -> list[list[torch.Tensor]]:
        """Pixels [C, H, W] in [-1, 1] of every image drawn in each row of `sequences` [B, T], in order.

        Raises:
            ValueError: image tokens that are vectors do not stand in sequences; `generate(...,
                return_dict_in_generate=True).images` has their images.
        """
        if not self.config.num_codes:
            raise ValueError(
                "this model's image tokens are vectors, which sequences of ids do not hold: "
                "take `generate(..., return_dict_in_generate=True).images`"
            )
        grid = self.model.codec.grid(*(image_size or self.config.image_size))
        length, first = grid[0] * grid[1], self.config.code_offset
        images = []
        for ids_T in sequences.to(self.device):
            codes_N = ids_T[(ids_T >= first) & (ids_T < first + self.config.num_codes)] - first
            if len(codes_N) % length:
                raise ValueError(f"{len(codes_N)} image codes are not whole images of {length}: pass their image_size")
            rows_1L = codes_N.view(-1, 1, length)
            images.append([self.model.codec.decode(codes_1L, grid)[0].float() for codes_1L in rows_1L])
        return images


__all__ = ["UnifiedGenerateOutput", "UnifiedGenerationMixin", "UnifiedStreamer"]
