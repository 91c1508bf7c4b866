"""Trains the image codec: pixels -> tokens -> pixels, on scenes and on single drawings. The kind of recipe decides:

- vq: three things keep all codes in use, each stateless, so that a resumed run repeats a never-stopped one: the first
  steps train a plain autoencoder, then the codebook is set to k-means centres of its latents, and from then on, at
  regular steps, codes that a fixed sample of images does not use are moved onto latents of that sample.
- kl: a divergence of small weight keeps the latents near the origin, and a last step scales them to unit variance.

B batch, C channels, H height, W width, h, w grid, N latents, K codes, D code dimension.
"""

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_unified.codecs_unified import Codec, KLCodec, VQCodec
from train.arguments import has_bfloat16, training_arguments
from train.checkpoints import ResumableTrainer
from train.codes import to_pixels, training_scene
from train.progress import StopOnSignal
from train.recipes.kinds import CodecRecipe, KLCodecRecipe, VQCodecRecipe
from train.record import describe_run, open_run, write_json
from train.scenes import DATA, Drawings, HeldOut, render

SAMPLE_IMAGES = 512  # looked at when the codebook is set or mended, and when latents are scaled
KMEANS_ROUNDS = 10


def train_codec(recipe: CodecRecipe, output: Path, resume: bool = False, report_to: Sequence[str] = ()) -> bool:
    """Trains and saves a codec; True when all steps are done, False when stopped before, to be resumed. Logs also go to
    the services of `report_to`, as transformers calls them."""
    checkpoint = open_run(recipe, output, resume)
    codec = TRAINERS[type(recipe)].codec_class.from_pretrained(checkpoint) if checkpoint else new_codec(recipe)
    trainer = build_trainer(recipe, output, codec, report_to)
    trainer.add_callback(ReconstructionPicture(recipe, output))
    trainer.add_callback(StopOnSignal())
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < recipe.steps:
        return False
    trainer.finish(codec)
    codec.save_pretrained(output)
    write_json(output / "training.json", describe_run(recipe, trainer))
    return True


def new_codec(recipe: CodecRecipe) -> Codec:
    """Random weights by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    codec_class = TRAINERS[type(recipe)].codec_class
    return codec_class(codec_class.config_class(**recipe.codec_config))


def build_trainer(recipe: CodecRecipe, output: Path, codec: Codec, report_to: Sequence[str] = ()) -> "CodecTrainer":
    """The loop of the recipe's kind of codec."""
    return TRAINERS[type(recipe)](
        model=codec,
        args=training_arguments(recipe, output, report_to),
        train_dataset=CodecImages(recipe),
        data_collator=lambda rows: {"pixel_values": torch.stack(rows)},
        recipe=recipe,
    )


class CodecImages(Dataset):
    """Image `number` of the run, float32 [C, H, W] in [-1, 1], a pure function of the seed and the number.

    Mostly training scenes; `drawing_share` are other drawings alone on the canvas, large or in a cell, so that the
    codec is no stranger to shapes outside the scenes' concepts. Drawings held out are never among them.
    """

    def __init__(self, recipe: CodecRecipe):
        self.recipe, self.held_out, self.drawings = recipe, HeldOut.load(), Drawings.load()
        self.others = load_drawings(held_out=False)

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, number: int) -> torch.Tensor:
        return to_pixels([self.image(number)])[0]

    def image(self, number: int) -> Image.Image:
        """The same as RGB."""
        rng = random.Random(f"codec/{self.recipe.seed}/{number}")
        if rng.random() < self.recipe.drawing_share:
            return on_canvas(rng.choice(self.others), rng)
        return render(training_scene(self.recipe.seed + 1, number, self.held_out), self.drawings)

    def sample(self, name: str) -> Iterable[torch.Tensor]:
        """`SAMPLE_IMAGES` images in batches [B, C, H, W], a pure function of the name."""
        rng = random.Random(name)
        numbers = [rng.randrange(len(self)) for _ in range(SAMPLE_IMAGES)]
        return torch.stack([self[number] for number in numbers]).split(32)


