"""The parts of a model by their names: which of them a run trains, and at what rate each learns.

    language_model   the backbone with its embedding, and `lm_head`
    tower            the vision tower
    projector        from the tower's features to the language model
    image_head       what predicts vectors; codes need nothing beside the vocabulary's rows
    image_order      the embeddings of places, of a random order

A model has those of them that have parameters in it. The codec is no part: it is never trained.

What is frozen needs no gradient and is not in the optimiser, so that neither a rate nor weight decay can move it.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

PARTS = {  # the parameters of each, by patterns of their names
    "language_model": ("model.language_model.*", "lm_head.*"),
    "tower": ("model.encoders.*.tower.*",),
    "projector": ("model.encoders.*.projector.*",),
    "image_head": ("model.image_head.*",),
    "image_order": ("model.image_order.*",),
}
CODEC = "model.codec.*"


def part_of(parameter: str) -> str | None:
    """The part that a parameter of this name belongs to; None for the codec's.

    Raises:
        ValueError: a name that no part has.
    """
    if fnmatchcase(parameter, CODEC):
        return None
    for part, patterns in PARTS.items():
        if any(fnmatchcase(parameter, pattern) for pattern in patterns):
            return part
    raise ValueError(f"the parameter {parameter} belongs to none of the parts {', '.join(PARTS)}: add it to PARTS")


def choose_trained(
    model: nn.Module, trained_parts: Sequence[str] | None = None, frozen_parameters: Sequence[str] = ()
) -> None:
    """Sets which parameters of a `UnifiedForConditionalGeneration` are trained.

    Args:
        trained_parts: all parts by default.
        frozen_parameters: single tensors that stay as they are: a piece of their name, or a pattern with `*`.

    Raises:
        ValueError: a part or a tensor that the model does not have, or nothing that is trained.
    """
    part_by_name = {name: part_of(name) for name, _ in model.named_parameters()}
    present = _in_order(part_by_name.values())
    trained = present if trained_parts is None else trained_parts
    _check_parts("trained_parts", trained, present, "the model has")
    for pattern in frozen_parameters:
        if not any(_matches(name, pattern) for name in part_by_name):
            raise ValueError(
                f"frozen_parameters names {pattern!r}, but none of the {len(part_by_name)} parameters of this model "
                f"has that in its name; one is called {next(iter(part_by_name))}"
            )
    for name, parameter in model.named_parameters():
        is_frozen = any(_matches(name, pattern) for pattern in frozen_parameters)
        parameter.requires_grad_(part_by_name[name] in trained and not is_frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"nothing is trained: trained_parts is {list(trained)}, frozen_parameters {list(frozen_parameters)}; "
            f"the model has {', '.join(present)}"
        )


def parameter_groups(
    model: nn.Module,
    decayed: Collection[str],
    weight_decay: float,
    learning_rate: float,
    learning_rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The optimiser's groups: for the parts without a rate of their own, then for each part that has one, what decays
    and what does not, as transformers' Trainer splits them. Their order depends on the recipe alone, so that a resumed
    run finds its state again.

    Args:
        decayed: names of the parameters that decay.
        learning_rate: of the parts that `learning_rates` does not name.

    Raises:
        ValueError: a rate for a part that is not trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    present = _in_order(part_of(name) for name in trained)
    _check_parts("learning_rates", learning_rates, present, "this run trains")
    groups = []
    for part, rate in ((None, learning_rate), *learning_rates.items()):
        names = [name for name in trained if part == (part_of(name) if part_of(name) in learning_rates else None)]
        for decay, members in (
            (weight_decay, [trained[name] for name in names if name in decayed]),
            (0.0, [trained[name] for name in names if name not in decayed]),
        ):
            groups.append({"params": members, "weight_decay": decay, "lr": rate})
    return groups


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, f"*{pattern}*")


def _in_order(parts: Collection[str | None]) -> list[str]:
    found = set(parts)
    return [part for part in PARTS if part in found]


def _check_parts(field: str, named: Collection[str], present: list[str], whose: str) -> None:
    if missing := [part for part in named if part not in present]:
        raise ValueError(f"{field} names {', '.join(missing)}, but {whose} {', '.join(present)}: leave out the others")
