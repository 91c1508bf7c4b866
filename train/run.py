"""The one command that trains: `python -m train.run --recipe spark/ugen --output runs/ugen [--resume]`.

Everything about a run stands in its recipe (`train/recipes/`); the flags say only where and how far. With `--dry-run`
nothing is trained: parameters, memory, schedule and time are printed, for as many devices as one wishes to have.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from train.recipes import RECIPES
from train.recipes.kinds import LanguageModelRecipe, Lora, Recipe, Source


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m train.run", description=__doc__.splitlines()[0])
    arguments.add_argument("--recipe", required=True, choices=sorted(RECIPES))
    arguments.add_argument("--output", type=Path, help="folder of the run; a dry run needs none")
    arguments.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    arguments.add_argument("--max-steps", type=int, help="instead of the recipe's number of steps")
    arguments.add_argument("--model", help="folder or Hub id of the whole model to go on from, instead of the recipe's")
    arguments.add_argument("--text-model", help="folder of the text model to start from, instead of the recipe's")
    arguments.add_argument("--codec", help="folder of the trained codec, instead of the recipe's")
    arguments.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="where a source of the recipe's data lies"
    )
    arguments.add_argument("--lora", action="store_true", help="train adapters of the model instead of it")
    arguments.add_argument("--micro-batches", type=int, help="instead of the recipe's")
    arguments.add_argument("--skip-bad-rows", action="store_true", help="leave out and count rows that cannot be read")
    arguments.add_argument(
        "--report-to", action="append", default=[], metavar="SERVICE", help="also logs to tensorboard, trackio, ..."
    )
    dry = arguments.add_argument_group("instead of training")
    dry.add_argument("--dry-run", action="store_true", help="print parameters, memory, schedule and time")
    dry.add_argument("--devices", type=int, default=1, help="that share a batch")
    dry.add_argument("--flops", type=float, help="operations a second of a device; by default an A100's in bfloat16")
    return arguments


def located(recipe: LanguageModelRecipe, data: list[str]) -> tuple[Source, ...]:
    """The recipe's sources, those of `data` at the paths that it gives them.

    Raises:
        ValueError: a name that the recipe has no source of.
    """
    paths = dict(given.partition("=")[::2] for given in data)
    names = [source.name for source in recipe.sources]
    if unknown := [name for name in paths if name not in names]:
        known = ", ".join(names) or "none"
        raise ValueError(f"--data names {', '.join(unknown)}, but the sources of {recipe.name} are: {known}")
    return tuple(replace(source, path=paths.get(source.name, source.path)) for source in recipe.sources)


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that is named, with what the flags change about it.

    Raises:
        ValueError: flags about a language model with the recipe of a codec; see `located`.
    """
    recipe = RECIPES[args.recipe]()
    of_any = {"steps": args.max_steps, "micro_batches": args.micro_batches}
    of_language = {"model": args.model, "text_model": args.text_model, "codec": args.codec}
    of_language |= {"sources": args.data or None, "lora": args.lora or None}
    given = {name: value for name, value in (of_any | of_language).items() if value is not None}
    if not isinstance(recipe, LanguageModelRecipe) and (unfit := sorted(given.keys() & of_language)):
        raise ValueError(f"{recipe.name} trains a codec, which has no {', '.join(unfit)}: leave out what names it")
    if args.data:
        given["sources"] = located(recipe, args.data)
    if args.lora:
        given["lora"] = recipe.lora or Lora()
    return replace(recipe, **given)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when the run is finished, 130 when it was interrupted and can be resumed."""
    args = parser().parse_args(argv)
    recipe = chosen_recipe(args)
    if args.dry_run:
        from train.dry_run import FLOPS, dry_run

        print(dry_run(recipe, args.devices, FLOPS if args.flops is None else args.flops))
        return 0
    if args.output is None:
        parser().error("--output is needed to train")
    from train.arguments import check_services

    check_services(args.report_to)
    how = {"resume": args.resume, "report_to": args.report_to}
    # Only the chosen recipe's code is imported: a codec's training needs no language model, and the other way round.
    if isinstance(recipe, LanguageModelRecipe):
        from train.language_model import train_language_model

        done = train_language_model(recipe, args.output, skip_bad_rows=args.skip_bad_rows, **how)
    else:
        from train.codec import train_codec

        done = train_codec(recipe, args.output, **how)
    if not done:
        given = [argument for argument in argv or sys.argv[1:] if argument != "--resume"]
        print(f"stopped; go on with: python -m train.run {' '.join(given)} --resume")
        return 130
    print(f"finished: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