def load_drawings(held_out: bool) -> list[Image.Image]:
    """RGBA drawings of all labels, either those of the codec's test or all the others."""
    rows = datasets.Dataset.from_parquet(str(DATA / "drawings.parquet"), columns=["image", "held_out"])
    rows = rows.filter(lambda out: out == held_out, input_columns="held_out")
    return [image.convert("RGBA") for image in rows["image"]]


def on_canvas(drawing: Image.Image, rng: random.Random) -> Image.Image:
    """The drawing on a white canvas: over all of it, or in a random quarter."""
    side = drawing.width
    canvas = Image.new("RGBA", (side, side), "white")
    corner = (0, 0)
    if rng.random() < 0.5:
        drawing = drawing.resize((side // 2, side // 2), Image.Resampling.LANCZOS)
        corner = (rng.randrange(2) * side // 2, rng.randrange(2) * side // 2)
    canvas.alpha_composite(drawing, corner)
    return canvas.convert("RGB")


class CodecTrainer(ResumableTrainer):
    """Minimises distance of pixels and of their gradients, plus what a kind of codec adds of its own."""

    codec_class: type[Codec]

    def __init__(self, *args, recipe: CodecRecipe, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe

    def rebuild(self, model: torch.nn.Module, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels after a round trip, and the codec's own loss, weighted."""
        raise NotImplementedError

    def finish(self, codec: Codec) -> None:
        """What is left to do when all steps are done."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels_BCHW = inputs["pixel_values"]
        rebuilt_BCHW, codec_loss = self.rebuild(model, pixels_BCHW)
        loss = reconstruction_loss(rebuilt_BCHW.float(), pixels_BCHW) + codec_loss
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the codec's loss is {loss.item()} at step {self.state.global_step}")
        return (loss, {}) if return_outputs else loss


class VQCodecTrainer(CodecTrainer):
    """Adds the quantiser's own loss once it quantises, and keeps the codebook in use."""

    codec_class = VQCodec

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Codebook(self.recipe, self.train_dataset))

    def rebuild(self, model, pixels_BCHW):
        quantise = self.state.global_step >= self.recipe.autoencoder_steps
        rebuilt_BCHW, quantiser_loss, _ = model(pixels_BCHW, quantise=quantise)
        return rebuilt_BCHW, self.recipe.quantiser_weight * quantiser_loss.float()


class KLCodecTrainer(CodecTrainer):
    """Adds the divergence of the posterior from the standard normal."""

    codec_class = KLCodec

    def rebuild(self, model, pixels_BCHW):
        rebuilt_BCHW, divergence, _ = model(pixels_BCHW)
        return rebuilt_BCHW, self.recipe.kl_weight * divergence.float()

    def finish(self, codec: KLCodec) -> None:
        scale_latents(codec, self.train_dataset.sample(f"latents/{self.recipe.seed}"))


@torch.no_grad()
def scale_latents(codec: KLCodec, batches: Iterable[torch.Tensor]) -> None:
    """Sets the config's shift and scale so that tokens of these images [B, C, H, W] have mean 0 and variance 1.

    One scale for all channels, as LDM sets it from its first batch (section D.1); the shift is our choice, since a
    diffusion head's noise has mean 0. Measured on the posterior's means, which are what a language model is given.

    Raises:
        FloatingPointError: latents that are all alike or not finite.
    """
    latents = torch.cat([codec.posterior(batch.to(codec.device)).mean for batch in batches])
    mean, deviation = float(latents.mean()), float(latents.std())
    if not 0 < deviation < math.inf:
        raise FloatingPointError(
            f"latents of standard deviation {deviation} cannot be scaled: the codec is not trained"
        )
    codec.config.shift_factor, codec.config.scaling_factor = mean, 1 / deviation


def reconstruction_loss(rebuilt_BCHW: torch.Tensor, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pixels and of their differences to right and lower neighbours.

    Our choice: the differences keep edges sharp without a second network. None of the judge's features is used, so
    that the judge stays independent of what it judges.
    """
    loss = F.l1_loss(rebuilt_BCHW, pixels_BCHW)
    for dim in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(rebuilt_BCHW.diff(dim=dim), pixels_BCHW.diff(dim=dim))
    return loss


class Codebook(TrainerCallback):
    """Sets the codebook to k-means centres when quantisation begins; later moves unused codes onto latents."""

    def __init__(self, recipe: VQCodecRecipe, images: CodecImages):
        self.recipe, self.images = recipe, images

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        step, start = state.global_step, self.recipe.autoencoder_steps
        if step < start or step > self.recipe.steps * 0.8 or (step - start) % self.recipe.mend_every:
            return
        latents_ND = self._latents(model, step)
        codebook_KD = model.vq.quantize.embedding.weight
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            if step == start:
                codebook_KD.copy_(kmeans(latents_ND, len(codebook_KD), generator))
            used_K = torch.zeros(len(codebook_KD), dtype=torch.bool)
            used_K[nearest(latents_ND, codebook_KD)] = True
            if step > start and not bool(used_K.all()):
                picked_N = torch.randperm(len(latents_ND), generator=generator)[: int((~used_K).sum())]
                codebook_KD[~used_K] = latents_ND[picked_N]
        state.log_history.append({"step": step, "codes_in_use": int(used_K.sum())})

    @torch.no_grad()
    def _latents(self, codec: VQCodec, step: int) -> torch.Tensor:
        """Latents [N, D] of images chosen by the step."""
        batches = self.images.sample(f"codebook/{self.recipe.seed}/{step}")
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16 and has_bfloat16()):
            latents = [codec.encode_latents(batch) for batch in batches]
        return torch.cat(latents).float().flatten(2).transpose(1, 2).flatten(0, 1)


def nearest(latents_ND: torch.Tensor, codebook_KD: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cdist(part, codebook_KD).argmin(-1) for part in latents_ND.split(8192)])


def kmeans(latents_ND: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Centres [K, D] after a few rounds of Lloyd's algorithm from random latents; an empty cluster is drawn anew."""
    centres_KD = latents_ND[torch.randperm(len(latents_ND), generator=generator)[:count]].clone()
    for _ in range(KMEANS_ROUNDS):
        assigned_N = nearest(latents_ND, centres_KD)
        counts_K = torch.bincount(assigned_N, minlength=count)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, assigned_N, latents_ND)
        fresh_N = torch.randperm(len(latents_ND), generator=generator)[: int((counts_K == 0).sum())]
        centres_KD = sums_KD / counts_K.clamp(min=1)[:, None]
        centres_KD[counts_K == 0] = latents_ND[fresh_N]
    return centres_KD


class ReconstructionPicture(TrainerCallback):
    """Every `sample_every` steps and at the end: `reconstructions.png`, scenes and drawings through the codec."""

    def __init__(self, recipe: CodecRecipe, folder: Path):
        rng = random.Random("reconstructions")
        drawings = [on_canvas(drawing, rng) for drawing in rng.sample(load_drawings(held_out=True), 8)]
        held_out, small_and_large = HeldOut.load(), Drawings.load()
        scenes = [render(training_scene(recipe.seed + 2, n, held_out), small_and_large) for n in range(8)]
        self.pixels_BCHW = to_pixels(scenes + drawings)
        self.folder, self.every = folder, recipe.sample_every

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        tokens = model.encode(self.pixels_BCHW.to(model.device))
        rebuilt_BCHW = model.decode(tokens, model.grid(*self.pixels_BCHW.shape[-2:])).clamp(-1, 1).cpu()
        psnr = 10 * torch.log10(4 / F.mse_loss(rebuilt_BCHW, self.pixels_BCHW))
        figure = Figure(figsize=(1.1 * len(tokens), 2.8), layout="constrained")
        figure.suptitle(f"step {state.global_step}: above real, below rebuilt; {float(psnr):.1f} dB")
        for column, axes in enumerate(figure.subplots(2, len(tokens)).T):
            for row, pixels in enumerate((self.pixels_BCHW[column], rebuilt_BCHW[column])):
                axes[row].imshow(((pixels + 1) * 127.5).byte().permute(1, 2, 0).numpy())
                axes[row].set_axis_off()
        figure.savefig(self.folder / "reconstructions.png", dpi=80)


TRAINERS = {VQCodecRecipe: VQCodecTrainer, KLCodecRecipe: KLCodecTrainer}
