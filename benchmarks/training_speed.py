"""How fast a translation model trains, beside a plain `nn.Transformer` loop on the very same batches.

    .venv/bin/python benchmarks/training_speed.py --data FOLDER [--rounds 7] [--steps 10] [--out FILE]

Transformer-tiny (recipes/translate/multi30k-en-de.yaml) on Multi30k. First the two models are held to each other: with
the same weights they must give the same logits. Then regard's own `Trainer` trains, and after each of its steps every
plain loop takes one on the same batch: float32, bfloat16 under autocast, and both compiled. Dropout, loss, clipping and
optimiser are the same; moving average and monitor are off. Seconds are per real target token, a round is `--steps`
steps, the table gives the median of the rounds' ratios and their spread, and the validation loss that each side has
reached after the same steps. Peak memory, above what the process held before its first step, is of a process each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from plain_translation import PlainLoop, PlainTransformer

from regard.data.batches import Batch, BatchStream, Position
from regard.data.columns import TextColumn
from regard.data.corpus import Corpus, prepare
from regard.data.readers import read
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.tasks.recipe import read_yaml, validated, with_overrides
from regard.tasks.sections import with_root
from regard.tasks.translate.job import TranslateJob, objective
from regard.tasks.translate.recipe import ROLES, TranslateRecipe
from regard.training.config import TrainingConfig
from regard.training.loop import Trainer
from regard.training.memory import ProcessMemory
from regard.training.monitor import Silent
from regard.training.processes import World

RECIPE = Path(__file__).parents[1] / "recipes" / "translate" / "multi30k-en-de.yaml"
PLAIN = ("float32", "bfloat16", "float32 compiled", "bfloat16 compiled")
WARM_UP = 12  # steps before the first round: they compile, and fill the allocator


class Setting:
    """The recipe's data and one model of it, the same for every side."""

    def __init__(self, data: Path, folder: Path) -> None:
        values = with_overrides(read_yaml(RECIPE), [f"data.root={data}"])
        recipe = validated(TranslateRecipe, values, str(RECIPE))
        self.recipe = recipe.model_copy(update={"data": with_root(recipe.data, RECIPE)})
        job = TranslateJob(self.recipe, folder, Silent(), World())
        self.corpus: Corpus = job.prepare()
        source, target = job.source, job.target
        self.tokenizer = source
        validation = read(self.recipe.data.validation, ROLES)
        columns = {"source": TextColumn(source), "target": TextColumn(target)}
        self.validation: Corpus = prepare(validation, columns, folder / "validation")
        torch.manual_seed(self.recipe.seed)
        self.model = EncoderDecoder(len(source), len(target), self.recipe.model)
        self.stream = BatchStream(self.corpus, self.recipe.data.batch, seed=self.recipe.seed, roles=ROLES)

    def config(self, steps: int) -> TrainingConfig:
        """The recipe's training without what a plain loop has not; the schedule is the recipe's first `steps`."""
        never = self.recipe.training.max_steps * 100
        whole = {"ema_decay": None, "attention_every": None, "validate_every": never, "checkpoint_every": never}
        return replace(self.recipe.training, max_steps=steps, log_every=never, final=("last",), **whole)

    def plain(self, name: str) -> PlainLoop:
        """The plain loop called `name`, with the model's present weights."""
        decoder = self.recipe.model.decoder
        assert isinstance(decoder, TransformerDecoderConfig)
        model = PlainTransformer(self.model.decoder.outputs.size, decoder)
        model.take(self.model)
        dtype = torch.bfloat16 if name.startswith("bfloat16") else torch.float32
        if name.endswith("compiled"):
            model = torch.compile(model, dynamic=True)  # type: ignore[assignment]
        return PlainLoop(model, self.recipe.training, dtype)

    def validation_batches(self) -> list[Batch]:
        stream = BatchStream(self.validation, self.recipe.data.batch, seed=0, roles=ROLES)
        return [stream.at(Position(0, index)) for index in range(stream.num_batches(0))]


