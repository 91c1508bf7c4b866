"""The diffusion head: its losses, its sampler, and what it learns, each against formulas written out again here.

N positions, H hidden size, D numbers of a token, W width, R draws for each token, T times, S steps.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn
from torch.distributions import Normal, kl_divergence

from modeling_unified import diffusion_unified
from modeling_unified.configuration_unified import UnifiedConfig
from modeling_unified.diffusion_unified import OBJECTIVES, EpsilonObjective, noising_chain
from modeling_unified.heads_unified import DiffusionHead

SIZE, HIDDEN, WIDTH, DEPTH = 4, 32, 32, 2
# Two conditions, and the tokens that belong to them: mean and standard deviation of each number.
MEANS = torch.tensor([[1.0, -1.0, 0.5, 0.0], [-0.5, 0.5, 0.0, 1.0]])
DEVIATIONS = torch.tensor([[0.5, 1.0, 0.25, 0.7], [0.3, 0.6, 1.0, 0.4]])

both_objectives = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.fixture(scope="module")
def make_head(make_tiny_config):
    def make(objective: str = "epsilon", **overrides) -> DiffusionHead:
        sizes = {"diffusion_width": WIDTH, "diffusion_depth": DEPTH, "diffusion_objective": objective}
        config = make_tiny_config("unifluid", **(sizes | overrides))
        config.codec_config.latent_channels = 1
        torch.manual_seed(0)
        return DiffusionHead(config)

    return make


@pytest.fixture
def make_sharp_head(make_head):
    """No weight is zero, as if trained: at its start the head predicts nothing, and most mistakes hide."""

    def make(objective: str = "epsilon", **overrides) -> DiffusionHead:
        head = make_head(objective, **overrides)
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.2)
        return head

    return make


@pytest.fixture(scope="module")
def conditions_2H():
    return torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=OBJECTIVES)
def trained(request, make_head, conditions_2H):
    """A head that has learned to draw tokens of MEANS and DEVIATIONS."""
    head = make_head(request.param, diffusion_depth=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        rows_N = torch.arange(64) % 2
        tokens_ND = MEANS[rows_N] + DEVIATIONS[rows_N] * torch.randn(64, SIZE)
        optimizer.zero_grad()
        head.loss(conditions_2H[rows_N], tokens_ND).mean().backward()
        optimizer.step()
        schedule.step()
    return head


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def settings(head: DiffusionHead, steps: int = 7, schedule: str = "constant", **changed) -> dict:
    return head.sampling_defaults | {"num_inference_steps": steps, "guidance_schedule": schedule} | changed


def double(head: DiffusionHead) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().requires_grad_() for name, value in head.net.named_parameters()}


def outputs_of(net: dict[str, torch.Tensor], x, times, hidden) -> torch.Tensor:
    """The residual MLP of MAR in float64, block by block."""

    def linear(name, x):
        return F.linear(x, net[f"{name}.weight"], net[f"{name}.bias"])

    frequencies = torch.tensor([10_000 ** (-k / 128) for k in range(128)], dtype=torch.float64)
    angles = times.double()[..., None] * frequencies
    time = linear("time_mlp.2", F.silu(linear("time_mlp.0", torch.cat([angles.cos(), angles.sin()], -1))))
    modulation = linear("modulation", F.silu(time + linear("hidden_projection", hidden))).split(WIDTH, -1)
    x = linear("token_projection", x)
    for i in range(DEPTH):
        shift, scale, gate = modulation[3 * i : 3 * i + 3]
        normed = F.layer_norm(x, (WIDTH,), net[f"blocks.{i}.norm.weight"], net[f"blocks.{i}.norm.bias"], 1e-6)
        x = x + gate * linear(f"blocks.{i}.mlp.2", F.silu(linear(f"blocks.{i}.mlp.0", normed * (1 + scale) + shift)))
    shift, scale = modulation[-2:]
    return linear("output", F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift)


def betas(steps: int = 1000) -> np.ndarray:
    """Of the cosine schedule, or of `steps` of its times: what is left of alpha bar from one to the next."""

    def remains(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    all_T = [min(1 - remains((t + 1) / 1000) / remains(t / 1000), 0.999) for t in range(1000)]
    left_T = np.cumprod(1 - np.array(all_T))
    left_S = [left_T[i * 1000 // steps] for i in range(steps)]
    return np.array([1 - now / before for now, before in zip(left_S, [1.0, *left_S], strict=False)])


def posterior(x, token, t, beta_S):
    """Mean and variance of x_{t-1} given x_t and the token (DDPM, arXiv 2006.11239, equations 6 and 7)."""
    beta_S = torch.tensor(beta_S)
    bar_S = torch.cumprod(1 - beta_S, 0)
    before_S = torch.cat([torch.ones(1), bar_S[:-1]])
    variance_S = beta_S * (1 - before_S) / (1 - bar_S)
    variance_S[0] = variance_S[1]
    beta, bar, before, variance = (values[t][..., None] for values in (beta_S, bar_S, before_S, variance_S))
    mean = before.sqrt() * beta / (1 - bar) * token + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x
    return mean, variance, beta, bar


def noised(objective: str, tokens, times, noise) -> torch.Tensor:
    if objective == "flow":
        return (1 - times[..., None]) * noise + times[..., None] * tokens
    bar = torch.cumprod(1 - torch.tensor(betas()), 0)[times][..., None]
    return bar.sqrt() * tokens + (1 - bar).sqrt() * noise


def losses_of(objective: str, outputs, tokens, times, noise) -> torch.Tensor:
    """Squared error and, for "epsilon", the divergence of two normal distributions, means and all."""
    if objective == "flow":
        return ((outputs - (tokens - noise)) ** 2).mean(-1)
    predicted, share = outputs.chunk(2, -1)
    x = noised(objective, tokens, times, noise)
    mean, variance, beta, bar = posterior(x, tokens, times, betas())
    guess = (x - (1 - bar).sqrt() * predicted.detach()) / bar.sqrt()
    guessed_mean = posterior(x, guess, times, betas())[0]
    guessed_variance = ((share + 1) / 2 * beta.log() + (1 - share) / 2 * variance.log()).exp()
    bound = kl_divergence(Normal(mean, variance.sqrt()), Normal(guessed_mean, guessed_variance.sqrt())) / math.log(2)
    return ((predicted - noise) ** 2 + bound).mean(-1)


def drawn(objective: str, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times and noise as a loss takes them from torch's generator, the noise in float64."""
    torch.manual_seed(seed)
    times_RN = torch.randint(1000, shape[:2]) if objective == "epsilon" else torch.rand(shape[:2]).double()
    return times_RN, torch.randn(shape).double()


