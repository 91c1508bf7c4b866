"""Every training run by its name: `RECIPES[name]()` returns the whole configuration of a run.

Later recipes derive from earlier ones by `dataclasses.replace`, so a recipe states only what is different about it.
Nothing about a run is decided elsewhere.
"""

from collections.abc import Callable
from itertools import chain

from train.recipes import photo, spark, studies
from train.recipes.kinds import CodebookRecipe, Recipe

_ALL: dict[str, Callable[[], Recipe | CodebookRecipe]] = {
    recipe().name: recipe for recipe in chain(photo.RECIPES, spark.RECIPES, studies.RECIPES)
}
CODEBOOKS = {name: recipe for name, recipe in _ALL.items() if isinstance(recipe(), CodebookRecipe)}
RECIPES = {name: recipe for name, recipe in _ALL.items() if name not in CODEBOOKS}
