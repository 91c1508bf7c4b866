"""Makes one model of a sharded checkpoint: `python -m train.consolidate runs/X/checkpoint-N --output FOLDER`.

FOLDER is loaded by `from_pretrained`, model and processor. The weights are those of the checkpoint, bit by bit. What is
read: config.json and the processor's files, and in pytorch_model_fsdp_0/ the distributed checkpoint of PyTorch that
accelerate writes with SHARDED_STATE_DICT. The optimiser's numbers are left where they are.

What is trusted: tensors are read by `torch.load(weights_only=True)`. The list of them, `.metadata`, is a pickle, and
PyTorch's own reader would run whatever it holds; here it may only name the classes that such a list is made of, and
anything else is refused.

A checkpoint of DeepSpeed's is not read. Its folder has a script of its own, zero_to_fp32.py, which unpickles: run it on
checkpoints that you have written yourself.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from transformers import GenerationConfig

from modeling_unified.configuration_unified import UnifiedConfig
from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from processing_unified.processing_unified import UnifiedProcessor

PIECES, METADATA = "pytorch_model_fsdp_0", ".metadata"
METADATA_NAMES = {
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
    "torch": {"Size", "bfloat16", "bool", "float16", "float32", "float64", "int32", "int64", "uint8"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}  # fmt: skip


class MetadataUnpickler(pickle.Unpickler):
    """Finds the names of `METADATA_NAMES` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in METADATA_NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no list of tensors needs")
        return super().find_class(module, name)


class SafeReader(distributed.FileSystemReader):
    """PyTorch's reader, with `MetadataUnpickler` in the place of `pickle.load`."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            return MetadataUnpickler(file).load()


def is_sharded(checkpoint: str | Path) -> bool:
    return (Path(checkpoint) / PIECES).is_dir()


def read_model(checkpoint: str | Path) -> UnifiedForConditionalGeneration:
    """The model of a checkpoint, whole or sharded, or of any other folder that `from_pretrained` takes.

    Raises:
        ValueError: a sharded checkpoint that lacks files or weights, or whose list of tensors is no such list.
    """
    if not is_sharded(checkpoint):
        return UnifiedForConditionalGeneration.from_pretrained(checkpoint)
    config = UnifiedConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        empty = UnifiedForConditionalGeneration(config)
    weights = read_weights(Path(checkpoint), {name: value.shape for name, value in empty.state_dict().items()})
    model = UnifiedForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights)
    model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    return model


def read_weights(checkpoint: Path, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Tensors of a sharded checkpoint by name, which must be those of `shapes`; ValueError as in `read_model`."""
    reader = SafeReader(checkpoint / PIECES)
    try:
        metadata = reader.read_metadata()
    except (FileNotFoundError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{checkpoint / PIECES / METADATA}, the list of its tensors, cannot be read ({error}): the checkpoint was "
            "not written to its end, or not by this trainer. Take an earlier one"
        ) from error
    check_files(checkpoint / PIECES, metadata)
    stored = {
        name.removeprefix("model."): item
        for name, item in metadata.state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    differing = sorted(
        name for name in shapes.keys() | stored.keys() if name not in stored or stored[name].size != shapes.get(name)
    )
    if differing:
        raise ValueError(
            f"{checkpoint} holds {len(stored)} tensors and its config.json asks for {len(shapes)}; {len(differing)} "
            f"differ in name or shape: {', '.join(differing[:3])}. Adapters cannot be consolidated: train them with "
            "FULL_STATE_DICT"
        )
    weights = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in stored.items()}
    distributed.load({"model": weights}, storage_reader=reader, no_dist=True)
    return weights


def check_files(folder: Path, metadata: Metadata) -> None:
    """Refuses a folder without all that the list of tensors tells of, by ValueError."""
    ends: dict[str, int] = {}
    for item in metadata.storage_data.values():
        ends[item.relative_path] = max(ends.get(item.relative_path, 0), item.offset + item.length)
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 0 for name in ends}
    if short := sorted(name for name in ends if sizes[name] < ends[name]):
        shown = ", ".join(f"{name} ({sizes[name]} of {ends[name]} bytes)" for name in short[:3])
        raise ValueError(
            f"{folder} is incomplete: {len(short)} of {len(ends)} files are missing or too short, {shown}. Copy all "
            "processes' files into it, or take an earlier checkpoint"
        )


def consolidate(checkpoint: Path, output: Path) -> None:
    """Writes model and processor.

    Raises:
        ValueError: a folder that is no sharded checkpoint, or an incomplete one; an output that is not empty.
    """
    if not is_sharded(checkpoint):
        advice = "from_pretrained loads a whole one as it is"
        if list(checkpoint.glob("**/zero_pp_rank_*")) or (checkpoint / "zero_to_fp32.py").exists():
            advice = "DeepSpeed's has a script of its own, zero_to_fp32.py, for checkpoints that you have written"
        raise ValueError(f"{checkpoint} is no sharded checkpoint, it has no {PIECES}/: {advice}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty: choose another --output")
    model, processor = read_model(checkpoint), UnifiedProcessor.from_pretrained(checkpoint)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.consolidate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    consolidate(args.checkpoint, args.output)
    print(f"finished: {args.output}")


if __name__ == "__main__":
    main()
