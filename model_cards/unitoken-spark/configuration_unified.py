"""One configuration for every paradigm. The table `PARADIGMS` is the whole difference between the published systems.

A model is four choices: how an image is read (`image_inputs`), how pixels become tokens (`image_codec`), how the next
image token is predicted (`image_head`) and in what order (`image_order`). A paper is one row of the table; any other
combination of parts that exist (`PARTS`) is a valid model too. No other file says a paper's name.

The one vocabulary, in the backbone's own embedding and `lm_head`:

    id:   0 ................ code_offset ................................ text_config.vocab_size
          text + special tokens |  code 0, code 1, ..., code num_codes - 1
          (the tokenizer's)     |  (never tokenizer entries; none where image tokens are vectors)

Where codes are part of a published vocabulary (Chameleon's stand at 4 to 8195), text ids follow them too.
"""

from copy import deepcopy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

PARTS = {  # the parts that exist; the dictionaries of the other files hold one class for each name
    "image_inputs": ("codes", "latents", "features"),
    "image_codec": ("vq", "kl", "patch"),
    "image_head": ("categorical", "diffusion"),
    "image_order": ("raster", "lines", "random"),
}
# Image tokens are codes, rows of the vocabulary, or vectors. Parts that can handle only one of the two:
NEEDS_CODES = ("codes", "categorical")
NEEDS_VECTORS = ("latents", "diffusion")

# Ids of the vocabulary that stand for no text, each a field of the config.
SPECIAL_IDS = (
    "boi_token_id", "eoi_token_id", "mask_token_id", "image_token_id", "image_feature_token_id", "newline_token_id",
    "sep_token_id",
)  # fmt: skip

