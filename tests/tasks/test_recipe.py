"""Recipes in general: what is read from YAML, what overrides do, how mistakes are told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AfterValidator, Field

from regard.errors import ConfigError
from regard.tasks.recipe import Section, differences, plain, read_yaml, validated, with_overrides
from regard.tasks.yaml_values import parse_yaml, written_yaml

EXTRA: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class Round:
    __pydantic_config__: ClassVar[dict[str, Any]] = EXTRA
    radius: float
    type: Literal["round"] = "round"
    num_layers: int = 1

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius is {self.radius}, expected above 0\nand so on")


@dataclass(frozen=True)
class Square:
    __pydantic_config__: ClassVar[dict[str, Any]] = EXTRA
    type: Literal["square"]
    side: float
    corner: Round | None = None


def even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd, make it even")
    return number


class Inner(Section):
    shape: Round | Square
    path: str | dict[str, str] = "a"
    shapes: tuple[Round | Square, ...] = ()


class Recipe(Section):
    inner: Inner
    count: Annotated[int, Field(ge=1)] = 3
    pairs: Annotated[int, AfterValidator(even)] = 2
    ratio: float = 0.5
    flag: bool = False
    names: tuple[Literal["x", "y"], ...] = ("x",)
    places: dict[str, Inner] = Field(default_factory=dict)
    folder: Path | None = None
    limit: int | None = None
    nested: Round = field(default_factory=lambda: Round(1.0))  # type: ignore[assignment]


GOOD: dict[str, Any] = {"inner": {"shape": {"radius": 2.0}}, "nested": {"radius": 1.0}}


def refusal(*overrides: str, values: dict[str, Any] = GOOD) -> str:
    with pytest.raises(ConfigError) as failure:
        validated(Recipe, with_overrides(values, overrides), "recipes/x.yaml")
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith("recipes/x.yaml: ")
    return message.removeprefix("recipes/x.yaml: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cont=4", "unknown key `cont`, did you mean `count`?"),
        ("inner.shape.num_layer=3", "unknown key `inner.shape.num_layer`, did you mean `num_layers`?"),
        ("inner.shape.zzz=3", "unknown key `inner.shape.zzz`, known here: num_layers, radius, type"),
        ("inner={}", "key `inner.shape` is missing, add it"),
        ("inner.shape={type: square}", "key `inner.shape.side` is missing, add it"),
        (
            "inner.shape={type: square, side: 1, corner: {radus: 1}}",
            "key `inner.shape.corner.radius` is missing, add it;"
            " unknown key `inner.shape.corner.radus`, did you mean `radius`?",
        ),
        ("inner.shape.type=rnd", 'key `inner.shape.type` is "rnd": expected round or square'),
        ("inner.shape.type=null", "key `inner.shape.type` is null: expected round or square"),
        ("inner.shape=7", "key `inner.shape` is 7: expected keys and values"),
        (
            "inner.shapes=[{radius: 1}, {type: square, sid: 1, side: 1}]",
            "unknown key `inner.shapes.1.sid`, did you mean `side`?",
        ),
        (
            "places.one.shape.radio=1",
            "key `places.one.shape.radius` is missing, add it;"
            " unknown key `places.one.shape.radio`, did you mean `radius`?",
        ),
        ("inner.path=5", "key `inner.path` is 5: expected text or keys and values"),
        ("inner.path.a=5", "key `inner.path.a` is 5: expected text"),
        ('count="4"', 'key `count` is "4": expected a whole number'),
        ("count=true", "key `count` is true: expected a whole number"),
        ("count=4.0", "key `count` is 4.0: expected a whole number"),
        ("count=0", "key `count` is 0: expected greater than or equal to 1"),
        ("pairs=3", "key `pairs`: 3 is odd, make it even"),
        ("ratio=true", "key `ratio` is true: expected a number"),
        ("ratio=half", 'key `ratio` is "half": expected a number'),
        ("flag=1", "key `flag` is 1: expected true or false"),
        ("flag=yes", 'key `flag` is "yes": expected true or false'),
        ("names=x", 'key `names` is "x": expected a list'),
        ("names=[x, z]", 'key `names.1` is "z": expected x or y'),
        ("inner=null", "key `inner` is null: expected keys and values"),
        ("nested.radius=-1", "radius is -1.0, expected above 0; and so on"),
        ("folder=3", "key `folder` is 3: expected text"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(override: str, message: str) -> None:
    assert refusal(override.replace("inner.path.a=5", "inner.path={a: 5}")) == message


def test_all_mistakes_stand_in_one_line() -> None:
    message = refusal("cont=4", "inner.shape.radius=big", "ratio=null", "names=[q]")
    assert message == (
        'key `inner.shape.radius` is "big": expected a number; key `ratio` is null: expected a number;'
        ' key `names.0` is "q": expected x or y; unknown key `cont`, did you mean `count`?'
    )


def test_what_is_no_mapping_at_all() -> None:
    with pytest.raises(ConfigError, match=r"^--data: received \[1\]: expected keys and values$"):
        validated(Recipe, [1], "--data")  # type: ignore[arg-type]


def test_long_values_are_shortened() -> None:
    message = refusal(f"count={'long' * 100}")
    assert len(message) < 120
    assert "...: expected a whole number" in message


def test_numbers_are_taken_at_their_word() -> None:
    recipe = validated(Recipe, with_overrides(GOOD, ["ratio=1", "inner.shape.radius=3", "folder=a/b"]), "x")
    assert recipe.ratio == 1.0
    assert isinstance(recipe.ratio, float)
    assert isinstance(recipe.inner.shape, Round)
    assert isinstance(recipe.inner.shape.radius, float)
    assert recipe.folder == Path("a/b")
    assert math.isnan(validated(Recipe, with_overrides(GOOD, ["ratio=.nan"]), "x").ratio)


shapes = st.one_of(
    st.builds(Round, radius=st.floats(0.1, 9), num_layers=st.integers(0, 9)),
    st.builds(
        Square,
        type=st.just("square"),
        side=st.floats(allow_nan=False),
        corner=st.none() | st.builds(Round, radius=st.floats(0.1, 9)),
    ),
)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)
inners = st.builds(
    Inner, shape=shapes, path=texts | st.dictionaries(texts, texts, max_size=2), shapes=st.lists(shapes).map(tuple)
)
recipes = st.builds(
    Recipe,
    inner=inners,
    count=st.integers(1, 10**12),
    ratio=st.floats(allow_nan=False),
    flag=st.booleans(),
    names=st.lists(st.sampled_from(["x", "y"])).map(tuple),
    places=st.dictionaries(texts, inners, max_size=2),
    folder=st.none() | texts.filter(bool).map(Path),
    limit=st.none() | st.integers(),
    nested=st.builds(Round, radius=st.floats(0.1, 9)),
)


@given(recipes)
@example(
    Recipe(inner=Inner(shape=Round(radius=1.0), path="0E0"), nested=Round(radius=1.0))
)  # a number to YAML 1.2 alone
def test_plain_and_validated_are_inverse_also_through_a_file(recipe: Recipe) -> None:
    values = plain(recipe)
    assert validated(Recipe, values, "x") == recipe
    again = parse_yaml(written_yaml(values), "x")
    assert validated(Recipe, again, "x") == recipe
    assert differences(values, again) == []


@given(recipes, recipes)
def test_differences_are_found_exactly_where_recipes_differ(one: Recipe, other: Recipe) -> None:
    assert (differences(plain(one), plain(other)) == []) == (one == other)
    assert sorted(differences(plain(one), plain(other))) == sorted(differences(plain(other), plain(one)))


def test_differences_name_dotted_keys() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 1}
    after = {"a": {"b": 2, "c": [1, 3]}, "f": 4, "e": 1.0}
    assert differences(before, after) == ["a.b", "a.c", "f"]
    assert differences(None, {"a": 1}) == ["a"]
    assert differences([1], {"a": 1}) == ["(all of it)"]


# -- YAML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 5e-3),
        ("5.0e-3", 5e-3),
        ("1E6", 1e6),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("1_000", 1000),
        ("-3", -3),
        ("0", 0),
        ("010", "010"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("~/data", "~/data"),
        ("[1, x, null]", [1, "x", None]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("'5'", "5"),
        ("{a: &x {c: 1}, b: {<<: *x, d: 2}}", {"a": {"c": 1}, "b": {"c": 1, "d": 2}}),
        ("{a: &x {c: 1}, b: {<<: *x, c: 2}}", {"a": {"c": 1}, "b": {"c": 2}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(text, "x")
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False), st.integers())
def test_every_number_is_read_back(number: float, whole: int) -> None:
    assert parse_yaml(repr(number).replace("inf", ".inf"), "x") == number
    assert parse_yaml(str(whole), "x") == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", r":3: not valid YAML \(.*\); mend this line"),
        ("a: 1\nb: 2\na: 3\n", r":3: not valid YAML \(key `a` stands on line 1 and again on line 3\); mend this line"),
        ("x:\n  b: 2\n  c: {d: 1, d: 2}\n", r":3: not valid YAML \(key `d` stands on line 3 and again on line 3\).*"),
        ("a: 1\nb: \0\n", r":2: not valid YAML \(special characters are not allowed\); mend this line"),
        ("a: !!python/object:os.system {}\n", r":1: not valid YAML \(could not determine a constructor .*\).*"),
        ("a: &a [*a]\n", r": a value holds itself \(an alias inside its anchor\); write it out"),
        ("? [1]\n: 2\n", r":1: not valid YAML \(found unhashable key\); mend this line"),
        ("- 1\n", r": holds \[1\], expected keys and values; see the recipes/ folder"),
        ("", r": holds nothing, expected keys and values; see the recipes/ folder"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"^{path}{message}$"):
        read_yaml(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe; see the recipes/ folder for complete ones$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give the path of a YAML file$"):
        read_yaml(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: not UTF-8 \(invalid start byte at byte 3\); save it as UTF-8$"):
        read_yaml(tmp_path / "x.yaml")


# -- overrides ---------------------------------------------------------------------------------------------------------


def test_overrides_put_values_in_and_leave_the_recipe_alone() -> None:
    recipe = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {"f": 2}}
    changed = with_overrides(
        recipe, ["a.b=5e-3", "a.c=[3]", "d.x.y=true", "e=null", "new.z=a=b", "a.k={m: 1}", "a.k.m=2", "q="]
    )
    assert changed == {
        "a": {"b": 5e-3, "c": [3], "k": {"m": 2}},
        "d": {"x": {"y": True}},
        "e": None,
        "new": {"z": "a=b"},
        "q": None,
    }
    assert recipe == {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {"f": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "override `a.b`: expected key=value, as in training.max_steps=1000"),
        ("=3", "override `=3`: expected key=value, as in training.max_steps=1000"),
        ("a..b=3", "override `a..b=3`: expected key=value, as in training.max_steps=1000"),
        ("a.=3", "override `a.=3`: expected key=value, as in training.max_steps=1000"),
        ("a.b.c=3", "override `a.b.c=3`: `a.b` is 1, no section; override it whole"),
        ("a.l.0=3", "override `a.l.0=3`: `a.l` is [1], no section; override it whole"),
        ("a=[1", "override `a=[1`: not valid YAML (expected ',' or ']', but got '<stream end>'); mend this line"),
    ],
)
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as failure:
        with_overrides({"a": {"b": 1, "l": [1]}}, [override])
    assert str(failure.value) == message
