"""The decoding loop behind `generate`: text, images, and both in turn, for a batch of rows in different states.

A row is always in one of three states, kept as a tensor: it writes text (step -1), it follows an image's script (step
i), or its image is whole (step S) and [EOI] must follow:

    writing --[SOI]--> step 0 -> 1 -> ... -> S-1 -> S --[EOI]--> writing

The script (`orders_unified`) says what a step is: the image token of the place order[j] is drawn, where j slots stand
before it, or an id that the grid alone decides (size, newline) is put down. So an image has exactly its grid's tokens
and an end, whatever the model predicts. Guidance runs the conditional rows
and as many unconditional ones in one forward pass; an unconditional row sees the negative prompt and the image being
drawn, nothing else.

B rows asked for, R rows run (2B with guidance), T sequence, N rows in some state, C channels, L image tokens, S steps
of an image's script, H hidden size (height in pixel shapes), W width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LogitsProcessorList, StoppingCriteriaList

from .heads_unified import draw


@dataclass
class Request:
    """What is asked of the loop besides transformers' own settings."""

    mode: str
    grid: tuple[int, int]  # rows and columns of image tokens
    script_S: torch.Tensor  # ids between [SOI] and [EOI]
    sampling: dict[str, Any]  # of image tokens, as the image head takes it
    generators: list[torch.Generator] | None  # one for each row
    order_BL: torch.Tensor  # in what order the places of an image are filled
    negative_ids: torch.Tensor | None
    negative_mask: torch.Tensor | None
    streamer: Any

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def steps(self) -> int:
        return len(self.script_S)

    @property
    def guided(self) -> bool:
        return self.mode != "text" and self.sampling["guidance_scale"] != 1.0

    def generators_of(self, rows_N: torch.Tensor) -> list[torch.Generator] | None:
        return self.generators and [self.generators[row] for row in rows_N.tolist()]


