"""What test_round_trip.py does in processes of their own: `round_trip_probe.py TASK ARGUMENTS.json RESULT.json`.

push    with our packages: pushes saved folders by `push_to_hub`, in small shards, an adapter for each, what a Trainer
        has trained, and a second revision
pull    with them or without: what the repositories answer, and again what was pushed from remote code
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

HUB_PROBE = runpy.run_path(str(Path(__file__).with_name("hub_probe.py")))  # a path is all that this process shares
OUR_PACKAGES, outputs, plain = (HUB_PROBE[name] for name in ("OUR_PACKAGES", "outputs", "plain"))


def push(folders: dict[str, str], scratch: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    from train.lora import add_lora
    from train.recipes.kinds import Lora

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        torch.manual_seed(0)
        model = AutoModelForMultimodalLM.from_pretrained(folder)
        model.push_to_hub(f"tester/{name}", max_shard_size="40KB")
        AutoProcessor.from_pretrained(folder).push_to_hub(f"tester/{name}")
        adapted = add_lora(AutoModelForMultimodalLM.from_pretrained(f"tester/{name}"), Lora(rank=2))
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.5)
        adapted.push_to_hub(f"tester/{name}-lora")
        found[f"{name}-lora"] = plain(adapted.get_base_model()(**words(folder)).logits)
    found["trained"] = train_and_push(folders["ugen"], scratch)
    push_other_revision(folders["ugen"])
    return found


def words(folder: str, **flag: bool) -> dict[str, Any]:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, **flag)(text="two cats")


def train_and_push(folder: str, scratch: str) -> Any:
    """`Trainer.push_to_hub` after one step on one conversation."""
    from datasets import Dataset
    from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainingArguments

    from train.trainer import Collator, UnifiedTrainer

    model, processor = (cls.from_pretrained(folder) for cls in (AutoModelForMultimodalLM, AutoProcessor))
    arguments = TrainingArguments(
        scratch, max_steps=1, report_to=[], remove_unused_columns=False, hub_model_id="tester/trained",
        learning_rate=0.1, save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    said = [{"role": "assistant", "content": [{"type": "text", "text": "two cats"}]}]
    data = Dataset.from_list([{"conversation": said, "index": 0}])
    trainer = UnifiedTrainer(model, arguments, Collator(processor, 64), train_dataset=data, processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    return plain(model.eval()(**words(folder)).logits)


def push_other_revision(folder: str) -> None:
    """`tester/ugen` gets a tag, and a branch with other weights."""
    from huggingface_hub import create_tag
    from transformers import AutoModelForMultimodalLM

    create_tag("tester/ugen", tag="first")
    model = AutoModelForMultimodalLM.from_pretrained(folder)
    model.lm_head.weight.data.mul_(2)
    model.push_to_hub("tester/ugen", revision="second")


def pull(rows: list[str], again: bool, **flag: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in rows:
        found[name] = outputs(f"tester/{name}", **flag)
        adapted = AutoModelForMultimodalLM.from_pretrained(f"tester/{name}-lora", **flag)
        found[f"{name}-lora"] = plain(adapted(**words(f"tester/{name}", **flag)).logits)
    trained = AutoModelForMultimodalLM.from_pretrained("tester/trained", **flag)
    found["trained"] = plain(trained(**words("tester/trained", **flag)).logits)
    for revision in ("first", "second"):
        model = AutoModelForMultimodalLM.from_pretrained("tester/ugen", revision=revision, **flag)
        found[f"revision {revision}"] = plain(model(**words("tester/ugen", **flag)).logits)
    if again:
        AutoModelForMultimodalLM.from_pretrained("tester/ugen", **flag).push_to_hub("tester/again")
        AutoProcessor.from_pretrained("tester/ugen", **flag).push_to_hub("tester/again")
        found["again"] = outputs("tester/again", **flag)
    return found


def main() -> None:
    task, arguments, result = sys.argv[1:]
    asked = json.loads(Path(arguments).read_text())
    if asked.pop("packages"):
        import modeling_unified  # noqa: F401  registers the classes
    else:
        for package in OUR_PACKAGES:
            sys.modules[package] = None  # importing it fails, even where it is installed
    found = {"push": push, "pull": pull}[task](**asked)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
