"""How an image token is fed back to the language model and predicted by it.

Contract: `embed(tokens, embed_tokens)`, `loss(hidden, tokens, lm_head) -> unreduced`,
`sample(hidden, lm_head, sampling, ...) -> tokens`; `sampling_defaults`, the settings `sample` takes, and
`check_sampling`, which refuses bad ones; `closed_rows` and `sequence_ids`, the head's part in the vocabulary. The
vocabulary's two matrices belong to the backbone; a head that needs them is handed them.

B batch, L image tokens, N positions, H hidden size, V vocabulary, K codes. Of the diffusion head: D numbers of a token,
W width of its MLP, M modulating vectors of the MLP, R draws of time and noise for each token in training, T times, S
steps of sampling.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    LogitsProcessorList,
    PreTrainedConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers import initialization as init

from .configuration_unified import UnifiedConfig

MAX_LOGITS = 2**24  # elements of logits that stand in memory at once; a vocabulary may have 350,000 rows
MAX_MODULATIONS = 2**24  # elements of a sampler's modulating vectors, the same
NUM_TIMESTEPS = 1000  # of the noising process a diffusion head is trained on (MAR)
TIME_FREQUENCIES = 128  # each a cosine and a sine (MAR)
GUIDANCE_SCHEDULES = ("linear", "constant")


class LanguageHead(nn.Linear):
    """`lm_head` of the backbone's family: Gemma-2 caps its logits softly at +-`final_logit_softcapping`."""

    def __init__(self, text_config: PreTrainedConfig):
        super().__init__(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.cap = getattr(text_config, "final_logit_softcapping", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.capped(super().forward(hidden))

    def rows_from(self, start: int, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the rows from `start` on; the others are not multiplied."""
        return self.capped(F.linear(hidden, self.weight[start:]))

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def token_losses(
    hidden_NH: torch.Tensor, ids_N: torch.Tensor, lm_head: LanguageHead, closed_V: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each id in the joint vocabulary, float32 [N].

    Rows marked in `closed_V` (bool) leave the softmax. Computed chunk by chunk, and recomputed in the backward pass,
    so that the logits of a whole batch never stand in memory.
    """

    def losses(hidden_NH: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        logits_NV = lm_head(hidden_NH).float()
        if closed_V is not None:
            logits_NV = logits_NV.masked_fill(closed_V, -torch.inf)
        return F.cross_entropy(logits_NV, ids_N, reduction="none")

    chunk = max(1, MAX_LOGITS // lm_head.weight.shape[0])
    if len(ids_N) <= chunk:
        return losses(hidden_NH, ids_N)
    chunks = zip(hidden_NH.split(chunk), ids_N.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, hidden, ids, use_reentrant=False) for hidden, ids in chunks])


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
    """Image tokens are codes, rows of the same vocabulary as text, predicted by the same softmax (UGen, section 3).

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
        closed_V[self.code_offset :] = ~self.active_codes
        return closed_V

    def embed(self, codes: torch.Tensor, embed_tokens: nn.Embedding) -> torch.Tensor:
        return embed_tokens(self.ids(codes))

    def loss(self, hidden_NH: torch.Tensor, codes_N: torch.Tensor, lm_head: LanguageHead) -> torch.Tensor:
        """Cross-entropy of each code, float32 [N]; zero where a [MASK] target is not trained on."""
        ids_N = self.ids(codes_N)
        losses_N = token_losses(hidden_NH, ids_N, lm_head, self.closed_rows(lm_head.weight.shape[0]))
        return losses_N if self.loss_on_mask else losses_N.masked_fill(ids_N == self.mask_token_id, 0.0)

    def sample(
        self,
        hidden_NH: torch.Tensor,
        lm_head: LanguageHead,
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
        logits_NK = lm_head.rows_from(self.code_offset, hidden_NH).float()
        if null_hidden_NH is not None:
            null_NK = lm_head.rows_from(self.code_offset, null_hidden_NH).float()
            logits_NK = null_NK + sampling["guidance_scale"] * (logits_NK - null_NK)
        logits_NK = logits_NK.masked_fill(~self.active_codes, -torch.inf)
        return draw(warpers(sampling)(None, logits_NK), sampling["do_sample"], generators)

    def sequence_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """What stands for a generated token in the returned sequence."""
        return codes + self.code_offset


class NoisingChain(NamedTuple):
    """What `steps` noisings do, one entry for each, from the token (0) to noise; float64 [S]."""

    times: np.ndarray  # of the 1,000 trained on
    token_scale: np.ndarray  # x_t = token_scale * token + noise_scale * noise
    noise_scale: np.ndarray
    mean_x: np.ndarray  # the denoised mean is mean_x * x_t - mean_noise * noise
    mean_noise: np.ndarray
    min_log_variance: np.ndarray  # of the posterior given the token: what is left if the token is known
    max_log_variance: np.ndarray  # of the noising itself


@functools.cache
def noising_chain(steps: int = NUM_TIMESTEPS) -> NoisingChain:
    """The cosine schedule (improved DDPM, arXiv 2102.09672, section 3.2), or `steps` of its 1,000 times.

    The times taken are evenly spaced from 0 up ("leading" in diffusers): 0, 10, ..., 990 of 100 steps. MAR ends at 999,
    where next to nothing is left of the token: its first step multiplies an error in the predicted noise by 316, ours
    by 2. Our choice, since a head of width 32 that draws well by ours drew numbers in the thousands by MAR's. Where the
    posterior is certain, at time 0, its variance is that of the step before, as in improved DDPM.

    Plain arrays, not buffers: transformers would leave buffers that are not saved uninitialised when it loads.
    """
    level = np.cos((np.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    remains_T = np.cumprod(1 - np.minimum(1 - level[1:] / level[:-1], 0.999))  # alpha bar
    times_S = np.arange(steps) * NUM_TIMESTEPS // steps
    remains_S = remains_T[times_S]
    before_S = np.append(1.0, remains_S[:-1])
    alpha_S = remains_S / before_S
    variance_S = (1 - alpha_S) * (1 - before_S) / (1 - remains_S)
    variance_S[0] = variance_S[1] if steps > 1 else 1 - alpha_S[0]
    return NoisingChain(
        times=times_S,
        token_scale=np.sqrt(remains_S),
        noise_scale=np.sqrt(1 - remains_S),
        mean_x=1 / np.sqrt(alpha_S),
        mean_noise=(1 - alpha_S) / np.sqrt(alpha_S * (1 - remains_S)),
        min_log_variance=np.log(variance_S),
        max_log_variance=np.log(1 - alpha_S),
    )


class EpsilonObjective:
    """The noise is predicted, and where between its two bounds the variance of a step lies (MAR, improved DDPM).

    Both objectives: `losses(predict, tokens)` for training; `times`, `noises`, `start` and `step` for sampling.
    """

    num_outputs = 2  # for each number of a token
    sampling_defaults: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 100,
        "temperature": 1.0,
        "guidance_scale": 1.0,
        "guidance_schedule": "linear",
    }
    max_inference_steps = NUM_TIMESTEPS

    def losses(
        self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tokens_RND: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of the noise plus the variational bound of a step in bits, means over D: float32 [R, N].

        The bound trains the variance only: it sees the predicted noise without its gradient (improved DDPM, section
        3.1). Its usual rescaling, T / 1000, is 1. Published code takes the likelihood of a pixel at time 0; tokens are
        continuous and sampling adds no noise there, so the divergence stays at every time (our choice).
        """
        chain = noising_chain()
        times_RN = torch.randint(NUM_TIMESTEPS, tokens_RND.shape[:2], device=tokens_RND.device)
        noise_RND = torch.randn_like(tokens_RND)

        def at_times(values_T: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values_T).float().to(times_RN.device)[times_RN][..., None]

        noisy_RND = at_times(chain.token_scale) * tokens_RND + at_times(chain.noise_scale) * noise_RND
        predicted_RND, share_RND = predict(noisy_RND, times_RN).chunk(2, -1)
        squares_RND = (predicted_RND - noise_RND).square()

        least_RN1, most_RN1 = at_times(chain.min_log_variance), at_times(chain.max_log_variance)
        log_variance_RND = least_RN1 + (share_RND + 1) / 2 * (most_RN1 - least_RN1)
        # Both means are mean_x * x_t - mean_noise * noise, of the true noise and of the predicted.
        mean_squares_RND = at_times(chain.mean_noise).square() * squares_RND.detach()
        excess_RND = log_variance_RND - least_RN1
        divergence_RND = (excess_RND - 1 + (-excess_RND).exp() + mean_squares_RND * (-log_variance_RND).exp()) / 2
        return (squares_RND + divergence_RND / math.log(2)).mean(-1)

    def times(self, steps: int) -> list[float]:
        return noising_chain(steps).times[::-1].tolist()

    def noises(self, steps: int) -> int:
        """Vectors of noise that a token takes: the start and every step but the last."""
        return steps

    def start(self, noise_SND: torch.Tensor, sampling: dict[str, Any]) -> torch.Tensor:
        return noise_SND[0]

    def step(
        self, i: int, x_ND: torch.Tensor, outputs_N: torch.Tensor, noise_SND: torch.Tensor, sampling: dict[str, Any]
    ) -> torch.Tensor:
        """Ancestral sampling. `temperature` scales the noise of the steps, not the one started from (MAR)."""
        steps = sampling["num_inference_steps"]
        chain, t = noising_chain(steps), steps - 1 - i
        predicted_ND, share_ND = outputs_N.chunk(2, -1)
        mean_ND = float(chain.mean_x[t]) * x_ND - float(chain.mean_noise[t]) * predicted_ND
        if t == 0:
            return mean_ND
        least, most = float(chain.min_log_variance[t]), float(chain.max_log_variance[t])
        deviation_ND = ((least + (share_ND + 1) / 2 * (most - least)) / 2).exp()
        return mean_ND + sampling["temperature"] * deviation_ND * noise_SND[i + 1]


class FlowObjective:
    """The velocity of the straight line from noise (time 0) to token (time 1) is predicted (our choice beside MAR's).

    x_t = (1 - t) noise + t token, hence the velocity is token - noise (rectified flow, arXiv 2209.03003, section 2).
    """

    num_outputs = 1
    # A quarter of the steps: straight lines forgive long ones (our choice).
    sampling_defaults: ClassVar[dict[str, Any]] = EpsilonObjective.sampling_defaults | {"num_inference_steps": 25}
    max_inference_steps = math.inf

    def losses(
        self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tokens_RND: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of the velocity at uniform times, means over D: float32 [R, N]."""
        times_RN = torch.rand(tokens_RND.shape[:2], device=tokens_RND.device)
        noise_RND = torch.randn_like(tokens_RND)
        velocity_RND = tokens_RND - noise_RND
        noisy_RND = noise_RND + times_RN[..., None] * velocity_RND
        # A thousandfold, so that times lie as far apart in their embedding as those of the other objective.
        return (predict(noisy_RND, NUM_TIMESTEPS * times_RN) - velocity_RND).square().mean(-1)

    def times(self, steps: int) -> list[float]:
        return [NUM_TIMESTEPS * i / steps for i in range(steps)]

    def noises(self, steps: int) -> int:
        return 1

    def start(self, noise_SND: torch.Tensor, sampling: dict[str, Any]) -> torch.Tensor:
        """`temperature` scales the noise started from: there is no other."""
        return sampling["temperature"] * noise_SND[0]

    def step(
        self, i: int, x_ND: torch.Tensor, outputs_N: torch.Tensor, noise_SND: torch.Tensor, sampling: dict[str, Any]
    ) -> torch.Tensor:
        """Euler's method."""
        return x_ND + outputs_N / sampling["num_inference_steps"]


OBJECTIVES = {"epsilon": EpsilonObjective, "flow": FlowObjective}


class HeadLinear(nn.Linear):
    """A linear layer that knows how it starts: the backbone's one way for all of them does not do for a head."""

    def __init__(self, inputs: int, outputs: int, start: Callable[[torch.Tensor], Any] = init.xavier_uniform_):
        self.start = start
        super().__init__(inputs, outputs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.start(self.weight)
        init.zeros_(self.bias)


class HeadNorm(nn.LayerNorm):
    """Layer norm whose gain starts at `gain`."""

    def __init__(self, width: int, gain: float = 1.0):
        self.gain = gain
        super().__init__(width, eps=1e-6)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.constant_(self.weight, self.gain)
        init.zeros_(self.bias)


class DenoisingBlock(nn.Module):
    """Norm, modulation, Linear-SiLU-Linear, gate, residual; its modulating vectors come from outside."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = HeadNorm(width)
        self.mlp = nn.Sequential(HeadLinear(width, width), nn.SiLU(), HeadLinear(width, width))

    def forward(
        self, x_NW: torch.Tensor, shift_NW: torch.Tensor, scale_NW: torch.Tensor, gate_NW: torch.Tensor
    ) -> torch.Tensor:
        return x_NW + gate_NW * self.mlp(self.norm(x_NW) * (1 + scale_NW) + shift_NW)


class DenoisingMLP(nn.Module):
    """MAR's residual MLP with adaptive layer norm (arXiv 2406.11838 and its code). At the start no block changes
    anything and the output is zero.

    The modulating vectors of all blocks (shift, scale, gate) and of the final norm (shift, scale) are one matrix times
    a condition. They read nothing of the token, so that a sampler has them for many steps from one multiplication.
    """

    def __init__(self, token_size: int, hidden_size: int, width: int, depth: int, num_outputs: int):
        super().__init__()
        self.width = width
        small = functools.partial(init.normal_, std=0.02)
        self.token_projection = HeadLinear(token_size, width)
        self.time_mlp = nn.Sequential(
            HeadLinear(2 * TIME_FREQUENCIES, width, small), nn.SiLU(), HeadLinear(width, width, small)
        )
        self.hidden_projection = HeadLinear(hidden_size, width)
        self.modulation = HeadLinear(width, (3 * depth + 2) * width, init.zeros_)
        self.blocks = nn.ModuleList([DenoisingBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.output = HeadLinear(width, num_outputs, init.zeros_)

    def embed_times(self, times: torch.Tensor) -> torch.Tensor:
        """[..., W] of times 0..1000 of any shape. The waves are float32: half precision cannot tell 999 from 1,000."""
        waves = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=times.device) / TIME_FREQUENCIES
        angles = times.float()[..., None] * torch.exp(-math.log(10_000) * waves)
        return self.time_mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.output.weight.dtype))

    def modulate(self, condition: torch.Tensor) -> torch.Tensor:
        """Modulating vectors [..., M, W] of a condition [..., W]: time plus hidden state."""
        return self.modulation(F.silu(condition)).unflatten(-1, (-1, self.width))

    def modulate_steps(self, times_S: torch.Tensor, hidden_NH: torch.Tensor) -> Iterator[torch.Tensor]:
        """Modulating vectors [N, M, W] of each of S times in turn, computed for as many at once as memory allows."""
        condition_NW, times_SW = self.hidden_projection(hidden_NH), self.embed_times(times_S)
        size = max(1, len(hidden_NH) * self.modulation.out_features)
        for times_sW in times_SW.split(max(1, MAX_MODULATIONS // size)):
            yield from self.modulate(times_sW[:, None] + condition_NW)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Outputs float32 [..., num_outputs] of noisy tokens [..., D] and modulating vectors [..., M, W]."""
        vectors = modulation.unbind(-2)
        x = self.token_projection(x.to(self.output.weight.dtype))
        for i, block in enumerate(self.blocks):
            x = block(x, *vectors[3 * i : 3 * i + 3])
        shift, scale = vectors[-2:]
        return self.output(self.norm(x) * (1 + scale) + shift).float()


class DiffusionHead(nn.Module):
    """Image tokens are vectors, each drawn by a small diffusion model given a hidden state (MAR, arXiv 2406.11838).

    A vector is fed back through a linear map and a layer norm, as in MAR (our choice: UniFluid's own was not found).
    """

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

    def loss(self, hidden_NH: torch.Tensor, tokens_ND: torch.Tensor, lm_head: LanguageHead) -> torch.Tensor:
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
        lm_head: LanguageHead,
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