def sampled(head, net, hidden, null, noise_SND, sampling, scale_N1) -> torch.Tensor:
    """A plain reading of the sampler in float64: two passes a step, everything anew."""
    steps, temperature = sampling["num_inference_steps"], sampling["temperature"]
    flow = head.objective.num_outputs == 1
    x = noise_SND[0] * (temperature if flow else 1)
    for i in range(steps):
        t = torch.full((len(x),), steps - 1 - i)
        times = torch.full((len(x),), 1000 * i / steps) if flow else t * 1000 // steps
        outputs, without = (outputs_of(net, x, times, condition) for condition in (hidden, null))
        guided = without[:, :SIZE] + scale_N1 * (outputs[:, :SIZE] - without[:, :SIZE])
        if flow:
            x = x + guided / steps
            continue
        _, variance, beta, bar = posterior(x, x, t, betas(steps))
        mean = posterior(x, (x - (1 - bar).sqrt() * guided) / bar.sqrt(), t, betas(steps))[0]
        share = (outputs[:, SIZE:] + 1) / 2
        deviation = (share * beta.log() + (1 - share) * variance.log()).exp().sqrt()
        x = mean + temperature * deviation * noise_SND[i + 1] if i + 1 < steps else mean
    return x


@both_objectives
def test_losses_and_gradients_are_the_formulas(make_sharp_head, objective):
    head = make_sharp_head(objective)
    hidden_NH, tokens_ND, weights_N = torch.randn(9, HIDDEN, requires_grad=True), torch.randn(9, SIZE), torch.rand(9)
    torch.manual_seed(5)
    losses_N = head.loss(hidden_NH, tokens_ND)
    parameters = dict(head.net.named_parameters())
    grads = torch.autograd.grad((losses_N * weights_N).sum(), [hidden_NH, *parameters.values()])

    times, noise = drawn(objective, (head.batch_mul, 9, SIZE), seed=5)
    net, hidden, tokens = double(head), hidden_NH.detach().double().requires_grad_(), tokens_ND.double()
    embedded = times if objective == "epsilon" else 1000 * times
    outputs = outputs_of(net, noised(objective, tokens, times, noise), embedded, hidden)
    expected_N = losses_of(objective, outputs, tokens.expand_as(noise), times, noise).mean(0)
    expected_grads = torch.autograd.grad((expected_N * weights_N).sum(), [hidden, *net.values()])
    assert losses_N.dtype == torch.float32 and losses_N.shape == (9,)
    torch.testing.assert_close(losses_N.double(), expected_N, atol=1e-5, rtol=1e-4)
    for name, grad, expected in zip(["hidden", *parameters], grads, expected_grads, strict=True):
        size = float(expected.abs().max())
        assert size > 0, name
        torch.testing.assert_close(grad.double(), expected, atol=1e-4 * size, rtol=1e-3, msg=lambda m, n=name: n + m)


