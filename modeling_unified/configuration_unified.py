"""One configuration for every paradigm. The table `PARADIGMS` is the whole difference between the published systems.

A model is four choices: how an image is read (`image_inputs`), how pixels become tokens (`image_codec`), how the next
image token is predicted (`image_head`) and in what order (`image_order`). A paper is one row of the table; any other
combination of parts that exist (`PARTS`) is a valid model too. No other file says a paper's name.

The one vocabulary, in the backbone's own embedding and `lm_head`:

    id:   0 ................ code_offset ................................ text_config.vocab_size
          text + special tokens |  code 0, code 1, ..., code num_codes - 1
          (the tokenizer's)     |  (never tokenizer entries)
"""

from copy import deepcopy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

PARTS = {  # the parts that exist; the dictionaries of the other files hold one class for each name
    "image_inputs": ("codes",),
    "image_codec": ("vq",),
    "image_head": ("categorical",),
    "image_order": ("raster",),
}

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

# how images are read | how they are tokenised | how a token is predicted | in what order | the paper's sizes
PARADIGMS: dict[str, dict[str, Any]] = {
    "ugen": {
        "image_inputs": ["codes"], "image_codec": "vq", "image_head": "categorical", "image_order": "raster",
        "text_config": _TINYLLAMA, "codec_config": _MOVQ_67M, "image_size": [256, 256],
    },
    "unifluid": {
        "image_inputs": ["features"], "image_codec": "kl", "image_head": "diffusion", "image_order": "random",
    },
    "uvu": {
        "image_inputs": ["features"], "image_codec": "patch", "image_head": "categorical", "image_order": "raster",
    },
    "unitoken": {
        "image_inputs": ["codes", "features"], "image_codec": "vq", "image_head": "categorical",
        "image_order": "raster",
    },
}  # fmt: skip


@strict
class VQCodecConfig(PreTrainedConfig):
    """Arguments of diffusers' `VQModel`; `norm_type="spatial"` makes it a MoVQ. `stride` pixels become one token.

    Args:
        encoder_tile_size: side in pixels of the tiles that are encoded each by itself; None encodes the image whole, as
            published VQGANs do. The encoder's normalisation reaches over all that it sees, so with whole images the
            codes of one object, and even those of an empty background, depend on everything else in the image: noise
            that the language model has to learn. A tile's codes depend on the tile alone (our choice, for small
            models). Images are decoded whole, so that no seams appear.

    Raises:
        ValueError: a tile that the stride does not divide.
    """

    model_type = "unified_vq"
    base_config_key = "codec_config"

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: list[str] | tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: list[str] | tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: list[int] | tuple[int, ...] = (32, 64, 64, 128)
    layers_per_block: int = 1
    latent_channels: int = 8
    vq_embed_dim: int = 8
    num_vq_embeddings: int = 1024
    norm_num_groups: int = 16
    norm_type: str = "group"
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

    @property
    def num_codes(self) -> int:
        return self.num_vq_embeddings


class CodecSpec(SubConfigSpec):
    """A sub-config chosen by its `model_type` among our codecs' (they need not be known to AutoConfig)."""

    classes: ClassVar[dict[str, type]] = {VQCodecConfig.model_type: VQCodecConfig}

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
        code_offset: first row of the image codes; None puts the codes at the end of the vocabulary.
        image_size: [height, width] in pixels of a generated image where the caller names none.
        image_token_id: the slot, the placeholder of one codec token; `image_feature_token_id` that of one feature.
        boi_token_id, eoi_token_id: [SOI] and [EOI], around every image; `mask_token_id`: [MASK], which stands for
            codes that are not active yet (progressive vocabulary learning).
        loss_on_mask: whether a target that became [MASK] is trained on. The paper does not say; our choice is yes,
            since it keeps every position supervised.
        inactive_codes_in_softmax: whether rows of inactive codes take part in the softmax. The paper does not say;
            our choice is no, so that the vocabulary really grows.

    Raises:
        ValueError: an unknown part or one that does not exist yet, or a vocabulary whose sizes disagree.
    """

    model_type = "unified"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=_TINYLLAMA),
        "codec_config": CodecSpec(config_class=AutoConfig, model_type="unified_vq", init_kwargs=_MOVQ_67M),
    }

    image_inputs: list[str] | tuple[str, ...] = ("codes",)
    image_codec: str = "vq"
    image_head: str = "categorical"
    image_order: str = "raster"
    text_config: dict | PreTrainedConfig | None = None
    codec_config: dict | PreTrainedConfig | None = None
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
    loss_on_mask: bool = True
    inactive_codes_in_softmax: bool = False
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

    def _check_parts(self) -> None:
        if not self.image_inputs:
            raise ValueError(f"image_inputs is empty: choose of {', '.join(PARTS['image_inputs'])}")
        for axis, available in PARTS.items():
            chosen = getattr(self, axis)
            for name in chosen if isinstance(chosen, list) else [chosen]:
                if name not in available:
                    raise ValueError(f"{axis}: there is no part {name!r}; available: {', '.join(available)}")

    def _check_vocabulary(self) -> None:
        rows = self.text_config.vocab_size
        if self.code_offset + self.num_codes != rows or self.code_offset <= 0:
            raise ValueError(
                f"code_offset {self.code_offset} + {self.num_codes} codes must be text_config.vocab_size {rows}, "
                "with room for text before the codes"
            )
        special = ("boi_token_id", "eoi_token_id", "mask_token_id", "image_token_id", "image_feature_token_id")
        for name in special:
            if not 0 <= getattr(self, name) < self.code_offset:
                raise ValueError(f"{name} {getattr(self, name)} must lie among the {self.code_offset} text ids")
        if len({getattr(self, name) for name in special}) < len(special):
            raise ValueError(f"two of {', '.join(special)} share an id: {[getattr(self, n) for n in special]}")

    def _check_image_size(self) -> None:
        stride = self.codec_config.stride
        if len(self.image_size) != 2 or any(side <= 0 or side % stride for side in self.image_size):
            raise ValueError(f"image_size {self.image_size} must be [height, width], multiples of the stride {stride}")

    @property
    def num_codes(self) -> int:
        """Codes of the codec, each a row of the vocabulary."""
        return self.codec_config.num_codes

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


__all__ = ["PARADIGMS", "UnifiedConfig", "VQCodecConfig"]
