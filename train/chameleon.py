"""The first checkpoint of UniToken from published weights: Chameleon's language model and VQ-GAN, SigLIP's tower.

    python -m train.chameleon --chameleon FOLDER --siglip FOLDER --vqgan FILE.safetensors --output FOLDER

The language model is Chameleon's or Lumina-mGPT's, in transformers' Chameleon layout; the tower is a SigLIP's. The
VQ-GAN is Chameleon's own, in the layout of taming-transformers: that file alone holds a decoder, since transformers'
Chameleon has the encoder only. The projector is new. Nothing is renumbered: which id means what stands in the config
(`PARADIGMS`), and a checkpoint that means something else by an id is refused.

Weights become float32, as UniToken's training has them (under bfloat16 autocast). Nothing is downloaded or unpickled.

A heads, D numbers in a head, P parts that Chameleon's model was trained in (tensor parallelism)
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from modeling_unified.configuration_unified import UnifiedConfig, VQCodecConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from train.autoencoders import GROUPS, from_taming
from train.processors import build_processor
from train.tokenizer import SPECIAL_TOKENS, STANDARD_ATTRIBUTES
from train.weights import check_weights, prefixed, read_weights, tower_weights, trained_folder

# What a backbone and a tower compute by, beside their weights. Not the context: features make UniToken's longer.
BACKBONE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters", "swin_norm", "attention_bias", "mlp_bias",
)  # fmt: skip
TOWER = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
# Fields of the config -> Chameleon's names of these ids, as its inference code and Lumina-mGPT's spell them.
NAMED = {
    "bos_token_id": "<s>", "pad_token_id": "<pad>", "boi_token_id": "<racm3:break>", "eoi_token_id": "<eoss>",
    "eos_token_id": "<reserved08706>", "newline_token_id": "<reserved08799>", "size_token_offset": "<reserved08800>",
}  # fmt: skip
LANGUAGE_MODEL, CODEC, TOWER_OF = "model.language_model.", "model.codec.vq.", "model.encoders.features.tower."
# Weights that no checkpoint holds; the last are Chameleon's own encoder in the backbone, which is never called.
NEW = ("model.encoders.features.projector.", "model.image_head.")
DECODER = (CODEC + "decoder.",)
MISSING = "a file of theirs is missing, or --vqgan where the language model comes without the VQ-GAN"


def build_checkpoint(config: UnifiedConfig, chameleon: Path, siglip: Path, vqgan: Path | None, output: Path) -> None:
    """Writes model and processor; see `convert` and `build_tokenizer`."""
    model = convert(config, chameleon, siglip, vqgan)
    model.save_pretrained(output)
    build_processor(config, build_tokenizer(chameleon, config)).save_pretrained(output)


def convert(
    config: UnifiedConfig, chameleon: Path, siglip: Path, vqgan: Path | None = None
) -> UnifiedForConditionalGeneration:
    """A model of this config with the published weights, float32; its projector is drawn by seed 0.

    Args:
        chameleon: folder of a language model in transformers' Chameleon layout.
        siglip: folder of a SigLIP, whole or its vision model alone.
        vqgan: safetensors file of the VQ-GAN in the layout of taming-transformers. Without it the encoder is taken from
            the folder of the language model and the decoder is new: such a model reads images and draws noise.

    Raises:
        ValueError: another vocabulary, another shape, weights that are missing or not known, a VQ-GAN of another
            codebook, weights that are not safetensors.
    """
    theirs = AutoConfig.from_pretrained(trained_folder(str(chameleon), "Chameleon"))
    must_agree(theirs, config.text_config, BACKBONE, "Chameleon")
    check_vocabulary(theirs, config)
    tower = AutoConfig.from_pretrained(trained_folder(str(siglip), "SigLIP"))
    must_agree(getattr(tower, "vision_config", tower), config.vision_config, TOWER, "SigLIP")

    language_model, encoder = split_chameleon(read_weights(chameleon))
    autoencoder = read_weights(vqgan) if vqgan else encoder
    if vqgan and encoder:
        check_codebooks(autoencoder, encoder)
    weights = language_model_weights(language_model, config)
    weights |= prefixed(CODEC, codec_weights(autoencoder, config.codec_config))
    weights |= prefixed(TOWER_OF, tower_weights(read_weights(siglip)))
    with torch.device("meta"):
        wanted = UnifiedForConditionalGeneration(config).state_dict()
    check_weights(weights, wanted, "a model of this config", NEW if vqgan else NEW + DECODER, MISSING)
    torch.manual_seed(0)
    return UnifiedForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)


def split_chameleon(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of the language model, and those of the VQ-GAN's encoder by their names in it; none where the checkpoint
    was saved without (Lumina-mGPT's trainer deletes them)."""
    own = "model.vqmodel."
    encoder = {name.removeprefix(own): tensor for name, tensor in weights.items() if name.startswith(own)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(own)}, encoder


