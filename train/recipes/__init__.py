"""Every training run by its name: `RECIPES[name]()` returns the whole configuration of a run.

`spark/...` are the small models that ship; a paper's name stands before its stages at the paper's size.

Later recipes derive from earlier ones by `dataclasses.replace`, so a recipe states only what is different about it.
Nothing about a run is decided elsewhere.
"""

from collections.abc import Callable
from itertools import chain

from train.recipes import adapters, photo, spark, studies, ugen, unifluid, unitoken, uvu
from train.recipes.kinds import CodebookRecipe, Recipe

_FILES = (adapters, photo, spark, studies, ugen, unifluid, uvu, unitoken)
_ALL: dict[str, Callable[[], Recipe | CodebookRecipe]] = {
    recipe().name: recipe for recipe in chain.from_iterable(file.RECIPES for file in _FILES)
}
CODEBOOKS = {name: recipe for name, recipe in _ALL.items() if isinstance(recipe(), CodebookRecipe)}
RECIPES = {name: recipe for name, recipe in _ALL.items() if name not in CODEBOOKS}
