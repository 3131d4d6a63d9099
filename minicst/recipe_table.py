"""`minicst recipes`: the list of recipes, and the settings of one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.console import Console

from minicst.recipes import RECIPES, Recipe, find_recipe
from minicst.tables import table as new_table

# Numbers of a PaperRow, and their headings.
COLUMNS = {"accuracy": "acc. %", "params": "params %", "macs": "MACs %", "saving": "saving x"}


@dataclass(frozen=True)
class RecipesSettings:
    """List the rows of the paper's tables that `minicst train --recipe NAME` runs."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Show the settings of this recipe, and where each comes from."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


def print_recipes(console: Console, settings: RecipesSettings) -> None:
    """Print all recipes, or the settings of one.

    Raises:
        ValueError: if the name is unknown.
    """
    if settings.name is not None:
        recipe = find_recipe(settings.name)
        if settings.json:
            print(json.dumps(_plain(recipe)))
        else:
            _print_one(console, recipe)
        return
    if settings.json:
        print(json.dumps([_plain(recipe) for recipe in RECIPES.values()]))
        return
    for title, recipes in _by_source().items():
        # Columns of numbers that the paper prints nowhere here would only widen the table.
        columns = {
            key: head
            for key, head in COLUMNS.items()
            if any(key in recipe.paper.printed for recipe in recipes)
        }
        table = new_table(title, "recipe", "keeps", *columns.values(), left=2)
        for recipe in recipes:
            numbers = (recipe.paper.printed.get(key, "-") for key in columns)
            table.add_row(recipe.name, recipe.aim, *numbers)
        console.print(table)
    console.print(
        "Train one: minicst train --recipe NAME; its settings: minicst recipes NAME. Numbers are "
        "the paper's; where it prints none, the points are ours, and rho is --keep-rate."
    )


def _by_source() -> dict[str, list[Recipe]]:
    """{title: recipes} by table or figure and data set."""
    found: dict[str, list[Recipe]] = {}
    for recipe in RECIPES.values():
        data = {"folder": "ImageNet", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
        title = f"{recipe.where.split(',')[0]}, {data[recipe.settings['data']]}"
        found.setdefault(title, []).append(recipe)
    return found


def _plain(recipe: Recipe) -> dict[str, object]:
    return asdict(recipe) | {"aim": recipe.aim}


def _print_one(console: Console, recipe: Recipe) -> None:
    table = new_table(
        f"recipe {recipe.name}: {recipe.where}", *("setting", "value", "from"), left=3
    )
    for key, value in recipe.settings.items():
        table.add_row(f"--{key.replace('_', '-')}", f"{value}", recipe.origin[key])
    console.print(table)
    texts = {"accuracy": "accuracy {} %", "params": "parameters {} %"}
    texts |= {"macs": "MACs {} %", "saving": "saving {}x"}
    printed = [texts[key].format(number) for key, number in recipe.paper.printed.items()]
    console.print(
        f"The paper prints: {', '.join(printed)}."
        if printed
        else "The paper shows a curve and prints no numbers here: the point is ours."
    )
