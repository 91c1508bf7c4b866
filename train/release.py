"""Turns a finished run into a folder to publish.

    python -m train.release --run runs/ugen --output model_cards/ugen-spark --image-sampling '{"guidance_scale": 1.5}'

The folder holds exactly what its Hub repository holds: weights in half precision (loaded as float32 again, since
`config.json` says so), config, processor, the code, the sampling defaults chosen by measurement, and the records of all
runs it came from. The card and what else describes the model is left alone: `model_cards.build` writes it, from these
records and from measurements.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from modeling_unified.modeling_unified import UnifiedForConditionalGeneration
from processing_unified.processing_unified import UnifiedProcessor


def release(run: Path, output: Path, image_sampling: dict[str, Any]) -> None:
    """Writes the folder.

    Raises:
        ValueError: a run that is not finished, whose weights half precision cannot hold, or settings that the model's
            image head does not take.
    """
    records = read_records(run)
    model = UnifiedForConditionalGeneration.from_pretrained(run)
    head = model.model.image_head
    if unknown := image_sampling.keys() - head.sampling_defaults.keys():
        raise ValueError(f"image_sampling has no {sorted(unknown)}; it takes {sorted(head.sampling_defaults)}")
    head.check_sampling({**head.sampling_defaults, **image_sampling})
    model.generation_config.image_sampling = image_sampling
    weights = {name: half(name, tensor) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    model.save_pretrained(output, state_dict=weights)
    UnifiedProcessor.from_pretrained(run).save_pretrained(output)
    (output / "training.json").write_text(json.dumps(records, indent=2) + "\n")


def read_records(run: Path) -> dict[str, dict]:
    """Records of the run and, before it, of the runs its recipe starts from, by recipe name."""
    path = run / "training.json"
    if not path.exists():
        raise ValueError(f"{run} holds no training.json: the run is not finished; go on with --resume")
    record = json.loads(path.read_text())
    records: dict[str, dict] = {}
    for part in ("codec", "text_model", "model"):
        if folder := record["recipe"].get(part):
            records |= read_records(Path(folder))
    return records | {record["recipe"]["name"]: record}


def half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """float16 for floating-point tensors: three bits more than bfloat16 where values are small, as here."""
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not bool(torch.isfinite(halved).all()):
        raise ValueError(f"{name} holds values up to {float(tensor.abs().max()):.3g}, beyond float16's 65504")
    return halved.contiguous()


def main(argv: list[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(prog="python -m train.release", description=__doc__.splitlines()[0])
    arguments.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    arguments.add_argument("--output", required=True, type=Path)
    arguments.add_argument("--image-sampling", type=json.loads, default={}, help="defaults for drawing, as JSON")
    args = arguments.parse_args(argv)
    release(args.run, args.output, args.image_sampling)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