@both_objectives
def test_losses_at_every_time(objective):
    """4,000 draws reach both ends of the chain; a fixed function of its input stands for the network."""

    def predict(noisy, times):
        return torch.cat([0.9 * noisy, noisy.sin()][: 2 if objective == "epsilon" else 1], -1)

    tokens_RND = torch.randn(20, 200, SIZE)
    torch.manual_seed(3)
    losses_RN = OBJECTIVES[objective]().losses(predict, tokens_RND)
    times, noise = drawn(objective, tokens_RND.shape, seed=3)
    assert objective == "flow" or {0, 1, 998, 999} <= set(times.flatten().tolist())
    outputs = predict(noised(objective, tokens_RND.double(), times, noise), times)
    expected_RN = losses_of(objective, outputs, tokens_RND.double(), times, noise)
    torch.testing.assert_close(losses_RN.double(), expected_RN, atol=1e-4, rtol=1e-4)


def test_the_variance_sends_no_gradient_into_the_mean():
    tokens_RND, outputs = torch.randn(3, 50, SIZE), torch.randn(3, 50, 2 * SIZE, requires_grad=True)
    torch.manual_seed(3)
    EpsilonObjective().losses(lambda noisy, times: outputs, tokens_RND).sum().backward()
    noise = drawn("epsilon", tokens_RND.shape, seed=3)[1].float()
    mean_grad, variance_grad = outputs.grad.chunk(2, -1)
    torch.testing.assert_close(mean_grad, 2 * (outputs.detach()[..., :SIZE] - noise) / SIZE)
    assert variance_grad.any(-1).all()


@both_objectives
def test_at_its_start_the_head_predicts_zero(make_head, objective):
    head = make_head(objective)
    hidden_NH, tokens_ND = torch.randn(5, HIDDEN), torch.randn(5, SIZE)
    outputs = head.net(tokens_ND, head.net.modulate(head.net.hidden_projection(hidden_NH)))
    assert outputs.shape == (5, SIZE * head.objective.num_outputs) and not outputs.any()
    x_NW = torch.randn(5, WIDTH)
    assert torch.equal(head.net.blocks[0](x_NW, *torch.zeros(3, 5, WIDTH)), x_NW)
    for name, parameter in head.named_parameters():
        silent = name.endswith("bias") or name in ("net.modulation.weight", "net.output.weight")
        assert bool(parameter.any()) is not silent, name
    assert 0.015 < head.net.time_mlp[0].weight.std() < 0.025
    limit = math.sqrt(6 / (WIDTH + HIDDEN))
    assert 0.9 * limit < head.net.hidden_projection.weight.abs().max() <= limit