class InTurn(Silent):
    """Watches regard's trainer; after each step every plain loop takes one, too."""

    def __init__(self, stream: BatchStream, loops: dict[str, PlainLoop]) -> None:
        self.stream, self.loops = stream, loops
        self.position = Position()
        self.seconds: dict[str, list[float]] = {name: [] for name in ("regard", *loops)}
        self.tokens: list[int] = []

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        self.tokens.append(num_tokens)
        self.seconds["regard"].append(seconds)
        batch = self.stream.at(self.position)
        self.position = self.stream.after(self.position)
        assert batch.num_target_tokens == num_tokens, "both sides train on the same batch"
        for name, loop in self.loops.items():
            began = time.perf_counter()
            loop.update(batch)
            self.seconds[name].append(time.perf_counter() - began)
        print(f"\rstep {step}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in self.seconds.items()), end="", flush=True)

    def rounds(self, name: str, steps: int) -> list[float]:
        """Seconds of each round after the warm-up."""
        kept = self.seconds[name][WARM_UP:]
        return [sum(kept[begin : begin + steps]) for begin in range(0, len(kept) - steps + 1, steps)]


def train(setting: Setting, folder: Path, steps: int, watcher: Silent) -> None:
    """`steps` updates by regard's trainer."""
    Trainer(
        setting.model,
        setting.stream,
        setting.config(steps),
        folder,
        objective=objective(setting.recipe.training.label_smoothing),
        validate=lambda model: {"none": 0.0},
        metric="none",
        seed=setting.recipe.seed,
        watcher=watcher,
    ).run()


@torch.no_grad()
def check(setting: Setting) -> float:
    """The largest difference between the logits of both models, in float32. Ends the run where it is no rounding."""
    setting.model.eval()
    plain = setting.plain("float32").model.eval()
    worst = 0.0
    for batch in setting.validation_batches()[:4]:
        real = batch.target_outputs != 0
        hidden = setting.model(batch.source.values, batch.source.lengths, batch.target_inputs)
        ours, theirs = setting.model.decoder.head(hidden)[real], plain(batch.source.values, batch.target_inputs)[real]
        worst = max(worst, float((ours - theirs).abs().max()))
    if worst > 1e-3:
        sys.exit(f"the models differ by {worst:.2g} in their logits: no speed is quoted from a red check")
    return worst


@torch.no_grad()
def validation_loss(setting: Setting, smoothing: float = 0.0) -> float:
    """Of regard's model, in float32, nats a real target token; `smoothing`: of the labels."""
    setting.model.eval()
    batches, loss = setting.validation_batches(), objective(smoothing)
    total = sum(float(loss(setting.model, batch, torch.float32).objective) for batch in batches)
    return total / sum(batch.num_target_tokens for batch in batches)


@contextmanager
def scratch(data: Path) -> Iterator[Setting]:
    with tempfile.TemporaryDirectory() as folder:
        yield Setting(data, Path(folder) / "data")


def peak_bytes(data: Path, side: str, steps: int) -> int:
    """Of `side` above what the process held before its first step. The process must be this call's own."""
    with scratch(data) as setting, tempfile.TemporaryDirectory() as folder:
        loop = None if side == "regard" else setting.plain(side)

        def work() -> None:
            if loop is None:
                return train(setting, Path(folder), steps, Silent())
            for index in range(steps):
                loop.update(setting.stream.at(Position(0, index)))

        memory = ProcessMemory(1.0)
        return memory.peak(work) - memory.held_bytes


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--plain", nargs="*", choices=PLAIN, default=list(PLAIN))
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # one side's memory, in a process of its own
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak_bytes(arguments.data, arguments.peak, arguments.steps)))
        return
    steps = WARM_UP + arguments.rounds * arguments.steps
    with scratch(arguments.data) as setting, tempfile.TemporaryDirectory() as folder:
        difference = check(setting)
        loops = {name: setting.plain(name) for name in arguments.plain}
        watcher = InTurn(setting.stream, loops)
        train(setting, Path(folder), steps, watcher)
        losses = {"regard": validation_loss(setting)}
        losses |= {name: loop.validation_loss(setting.validation_batches()) for name, loop in loops.items()}
    tokens = sum(watcher.tokens[WARM_UP:])
    lines = [
        f"{processor()}, {arguments.threads} threads, torch {torch.__version__}; {arguments.rounds} rounds of"
        f" {arguments.steps} steps after {WARM_UP}; logits of both models differ by {difference:.1g} at most.\n",
        "| side | real target tokens/s | times regard's time, median | spread | validation loss | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    ours = watcher.rounds("regard", arguments.steps)
    for name, loss in losses.items():
        theirs = watcher.rounds(name, arguments.steps)
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        command = [sys.executable, __file__, "--data", arguments.data, "--peak", name, "--threads", arguments.threads]
        peak = int(subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout)
        lines.append(
            f"| {name} | {tokens / sum(theirs):,.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to"
            f" {max(ratios):.2f} | {loss:.4f} | {peak / 1e6:,.0f} MB |"
        )
    print("\n\n" + "\n".join(lines))
    if arguments.out:
        command = f"python benchmarks/training_speed.py --rounds {arguments.rounds} --steps {arguments.steps}"
        head = f"# Training speed beside a plain loop\n\n`{command}`\n\n"
        arguments.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
