"""Every code block of README and docs is run, or, where it takes long or needs a network, at least parsed.

What a block's info string says:

    python              run; the blocks of a file share one namespace and one folder
    bash                every line run; `regard` in this process, a few harmless commands as they are
    bash long, network  parsed, as shell and by each command: options, targets, recipes must exist
    bash slurm NAME.sh  the same of a script, for the blocks after it
    console             lines after "$ " run, and what they print compared; "..." stands for anything
    yaml NAME, tsv NAME a file of that name, for the blocks after it
    yaml recipe, model  every key documented, and every value the default unless its comment says otherwise
    yaml recipe TASK    every value the default unless its comment says otherwise
    yaml data           a mapping of data specifications; data transcribe: of transcribed sound
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import typing
import warnings
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from pydantic import BaseModel

from regard.cli.main import app, run
from regard.data.readers import DataSpec
from regard.data.speech_records import SpeechSpec
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.tasks.caption.recipe import CaptionRecipe
from regard.tasks.classify.picture_recipe import PictureClassifyRecipe
from regard.tasks.classify.recipe import ClassifyRecipe
from regard.tasks.generate.recipe import GenerateRecipe
from regard.tasks.pretrain.recipe import PretrainRecipe
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.transcribe.recipe import TranscribeRecipe
from regard.tasks.translate import demo
from regard.tasks.translate.demo_corpus import make_corpus
from regard.tasks.translate.recipe import TranslateRecipe

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
HARMLESS = {"printf", "echo", "cat", "head", "ls", "mkdir"}  # run as they are, inside the test's folder
ONLY_PARSED = {"make", "pip", "git", "cd", "python3", "tensorboard", "export"}
SCHEMAS: dict[str, Any] = {
    "recipe": TranslateRecipe,
    "model": EncoderDecoderConfig,
    "recipe generate": GenerateRecipe,
    "recipe classify": ClassifyRecipe,
    "recipe transcribe": TranscribeRecipe,
    "recipe pretrain": PretrainRecipe,
    "recipe caption": CaptionRecipe,
    "recipe classify-pictures": PictureClassifyRecipe,
}


class Block(NamedTuple):
    """line: of the opening fence, from 1. kind and about: the info string's first word, and the rest."""

    line: int
    kind: str
    about: str
    content: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text."""
    found = []
    opened: tuple[int, str] | None = None
    content: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            content.append(line)
        elif opened is None:
            opened, content = (number, line.removeprefix("```").strip()), []
        else:
            kind, _, about = opened[1].partition(" ")
            found.append(Block(opened[0], kind, about.strip(), "\n".join(content) + "\n"))
            opened = None
    assert opened is None, f"line {opened and opened[0]}: a block that is never closed"
    return found


# -- command lines -----------------------------------------------------------------------------------------------------


def words_of(line: str) -> list[str]:
    """A line of shell as words; pipes and redirections are words of their own, comments are gone."""
    parser = shlex.shlex(line, posix=True, punctuation_chars="|<>")
    parser.whitespace_split = True
    words = list(parser)
    while words and re.match(r"[A-Z_]+=", words[0]):  # settings of the environment
        words.pop(0)
    return words


def check_command(words: list[str]) -> None:
    """Fails unless the command, its options and what it names exist."""
    name, *arguments = words
    if name == "regard":
        check_regard(arguments)
    elif name == "torchrun":
        check_torchrun(arguments)
    elif name == "srun":  # its own options are Slurm's, which is not here: --name=value
        check_command(list(itertools.dropwhile(lambda word: word.startswith("--") and "=" in word, arguments)))
    elif name == "sbatch":
        [script] = arguments
        assert Path(script).is_file(), f"no script {script}"
    elif name == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in arguments:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target `{target}` in Makefile"
    else:
        assert name in ONLY_PARSED | HARMLESS, f"command `{name}` is not known to this test"


def check_torchrun(arguments: list[str]) -> None:
    """Fails unless torchrun takes these arguments, and regard what it passes on."""
    from torch.distributed.run import get_args_parser

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            given = get_args_parser().parse_args(arguments)
    except SystemExit:
        raise AssertionError(complaint.getvalue().splitlines()[-1]) from None
    assert given.module and given.training_script == "regard", "expected torchrun to start `-m regard`"
    rest = given.training_script_args
    check_regard(rest[1:] if rest[:1] == ["--"] else rest)


def check_shell(content: str) -> None:
    """Fails unless a shell can read it."""
    read = subprocess.run(["bash", "-n"], input=content, capture_output=True, text=True, timeout=60)
    assert read.returncode == 0, read.stderr.strip()


def check_regard(arguments: list[str]) -> None:
    root = typer.main.get_command(app)
    with contextlib.suppress(typer.Exit), root.make_context("regard", list(arguments)) as context:
        name, *rest = context._protected_args + context.args
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        assert command is not None, f"no command `regard {name}`"
        command.make_context(name, rest, parent=context)
    for word in arguments:
        if word.startswith("recipes/"):
            assert (REPOSITORY / word).is_file(), f"no recipe {word}"


class Done(NamedTuple):
    """What a command came to."""

    status: int
    output: str
    errors: str


def run_regard(arguments: list[str], standard_input: bytes = b"") -> Done:
    """The command line in this process."""
    output, errors = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(standard_input), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            status = run(arguments)
    finally:
        sys.stdin = before
    return Done(status, output.getvalue(), errors.getvalue())


def run_line(line: str) -> Done:
    """A line of shell in the current folder: commands in a pipe, the last perhaps into a file."""
    words = words_of(line)
    target = None
    if ">" in words:
        words, [target] = words[: words.index(">")], words[words.index(">") + 1 :]
    done = Done(0, "", "")
    while words:
        end = words.index("|") if "|" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        fed = done.output.encode()
        if command[0] == "regard":
            done = run_regard(command[1:], fed)
        else:
            assert command[0] in HARMLESS, f"command `{command[0]}` is not run by this test; mark the block `long`"
            ended = subprocess.run(command, input=fed, capture_output=True, timeout=60)
            done = Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
    if target is not None:
        Path(target).write_text(done.output, encoding="utf-8")
    return done


def lines_of(content: str) -> list[str]:
    """Command lines of a block, those that end in a backslash joined; comments and empty ones left out."""
    joined = content.replace("\\\n", " ")
    return [line for line in joined.splitlines() if words_of(line)]


def check_transcript(content: str) -> None:
    """Runs the lines after "$ " and fails where one prints something else than what stands under it.

    Printed is standard output, then what standard error says of regard itself; progress is left out.
    """
    for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
        line, _, wanted = part.partition("\n")
        done = run_line(line)
        complaints = [text for text in done.errors.splitlines() if text.startswith("regard: ")]
        printed = [*done.output.splitlines(), *complaints]
        pattern = "\n".join(re.escape(text).replace(r"\.\.\.", ".*") for text in wanted.rstrip("\n").splitlines())
        assert re.fullmatch(pattern, "\n".join(printed)), f"`{line}` printed:\n" + "\n".join(printed)
        assert (done.status != 0) == bool(complaints), f"`{line}` ended with status {done.status}"


# -- recipes -----------------------------------------------------------------------------------------------------------


def given_values(content: str) -> dict[str, Any]:
    """A block's values without those that are said to be defaults: what is left must mean the same."""
    lines = content.splitlines()

    def left(node: yaml.MappingNode, values: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, child in node.value:
            value = values[key.value]
            if isinstance(child, yaml.MappingNode) and value:
                inner = left(child, value)
                if inner:
                    kept[key.value] = inner
            elif re.search(r"# .*\b(example|default:)", lines[key.start_mark.line]):
                kept[key.value] = value
        return kept

    whole = yaml.compose(content)
    assert isinstance(whole, yaml.MappingNode), "a block of keys and values"
    return left(whole, yaml.safe_load(content))


def configurations_in(kind: Any) -> set[type]:
    """Every class of configuration that a value of this type may hold."""
    if typing.get_origin(kind) in (typing.Union, UnionType, dict, tuple, typing.Annotated):
        return set().union(*(configurations_in(part) for part in typing.get_args(kind)))
    if not (isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel))):
        return set()
    return {kind}.union(*(configurations_in(hint) for hint in fields_of(kind).values()))


