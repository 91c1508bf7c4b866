"""How an image token is fed back to the language model and predicted by it.

Contract: `embed(tokens, embed_tokens)`; `losses(text, image, lm_head, z_loss_weight) -> unreduced`, of text as well,
since the matrix that predicts codes predicts text too; `sample(hidden, lm_head, sampling, ...) -> tokens`;
`sampling_defaults`, the settings `sample` takes, and `check_sampling`, which refuses bad ones; `text_rows`,
`closed_rows` and `sequence_ids`, the head's part in the vocabulary. The vocabulary's two matrices belong to the
backbone; a head that needs them is handed them.

B batch, L image tokens, N positions, T positions of text, H hidden size, V vocabulary, K codes. Of the diffusion head:
D numbers of a token, W width of its MLP, M modulating vectors of the MLP, R draws of time and noise for each token in
training, S steps of sampling.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers import initialization as init

from .configuration_unified import UnifiedConfig
from .diffusion_unified import OBJECTIVES, DenoisingMLP, HeadLinear, HeadNorm
from .language_head_unified import ALL_ROWS, Targets, logits_of, losses_together, token_losses

GUIDANCE_SCHEDULES = ("linear", "constant")


def draw(scores_NV: torch.Tensor, do_sample: bool, generators: list[torch.Generator] | None = None) -> torch.Tensor:
    """One id for each row of scores, int64 [N]: the greatest, or a sample by each row's own generator.

    A row's draw depends on its own generator alone, hence not on the batch. Dividing probabilities by exponential
    noise and taking the greatest samples exactly; a score of -inf is never taken.
    """
    if not do_sample:
        return scores_NV.argmax(-1)
    probs_NV = scores_NV.float().softmax(-1)
    if generators is None:
        return torch.multinomial(probs_NV, 1).squeeze(1)
    noise_NV = torch.empty_like(probs_NV, device="cpu")  # generators live on the CPU: one seed, one image, any device
    for noise_V, generator in zip(noise_NV, generators, strict=True):
        noise_V.exponential_(generator=generator)
    return (probs_NV / noise_NV.to(probs_NV.device)).argmax(-1)


def warpers(sampling: dict) -> LogitsProcessorList:
    """transformers' temperature, top-k and top-p for the keys of the same names."""
    found = LogitsProcessorList()
    if sampling["temperature"] != 1.0:
        found.append(TemperatureLogitsWarper(float(sampling["temperature"])))
    if sampling["top_k"]:
        found.append(TopKLogitsWarper(sampling["top_k"]))
    if sampling["top_p"] < 1.0:
        found.append(TopPLogitsWarper(sampling["top_p"]))
    return found


def require(sampling: dict[str, Any], name: str, valid: bool, rule: str) -> None:
    if not valid:
        raise ValueError(f"{name} {sampling[name]!r} must {rule}")


