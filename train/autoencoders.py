"""Codecs that others trained become ours: autoencoders of diffusers, taming-transformers and LlamaGen.

Contract: `load_codec(name, chosen) -> Codec`, float32, with exactly the published weights. A name may be

    a folder or Hub id of ours          what `train.run` and `train.codebook` save
    a folder or Hub id of diffusers     `VQModel` (a MoVQ with norm_type "spatial"), `AutoencoderKL`
    a .safetensors file                 in the layout of taming-transformers: VQ-GAN, KL (LDM, MAR); or in that of
                                        LlamaGen: VQ-16, VQ-8. Sizes are read off the weights

LlamaGen's codes lie on the unit sphere: it divides latents and codewords by their lengths and takes the nearest. Here
the codewords are stored so divided. Of codewords of one length the nearest is the one of the largest product, to a
latent of any length: dividing that changes no code.

D numbers in a codeword, K codewords, C channels
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ModelMixin, VQModel
from transformers import AutoConfig, AutoModel

from modeling_unified.codecs_unified import Codec, KLCodec, VQCodec
from modeling_unified.configuration_unified import AutoencoderCodecConfig, CodecConfig, KLCodecConfig, VQCodecConfig
from train.weights import check_weights, prefixed, read_weights, trained_folder, weight_files


class Kind(NamedTuple):
    """An autoencoder of diffusers, and what it becomes."""

    theirs: type[ModelMixin]
    ours: type[Codec]
    config: type[AutoencoderCodecConfig]
    inside: str  # our codec's name of it
    without_effect: tuple[str, ...]  # arguments that change no token and no pixel of ours


DIFFUSERS = {
    "VQModel": Kind(
        VQModel, VQCodec, VQCodecConfig, "vq", ("sample_size", "force_upcast", "scaling_factor", "lookup_from_codebook")
    ),
    "AutoencoderKL": Kind(AutoencoderKL, KLCodec, KLCodecConfig, "kl", ("sample_size", "force_upcast")),
}
# Fields of our codecs' configs that no weight depends on.
CHOSEN = ("encoder_tile_size", "scaling_factor", "shift_factor", "group_size", "sample_latents")

# taming-transformers -> diffusers; levels of the decoder are counted from the other end.
TAMING = {
    r"\.down\.(\d+)\.block\.": r".down_blocks.\1.resnets.",
    r"\.down\.(\d+)\.attn\.": r".down_blocks.\1.attentions.",
    r"\.down\.(\d+)\.downsample\.": r".down_blocks.\1.downsamplers.0.",
    r"\.up\.(\d+)\.block\.": r".up_blocks.\1.resnets.",
    r"\.up\.(\d+)\.attn\.": r".up_blocks.\1.attentions.",
    r"\.up\.(\d+)\.upsample\.": r".up_blocks.\1.upsamplers.0.",
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.": ".mid_block.attentions.0.",
}
# LlamaGen (tokenizer/tokenizer_image/vq_model.py) -> diffusers; blocks of both halves stand in the order they run.
LLAMAGEN = {
    r"^encoder\.conv_blocks\.(\d+)\.": r"encoder.down_blocks.\1.",
    r"^decoder\.conv_blocks\.(\d+)\.": r"decoder.up_blocks.\1.",
    r"_blocks\.(\d+)\.res\.": r"_blocks.\1.resnets.",
    r"_blocks\.(\d+)\.attn\.": r"_blocks.\1.attentions.",
    r"\.(down|up)sample\.": r".\1samplers.0.",
    r"\.mid\.0\.": ".mid_block.resnets.0.",
    r"\.mid\.1\.": ".mid_block.attentions.0.",
    r"\.mid\.2\.": ".mid_block.resnets.1.",
}
# What the two have in common, after the names of their blocks.
INSIDE = {
    r"\.attentions\.(\d+)\.norm\.": r".attentions.\1.group_norm.",
    r"\.attentions\.(\d+)\.([qkv])\.": r".attentions.\1.to_\2.",
    r"\.attentions\.(\d+)\.proj_out\.": r".attentions.\1.to_out.0.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
    r"\.norm_out\.": ".conv_norm_out.",
}
ONLY_TRAINING = ("loss.", "quantize.codebook_used")  # what no token depends on
GROUPS = 32  # of every group norm of the two


def load_codec(name: str, chosen: dict[str, Any] | None = None) -> Codec:
    """A trained codec; see the top of this file.

    Args:
        chosen: fields of its config that no weight depends on and that its source does not say, or says otherwise.

    Raises:
        ValueError: nothing is there, pickled weights, an autoencoder that ours cannot be, weights that are missing or
            not known, fields of `chosen` that the codec does not have or that weights depend on.
    """
    chosen = chosen or {}
    if wrong := sorted(set(chosen) - set(CHOSEN)):
        raise ValueError(f"{', '.join(wrong)} of the codec's config: its weights decide; choose {', '.join(CHOSEN)}")
    if Path(name).is_file():
        return from_file(Path(name), chosen)
    folder = trained_folder(name, "codec")
    fields = json.loads(Path(folder, "config.json").read_text())
    if "_class_name" in fields:
        return from_diffusers(Path(folder), fields, chosen)
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, CodecConfig):
        raise ValueError(f"{name} holds a {config.model_type!r}, which is no codec: name an autoencoder's folder")
    return AutoModel.from_pretrained(folder, config=changed(config, chosen))


def changed(config: CodecConfig, chosen: dict[str, Any]) -> CodecConfig:
    """The same with other fields, checked again."""
    fields = config.to_dict()
    if missing := sorted(set(chosen) - set(fields)):
        raise ValueError(f"a {config.model_type!r} has no {', '.join(missing)}")
    return type(config)(**{**fields, **chosen})


def from_diffusers(folder: Path, fields: dict[str, Any], chosen: dict[str, Any]) -> Codec:
    """A `VQModel` or `AutoencoderKL` as diffusers saved it; its older names of weights are known to diffusers."""
    kind = DIFFUSERS.get(fields["_class_name"])
    if kind is None:
        raise ValueError(f"{folder} holds a {fields['_class_name']}: of diffusers only {', '.join(DIFFUSERS)} will do")
    config = changed(diffusers_config(kind, fields), chosen)
    weight_files(folder)  # refuses pickles
    source, found = kind.theirs.from_pretrained(
        folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if wrong := [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[key]]:
        raise ValueError(f"{len(wrong)} weights in {folder} are not those of its config.json, {wrong[0]} for one")
    return with_weights(kind.ours(config), prefixed(f"{kind.inside}.", source.state_dict()))


def diffusers_config(kind: Kind, fields: dict[str, Any]) -> AutoencoderCodecConfig:
    """Our config of an autoencoder of diffusers.

    Raises:
        ValueError: an argument that ours does not have and that is not as it always is here.
    """
    known = kind.config().to_dict()
    defaults = {name: each.default for name, each in inspect.signature(kind.theirs).parameters.items()}
    stored = {name: value for name, value in fields.items() if not name.startswith("_")}
    arguments = {name: value for name, value in (defaults | stored).items() if name not in kind.without_effect}
    for name, value in arguments.items():
        if name not in known and (name not in defaults or value != defaults[name]):
            always = f"always {defaults[name]!r} here" if name in defaults else "not known to this diffusers"
            raise ValueError(
                f"{name} is {value!r} in this {kind.theirs.__name__} and {always}: ours cannot be as it is"
            )
    kept = {name: value for name, value in arguments.items() if name in known and value is not None}  # None: no shift
    if "vq_embed_dim" in known:
        kept.setdefault("vq_embed_dim", kept["latent_channels"])
    return kind.config(**kept)


def from_file(path: Path, chosen: dict[str, Any]) -> Codec:
    """An autoencoder in the layout of taming-transformers or LlamaGen, whose config is read off its weights.

    Raises:
        ValueError: neither of the two; a KL autoencoder without the scale of its latents, which no weight says.
    """
    weights = read_weights(path)
    if any(name.startswith("encoder.conv_blocks.") for name in weights):
        weights = from_llamagen(weights)
    elif levels := len({found[1] for name in weights if (found := re.match(r"decoder\.up\.(\d+)\.", name))}):
        weights = from_taming(weights, levels)
    else:
        raise ValueError(
            f"{path} is in the layout neither of taming-transformers (decoder.up.0...) nor of LlamaGen "
            f"(encoder.conv_blocks.0...): its first weight is {min(weights, default=None)}"
        )
    if "quantize.embedding.weight" in weights:
        return with_weights(VQCodec(changed(VQCodecConfig(**sizes(weights)), chosen)), prefixed("vq.", weights))
    if "scaling_factor" not in chosen:
        raise ValueError(
            f"{path} is a KL autoencoder, whose file does not say what gives its latents unit variance: choose its "
            "scaling_factor (MAR's KL-16: 0.2325) and group_size (1 there)"
        )
    return with_weights(KLCodec(changed(KLCodecConfig(**sizes(weights)), chosen)), prefixed("kl.", weights))


def from_taming(weights: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Weights in the layout of taming-transformers, `levels` of sizes in each half, by the names of diffusers."""
    mirrored = {
        re.sub(r"\.up\.(\d+)\.", lambda level: f".up.{levels - 1 - int(level[1])}.", name): tensor
        for name, tensor in weights.items()
    }
    return renamed(mirrored, TAMING)