def fields_of(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names: list[str] = [*getattr(kind, "model_fields", {})]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    return {name: hints[name] for name in names}


def named_keys(value: Any, raw: Any, found: dict[type, set[str]]) -> dict[type, set[str]]:
    """Adds to `found`, for each configuration in `value`, the keys that `raw`, which it was made of, names."""
    kind = type(value)
    if isinstance(raw, dict) and (dataclasses.is_dataclass(value) or isinstance(value, BaseModel)):
        found.setdefault(kind, set()).update(raw)
        for name, inner in raw.items():
            named_keys(getattr(value, name), inner, found)
    return found


def undocumented(text: str) -> list[str]:
    """Keys of a recipe that a document names nowhere, as "class.key"."""
    found: dict[type, set[str]] = {}
    for block in blocks_of(text):
        if block.about in SCHEMAS:
            raw = yaml.safe_load(block.content)
            named_keys(validated(SCHEMAS[block.about], raw, f"line {block.line}"), raw, found)
    missing = []
    others = "".join(page.read_text(encoding="utf-8") for page in DOCUMENTS if page.name != "translate.md")
    for kind in configurations_in(TranslateRecipe):
        # A part that no example holds must be named in words, be it on the page of another task that it is made for.
        named = found.get(kind) or {name for name in fields_of(kind) if re.search(rf"\b{name}\b", text + others)}
        missing += [f"{kind.__name__}.{name}" for name in fields_of(kind) if name not in named]
    return sorted(missing)


def check_defaults(content: str, schema: Any) -> None:
    """Fails where a value that is not said to be an example is not the default."""
    whole, given = (validated(schema, values, "block") for values in (yaml.safe_load(content), given_values(content)))
    assert whole == given, f"a value shown is not the default:\n{whole}\n{given}"


# -- links -------------------------------------------------------------------------------------------------------------


def broken_links(document: Path) -> list[str]:
    """Relative links of a document to files or headings that are not there."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        path = document.parent / name if name else document
        if not path.is_file() or (heading and heading not in headings(path)):
            broken.append(f"{document.name}: {link}")
    return broken


def headings(path: Path) -> set[str]:
    """The anchors that a page gives its headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


# -- the documents -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `regard demo` leaves behind, after three steps on 300 phrases: quick, and no good at all."""
    folder = tmp_path_factory.mktemp("demo")
    corpus = make_corpus(1, num_train=300, num_held_out=1, num_validation=4)
    (folder / "text").mkdir()
    for name, phrases in (("train", corpus.train), ("validation", corpus.validation)):
        for side, ending in (("source", "en"), ("target", "de")):
            lines = "".join(getattr(phrase, side) + "\n" for phrase in phrases)
            (folder / "text" / f"{name}.{ending}").write_text(lines, encoding="utf-8")
    train(demo.recipe(folder / "text", seed=1, num_steps=3), folder / "run")
    return folder / "run"


def follow(document: str, text: str) -> None:
    """Does what a document says, block by block, in the current folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(text):
        place = f"{document}:{block.line}"
        try:
            follow_block(block, place, names)
        except Exception as error:
            raise AssertionError(f"{place}: {error}") from error


def follow_block(block: Block, place: str, names: dict[str, Any]) -> None:
    match block.kind, block.about:
        case "python", "":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.content, place, "exec"), names)
        case "bash", "":
            for line in lines_of(block.content):
                done = run_line(line)
                assert done.status == 0, f"`{line}` ended with status {done.status}: {done.errors}"
        case "bash", about if about in ("long", "network") or re.fullmatch(r"slurm [\w-]+\.sh", about):
            check_shell(block.content)
            for line in lines_of(block.content):
                check_command(words_of(line))
            if about.startswith("slurm "):
                Path(about.removeprefix("slurm ")).write_text(block.content, encoding="utf-8")
        case "console", "":
            check_transcript(block.content)
        case "yaml", about if about in SCHEMAS:
            check_defaults(block.content, SCHEMAS[about])
        case "yaml", "data transcribe":
            for name, values in yaml.safe_load(block.content).items():
                validated(SpeechSpec, values, name)
        case "yaml", "data":
            for name, values in yaml.safe_load(block.content).items():
                validated(DataSpec, values, name)
        case "yaml" | "tsv", name if re.fullmatch(r"[\w-]+\.\w+", name):
            Path(name).write_text(block.content, encoding="utf-8")
        case _:
            raise AssertionError(f"no test knows what to do with a block `{block.kind} {block.about}`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_does_what_it_says(
    document: Path, demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_run, tmp_path / "runs" / "demo-translate" / "run")
    monkeypatch.chdir(tmp_path)
    follow(document.name, document.read_text(encoding="utf-8"))


def test_every_recipe_key_is_documented() -> None:
    assert not undocumented((REPOSITORY / "docs" / "translate.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    assert not broken_links(document)


# -- the checks themselves can fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("text\n\n```python\nx = 1\nassert x == 2\n```", "README:3: "),
        ("```python\nimport regard\nregard.attent\n```", "no attribute 'attent'"),
        ("```bash\nregard translate no/model 'a dog'\n```", "no such model directory"),
        ("```bash\nrm -r runs\n```", "`rm` is not run by this test"),
        ("```bash long\nregard train first.yaml --rnu runs/first\n```", "rnu"),
        ("```bash long\nregard trian first.yaml\n```", "trian"),
        ("```bash long\nregard train recipes/translate/none.yaml\n```", "no recipe recipes/translate/none.yaml"),
        ("```bash long\ntorchrun --nproc-per-core 2 -m regard train first.yaml\n```", "--nproc-per-core"),
        ("```bash long\ntorchrun --standalone -m regard train first.yaml --run runs/first\n```", "ambiguous option"),
        ("```bash long\ntorchrun --standalone -m regard -- train first.yaml --rnu a\n```", "rnu"),
        ("```bash long\ntorchrun --standalone train.py\n```", "expected torchrun to start `-m regard`"),
        ("```bash long\nsrun --ntasks=2 torchrun --standalone -m regard trian first.yaml\n```", "trian"),
        ("```bash long\nregard train 'first.yaml\n```", "unexpected EOF"),
        ("```bash slurm job.sh\nsudo reboot\n```", "`sudo` is not known"),
        ("```bash slurm job.sh\nexport A=1\n```\n```bash long\nsbatch jobs.sh\n```", "no script jobs.sh"),
        ("```bash network\nmake coffee\n```", "no target `coffee`"),
        ("```bash network\nsudo make test\n```", "`sudo` is not known"),
        ("```console\n$ echo one\ntwo\n```", "`echo one` printed:"),
        ("```console\n$ cat no-such-file\n```", "ended with status 1"),
        ("```yaml data\none: {path: pairs.tsv, colums: {source: 0}}\n```", "did you mean `columns`"),
        ("```ruby\nputs 1\n```", "no test knows"),
        ("```python\nx = 1\n", "never closed"),
    ],
)
def test_a_block_that_does_not_work_is_found(
    text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as found:
        follow("README", text)
    assert fault in str(found.value)


def test_blocks_share_names_files_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    follow("README", TOGETHER)


TOGETHER = """
```tsv pairs.tsv
a\tb
```
```python
from pathlib import Path
read = Path("pairs.tsv").read_text()
```
```python
assert read == "a\\tb\\n"
```
```bash
cat pairs.tsv | head -n 1 > copy.tsv  # a comment
```
```console
$ cat copy.tsv
a...b
```
"""
DOCUMENTED_MODEL = """
encoder: {type: recurrent, model_dim: 8}  # example
decoder:
  type: attention-rnn  # example
  model_dim: 8  # example
  attention_dim: 8  # example
  dropout: 0.1
"""


def test_a_value_that_is_not_the_default_is_found() -> None:
    check_defaults(DOCUMENTED_MODEL, EncoderDecoderConfig)
    with pytest.raises(AssertionError, match="not the default"):
        check_defaults(DOCUMENTED_MODEL.replace("0.1", "0.2"), EncoderDecoderConfig)


def test_a_key_that_is_not_documented_is_found() -> None:
    text = (REPOSITORY / "docs" / "translate.md").read_text(encoding="utf-8")
    for line, key in (
        ("  label_smoothing: 0.1\n", "TrainingConfig.label_smoothing"),
        ("  min_length: 0  # fewest tokens before the end\n", "DecodingOptions.min_length"),
        ("  location_filters: 10\n", "AttentionRNNConfig.location_filters"),
    ):
        assert line in text
        assert undocumented(text.replace(line, "")) == [key]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One *two*\n[a](#one-two) [b](none.md) [c](#three) [d](https://example.org) [e](page.md#one-two)\n"
    )
    assert broken_links(page) == ["page.md: none.md", "page.md: #three"]