def test_layers_start_again_but_for_what_was_loaded(make_sharp_head):
    head = make_sharp_head()
    loaded, norm = head.net.output, head.token_embedding[1]
    loaded.weight._is_hf_initialized, before = True, loaded.weight.detach().clone()
    for layer in (loaded, head.net.modulation, norm):
        layer.reset_parameters()
    assert torch.equal(loaded.weight, before)
    assert not head.net.modulation.weight.any() and bool((norm.weight == norm.gain).all())


@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_the_chain_is_that_of_diffusers(steps):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    chain = noising_chain(steps)
    assert chain.times[::-1].tolist() == scheduler.timesteps.tolist()
    bar_S = scheduler.alphas_cumprod.double()[torch.from_numpy(chain.times)]
    torch.testing.assert_close(torch.from_numpy(chain.token_scale) ** 2, bar_S, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(torch.from_numpy(chain.noise_scale) ** 2, 1 - bar_S, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_is_that_of_diffusers(temperature):
    steps = 50
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False)
    scheduler.alphas_cumprod = torch.from_numpy(noising_chain().token_scale) ** 2  # its own are float32
    scheduler.set_timesteps(steps)
    x_ND, outputs_N = torch.randn(3, SIZE).double(), torch.randn(3, 2 * SIZE).double()
    sampling = EpsilonObjective.sampling_defaults | {"num_inference_steps": steps, "temperature": temperature}
    for i, time in enumerate(scheduler.timesteps):
        noise_SND = torch.zeros(steps + 1, 3, SIZE).double()
        noise_SND[i + 1] = torch.randn(3, SIZE, generator=generators(1)[0], dtype=torch.float64)
        found_ND = EpsilonObjective().step(i, x_ND, outputs_N, noise_SND, sampling)
        stepped = scheduler.step(outputs_N, int(time), x_ND, generator=generators(1)[0])
        if temperature == 0 and time > 0:  # the scheduler always adds noise: take it away again
            log_variance_N = scheduler._get_variance(int(time), outputs_N[:, SIZE:])
            stepped.prev_sample -= (log_variance_N / 2).exp() * noise_SND[i + 1]
        torch.testing.assert_close(found_ND, stepped.prev_sample, rtol=1e-9, atol=1e-9)


@both_objectives
@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize(("scale", "temperature"), [(0.0, 1.0), (1.0, 0.0), (3.0, 0.7)])
def test_samples_are_the_formulas(make_sharp_head, objective, schedule, scale, temperature):
    head = make_sharp_head(objective)
    hidden_NH, null_NH, progress_N = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN), torch.tensor([0.0, 0.3, 0.9])
    sampling = settings(head, schedule=schedule, guidance_scale=scale, temperature=temperature)
    tokens_ND = head.sample(hidden_NH, None, sampling, null_NH, generators(3), progress_N)

    length = 7 if objective == "epsilon" else 1
    noise_SND = torch.stack([torch.randn(length, SIZE, generator=g) for g in generators(3)], 1).double()
    scale_N1 = torch.full((3, 1), scale) if schedule == "constant" else 1 + (scale - 1) * progress_N[:, None]
    expected_ND = sampled(head, double(head), hidden_NH.double(), null_NH.double(), noise_SND, sampling, scale_N1)
    assert tokens_ND.dtype == torch.float32
    torch.testing.assert_close(tokens_ND.double(), expected_ND, rtol=1e-3, atol=1e-3)


