"""What several processes must have in common before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regard.errors import ConfigError
from regard.tasks.recipe import read_yaml, validated, with_overrides
from regard.tasks.run import _check_alike
from regard.tasks.translate.recipe import TranslateRecipe
from regard.training.processes import World

RECIPE = Path(__file__).parents[2] / "recipes" / "translate" / "multi30k-en-fr.yaml"


def recipe(*overrides: str) -> TranslateRecipe:
    return validated(TranslateRecipe, with_overrides(read_yaml(RECIPE), overrides), "r.yaml")


class Second(World):
    """A process that hears what the first one has."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__(1, 2)
        object.__setattr__(self, "told", told)

    def first(self, work: Callable[[], Any]) -> Any:
        return self.told.pop()  # type: ignore[attr-defined]


def test_all_processes_must_have_the_same_recipe() -> None:
    told: list[Any] = []

    class First(World):
        def first(self, work: Callable[[], Any]) -> Any:
            told.append(work())
            return told[-1]

    _check_alike(recipe(), "r.yaml", World())
    for mine, wrong in ((recipe(), ""), (recipe("seed=2", "training.max_steps=7"), "`seed`, `training.max_steps`")):
        _check_alike(recipe(), "r.yaml", First(0, 2))
        if not wrong:
            _check_alike(mine, "r.yaml", Second(told))
            continue
        with pytest.raises(ConfigError) as raised:
            _check_alike(mine, "r.yaml", Second(told))
        what = "r.yaml: not the recipe of process 1, it differs in"
        assert str(raised.value) == f"{what} {wrong}; start all with the same recipe"
