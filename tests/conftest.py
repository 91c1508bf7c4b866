"""Shared by all tests: offline, one thread, and tiny real parts (no mocks).

Fixtures (each test gets its own copy, seeded, so it may change it freely):

    tiny_tokenizer    byte-level BPE with the special tokens, about 300 ids
    tiny_codec        VQCodec of stride 2 with 16 codes, random weights, eval mode
    tiny_config       UnifiedConfig of the row "ugen": Llama of 2 layers and width 32, images 8x8 = 16 tokens
    tiny_model        UnifiedForConditionalGeneration built from tiny_config, eval mode
    tiny_processor    UnifiedProcessor that fits tiny_model
    make_tiny_config  callable(paradigm, **overrides) -> UnifiedConfig, for another paradigm, backbone or flag
    make_tiny_row     the same for a row with all that it may read: `unifluid` reads what it edits as latents, too
    make_tiny_processor  callable(config) -> UnifiedProcessor, for another config or fixtures of a wider scope
    make_image        callable(seed=0, height=8, width=8) -> RGB PIL.Image of seeded noise

Our packages are imported inside the fixtures: a test of one part runs even where another is missing.
"""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch
from PIL import Image

IMAGE_SIZE = 8
STRIDE = 2
FEATURE_STRIDE = 4
TEXTS = [
    "two cats left of a pizza, noto style",
    "how many cats?\ntwo",
    "a red heart above a blue circle",
    "what is left of the pizza?\na bus",
]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from more threads and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained_tokenizer():
    from train.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=300)


@pytest.fixture
def tiny_tokenizer(trained_tokenizer):
    return copy.deepcopy(trained_tokenizer)


def tiny_codec_arguments() -> dict:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
    }


def tiny_vector_parts() -> dict:
    """A KL codec of stride 2 with tokens of 8 numbers, a tower that sees 4 features, a narrow diffusion head."""
    return {
        "codec_config": {
            "model_type": "unified_kl",
            "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"],
            "block_out_channels": [8],
            "layers_per_block": 1,
            "latent_channels": 2,
            "group_size": 2,
            "norm_num_groups": 4,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": FEATURE_STRIDE,
            "vision_use_head": False,
        },
        "diffusion_width": 64,
        "diffusion_depth": 2,
    }


def tiny_patch_parts() -> dict:
    """16 codewords of 2x2 pixels; a tower of 1x1 patches, merged to features that show what a codeword shows."""
    return {
        "codec_config": {"model_type": "unified_patch", "patch_size": STRIDE, "num_codewords": 16},
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 1,
            "num_patches": 16,
            "vision_use_head": False,
        },
        "spatial_merge_size": STRIDE,
    }


def tiny_tower() -> dict:
    """The tower of the vectors, with the projector of the published system; one view, as its base model has."""
    return {"vision_config": tiny_vector_parts()["vision_config"], "projector_layers": 2, "tile_grids": None}


# What the rows of the table need at tiny sizes, beside the codec with codes that `make_tiny_config` begins with.
TINY_PARTS = {"ugen": dict, "unifluid": tiny_vector_parts, "uvu": tiny_patch_parts, "unitoken": tiny_tower}


@pytest.fixture
def tiny_codec():
    from modeling_unified.codecs_unified import VQCodec
    from modeling_unified.configuration_unified import VQCodecConfig

    torch.manual_seed(0)
    return VQCodec(VQCodecConfig(**tiny_codec_arguments())).eval()


@pytest.fixture(scope="session")
def tokenizer_with_lines(trained_tokenizer):
    """A tokenizer that names sides and rows of images, and the fields of a config that say how."""
    from train.initialise import add_image_lines

    tokenizer = copy.deepcopy(trained_tokenizer)
    return tokenizer, add_image_lines(tokenizer, unit=STRIDE, longest=4 * IMAGE_SIZE)


@pytest.fixture(scope="session")
def make_tiny_config(trained_tokenizer, tokenizer_with_lines):
    from modeling_unified.configuration_unified import PARADIGMS, UnifiedConfig

    def make(paradigm: str = "ugen", **overrides):
        lines = (PARADIGMS[paradigm] | overrides)["image_order"] == "lines"
        tokenizer, fields = tokenizer_with_lines if lines else (trained_tokenizer, {})
        codec_arguments = tiny_codec_arguments()
        parts = TINY_PARTS.get(paradigm, dict)()
        codec = parts.get("codec_config", codec_arguments)
        num_codes = codec.get("num_vq_embeddings", 0) + codec.get("num_codewords", 0)
        arguments = {
            "text_config": {
                "model_type": "llama",
                "vocab_size": len(tokenizer) + num_codes,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
            },
            "codec_config": {"model_type": "unified_vq", **codec_arguments},
            "code_offset": len(tokenizer),
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "mask_token_id": tokenizer.mask_token_id,
            "boi_token_id": tokenizer.boi_token_id,
            "eoi_token_id": tokenizer.eoi_token_id,
            "image_token_id": tokenizer.image_token_id,
            "image_feature_token_id": tokenizer.image_feature_token_id,
        }
        return UnifiedConfig.for_paradigm(paradigm, **(arguments | fields | parts | overrides))

    return make


@pytest.fixture(scope="session")
def make_tiny_row(make_tiny_config):
    def make(paradigm: str, **overrides):
        parts = {"image_inputs": ["features", "latents"]} if paradigm == "unifluid" else {}
        return make_tiny_config(paradigm, **parts | overrides)

    return make


@pytest.fixture
def tiny_config(make_tiny_config):
    return make_tiny_config()


@pytest.fixture
def tiny_model(tiny_config):
    from modeling_unified import UnifiedForConditionalGeneration

    torch.manual_seed(0)
    return UnifiedForConditionalGeneration(tiny_config).eval()


@pytest.fixture(scope="session")
def make_tiny_processor(trained_tokenizer, tokenizer_with_lines):
    from processing_unified import UnifiedImageProcessor, UnifiedProcessor

    def make(config=None):
        """For a model of `config`; by default one that reads codes."""
        image_processor = UnifiedImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, stride=STRIDE)
        lines = config is not None and config.image_order == "lines"
        tokenizer = copy.deepcopy(tokenizer_with_lines[0] if lines else trained_tokenizer)
        if config is None:
            return UnifiedProcessor(image_processor, tokenizer, image_stride=STRIDE)
        any_size = config.vision_config and config.vision_config.model_type == "siglip2_vision_model"
        return UnifiedProcessor(
            image_processor,
            tokenizer,
            image_stride=config.codec_config.stride,
            image_inputs=config.image_inputs,
            feature_stride=config.feature_stride,
            max_features=64 if any_size else None,
            feature_tiles=config.feature_tiles,
            image_lines=config.image_lines,
            sep_token_id=config.sep_token_id,
        )

    return make


@pytest.fixture
def tiny_processor(make_tiny_processor):
    return make_tiny_processor()


@pytest.fixture(scope="session")
def make_image():
    def make(seed: int = 0, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Image.Image:
        pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels_HWC)

    return make