@both_objectives
def test_guidance_of_one_is_the_condition(make_sharp_head, objective):
    head = make_sharp_head(objective)
    hidden_NH, null_NH, starts_N = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN), torch.zeros(3)
    alone_ND = head.sample(hidden_NH, None, settings(head), generators=generators(3))
    one_ND = head.sample(hidden_NH, None, settings(head), null_NH, generators(3))
    assert torch.equal(one_ND, alone_ND)
    linear = settings(head, schedule="linear", guidance_scale=4.0)
    first_ND = head.sample(hidden_NH, None, linear, null_NH, generators(3), starts_N)
    assert torch.equal(first_ND, alone_ND)
    starts_N[1] = 0.5  # now both passes are run, and the other rows must not notice
    mixed_ND = head.sample(hidden_NH, None, linear, null_NH, generators(3), starts_N)
    torch.testing.assert_close(mixed_ND[[0, 2]], alone_ND[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (mixed_ND[1] - alone_ND[1]).abs().max() > 0.01


@both_objectives
def test_a_row_depends_on_its_own_generator_alone(make_sharp_head, objective):
    head = make_sharp_head(objective)
    hidden_NH, null_NH = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    sampling = settings(head, guidance_scale=2.0)
    together_ND = head.sample(hidden_NH, None, sampling, null_NH, generators(3))
    for row, one in enumerate(generators(3)):
        alone_ND = head.sample(hidden_NH[row : row + 1], None, sampling, null_NH[row : row + 1], [one])
        torch.testing.assert_close(alone_ND[0], together_ND[row], rtol=1e-5, atol=1e-5)
    other_ND = head.sample(hidden_NH, None, sampling, null_NH, generators(3, first=1))
    assert (other_ND - together_ND).abs().amax(-1).min() > 0.01


@both_objectives
def test_steps_are_modulated_alike_in_one_piece_and_one_by_one(make_sharp_head, monkeypatch, objective):
    head, hidden_NH = make_sharp_head(objective), torch.randn(3, HIDDEN)
    whole_ND = head.sample(hidden_NH, None, settings(head), generators=generators(3))
    monkeypatch.setattr(diffusion_unified, "MAX_MODULATIONS", 2 * 3 * head.net.modulation.out_features)
    seen = []
    head.net.modulation.register_forward_hook(lambda module, args, vectors: seen.append(len(vectors)))
    pieces_ND = head.sample(hidden_NH, None, settings(head), generators=generators(3))
    torch.testing.assert_close(pieces_ND, whole_ND, rtol=1e-5, atol=1e-5)
    assert seen == [2, 2, 2, 1]


def draw_many(head: DiffusionHead, hidden_H, null_H=None, **changed) -> torch.Tensor:
    rows = 1500
    null_NH = None if null_H is None else null_H.expand(rows, -1)
    steps = head.sampling_defaults["num_inference_steps"]
    return head.sample(hidden_H.expand(rows, -1), None, settings(head, steps, **changed), null_NH)


def test_a_trained_head_draws_from_the_distributions(trained, conditions_2H):
    for hidden_H, mean_D, deviation_D in zip(conditions_2H, MEANS, DEVIATIONS, strict=True):
        tokens_ND = draw_many(trained, hidden_H)
        assert (tokens_ND.mean(0) - mean_D).abs().max() < 0.12
        assert (tokens_ND.std(0) - deviation_D).abs().max() < 0.2


def test_less_temperature_is_less_spread(trained, conditions_2H):
    spreads = [float(draw_many(trained, conditions_2H[0], temperature=t).std(0).mean()) for t in (0.3, 0.7, 1.0)]
    assert spreads == sorted(spreads) and spreads[0] < 0.8 * spreads[-1]


def test_guidance_goes_on_beyond_the_condition(trained, conditions_2H):
    """Seen along the line from the unconditional mean (0) to the conditional one (1)."""
    line_D = MEANS[0] - MEANS[1]

    def place(scale: float) -> float:
        mean_D = draw_many(trained, *conditions_2H, guidance_scale=scale).mean(0)
        return float((mean_D - MEANS[1]) @ line_D / (line_D @ line_D))

    places = [place(scale) for scale in (0.0, 1.0, 2.0)]
    assert abs(places[0]) < 0.15 and abs(places[1] - 1) < 0.15 and places[2] > 1.3


def test_tokens_are_fed_back_as_loud_as_the_backbone_embeds(make_head):
    head = make_head()
    embeds_NLH = head.embed(torch.randn(2, 5, SIZE), None)
    assert embeds_NLH.shape == (2, 5, HIDDEN)
    loud = torch.full((2, 5), 0.02**2)  # Llama's initializer_range
    torch.testing.assert_close(embeds_NLH.square().mean(-1), loud, rtol=5e-2, atol=0)
    assert head.bfloat16().embed(torch.randn(2, 5, SIZE), None).dtype == torch.bfloat16


def test_vectors_have_no_ids(make_head):
    head = make_head()
    ids_N = head.sequence_ids(torch.randn(3, SIZE))
    assert ids_N.dtype == torch.int64 and ids_N.tolist() == [head.mask_token_id] * 3
    assert head.closed_rows(100) is None


def test_tokens_of_another_codec_are_refused(make_head):
    head = make_head()
    with pytest.raises(ValueError, match="tokens of 5 numbers do not fit a codec of 4"):
        head.embed(torch.randn(3, 5), None)
    with pytest.raises(ValueError, match="tokens of 5 numbers do not fit a codec of 4"):
        head.loss(torch.randn(3, HIDDEN), torch.randn(3, 5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps 0 must be a whole number, at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5 must be a whole number"),
        ({"num_inference_steps": 1001}, "num_inference_steps 1001 must .* at most 1000"),
        ({"temperature": -0.1}, "temperature -0.1 must not be negative"),
        ({"guidance_scale": -1.0}, "guidance_scale -1.0 must not be negative"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule 'cosine' must be one of linear, constant"),
    ],
)
def test_bad_settings_are_refused(make_head, changed, message):
    head = make_head()
    head.check_sampling(head.sampling_defaults)
    with pytest.raises(ValueError, match=message):
        head.check_sampling(head.sampling_defaults | changed)


def test_settings_follow_the_objective(make_head):
    epsilon, flow = make_head("epsilon"), make_head("flow")
    assert epsilon.sampling_defaults["num_inference_steps"] == 100
    assert flow.sampling_defaults == epsilon.sampling_defaults | {"num_inference_steps": 25}
    flow.check_sampling(flow.sampling_defaults | {"num_inference_steps": 2000})


def test_what_guidance_and_noise_need_is_asked_for(make_head):
    head, hidden_NH = make_head(), torch.randn(3, HIDDEN)
    with pytest.raises(ValueError, match="'linear' needs progress_N"):
        head.sample(hidden_NH, None, settings(head, schedule="linear", guidance_scale=2.0), hidden_NH)
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        head.sample(hidden_NH, None, settings(head), generators=generators(2))


def test_the_published_size():
    """MAR-B's 6 blocks of 1,024 on Gemma-2 2B: 16 numbers a token, 2,304 a hidden state."""
    with torch.device("meta"):
        head = DiffusionHead(UnifiedConfig.for_paradigm("unifluid"))
    d, h, w, depth = 16, 2304, 1024, 6
    inputs = (d + 1) * w + (h + 1) * w + (256 + 1) * w + (w + 1) * w
    block = 2 * w + 2 * (w + 1) * w + (w + 1) * 3 * w
    final = (w + 1) * 2 * w + (w + 1) * 2 * d
    assert sum(p.numel() for p in head.net.parameters()) == inputs + depth * block + final
    assert sum(p.numel() for p in head.token_embedding.parameters()) == (d + 1) * h + 2 * h


@both_objectives
def test_half_precision(make_sharp_head, objective):
    """As mixed precision, and with half precision weights: losses and tokens are float32, and nearly the same."""
    head, hidden_NH, tokens_ND = make_sharp_head(objective), torch.randn(64, HIDDEN), torch.randn(64, SIZE)
    sampling = settings(head, guidance_scale=2.0)

    def run(hidden_NH):
        torch.manual_seed(0)
        losses_N = head.loss(hidden_NH, tokens_ND)
        return losses_N, head.sample(hidden_NH, None, sampling, -hidden_NH, generators(64))

    exact = run(hidden_NH)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(hidden_NH)
    head.bfloat16()
    half = run(hidden_NH.bfloat16())
    for found in (mixed, half):
        for value, expected in zip(found, exact, strict=True):
            assert value.dtype == torch.float32 and bool(value.isfinite().all())
            assert (value - expected).abs().mean() < 0.1 * expected.abs().mean()


@both_objectives
def test_tokens_of_a_codec_in_half_precision_are_noised_in_float32(make_sharp_head, objective):
    head, hidden_NH, tokens_ND = make_sharp_head(objective), torch.randn(9, HIDDEN), torch.randn(9, SIZE).bfloat16()
    found = []
    for tokens in (tokens_ND, tokens_ND.float()):
        torch.manual_seed(0)
        found.append(head.loss(hidden_NH, tokens))
    assert torch.equal(*found)