# Shape of TinyLlama-1.1B, widened by 6 special tokens ([SOI] [EOI] [MASK] slot, feature, [PAD]) and 16,384 codes.
_TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32_006 + 16_384, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
# SBER-MoVQGAN-67M (github.com/ai-forever/MoVQGAN, config of the 67M model) in the words of diffusers' VQModel.
_MOVQ_67M = {
    "model_type": "unified_vq", "block_out_channels": [128, 256, 256, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 16_384, "norm_num_groups": 32,
    "norm_type": "spatial",
}  # fmt: skip

# Gemma-2 2B (the paper's backbone), widened by the 6 special tokens.
_GEMMA2_2B = {
    "model_type": "gemma2", "vocab_size": 256_006, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 8192,
}  # fmt: skip
# SigLIP so400m, patches of 14 pixels. Size and resolution are inferred, the paper's were not found.
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
# Autoencoder of Stable Diffusion, 4 channels at an eighth of the size, latents grouped 2x2 (as Fluid does: inferred).
_SD_VAE = {
    "model_type": "unified_kl", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4, "norm_num_groups": 32, "scaling_factor": 0.18215, "group_size": 2,
}  # fmt: skip

# Qwen2.5-3B-Instruct, widened by the 200,000 codewords. Its 151,936 rows hold tokens for images already, and rows that
# no token uses; which of them the paper takes was not found.
_QWEN25_3B = {
    "model_type": "qwen2", "vocab_size": 151_936 + 200_000, "hidden_size": 2048, "intermediate_size": 11_008,
    "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip
# SigLIP2-so400m-patch16-naflex: images of any size, 16x16 positions that are resized to fit.
_SIGLIP2_SO400M = {
    "model_type": "siglip2_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 16, "num_patches": 256, "vision_use_head": False,
}  # fmt: skip
_PATCHES = {"model_type": "unified_patch", "patch_size": 32, "num_codewords": 200_000}

# Chameleon-7B, whose vocabulary holds the 8,192 codes; the weights are Lumina-mGPT's. UniToken's code cuts sequences to
# 4,096 ids and puts the features in afterwards, up to 3,700 with [SEP]: this context holds both.
_CHAMELEON_7B = {
    "model_type": "chameleon", "vocab_size": 65_536, "hidden_size": 4096, "intermediate_size": 11_008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "vocabulary_map": {},  # codes have their numbers from the codec
}  # fmt: skip
# Chameleon's VQ-GAN in the words of diffusers' VQModel (the paper speaks of 16,384 codes, its code has 8,192).
_CHAMELEON_VQ = {
    "model_type": "unified_vq", "block_out_channels": [128, 128, 256, 256, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5,
    "latent_channels": 256, "vq_embed_dim": 256, "num_vq_embeddings": 8192, "norm_num_groups": 32,
}  # fmt: skip
# SigLIP-SO400M-patch14-384: 27x27 features.
_SIGLIP_SO400M_384 = {**_SIGLIP_SO400M, "image_size": 384}

# how images are read | how they are tokenised | how a token is predicted | in what order | the paper's sizes
PARADIGMS: dict[str, dict[str, Any]] = {
    "ugen": {
        "image_inputs": ["codes"], "image_codec": "vq", "image_head": "categorical", "image_order": "raster",
        "text_config": _TINYLLAMA, "codec_config": _MOVQ_67M, "image_size": [256, 256],
    },
    "unifluid": {
        "image_inputs": ["features"], "image_codec": "kl", "image_head": "diffusion", "image_order": "random",
        "text_config": _GEMMA2_2B, "codec_config": _SD_VAE, "vision_config": _SIGLIP_SO400M, "image_size": [256, 256],
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "boi_token_id": 256_000, "eoi_token_id": 256_001,
        "mask_token_id": 256_002, "image_token_id": 256_003, "image_feature_token_id": 256_004,
        "tie_word_embeddings": True,
    },
    "uvu": {  # 2x2 features of 16 pixels are merged to one, the size of a codeword (inferred), by an MLP (ours)
        "image_inputs": ["features"], "image_codec": "patch", "image_head": "categorical", "image_order": "raster",
        "text_config": _QWEN25_3B, "codec_config": _PATCHES, "vision_config": _SIGLIP2_SO400M,
        "spatial_merge_size": 2, "projector_layers": 2, "joint_softmax": False, "image_size": [512, 512],
        "bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": 151_643, "boi_token_id": 151_652,
        "eoi_token_id": 151_653, "image_token_id": 151_654, "image_feature_token_id": 151_655,
        "mask_token_id": 151_665, "tie_word_embeddings": True,
    },
    "unitoken": {  # ids of mask, slot and feature: reserved ones of that vocabulary (our choice, as the longest side)
        "image_inputs": ["codes", "features"], "image_codec": "vq", "image_head": "categorical",
        "image_order": "lines", "text_config": _CHAMELEON_7B, "codec_config": _CHAMELEON_VQ,
        "vision_config": _SIGLIP_SO400M_384, "projector_layers": 2, "image_size": [512, 512], "code_offset": 4,
        "bos_token_id": 0, "eos_token_id": 8710, "pad_token_id": 1, "boi_token_id": 8197, "eoi_token_id": 8196,
        "sep_token_id": 8198, "newline_token_id": 8803, "size_token_offset": 8804, "size_token_unit": 32,
        "max_image_side": 2048, "mask_token_id": 8713, "image_token_id": 8711, "image_feature_token_id": 8712,
        "tile_grids": [[2, 1], [1, 2], [2, 2], [3, 1], [1, 3]],  # of the final model; the base model has none
    },
}  # fmt: skip


@strict
class CodecConfig(PreTrainedConfig):
    """What every codec says of its tokens."""

    base_config_key = "codec_config"

    in_channels: int = 3

    @property
    def stride(self) -> int:
        """Pixels per token along a side."""
        raise NotImplementedError

    @property
    def num_codes(self) -> int:
        """Rows of the vocabulary that the codec's tokens take; 0 where tokens are vectors."""
        return 0

    @property
    def token_size(self) -> int:
        """Numbers in a token that is a vector; 0 where tokens are codes."""
        return 0


@strict
class AutoencoderCodecConfig(CodecConfig):
    """What every codec over a convolutional autoencoder of diffusers is described by, in diffusers' words.

    Args:
        encoder_tile_size: side in pixels of the tiles that are encoded each by itself; None encodes the image whole, as
            published autoencoders do. The encoder's normalisation reaches over all that it sees, so with whole images
            the tokens of one object, and even those of an empty background, depend on everything else in the image:
            noise that the language model has to learn. A tile's tokens depend on the tile alone (our choice, for small
            models). Images are decoded whole, so that no seams appear.

    Raises:
        ValueError: a tile that the stride does not divide.
    """

    out_channels: int = 3
    down_block_types: list[str] | tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: list[str] | tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: list[int] | tuple[int, ...] = (32, 64, 64, 128)
    layers_per_block: int = 1
    norm_num_groups: int = 16
    mid_block_add_attention: bool = True
    encoder_tile_size: int | None = None

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.encoder_tile_size and self.encoder_tile_size % self.stride:
            raise ValueError(
                f"encoder_tile_size {self.encoder_tile_size} is not a multiple of the codec's stride {self.stride}"
            )

    @property
    def stride(self) -> int:
        """Pixels per token along a side: every block but the last halves the image."""
        return 2 ** (len(self.block_out_channels) - 1)


@strict
class VQCodecConfig(AutoencoderCodecConfig):
    """Arguments of diffusers' `VQModel`; `norm_type="spatial"` makes it a MoVQ. Tokens are codes."""

    model_type = "unified_vq"

    latent_channels: int = 8
    vq_embed_dim: int = 8
    num_vq_embeddings: int = 1024
    norm_type: str = "group"

    @property
    def num_codes(self) -> int:
        return self.num_vq_embeddings


@strict
class KLCodecConfig(AutoencoderCodecConfig):
    """Arguments of diffusers' `AutoencoderKL`. Tokens are vectors: `group_size` x `group_size` latents, scaled.

    Args:
        scaling_factor: (latents - shift_factor) * scaling_factor have unit variance over the training images.
        group_size: side of the square of latents that make a token; 2 is what Fluid and MAR use with stride 8.
        sample_latents: in training mode encode by a sample of the posterior instead of its mean.

    Raises:
        ValueError: no latents in a token, or a scale that loses them.
    """

    model_type = "unified_kl"

    latent_channels: int = 4
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    group_size: int = 2
    sample_latents: bool = False

    def __post_init__(self, **kwargs) -> None:
        if self.group_size < 1 or self.scaling_factor <= 0:
            raise ValueError(
                f"group_size {self.group_size} must be at least 1 and scaling_factor {self.scaling_factor} above 0"
            )
        super().__post_init__(**kwargs)

    @property
    def stride(self) -> int:
        return super().stride * self.group_size

    @property
    def token_size(self) -> int:
        return self.latent_channels * self.group_size**2


@strict
class PatchCodecConfig(CodecConfig):
    """A codebook of raw pixel patches (UVU). Tokens are codes, the numbers of its entries.

    Raises:
        ValueError: a patch without pixels, or no codewords.
    """

    model_type = "unified_patch"

    patch_size: int = 32
    num_codewords: int = 200_000

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.patch_size < 1 or self.num_codewords < 1:
            raise ValueError(f"patch_size {self.patch_size} and num_codewords {self.num_codewords} must be at least 1")

    @property
    def stride(self) -> int:
        return self.patch_size

    @property
    def num_codes(self) -> int:
        return self.num_codewords


class CodecSpec(SubConfigSpec):
    """A sub-config chosen by its `model_type` among our codecs' (they need not be known to AutoConfig)."""

    classes: ClassVar[dict[str, type]] = {
        config.model_type: config for config in (VQCodecConfig, KLCodecConfig, PatchCodecConfig)
    }

    def get_config_class(self, model_type: str | None = None) -> type:
        if model_type not in self.classes:
            raise ValueError(f"unknown codec_config model_type {model_type!r}: choose one of {sorted(self.classes)}")
        return self.classes[model_type]


_FOR_CONDITIONAL_GENERATION = "modeling_unified.UnifiedForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_unified.UnifiedConfig",
    "AutoModel": "modeling_unified.UnifiedModel",
    "AutoModelForCausalLM": _FOR_CONDITIONAL_GENERATION,
    "AutoModelForImageTextToText": _FOR_CONDITIONAL_GENERATION,
    "AutoModelForMultimodalLM": _FOR_CONDITIONAL_GENERATION,
}
CUSTOM_PIPELINES = {
    "text-to-image": {
        "impl": "pipeline_unified.TextToImagePipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}


@strict
class UnifiedConfig(PreTrainedConfig):
    """Configuration of `UnifiedModel` and `UnifiedForConditionalGeneration`.

    Args:
        image_inputs: encoders an image is read through, concatenated in the order written.
        image_codec: the map between pixels and image tokens.
        image_head: how an image token is fed back and predicted.
        image_order: in what order the tokens of an image are produced.
        text_config: any text backbone of transformers; its `vocab_size` counts text, special tokens and codes.
        codec_config: the codec's sizes.
        vision_config: the tower of the encoder `features`: SigLIP (transformers' `siglip_vision_model`) or SigLIP-2
            (`siglip2_vision_model`), which sees every image at its own size.
        spatial_merge_size: side of the square of the tower's features that are joined to one.
        tile_grids: [rows, columns] of tiles, each as large as the tower's `image_size`, that an image read through
            `features` may be cut into beside being seen whole (AnyRes); where two serve as well, the first is taken.
            None: the tower sees one view.
        projector_layers: from features to the language model: 1, linear (PaliGemma), or 2 with a GELU between them
            (LLaVA-1.5). UniFluid's and UVU's own were not found.
        visual_target_offset: with visual supervision, how many positions before a feature its code is predicted: 1, as
            every other token, or 0, at the feature itself (UVU's formula reads as 1; ASVR's code does 0).
        joint_softmax: whether text and codes compete for every target. Otherwise the softmax of a text target has the
            rows of text only, that of a code the rows of codes.
        code_offset: first row of the image codes; None puts the codes at the end of the vocabulary.
        newline_token_id: the id at the end of each row of an image, with the order "lines" of its slots, with tiles of
            its features.
        size_token_offset, size_token_unit: with it, a side of s pixels is named by the id offset + s // unit.
        max_image_side: with it, the longest side that has an id.
        sep_token_id: between the slots and the features of one image, where it is read through both; None: nothing.
        image_size: [height, width] in pixels of a generated image where the caller names none.
        image_token_id: the slot, the placeholder of one codec token; `image_feature_token_id` that of one feature.
        boi_token_id, eoi_token_id: [SOI] and [EOI], around every image; `mask_token_id`: [MASK], which stands for
            codes that are not active yet (progressive vocabulary learning).
        loss_on_mask: whether a target that became [MASK] is trained on. The paper does not say; our choice is yes,
            since it keeps every position supervised.
        inactive_codes_in_softmax: whether rows of inactive codes take part in the softmax. The paper does not say;
            our choice is no, so that the vocabulary really grows.
        z_loss_weight: of the square of each softmax's log normaliser, added to its loss in training (UniToken:
            1e-5).
        diffusion_objective: what the diffusion head learns: "epsilon", the noise, with a learned variance (MAR); or
            "flow", the velocity from noise to token along a straight line (our choice beside the paper's).
        diffusion_width, diffusion_depth: of its residual MLP (MAR-B: 1024 and 6; UniFluid's own were not found).
        diffusion_batch_mul: times and noises at which the loss looks at each token (MAR: 4).

    Raises:
        ValueError: an unknown part or one that does not exist yet, or a vocabulary whose sizes disagree.
    """

    model_type = "unified"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=_TINYLLAMA),
        "codec_config": CodecSpec(config_class=AutoConfig, model_type="unified_vq", init_kwargs=_MOVQ_67M),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model", optional=True),
    }

    image_inputs: list[str] | tuple[str, ...] = ("codes",)
    image_codec: str = "vq"
    image_head: str = "categorical"
    image_order: str = "raster"
    text_config: dict | PreTrainedConfig | None = None
    codec_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    spatial_merge_size: int = 1
    tile_grids: list[list[int]] | None = None
    projector_layers: int = 1
    visual_target_offset: int = 1
    joint_softmax: bool = True
    code_offset: int | None = None
    image_size: list[int] | tuple[int, ...] = (256, 256)
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    boi_token_id: int = 32_000
    eoi_token_id: int = 32_001
    mask_token_id: int = 32_002
    image_token_id: int = 32_003
    image_feature_token_id: int = 32_004
    pad_token_id: int | None = 32_005
    newline_token_id: int | None = None
    sep_token_id: int | None = None
    size_token_offset: int | None = None
    size_token_unit: int = 32
    max_image_side: int = 0
    loss_on_mask: bool = True
    inactive_codes_in_softmax: bool = False
    z_loss_weight: float = 0.0
    diffusion_objective: str = "epsilon"
    diffusion_width: int = 1024
    diffusion_depth: int = 6
    diffusion_batch_mul: int = 4
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)
        kwargs.pop("custom_pipelines", None)
        if __name__.startswith("transformers_modules."):
            # Remote code: pipeline() looks the task up here. With the package installed the task is registered, and
            # a live `custom_pipelines` would shadow it and ask for trust_remote_code.
            self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)
        self.auto_map = dict(AUTO_MAP)
        self.image_inputs = list(self.image_inputs)
        self.image_size = list(self.image_size)
        self._check_parts()
        super().__post_init__(**kwargs)
        if self.code_offset is None:
            self.code_offset = self.text_config.vocab_size - self.num_codes
        self._check_vocabulary()
        self._check_image_size()
        self._check_combination()

    def _check_parts(self) -> None:
        if not self.image_inputs:
            raise ValueError(f"image_inputs is empty: choose of {', '.join(PARTS['image_inputs'])}")
        if len(set(self.image_inputs)) < len(self.image_inputs):
            raise ValueError(f"image_inputs {self.image_inputs} names a part twice: an image is read through each once")
        for axis, available in PARTS.items():
            chosen = getattr(self, axis)
            for name in chosen if isinstance(chosen, list) else [chosen]:
                if name not in available:
                    raise ValueError(f"{axis}: there is no part {name!r}; available: {', '.join(available)}")

    def _check_vocabulary(self) -> None:
        rows, end = self.text_config.vocab_size, self.code_offset + self.num_codes
        if self.code_offset <= 0 or end > rows:
            raise ValueError(
                f"code_offset {self.code_offset} + {self.num_codes} codes exceed text_config.vocab_size {rows}, or "
                "leave no room for text before the codes"
            )
        if end < rows and not self.joint_softmax:
            raise ValueError(
                f"the codes end at {end}, the vocabulary at {rows}: a softmax of codes alone needs its last rows"
            )
        special = [name for name in SPECIAL_IDS if getattr(self, name) is not None]
        for name in special:
            if not 0 <= getattr(self, name) < rows or self.code_offset <= getattr(self, name) < end:
                raise ValueError(
                    f"{name} {getattr(self, name)} must lie among the {rows} rows of the vocabulary and not among the "
                    f"codes, {self.code_offset} to {end - 1}"
                )
        if len({getattr(self, name) for name in special}) < len(special):
            raise ValueError(f"two of {', '.join(special)} share an id: {[getattr(self, n) for n in special]}")
        if self.image_order == "lines":
            self._check_lines()

    def _check_lines(self) -> None:
        if self.newline_token_id is None or self.size_token_offset is None:
            raise ValueError(
                f"image_order 'lines' needs newline_token_id and size_token_offset, not {self.newline_token_id} and "
                f"{self.size_token_offset}"
            )
        sizes, rows = self.size_token_ids, self.text_config.vocab_size
        if not 0 <= sizes.start <= sizes.stop <= rows:
            raise ValueError(
                f"size tokens {sizes.start} to {sizes.stop - 1}, for sides of up to {self.max_image_side} in steps of "
                f"{self.size_token_unit} pixels, must be rows of the vocabulary of {rows}"
            )
        self.size_ids(*self.image_size)

    def _check_image_size(self) -> None:
        stride = self.codec_config.stride
        if len(self.image_size) != 2 or any(side <= 0 or side % stride for side in self.image_size):
            raise ValueError(f"image_size {self.image_size} must be [height, width], multiples of the stride {stride}")

    def _check_combination(self) -> None:
        """Parts that handle codes go with a codec that makes codes, those that handle vectors with one of vectors."""
        named = {"codec_config.model_type": self.codec_config.model_type, "image_codec": f"unified_{self.image_codec}"}
        if len(set(named.values())) > 1:
            raise ValueError(f"{' and '.join(f'{key} {value!r}' for key, value in named.items())} are two codecs")
        misfits = NEEDS_VECTORS if self.num_codes else NEEDS_CODES
        for name in (*self.image_inputs, self.image_head):
            if name in misfits:
                made = "codes" if self.num_codes else "vectors"
                raise ValueError(f"the codec {self.image_codec!r} makes {made}, which {name!r} cannot handle")
        if ("features" in self.image_inputs) != (self.vision_config is not None):
            raise ValueError("image_inputs 'features' and a vision_config go together: pass both, or neither")
        allowed = {
            "projector_layers": (1, 2), "visual_target_offset": (0, 1), "spatial_merge_size": range(1, 17),
            "size_token_unit": range(1, 4097),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)}: choose {values[0]} to {values[-1]}")
        if self.diffusion_objective not in ("epsilon", "flow"):
            raise ValueError(f"diffusion_objective {self.diffusion_objective!r}: choose 'epsilon' or 'flow'")
        if self.tile_grids is not None:
            self._check_tiles()

    def _check_tiles(self) -> None:
        grids, tower = self.tile_grids, self.vision_config
        if not grids or any(len(grid) != 2 or min(grid) < 1 for grid in grids):
            raise ValueError(f"tile_grids {grids}: pass at least one [rows, columns], both at least 1, or None")
        if tower is None or tower.model_type != "siglip_vision_model":
            found = f"this one is a {tower.model_type!r}" if tower else f"image_inputs {self.image_inputs} have none"
            raise ValueError(
                f"tile_grids {grids} are for a tower of one size, a 'siglip_vision_model', and {found}: pass None"
            )
        if self.newline_token_id is None:
            raise ValueError(f"tile_grids {grids} need a newline_token_id, the end of a row of features")
        patches = tower.image_size // tower.patch_size
        if patches % self.spatial_merge_size or not patches:
            raise ValueError(
                f"a tile of {tower.image_size} pixels has {patches}x{patches} patches of {tower.patch_size}, which "
                f"squares of {self.spatial_merge_size} do not divide: choose another spatial_merge_size or image_size"
            )

    @property
    def num_codes(self) -> int:
        """Codes of the codec, each a row of the vocabulary."""
        return self.codec_config.num_codes

    @property
    def special_token_ids(self) -> set[int]:
        """Ids that stand for no text."""
        named = {getattr(self, name) for name in (*SPECIAL_IDS, "bos_token_id", "pad_token_id")}
        return (named | set(self.size_token_ids)) - {None}

    @property
    def size_token_ids(self) -> range:
        """Ids that name a side of an image: of one unit, two units, ... up to the longest; none without "lines"."""
        if self.size_token_offset is None:
            return range(0)
        first = self.size_token_offset + 1
        return range(first, first + self.max_image_side // self.size_token_unit)

    def size_ids(self, height: int, width: int) -> tuple[int, int]:
        """The ids that name an image's size before its tokens, where the order is "lines".

        Raises:
            ValueError: a side that no id names.
        """
        for side in (height, width):
            if side % self.size_token_unit or not 0 < side <= self.max_image_side:
                raise ValueError(
                    f"no token names a side of {side} pixels: choose multiples of {self.size_token_unit} up to "
                    f"{self.max_image_side}"
                )
        height_id, width_id = (self.size_token_offset + side // self.size_token_unit for side in (height, width))
        return height_id, width_id

    @property
    def feature_stride(self) -> int | None:
        """Pixels per feature along a side; None without a vision tower."""
        return self.vision_config and self.vision_config.patch_size * self.spatial_merge_size

    @property
    def image_lines(self) -> dict[str, int] | None:
        """What a processor is told of the ids between slots; None where nothing stands between them."""
        if self.image_order != "lines":
            return None
        names = ("newline_token_id", "size_token_offset", "size_token_unit", "max_image_side")
        return {name: getattr(self, name) for name in names}

    @property
    def feature_tiles(self) -> dict[str, Any] | None:
        """What a processor is told of tiles; None where images are not cut."""
        if self.tile_grids is None:
            return None
        size = {"tile_size": self.vision_config.image_size, "newline_token_id": self.newline_token_id}
        return size | {"tile_grids": self.tile_grids}

    @classmethod
    def for_paradigm(cls, name: str, **overrides) -> "UnifiedConfig":
        """The published system `name` at the paper's sizes; `overrides` replace any field.

        Raises:
            ValueError: an unknown name, or a row of the table whose parts do not exist yet.
        """
        if name not in PARADIGMS:
            raise ValueError(f"unknown paradigm {name!r}: choose one of {', '.join(PARADIGMS)}")
        return cls(**{**deepcopy(PARADIGMS[name]), **overrides})

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP), "custom_pipelines": deepcopy(CUSTOM_PIPELINES)}


__all__ = ["PARADIGMS", "KLCodecConfig", "PatchCodecConfig", "UnifiedConfig", "VQCodecConfig"]
