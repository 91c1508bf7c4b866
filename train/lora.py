"""Low-rank adapters (LoRA, arXiv 2106.09685) through PEFT: a model is taught with a small file beside its own weights.

    add_lora(model, lora) -> PeftModel; what is trained afterwards:

    adapters          of the linear layers that `target_modules` names, by default all of the language model's
    rows              with `new_rows`: of the image codes and of the tokens that only images need, in the embedding and
                      in the head, as PEFT's trainable tokens: the adapter holds these rows and not the matrix
    parts             of `modules_to_save`, trained whole and stored whole: projector, image head, ...

Everything else is frozen, and the folder of an adapter does not hold it. It names the model it was made for, by the
folder or Hub id that this was loaded from. `AutoModelForMultimodalLM.from_pretrained(adapter_folder)` and
`PeftModel.from_pretrained(model, adapter_folder)` load both; `merge_and_unload()` makes one model of them, which is
saved like any other. With tied rows transformers' report of the former calls `trainable_tokens_delta` of the head
missing, without reason: it is the embedding's.

Which image codes are active (progressive vocabulary learning) is a matter of the model, not of the adapter: adapters of
a run that ends before all are active do not fit their model.

An embedding with trained rows copies its matrix in every call, and so does the head: merge before drawing much.
"""

import re
from fnmatch import fnmatchcase
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from train.parts import CODEC, PARTS, part_of
from train.recipes.kinds import Lora

NEVER_ADAPTED = (CODEC, *PARTS["tower"])
SHOWN = 3  # names in an error


def add_lora(model: Any, lora: Lora) -> PeftModel:
    """Freezes a `UnifiedForConditionalGeneration` and puts into it, in place, what `lora` trains.

    The new weights change no output: an adapter begins as zero, rows and parts as they are. Its random half is drawn
    from torch's global generator.

    Raises:
        ValueError: a model that was loaded from nowhere; `target_modules` that match nothing, or codec or tower, or
            what is trained whole; parts that the model does not have; `new_rows` with a head that caps its logits.
    """
    if not model.name_or_path:
        raise ValueError(
            "the model was not loaded from a folder or the Hub, and an adapter is stored without the model it belongs "
            "to: save the model first, and load it with from_pretrained"
        )
    saved = modules_of_parts(model, lora.modules_to_save)
    check_targets(model, lora.target_modules, saved)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=saved or None,
        trainable_token_indices=trained_rows(model) if lora.new_rows else None,
    )
    return get_peft_model(model, config)


def check_targets(model: Any, target_modules: str, saved: list[str]) -> None:
    """Refuses a pattern, matched against whole names of modules as PEFT does, by ValueError; see `add_lora`."""
    names = [name for name, _ in model.named_modules()]
    matched = [name for name in names if re.fullmatch(target_modules, name)]
    if not matched:
        shown = [name for name in names if re.fullmatch(Lora.target_modules, name)][:SHOWN]
        raise ValueError(
            f"target_modules {target_modules!r} matches none of the {len(names)} modules of this model. It is compared "
            f"with whole names, such as {', '.join(shown or names[-SHOWN:])}"
        )
    forbidden = [name for name in matched if any(fnmatchcase(f"{name}.", pattern) for pattern in NEVER_ADAPTED)]
    if forbidden:
        raise ValueError(
            f"target_modules {target_modules!r} matches {len(forbidden)} modules of the codec or the vision tower, "
            f"which have no adapters: {first(forbidden)}. Begin it with .*language_model, and name a tower that shall "
            "be trained in modules_to_save"
        )
    if twice := [name for name in matched for whole in saved if is_inside(name, whole)]:
        raise ValueError(
            f"target_modules {target_modules!r} matches {first(twice)}, inside parts that modules_to_save trains "
            "whole: leave them out of one of the two"
        )


def modules_of_parts(model: Any, parts: tuple[str, ...]) -> list[str]:
    """Names of the modules that these parts (`train.parts`) are made of.

    Raises:
        ValueError: a part that the model does not have, or the language model.
    """
    found = {part_of(name) for name, _ in model.named_parameters()} - {None, "language_model"}
    present = [part for part in PARTS if part in found]
    if missing := [part for part in parts if part not in present]:
        raise ValueError(
            f"modules_to_save names {', '.join(missing)}, but the parts of this model that can be trained beside "
            f"adapters of the language model are: {', '.join(present) or 'none'}"
        )
    patterns = [pattern.removesuffix(".*") for part in parts for pattern in PARTS[part]]
    return [name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def trained_rows(model: Any) -> dict[str, list[int]]:
    """Rows that `new_rows` trains, by the name of the module: the embedding, and the head where it is not tied to it
    (a tied one follows in PEFT).

    Raises:
        ValueError: a head that caps its logits.
    """
    if model.lm_head.cap:
        raise ValueError(
            f"the head caps its logits at {model.lm_head.cap} (final_logit_softcapping), and PEFT's rows would leave "
            "that out: set new_rows=False"
        )
    modules = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        modules.append(model.lm_head)
    rows = new_rows(model.config)
    return {name: rows for name, module in model.named_modules() if any(module is each for each in modules)}


def new_rows(config: Any) -> list[int]:
    """Ids that a text model does not have: those of image codes, and of tokens that are not about text."""
    end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    of_text = {config.bos_token_id, config.pad_token_id, *end}
    codes = range(config.code_offset, config.code_offset + config.num_codes)
    return sorted((config.special_token_ids - of_text) | set(codes))


def is_inside(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f"{whole}.")


def first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