class Decoding:
    """One call of the loop. `run()` returns sequences [B, T]; `images` and `image_tokens` then hold those of each row.

    Args:
        model: has `model` (language model, codec, image head, order), `lm_head`, `config` and `blocked_ids`.
        processors, stopping: transformers' own, for text.
        settings: the prepared `GenerationConfig`; its `max_length` bounds the sequences.
        images: embeddings of the prompts' own images, as `get_image_features` gives them.
    """

    def __init__(
        self,
        model: Any,
        request: Request,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        processors: LogitsProcessorList,
        stopping: StoppingCriteriaList,
        settings: Any,
        cache: Any,
        images: Any,
    ):
        self.model, self.request, self.settings, self.cache = model, request, settings, cache
        self.processors, self.stopping = processors, stopping
        self.sequences_BT, rows, device = input_ids, len(input_ids), input_ids.device
        run_RT, self.mask_RT = self._with_unconditional_rows(input_ids, attention_mask)
        self.step_B = torch.full((rows,), 0 if request.mode == "image" else -1, device=device)
        self.finished_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.order_BL = request.order_BL
        # Of each step: whether an image token is drawn, and how many were before. The last entries are those of a whole
        # image and, by the index -1, of a row that writes.
        self.draws_S = F.pad(request.script_S == model.config.image_token_id, (0, 1))
        self.drawn_S = self.draws_S.cumsum(0) - self.draws_S.long()
        self.fed_RTH = model.model.embed(run_RT, images=images)
        self.fed_RTH[:, -1:] = self._with_places(self.fed_RTH[:, -1:], torch.zeros_like(self.finished_B))
        self.tokens_BL = None  # image tokens of the images being drawn, by place
        self.images: list[list[torch.Tensor]] = [[] for _ in range(rows)]
        self.image_tokens: list[list[torch.Tensor]] = [[] for _ in range(rows)]
        self.blocked_V = {fits: model.blocked_ids(images=fits) for fits in (False, True)}

    def run(self) -> torch.Tensor:
        streamer = self.request.streamer
        if streamer is not None:
            streamer.put(self.sequences_BT.cpu())
        while not bool(self.finished_B.all()) and self.sequences_BT.shape[1] < self.settings.max_length:
            self._step(self._hidden())
        if streamer is not None:
            streamer.end()
        return self.sequences_BT

    def _hidden(self) -> torch.Tensor:
        """Hidden state [R, H] after the tokens fed last."""
        places_RT = (self.mask_RT.cumsum(-1) - 1).clamp(min=0)
        return self.model.model(
            inputs_embeds=self.fed_RTH,
            attention_mask=self.mask_RT,
            position_ids=places_RT[:, -self.fed_RTH.shape[1] :],
            past_key_values=self.cache,
            use_cache=self.settings.use_cache,
        ).last_hidden_state[:, -1]

    def _step(self, hidden_RH: torch.Tensor) -> None:
        """Chooses the next token of every row, delivers what is complete, and moves each row to its next state."""
        request, running_B = self.request, ~self.finished_B
        writes_B, ends_B = running_B & (self.step_B < 0), running_B & (self.step_B == request.steps)
        inside_B = running_B & ~writes_B & ~ends_B
        draws_B = inside_B & self.draws_S[self.step_B]
        forced_B = inside_B & ~draws_B
        next_B = torch.full_like(self.step_B, self.settings.pad_token_id or 0)
        drawn = None
        if bool(writes_B.any()):
            next_B[writes_B] = self._write(hidden_RH, writes_B)
        if bool(draws_B.any()):
            drawn = self._draw(hidden_RH, draws_B)
            next_B[draws_B] = self.model.model.image_head.sequence_ids(drawn)
        next_B[forced_B] = request.script_S[self.step_B[forced_B]]
        next_B[ends_B] = self.model.config.eoi_token_id
        begins_B = writes_B & (next_B == self.model.config.boi_token_id)
        self._deliver(next_B, writes_B & ~begins_B, ends_B)

        self.sequences_BT = torch.cat([self.sequences_BT, next_B[:, None]], 1)
        self.finished_B |= writes_B & self.stopping(self.sequences_BT, None)
        if request.mode == "image":
            self.finished_B |= ends_B
        self.step_B = torch.where(inside_B, self.step_B + 1, torch.where(begins_B, 0, self.step_B))
        self.step_B = torch.where(ends_B, -1, self.step_B)
        self._extend_mask(begins_B | inside_B, ends_B)
        self._feed(next_B, draws_B, drawn)

    def _write(self, hidden_RH: torch.Tensor, writes_B: torch.Tensor) -> torch.Tensor:
        """Next text id of each row that writes, [N], by transformers' own sampling settings."""
        rows_N = writes_B.nonzero()[:, 0]
        # [SOI] and the image after it, [EOI] included, must fit
        fits = self.sequences_BT.shape[1] + self.request.steps + 2 <= self.settings.max_length
        blocked_V = self.blocked_V[fits and self.request.mode == "interleaved"]
        logits_NV = self.model.lm_head(hidden_RH[rows_N]).float().masked_fill(blocked_V, -torch.inf)
        scores_NV = self.processors(self.sequences_BT[rows_N], logits_NV)
        return draw(scores_NV, self.settings.do_sample, self.request.generators_of(rows_N))

    def _draw(self, hidden_RH: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
        """Next image token of each row that draws, [N, ...], put into its place."""
        rows_N, head = draws_B.nonzero()[:, 0], self.model.model.image_head
        drawn_N = self.drawn_S[self.step_B[rows_N]]
        null_NH = hidden_RH[len(draws_B) :][rows_N] if self.request.guided else None
        tokens_N = head.sample(
            hidden_RH[rows_N],
            self.model.lm_head,
            self.request.sampling,
            null_NH,
            self.request.generators_of(rows_N),
            progress_N=drawn_N / self.request.length,
        )
        if self.tokens_BL is None:
            self.tokens_BL = tokens_N.new_zeros(len(draws_B), self.request.length, *tokens_N.shape[1:])
        self.tokens_BL[rows_N, self.order_BL[rows_N, drawn_N]] = tokens_N
        return tokens_N

    def _deliver(self, next_B: torch.Tensor, text_B: torch.Tensor, ends_B: torch.Tensor) -> None:
        """Decodes the images that are whole; streams them, and text (a streamer follows a single row)."""
        streamer = self.request.streamer
        for row in ends_B.nonzero()[:, 0].tolist():
            pixels_CHW = self.model.model.codec.decode(self.tokens_BL[row : row + 1], self.request.grid)[0].float()
            self.images[row].append(pixels_CHW)
            self.image_tokens[row].append(self.tokens_BL[row].clone())
            if hasattr(streamer, "put_image"):
                streamer.put_image(pixels_CHW)
        if streamer is not None and bool(text_B[0]):
            streamer.put(next_B[:1].cpu())

    def _extend_mask(self, drawing_B: torch.Tensor, ends_B: torch.Tensor) -> None:
        """One column more. Unconditional rows see only the image being drawn, and forget it when it is whole."""
        rows, mask_RT = len(drawing_B), self.mask_RT
        next_R = torch.ones_like(mask_RT[:, 0])
        if len(mask_RT) > rows:
            next_R[rows:] = drawing_B.to(next_R.dtype)
            mask_RT = mask_RT.clone()
            mask_RT[rows:, -self.request.steps - 1 :] *= (~ends_B)[:, None].to(mask_RT.dtype)
        self.mask_RT = torch.cat([mask_RT, next_R[:, None]], 1)

    def _feed(self, next_B: torch.Tensor, draws_B: torch.Tensor, drawn: torch.Tensor | None) -> None:
        """Embeds the tokens just chosen, for conditional and unconditional rows alike."""
        embeds_BH = self.model.get_input_embeddings()(next_B)
        if drawn is not None:  # ids of image tokens may be stand-ins: the head embeds what they stand for
            embeds_BH[draws_B] = self.model.model.embed_image_tokens(drawn).to(embeds_BH.dtype)
        next_R1H = embeds_BH.repeat(len(self.mask_RT) // len(next_B), 1)[:, None]
        next_R1H = self._with_places(next_R1H, draws_B)
        self.fed_RTH = next_R1H if self.settings.use_cache else torch.cat([self.fed_RTH, next_R1H], 1)

    def _with_places(self, embeds_R1H: torch.Tensor, drawn_B: torch.Tensor) -> torch.Tensor:
        """Tells the newest input the place it fills, where it holds an image token, and the place drawn next."""
        draws_B, drawn_B1 = self.draws_S[self.step_B], self.drawn_S[self.step_B][:, None]
        own_B1 = self.order_BL.gather(1, (drawn_B1 - 1).clamp(min=0))
        next_B1 = self.order_BL.gather(1, drawn_B1.clamp(max=self.request.length - 1))
        own_B1 = torch.where(drawn_B[:, None], own_B1, -1)
        next_B1 = torch.where(draws_B[:, None], next_B1, -1)
        copies = len(embeds_R1H) // len(self.step_B)
        return self.model.model.image_order(embeds_R1H, own_B1.repeat(copies, 1), next_B1.repeat(copies, 1))

    def _with_unconditional_rows(
        self, input_ids: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stacks the unconditional rows below the others: negative prompt (or [SOS]), in "image" mode then [SOI]."""
        if not self.request.guided:
            return input_ids, mask_BT
        config, ids_NT, mask_NT = self.model.config, self.request.negative_ids, self.request.negative_mask
        if ids_NT is None:
            ids_NT = torch.full_like(input_ids[:, :1], config.bos_token_id)
        if len(input_ids) % len(ids_NT):
            raise ValueError(f"{len(ids_NT)} negative prompts for {len(input_ids)} rows: pass one for each prompt")
        mask_NT = torch.ones_like(ids_NT) if mask_NT is None else mask_NT
        if self.request.mode == "image":
            ids_NT, mask_NT = F.pad(ids_NT, (0, 1), value=config.boi_token_id), F.pad(mask_NT, (0, 1), value=1)
        copies, width = len(input_ids) // len(ids_NT), max(input_ids.shape[1], ids_NT.shape[1])

        def stack(above_BT: torch.Tensor, below_NT: torch.Tensor, pad: int) -> torch.Tensor:
            below_BT = below_NT.repeat_interleave(copies, 0).to(above_BT.device)
            return torch.cat([F.pad(x, (width - x.shape[1], 0), value=pad) for x in (above_BT, below_BT)])

        return stack(input_ids, ids_NT, config.pad_token_id or 0), stack(mask_BT, mask_NT, 0)