def language_model_weights(weights: dict[str, torch.Tensor], config: UnifiedConfig) -> dict[str, torch.Tensor]:
    """By our names, with norms of queries and keys for each head.

    Such a norm [P, D] was learned once for each part that the model was trained in, and holds for all of its heads.
    Lumina-mGPT's code stores it so, with P = 1; transformers repeats it, [A, D], as it is used.
    """
    text = config.text_config
    heads = {"q_norm": text.num_attention_heads, "k_norm": text.num_key_value_heads}
    ours = {}
    for name, tensor in weights.items():
        for norm, count in heads.items():
            if f".{norm}." in name and count % len(tensor) == 0:
                tensor = tensor.repeat_interleave(count // len(tensor), 0)
        ours[re.sub(r"^model\.", LANGUAGE_MODEL, name)] = tensor
    return ours


def codec_weights(weights: dict[str, torch.Tensor], config: VQCodecConfig) -> dict[str, torch.Tensor]:
    """A VQ-GAN in the layout of taming-transformers, whole or without its decoder, by the names of diffusers.

    transformers' `ChameleonVQVAE` has that layout, too.

    Raises:
        ValueError: a codec of other norms.
    """
    if (config.norm_type, config.norm_num_groups) != ("group", GROUPS):
        raise ValueError(
            f"the VQ-GAN has group norms of {GROUPS} groups, codec_config norms of type {config.norm_type!r} with "
            f"{config.norm_num_groups}: use the published codec_config"
        )
    return from_taming(weights, levels=len(config.block_out_channels))


def must_agree(theirs: Any, ours: Any, fields: Iterable[str], what: str) -> None:
    """Refuses a checkpoint whose config differs in one of these fields."""
    for name in fields:
        found, wanted = getattr(theirs, name, None), getattr(ours, name, None)
        if found != wanted:
            raise ValueError(f"{name} is {found!r} in the {what} checkpoint, {wanted!r} in the config: make them equal")


def check_vocabulary(theirs: Any, config: UnifiedConfig) -> None:
    """Refuses a checkpoint that means something else by the ids of codes, or by those around an image.

    The order of codes is no convention of ours: Chameleon's own code maps the n-th id to the n-th code.
    """
    names = theirs.vocabulary_map or {}
    for field, name in NAMED.items():
        if names.get(name) != getattr(config, field):
            raise ValueError(
                f"{name} has the id {names.get(name)} in the Chameleon checkpoint's vocabulary_map, but {field} is "
                f"{getattr(config, field)} in the config: this is another vocabulary"
            )
    ids = ChameleonImageVocabularyMapping(names).img2bpe
    if len(ids) != config.num_codes:
        raise ValueError(f"the Chameleon checkpoint names {len(ids)} codes, the codec has {config.num_codes}")
    for code, token_id in ids.items():
        if token_id != config.code_offset + code:
            raise ValueError(
                f"code {code} has the id {token_id} in the Chameleon checkpoint, {config.code_offset + code} by the "
                "config's code_offset: this is another vocabulary"
            )


def check_codebooks(autoencoder: dict[str, torch.Tensor], encoder: dict[str, torch.Tensor]) -> None:
    """Refuses a VQ-GAN that the language model was not trained with, as far as its checkpoint tells."""
    mine, theirs = (weights.get("quantize.embedding.weight") for weights in (autoencoder, encoder))
    if mine is None or theirs is None:
        return  # named by `check_weights` where it is needed
    # One of the two may be stored in bfloat16, which keeps 8 bits.
    if mine.shape != theirs.shape or not torch.allclose(mine.float(), theirs.float(), rtol=2**-7, atol=1e-6):
        raise ValueError(
            f"the codebook {tuple(mine.shape)} of the VQ-GAN is not the one in the Chameleon checkpoint, "
            f"{tuple(theirs.shape)}: pass the VQ-GAN it was trained with"
        )


def build_tokenizer(chameleon: Path, config: UnifiedConfig) -> PreTrainedTokenizerFast:
    """Chameleon's tokenizer, whose reserved tokens are given the meanings that the config gives to their ids."""
    backend = Tokenizer.from_file(str(chameleon / "tokenizer.json"))
    tokens = {name: backend.id_to_token(getattr(config, f"{name}_id")) for name in SPECIAL_TOKENS}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: tokens[name] for name in STANDARD_ATTRIBUTES},
        extra_special_tokens={name: tokens[name] for name in tokens if name not in STANDARD_ATTRIBUTES},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=config.text_config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    between = [config.sep_token_id, config.newline_token_id, *config.size_token_ids]
    tokenizer.add_special_tokens({"extra_special_tokens": tokenizer.convert_ids_to_tokens(between)})
    return tokenizer


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.chameleon", description=__doc__.splitlines()[0])
    arguments.add_argument("--chameleon", required=True, type=Path, help="folder in transformers' Chameleon layout")
    arguments.add_argument("--siglip", required=True, type=Path, help="folder of a SigLIP so400m, patch 14, 384 pixels")
    arguments.add_argument("--vqgan", type=Path, help="the whole VQ-GAN, .safetensors; without it nothing can be drawn")
    arguments.add_argument("--output", required=True, type=Path)
    args = arguments.parse_args(argv)
    build_checkpoint(UnifiedConfig.for_paradigm("unitoken"), args.chameleon, args.siglip, args.vqgan, args.output)
    print(f"{args.output}: model and processor{'' if args.vqgan else '; no --vqgan, so what it draws is noise'}")


if __name__ == "__main__":
    main()
