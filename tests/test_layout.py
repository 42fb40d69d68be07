"""The shape of the repository: who may import whom, names, sizes, and that lists in texts match the disk."""

from __future__ import annotations

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

import regard

REPOSITORY = Path(__file__).resolve().parents[1]
# The design's order: a part may import itself and what stands before it.
ORDER = [
    "errors",
    "attention",
    "layers",
    "inputs",
    "data",
    "models",
    "decoding",
    "lens",
    "training",
    "tasks",
    "serve",
    "cli",
    "__main__",
]
# What `regard` needs for attention, models and training; anything heavier is imported where it is used.
BARE = ("attention", "layers", "inputs", "data", "models", "decoding", "training")
HEAVY = {
    "pydantic",
    "yaml",
    "typer",
    "rich",
    "sacrebleu",
    "sacremoses",
    "sentencex",
    "matplotlib",
    "tensorboard",
    "datasets",
    "pyarrow",
    "babel",
    "num2words",
    "PIL",
}
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
MOST_LINES = 500


# -- who may import whom -----------------------------------------------------------------------------------------------


def part_of(module: str) -> str | None:
    """The part of regard that a module's dotted name belongs to; None for `regard` itself and for foreign ones."""
    names = module.split(".")
    return names[1] if names[0] == "regard" and len(names) > 1 else None