class CategoricalHead(nn.Module):
    """Image tokens are codes, rows of the same vocabulary as text, predicted by the same softmax (UGen, section 3) or,
    without `joint_softmax`, by one of their own.

    `active_codes` (bool [K], saved with the weights) are the codes in use. The others become [MASK] wherever they
    occur, in inputs and in targets (progressive vocabulary learning), and can never be sampled.
    """

    sampling_defaults: ClassVar[dict[str, Any]] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "guidance_scale": 1.0,
    }

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.num_codes, self.code_offset = config.num_codes, config.code_offset
        self.mask_token_id = config.mask_token_id
        self.text_rows = ALL_ROWS if config.joint_softmax else slice(config.code_offset)
        self.code_rows = ALL_ROWS if config.joint_softmax else slice(config.code_offset, None)
        self.loss_on_mask, self.closes_rows = config.loss_on_mask, not config.inactive_codes_in_softmax
        self.register_buffer("active_codes", torch.ones(config.num_codes, dtype=torch.bool))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.ones_(self.active_codes)

    def check_sampling(self, sampling: dict[str, Any]) -> None:
        """Refuses settings that `sample` has no use for, by ValueError."""
        require(sampling, "guidance_scale", sampling["guidance_scale"] >= 0, "not be negative")
        require(sampling, "temperature", sampling["temperature"] > 0, "be above 0; do_sample=False takes the likeliest")
        require(sampling, "top_k", sampling["top_k"] >= 0, "not be negative; 0 keeps all codes")
        require(sampling, "top_p", 0 < sampling["top_p"] <= 1, "be above 0 and at most 1")

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids of codes of any shape; [MASK] for inactive ones."""
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise ValueError(f"codes {int(codes.min())}..{int(codes.max())} exceed the codec's 0..{self.num_codes - 1}")
        codes = codes.long()
        return torch.where(self.active_codes[codes], codes + self.code_offset, self.mask_token_id)

    def closed_rows(self, vocab_size: int) -> torch.Tensor | None:
        """Rows of the vocabulary outside the softmax, bool [V]; None if there are none."""
        if not self.closes_rows or bool(self.active_codes.all()):
            return None
        closed_V = torch.zeros(vocab_size, dtype=torch.bool, device=self.active_codes.device)
        closed_V[self.code_offset : self.code_offset + self.num_codes] = ~self.active_codes
        return closed_V

    def embed(self, codes: torch.Tensor, embed_tokens: nn.Embedding) -> torch.Tensor:
        return embed_tokens(self.ids(codes))

    def losses(
        self,
        text: tuple[torch.Tensor, torch.Tensor],
        image: tuple[torch.Tensor, torch.Tensor] | None,
        lm_head: nn.Module,
        z_loss_weight: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each text token, float32 [T], and of each code, float32 [N]; zero where a [MASK] target is
        not trained on.

        Args:
            text: hidden states [T, H] and the ids that they predict, int64 [T].
            image: hidden states [N, H] and codes, int64 [N]; None where there are none.
            z_loss_weight: see `losses_together`.

        Raises:
            ValueError: a [MASK] target, which is a row of text, in a softmax of codes alone.
        """
        closed_V = self.closed_rows(lm_head.weight.shape[0])
        groups = [Targets(*text, self.text_rows)]
        if image is None:
            (text_losses_T,) = losses_together(groups, lm_head, closed_V, z_loss_weight)
            return text_losses_T, text_losses_T.new_zeros(0)
        hidden_NH, ids_N = image[0], self.ids(image[1])
        taught_N = self._taught(ids_N)
        groups.append(Targets(hidden_NH[taught_N], ids_N[taught_N], self.code_rows))
        text_losses_T, losses_N = losses_together(groups, lm_head, closed_V, z_loss_weight)
        return text_losses_T, losses_N.new_zeros(len(ids_N)).masked_scatter(taught_N, losses_N)

    def _taught(self, ids_N: torch.Tensor) -> torch.Tensor:
        """Which targets are trained on, bool [N]."""
        masked_N = ids_N == self.mask_token_id
        if not self.loss_on_mask:
            return ~masked_N
        if self.code_rows != ALL_ROWS and bool(masked_N.any()):
            raise ValueError(
                f"{int(masked_N.sum())} of {len(ids_N)} targets are inactive codes, hence [MASK], which the softmax of "
                "codes alone does not have: set loss_on_mask=False or joint_softmax=True"
            )
        return torch.ones_like(masked_N)

    def sample(
        self,
        hidden_NH: torch.Tensor,
        lm_head: nn.Module,
        sampling: dict,
        null_hidden_NH: torch.Tensor | None = None,
        generators: list[torch.Generator] | None = None,
        progress_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Next code of each row, int64 [N]. Only the rows of the codes are multiplied.

        Args:
            sampling: `do_sample`, `temperature`, `top_k`, `top_p`, `guidance_scale`.
            null_hidden_NH: hidden states without the condition; guidance is l_u + s (l_c - l_u) (UGen, section 3).
            progress_N: of no concern here, guidance is the same for every token of an image.
        """
        if not bool(self.active_codes.any()):
            raise ValueError("no image code is active yet: the model has only been trained on text")
        rows = slice(self.code_offset, self.code_offset + self.num_codes)
        logits_NK = logits_of(hidden_NH, lm_head, rows).float()
        if null_hidden_NH is not None:
            null_NK = logits_of(null_hidden_NH, lm_head, rows).float()
            logits_NK = null_NK + sampling["guidance_scale"] * (logits_NK - null_NK)
        logits_NK = logits_NK.masked_fill(~self.active_codes, -torch.inf)
        return draw(warpers(sampling)(None, logits_NK), sampling["do_sample"], generators)

    def sequence_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """What stands for a generated token in the returned sequence."""
        return codes + self.code_offset


class DiffusionHead(nn.Module):
    """Image tokens are vectors, each drawn by a small diffusion model given a hidden state (MAR, arXiv 2406.11838).

    A vector is fed back through a linear map and a layer norm, as in MAR (our choice: UniFluid's own was not found).
    """

    text_rows = ALL_ROWS  # there are no codes

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.token_size, self.mask_token_id = config.codec_config.token_size, config.mask_token_id
        self.batch_mul = config.diffusion_batch_mul
        self.objective = OBJECTIVES[config.diffusion_objective]()
        self.sampling_defaults = dict(self.objective.sampling_defaults)
        # Tokens enter the backbone as loud as its own embeddings, and those of places, start (our choice: from a norm
        # of gain 1 they would drown the places added to them).
        loudness = getattr(config.text_config, "initializer_range", 0.02)
        self.token_embedding = nn.Sequential(HeadLinear(self.token_size, hidden_size), HeadNorm(hidden_size, loudness))
        self.net = DenoisingMLP(
            self.token_size,
            hidden_size,
            config.diffusion_width,
            config.diffusion_depth,
            self.objective.num_outputs * self.token_size,
        )

    def check_sampling(self, sampling: dict[str, Any]) -> None:
        """Refuses settings that `sample` has no use for, by ValueError."""
        steps, most = sampling["num_inference_steps"], self.objective.max_inference_steps
        rule = "be a whole number, at least 1" + (f" and at most {most}" if most < math.inf else "")
        require(sampling, "num_inference_steps", isinstance(steps, int) and 1 <= steps <= most, rule)
        require(sampling, "temperature", sampling["temperature"] >= 0, "not be negative")
        require(sampling, "guidance_scale", sampling["guidance_scale"] >= 0, "not be negative")
        known = sampling["guidance_schedule"] in GUIDANCE_SCHEDULES
        require(sampling, "guidance_schedule", known, f"be one of {', '.join(GUIDANCE_SCHEDULES)}")

    def _check_width(self, tokens: torch.Tensor) -> None:
        if tokens.shape[-1] != self.token_size:
            raise ValueError(
                f"image tokens of {tokens.shape[-1]} numbers do not fit a codec of {self.token_size} (token_size): "
                "encode the images with this model's codec"
            )

    def closed_rows(self, vocab_size: int) -> None:
        """Rows of the vocabulary outside the softmax: none."""
        return None

    def embed(self, tokens: torch.Tensor, embed_tokens: nn.Embedding) -> torch.Tensor:
        """[..., H] of tokens [..., D]."""
        self._check_width(tokens)
        return self.token_embedding(tokens.to(self.token_embedding[0].weight.dtype))

    def losses(
        self,
        text: tuple[torch.Tensor, torch.Tensor],
        image: tuple[torch.Tensor, torch.Tensor] | None,
        lm_head: nn.Module,
        z_loss_weight: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each text token, float32 [T], and `loss` of each image token, float32 [N].

        Args:
            text: hidden states [T, H] and the ids that they predict, int64 [T].
            image: hidden states [N, H] and tokens [N, D]; None where there are none.
            z_loss_weight: see `losses_together`.
        """
        text_losses_T = token_losses(*text, lm_head, z_loss_weight=z_loss_weight)
        return text_losses_T, text_losses_T.new_zeros(0) if image is None else self.loss(*image)

    def loss(self, hidden_NH: torch.Tensor, tokens_ND: torch.Tensor) -> torch.Tensor:
        """The objective's loss of each token, float32 [N]: a mean over `diffusion_batch_mul` times and noises."""
        self._check_width(tokens_ND)
        condition_NW = self.net.hidden_projection(hidden_NH)

        def predict(noisy_RND: torch.Tensor, times_RN: torch.Tensor) -> torch.Tensor:
            return self.net(noisy_RND, self.net.modulate(self.net.embed_times(times_RN) + condition_NW))

        return self.objective.losses(predict, tokens_ND.float().expand(self.batch_mul, -1, -1)).mean(0)

    @torch.no_grad()
    def sample(
        self,
        hidden_NH: torch.Tensor,
        lm_head: nn.Module,
        sampling: dict[str, Any],
        null_hidden_NH: torch.Tensor | None = None,
        generators: list[torch.Generator] | None = None,
        progress_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Next token of each row, float32 [N, D]; a row's noise comes from its own generator alone.

        Args:
            sampling: `num_inference_steps`; `temperature`, a factor of the steps' noise (of the initial noise with the
                objective "flow"); `guidance_scale` s; `guidance_schedule`: "constant", or "linear", which begins an
                image at 1 and ends it at s.
            null_hidden_NH: hidden states without the condition. Guidance is e_u + s (e_c - e_u) of the predicted noises
                or velocities at every step, on one chain of noisy tokens. The variance is the conditional one's: MAR
                keeps a variance for either half, but returns the conditional half alone.
            progress_N: share of the image's tokens drawn before this one, in [0, 1): where "linear" stands. (MAR counts
                the tokens being drawn as well.)
        """
        noise_SND = self._noise(len(hidden_NH), sampling["num_inference_steps"], generators).to(hidden_NH.device)
        scale_N1 = None if null_hidden_NH is None else self._guidance(hidden_NH, sampling, progress_N)
        if scale_N1 is not None:
            hidden_NH = torch.cat([hidden_NH, null_hidden_NH])
        times = self.objective.times(sampling["num_inference_steps"])
        times_S = torch.tensor(times, dtype=torch.float32, device=hidden_NH.device)
        x_ND = self.objective.start(noise_SND, sampling)
        for i, modulation_NMW in enumerate(self.net.modulate_steps(times_S, hidden_NH)):
            if scale_N1 is None:
                outputs_N = self.net(x_ND, modulation_NMW)
            else:
                outputs_N, null_N = self.net(x_ND.repeat(2, 1), modulation_NMW).chunk(2)
                null_N[:, self.token_size :] = outputs_N[:, self.token_size :]  # the variance, where there is one
                outputs_N = torch.lerp(null_N, outputs_N, scale_N1)  # exact where s is 1
            x_ND = self.objective.step(i, x_ND, outputs_N, noise_SND, sampling)
        return x_ND

    def _noise(self, rows: int, steps: int, generators: list[torch.Generator] | None) -> torch.Tensor:
        """Standard normal noise [S, N, D], drawn on the CPU: one seed, one image, any device."""
        shape = (self.objective.noises(steps), self.token_size)
        if generators is None:
            return torch.randn(rows, *shape, device="cpu").transpose(0, 1)
        if len(generators) != rows:
            raise ValueError(f"{len(generators)} generators for {rows} rows: pass one for each row")
        return torch.stack([torch.randn(shape, generator=generator, device="cpu") for generator in generators], 1)

    def _guidance(
        self, hidden_NH: torch.Tensor, sampling: dict[str, Any], progress_N: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Scale of each row, float32 [N, 1]; None where it is 1 in all of them."""
        scale_N = torch.full_like(hidden_NH[:, 0], sampling["guidance_scale"], dtype=torch.float32)
        if sampling["guidance_schedule"] == "linear":
            if progress_N is None:
                raise ValueError("guidance_schedule 'linear' needs progress_N: pass it, or choose 'constant'")
            scale_N = 1 + (scale_N - 1) * progress_N.to(scale_N)
        return None if bool((scale_N == 1).all()) else scale_N[:, None]

    def sequence_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """What stands for a generated token in the returned sequence: [MASK], since a vector has no id."""
        return torch.full(tokens.shape[:-1], self.mask_token_id, device=tokens.device)


START_BY_THEMSELVES = (CategoricalHead, HeadLinear, HeadNorm)  # by `reset_parameters`
HEADS = {"categorical": CategoricalHead, "diffusion": DiffusionHead}