def from_llamagen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in the layout of LlamaGen by the names of diffusers, codewords [K, D] of length 1."""
    ours = renamed(weights, LLAMAGEN)
    if (codebook_KD := ours.get("quantize.embedding.weight")) is not None:
        ours["quantize.embedding.weight"] = F.normalize(codebook_KD.float(), dim=-1)
    return ours


def renamed(weights: dict[str, torch.Tensor], blocks: dict[str, str]) -> dict[str, torch.Tensor]:
    """By the names of diffusers. Attention is four convolutions of 1x1 pixel [C, C, 1, 1] in the sources, four linear
    layers there."""
    ours = {}
    for name, tensor in weights.items():
        if name.startswith(ONLY_TRAINING):
            continue
        for theirs, replacement in (blocks | INSIDE).items():
            name = re.sub(theirs, replacement, name)
        ours[name] = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
    return ours


def sizes(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of a codec's config, read off weights by the names of diffusers."""
    levels = len({found[1] for name in weights if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", name))})
    widths = [weights[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)]
    attends = {name.rsplit(".attentions.", 1)[0] for name in weights if ".attentions.0.to_q.weight" in name}
    layers = sum(bool(re.fullmatch(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", name)) for name in weights)
    fields = {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "norm_num_groups": GROUPS,
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "mid_block_add_attention": "encoder.mid_block" in attends,
    }
    for half, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        part = "encoder" if half == "down" else "decoder"
        fields[f"{half}_block_types"] = [
            "Attn" * (f"{part}.{half}_blocks.{level}" in attends) + kind for level in range(levels)
        ]
    if "quantize.embedding.weight" in weights:
        codes, numbers = weights["quantize.embedding.weight"].shape
        fields |= {"num_vq_embeddings": codes, "vq_embed_dim": numbers}
    return fields


def with_weights(codec: Codec, weights: dict[str, torch.Tensor]) -> Codec:
    """The codec with exactly these weights."""
    check_weights(weights, codec.state_dict(), f"a {codec.config.model_type!r} of these sizes")
    codec.load_state_dict(weights)
    return codec.eval()
