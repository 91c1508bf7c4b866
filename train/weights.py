"""Weights that were trained before: where they lie, and how they are read. Nothing is ever unpickled.

Contract: `trained_folder(name, what)` is the folder of a model, fetched where `name` is a Hub id; `revision_of(folder)`
the commit it was fetched at; `read_weights(path)` its tensors by name; `check_weights` refuses others than are wanted.
"""

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import load_file

HUB_NAME = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w.-]+))?")
# What is fetched of a model: weights only as safetensors, of the precision they were published in, never code.
WANTED = (
    "*.json", "*.jinja", "*.txt", "tokenizer.model", "model.safetensors", "model-*.safetensors",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors",
)  # fmt: skip
WEIGHTS = ("model*.safetensors", "diffusion_pytorch_model*.safetensors")
PICKLED = (
    "pickled weights are not opened, since they may run anything: make safetensors of them first, where nothing can be "
    "lost, by safetensors.torch.save_file of what torch.load(file, weights_only=True) returns"
)


def trained_folder(name: str, what: str) -> str:
    """The folder of a trained model.

    Args:
        name: a folder; or, where there is none, a model of the Hub, "owner/model". A folder inside of it may follow,
            "owner/model/vae", and a commit, branch or tag, "owner/model@revision".
        what: it is looked for, in the words of an error.

    Raises:
        ValueError: there is no such folder, nor a model that the Hub gives us; or it holds no config.json.
    """
    folder, why = Path(name), "no config.json"
    if not folder.exists() and (named := HUB_NAME.fullmatch(name)):
        inside = named["folder"].removeprefix("/")
        patterns = [f"{inside}/{pattern}" if inside else pattern for pattern in WANTED]
        try:
            fetched = snapshot_download(named["model"], revision=named["revision"], allow_patterns=patterns)
            folder = Path(fetched, inside)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            why = f"no such folder, and none from the Hub: {str(error).splitlines()[0]}"
    if not (folder / "config.json").exists():
        raise ValueError(f"{name} holds no trained {what} ({why}): train it first, or name another folder or Hub id")
    return str(folder)


def revision_of(folder: str) -> str | None:
    """The commit of a folder that the Hub's client keeps; None of any other."""
    found = re.search(r"/snapshots/([0-9a-f]{40})(/|$)", folder)
    return found and found[1]


def weight_files(path: Path) -> list[Path]:
    """A safetensors file, or those of the folder of a model.

    Raises:
        ValueError: there are none, or they are pickled.
    """
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern)) if path.is_dir() else [path]
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ValueError(f"{path} is no safetensors file and no folder with {' or '.join(WEIGHTS)}: {PICKLED}")
    return files


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All weights of a safetensors file, or of the folder of a model; raises as `weight_files` does."""
    return {name: tensor for file in weight_files(path) for name, tensor in load_file(file).items()}


def tower_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision model of a SigLIP without the head that pools its features; UniToken reads all of these."""
    vision = {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    return {name: vision[name] for name in vision if not name.startswith(("text_model.", "logit_", "head."))}


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def check_weights(
    weights: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    what: str,
    new: tuple[str, ...] = (),
    hint: str = "a file of theirs is missing",
) -> None:
    """Refuses weights that are not those of `what`, name by name and shape by shape.

    Args:
        wanted: all weights of `what`, on any device.
        new: beginnings of the names that may be missing.
        hint: what else may be wrong where any other is.
    """
    for name, tensor in weights.items():
        if name not in wanted:
            raise ValueError(f"{name}, {tuple(tensor.shape)}, is no weight of {what}")
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the checkpoint, {tuple(wanted[name].shape)} by the config"
            )
    missing = [name for name in wanted if name not in weights and not name.startswith(new)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} weights are in none of the checkpoints, {missing[0]} for one of {what}: "
            f"{hint}"
        )