def imported_parts(source: str, module: str, public: dict[str, str]) -> set[tuple[int, str]]:
    """(line, part) of everything in regard that a source imports, at any depth: in functions and for types, too.

    module: the source's own dotted name, for relative imports. public: what `from regard import name` stands for.
    """
    found: set[tuple[int, str]] = set()

    def add(line: int, name: str) -> None:
        part = part_of(name)
        if part is not None:
            found.add((line, part))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from regard import attend` reaches for the module that defines it, `import lens` for lens.
                add(node.lineno, public.get(alias.name, f"regard.{alias.name}") if origin == "regard" else origin)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    add(node.lineno, argument.value)
    return found


def wrong_imports(source: str, module: str, public: dict[str, str]) -> list[str]:
    """Imports that go against the order, as "module:line imports part"."""
    own = part_of(module)
    assert own in ORDER, f"{module} belongs to no known part; add {own} to the order"
    return [
        f"{module}:{line} imports regard.{part}, which comes after regard.{own}"
        for line, part in sorted(imported_parts(source, module, public))
        if part not in ORDER or ORDER.index(part) > ORDER.index(own)
    ]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def modules(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def test_later_parts_import_earlier_ones_only() -> None:
    wrong = []
    for path in modules("regard"):
        if path != REPOSITORY / "regard" / "__init__.py":  # the front door, which opens every part when asked to
            wrong += wrong_imports(path.read_text(encoding="utf-8"), module_name(path), regard._HOMES)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "import regard.lens",
        "from regard.lens.page import write_page",
        "from regard import lens",
        "from regard import load",
        "from ..lens import page",
        "def late():\n    from regard.tasks.recipe import plain",
        "if TYPE_CHECKING:\n    import regard.cli.main as main",
        "importlib.import_module('regard.training.loop')",
        "import regard.unheard_of",
    ],
)
def test_an_import_against_the_order_is_found(line: str) -> None:
    assert wrong_imports(line, "regard.models.decoder", regard._HOMES)


@pytest.mark.parametrize(
    "line",
    ["import torch", "from regard.errors import ShapeError", "from . import memory", "from regard import attend"],
)
def test_an_import_along_the_order_is_left_alone(line: str) -> None:
    assert not wrong_imports(line, "regard.models.decoder", regard._HOMES)


# -- what `import regard` costs ----------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    """What a fresh interpreter prints; fails with its errors when it fails."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_regard_imports_no_torch() -> None:
    program = (
        "import sys, regard; assert regard.__version__; print(sorted({'torch', 'numpy', 'pydantic'} & {*sys.modules}))"
    )
    assert run_python(program) == "[]"


BLOCKED = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
for name in {names}:
    importlib.import_module(name)
print("done")
"""


def test_attention_models_and_training_need_no_heavy_package() -> None:
    names = ["regard", *(module_name(path) for part in BARE for path in modules(f"regard/{part}"))]
    assert len(names) > 30
    assert run_python(BLOCKED.format(heavy=HEAVY, names=names)) == "done"


def test_a_heavy_import_would_be_found() -> None:
    with pytest.raises(AssertionError, match="is blocked"):
        run_python(BLOCKED.format(heavy=HEAVY, names=["regard.tasks.recipe"]))


# -- the front door ----------------------------------------------------------------------------------------------------


def names_for_types(source: str) -> dict[str, str]:
    """What a type checker is told: name -> module, of the `if TYPE_CHECKING` block."""
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    found = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in found for alias in node.names}


def test_every_public_name_is_there_lazily_and_for_type_checkers() -> None:
    source = (REPOSITORY / "regard" / "__init__.py").read_text(encoding="utf-8")
    assert names_for_types(source) == regard._HOMES
    assert {*regard._HOMES, "__version__"} == {*regard.__all__}
    for name in regard.__all__:
        assert getattr(regard, name) is not None
    assert dir(regard) == sorted(regard.__all__), "and nothing that is not public"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'attent'"):
        regard.attent  # noqa: B018


def test_names_for_types_shows_what_is_missing() -> None:
    assert names_for_types("if TYPE_CHECKING:\n    from a.b import C as C, D") == {"C": "a.b", "D": "a.b"}


@pytest.mark.parametrize("name", ["AttentionRecord", "load"])
def test_whoever_can_hold_a_record_can_save_it_as_a_page(name: str) -> None:
    writers = "from regard.attention.records.record import WRITERS; print(sorted(WRITERS))"
    program = f"import regard; regard.{name}; {writers}"
    assert run_python(program) == "['.html', '.jsonl', '.png', '.svg']"


# -- names, sizes, docstrings ------------------------------------------------------------------------------------------


def faults(path: str, source: str) -> list[str]:
    """What house style finds wrong with a source file, by its path in the repository."""
    found = []
    if EMPTY_NAMES & set(Path(path).with_suffix("").parts):
        found.append(f"{path}: the name says nothing; name it for its one idea")
    if path.startswith("regard/") and ast.get_docstring(ast.parse(source)) is None:
        found.append(f"{path}: the module has no docstring")
    if source.count("\n") > MOST_LINES:
        found.append(f"{path}: {source.count(chr(10))} lines, at most {MOST_LINES}; it holds more than one idea")
    return found


def test_every_file_is_named_for_its_idea_explained_and_short() -> None:
    found = []
    for path in [*modules("regard"), *modules("tests")]:
        found += faults(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("regard/lens/utils.py", '"""Said."""', "says nothing"),
        ("regard/common/page.py", '"""Said."""', "says nothing"),
        ("regard/lens/page.py", "x = 1", "no docstring"),
        ("regard/lens/page.py", '"""Said."""\n' + "x = 1\n" * MOST_LINES, "more than one idea"),
    ],
)
def test_a_fault_is_found(path: str, source: str, fault: str) -> None:
    [found] = faults(path, source)
    assert fault in found


def shared_names(paths: Iterable[Path]) -> list[str]:
    """Names of modules that several files have: pytest imports tests, and tests their helpers, by name alone."""
    counts = Counter(path.name for path in paths if path.name not in ("conftest.py", "__init__.py"))
    return sorted(name for name, count in counts.items() if count > 1)


def test_no_two_files_of_the_tests_share_a_name() -> None:
    assert not shared_names(modules("tests"))


def test_a_shared_name_is_found() -> None:
    assert shared_names([Path("a/conftest.py"), Path("b/conftest.py"), Path("a/test_x.py"), Path("b/test_x.py")]) == [
        "test_x.py"
    ]


# -- lists that must match the disk ------------------------------------------------------------------------------------


def listed_folders(text: str) -> set[str]:
    """The folders that a text lists: rows of a table or a list that begin with a folder's name in code marks."""
    return {match[1].rstrip("/") for match in re.finditer(r"^[-|] *`([\w./-]+/)`", text, re.MULTILINE)}


def folders_on_disk(root: Path) -> set[str]:
    """Top folders, and the packages inside regard/; what git ignores and what is hidden is left out."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").split()
    ignored = [line.rstrip("/") for line in lines if line.endswith("/")]
    top = [
        path.name
        for path in root.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
        and any(inner.is_file() for inner in path.rglob("*"))
    ]
    packages = [f"regard/{path.parent.name}" for path in (root / "regard").glob("*/__init__.py")]
    return {*top, *packages}


def test_the_readme_lists_every_folder() -> None:
    assert listed_folders((REPOSITORY / "README.md").read_text(encoding="utf-8")) == folders_on_disk(REPOSITORY)


def test_a_folder_that_the_readme_leaves_out_is_seen(tmp_path: Path) -> None:
    for name in ("regard/attention", "docs", "runs", ".hidden", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("runs/\n*.egg-info/\n")
    for name in ("regard/attention/__init__.py", "docs/index.md", "runs/recipe.yaml", ".hidden/file"):
        (tmp_path / name).touch()
    assert folders_on_disk(tmp_path) == {"regard", "regard/attention", "docs"}
    assert listed_folders("| `docs/` | texts |\n- `regard/attention/`: steps\nin a line `runs/`") == {
        "docs",
        "regard/attention",
    }


def unpacked(files: list[str], patterns: dict[str, list[str]]) -> list[str]:
    """Files under regard/ that are no Python and that no pattern of the package's data names."""
    missing = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if not any(
            fnmatch.fnmatch(name, pattern)
            for package, some in patterns.items()
            for pattern in some
            if package.replace(".", "/") == folder
        ):
            missing.append(file)
    return missing


def package_data() -> dict[str, list[str]]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    return patterns


def test_an_installed_regard_has_every_file_it_reads() -> None:
    kinds = {".py", ".pyc", ".so"}
    files = [path for path in (REPOSITORY / "regard").rglob("*") if path.is_file() and path.suffix not in kinds]
    names = [path.relative_to(REPOSITORY).as_posix() for path in files]
    assert "regard/py.typed" in names
    assert not unpacked(names, package_data())


def test_a_file_that_would_not_be_installed_is_seen() -> None:
    assert unpacked(["regard/lens/page.ttf"], package_data()) == ["regard/lens/page.ttf"]


# -- the commands ------------------------------------------------------------------------------------------------------


def make_targets(text: str) -> dict[str, list[str]]:
    """Target -> what it depends on, of a Makefile's named targets."""
    found = re.findall(r"^([a-z][a-z-]*):([^#=\n]*)", text, re.MULTILINE)
    return {name: needs.split() for name, needs in found}


def test_ci_runs_what_make_check_runs_by_the_readme_s_commands() -> None:
    targets = make_targets((REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    run = [line.split()[1:] for line in script.splitlines() if line.startswith("make ")]
    assert ["test"] in run, "CI calls the test command that README names, literally"
    assert sorted(target for line in run for target in line) == sorted(targets["check"])
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    assert {"setup", "demo", "test", "check"} <= set(targets)


def test_make_help_explains_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    explained = {line.split()[0] for line in done.stdout.splitlines() if len(line.split()) > 2}
    assert explained == set(make_targets((REPOSITORY / "Makefile").read_text(encoding="utf-8")))


def test_make_says_in_one_line_when_python_is_too_old(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    old = tmp_path / "python-old"
    lie = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv.pop(1))"
    old.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "{lie}" "$@"\n')
    old.chmod(0o755)
    for python, message in (
        (str(old), f"regard needs Python 3.11 or later, {old} is 3.9; name a newer one: make PYTHON=python3.12"),
        ("python-none", "regard needs Python 3.11 or later, python-none was not found"),
    ):
        command = ["make", "-s", "setup", f"PYTHON={python}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode != 0
        assert done.stderr.splitlines()[0] == message
        assert not (tmp_path / ".venv").exists()


def constraints(text: str) -> dict[str, str]:
    """Package -> version of a constraints file; anything but exact public versions fails."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pairs), f"not exact: {[line for line, pair in zip(lines, pairs, strict=True) if not pair]}"
    return {pair[1].lower().replace("_", "-"): pair[2] for pair in pairs if pair}


def test_the_tested_set_pins_everything_that_regard_asks_for() -> None:
    pinned = constraints((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    assert pinned["torch"] == "2.13.0"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    names = {re.split(r"[<>=\[; ]", one)[0].lower().replace("_", "-") for one in asked} - {"regard"}
    assert not names - set(pinned)
    assert not [one for one in project["dependencies"] if "==" in one], "the package itself pins nothing"


@pytest.mark.parametrize("line", ["torch>=2", "torch==2.13.0+cpu", "-e .", "torch @ https://example.org/torch.whl"])
def test_a_constraint_that_is_not_an_exact_version_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="not exact"):
        constraints(line)


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "regard.__version__"}
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(regard.__version__)}\b", changes, re.MULTILINE)
