"""A small diffusion model over single vectors, given a condition: what it learns, how it steps, and its network.

Contract: an objective says what is predicted. `losses(predict, tokens) -> unreduced` trains it; `times`, `noises`,
`start` and `step` sample by it. `DenoisingMLP` is what predicts. The head for image tokens is made of both.

N positions, H hidden size, D numbers of a token, W width of the MLP, M modulating vectors of the MLP, R draws of time
and noise for each token in training, T times, S steps of sampling.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

MAX_MODULATIONS = 2**24  # elements of a sampler's modulating vectors that stand in memory at once
NUM_TIMESTEPS = 1000  # of the noising process a diffusion head is trained on (MAR)
TIME_FREQUENCIES = 128  # each a cosine and a sine (MAR)


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
