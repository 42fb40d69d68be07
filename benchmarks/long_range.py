"""What is remembered over a growing distance: a test-bed for attention and recurrence, on two generated tasks.

.venv/bin/python benchmarks/long_range.py [--steps 1500] [--trained 64] [--write]

recall: pairs of a key and a value stand in a row, nothing but blanks follows, then the keys in another order: what was
the value of each? (Arora et al. 2023: multi-query associative recall.)
copy: some symbols stand in a row, nothing but blanks follows, then a mark: what were they, in order? (Hochreiter and
Schmidhuber 1997; Arjovsky et al. 2016.)

Each model learns each task at distances up to `--trained`, none longer than a growing limit in the first half of its
updates, and is then asked at distances up to four times that. All read the same sequences, one token after the other,
and never ahead. `--write` puts the table into benchmarks/results/long_range.md and the picture into
docs/images/long_range.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.models.recurrent_encoder import RecurrentEncoder, RecurrentEncoderConfig

FOLDER = Path(__file__).resolve().parents[1]
RESULT, PICTURE = FOLDER / "benchmarks" / "results" / "long_range.md", FOLDER / "docs" / "images" / "long_range.png"
BLANK, MARK, FIRST_KEY, FIRST_VALUE = 1, 2, 4, 20
KEYS = VALUES = 16
VOCAB = FIRST_VALUE + VALUES
PAIRS, SYMBOLS = 4, 6
DIM, BATCH, PEAK, WARMUP = 64, 64, 3e-3, 50


class Problem(NamedTuple):
    """tokens: int64 [batch, length]. wanted: int64 [batch, length], what follows each, -1 where nothing is asked."""

    tokens: Tensor
    wanted: Tensor


def recall(batch: int, distance: int, chance: torch.Generator) -> Problem:
    """Pairs, `distance` blanks, the pairs in another order; wanted is the value behind each key of the latter."""
    keys = torch.rand(batch, KEYS, generator=chance).argsort(1)[:, :PAIRS] + FIRST_KEY
    values = torch.randint(VALUES, (batch, PAIRS), generator=chance) + FIRST_VALUE
    order = torch.rand(batch, PAIRS, generator=chance).argsort(1)
    pairs = torch.stack([keys, values], -1)
    asked = pairs.gather(1, order[..., None].expand(-1, -1, 2))
    blanks = torch.full((batch, distance), BLANK)
    tokens = torch.cat([pairs.flatten(1), blanks, asked.flatten(1)], 1)
    wanted = torch.full_like(tokens, -1)
    wanted[:, -2 * PAIRS :: 2] = asked[..., 1]
    return Problem(tokens, wanted)


def copy(batch: int, distance: int, chance: torch.Generator) -> Problem:
    """Symbols, `distance` blanks, a mark and the symbols but the last; wanted are the symbols."""
    symbols = torch.randint(VALUES, (batch, SYMBOLS), generator=chance) + FIRST_VALUE
    blanks = torch.full((batch, distance), BLANK)
    mark = torch.full((batch, 1), MARK)
    tokens = torch.cat([symbols, blanks, mark, symbols[:, :-1]], 1)
    wanted = torch.full_like(tokens, -1)
    wanted[:, -SYMBOLS:] = symbols
    return Problem(tokens, wanted)


TASKS: dict[str, Callable[[int, int, torch.Generator], Problem]] = {"recall": recall, "copy": copy}


class Attention(nn.Module):
    """Two layers of causal self-attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        config = LanguageModelConfig(
            DIM,
            2,
            AttentionConfig(4, rotary_base=10_000.0),
            FeedForwardConfig(2 * DIM, "silu", gated=True),
            embedding=EmbeddingConfig("none"),
            norm=NormConfig("rms"),
            dropout=0.0,
        )
        self.model = LanguageModel(VOCAB, config)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] -> logits [batch, length, VOCAB]."""
        return self.model.head(self.model(tokens))


class Recurrence(nn.Module):
    """Two layers of a recurrent cell, forward alone; as wide as makes it no smaller than the other."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        width = 96 if cell == "gru" else 88
        config = RecurrentEncoderConfig(
            "recurrent",
            width,
            num_layers=2,
            cell=cell,
            bidirectional=False,
            dropout=0.0,  # type: ignore[arg-type]
        )
        self.encoder = RecurrentEncoder(VOCAB, config)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Attention`."""
        memory, _ = self.encoder(tokens, torch.full((len(tokens),), tokens.shape[1]))
        return self.head(memory.vectors)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "LSTM": lambda: Recurrence("lstm"),
    "GRU": lambda: Recurrence("gru"),
}


@dataclass(frozen=True)
class Curve:
    """accuracy: distance to the share of answers that were right."""

    task: str
    model: str
    parameters: int
    loss: float
    seconds: float
    accuracy: dict[int, float]


def trained(task: str, name: str, *, steps: int, longest: int, seed: int) -> tuple[nn.Module, float]:
    """The model after `steps` batches of distances up to `longest`, and its mean loss over the last tenth."""
    torch.manual_seed(seed)
    model, chance = MODELS[name](), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min((step + 1) / WARMUP, 1.0) * (1.0 - 0.95 * step / steps)
        limit = round(longest * min(2.0 * step / steps, 1.0))  # short distances first: all models learn sooner
        problem = TASKS[task](BATCH, int(torch.randint(limit + 1, (1,), generator=chance)), chance)
        asked = problem.wanted >= 0
        loss = F.cross_entropy(model(problem.tokens)[asked], problem.wanted[asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    last = losses[-max(steps // 10, 1) :]
    return model.eval(), sum(last) / len(last)


@torch.no_grad()
def accuracy(model: nn.Module, task: str, distance: int, *, count: int = 256) -> float:
    """The share of `count` problems' answers that are right, symbol by symbol; the same problems for every model."""
    problem = TASKS[task](count, distance, torch.Generator().manual_seed(1_000_000 + distance))
    asked = problem.wanted >= 0
    return float((model(problem.tokens).argmax(-1)[asked] == problem.wanted[asked]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--trained", type=int, default=64, help="the longest distance in training, in tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="also into results/ and docs/images/")
    arguments = parser.parse_args()
    distances = [0, *(2**power for power in range((4 * arguments.trained).bit_length()))]
    curves = []
    for task in TASKS:
        for name in MODELS:
            began = time.perf_counter()
            model, loss = trained(task, name, steps=arguments.steps, longest=arguments.trained, seed=arguments.seed)
            seconds = time.perf_counter() - began
            found = {distance: accuracy(model, task, distance) for distance in distances}
            parameters = sum(parameter.numel() for parameter in model.parameters())
            curves.append(Curve(task, name, parameters, loss, seconds, found))
            print(json.dumps({**vars(curves[-1])}), flush=True)
    text = table(curves, distances, arguments)
    print(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")
        draw(curves, arguments.trained, PICTURE)


def table(curves: list[Curve], distances: list[int], arguments: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        "# Long range",
        "",
        f"    python benchmarks/long_range.py --steps {arguments.steps} --trained {arguments.trained} --seed "
        f"{arguments.seed}",
        "",
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; one seed. Share of "
        f"answers that are right, by the blanks between what is to be remembered and the question; distances over "
        f"{arguments.trained} were never trained. Guessing is right in 1 of {VALUES} cases.",
        "",
        "| task | model | parameters | last loss, nats | " + " | ".join(map(str, distances)) + " |",
        "|---" * (len(distances) + 4) + "|",
    ]
    lines += [
        f"| {one.task} | {one.model} | {one.parameters:,} | {one.loss:.3f} | "
        + " | ".join(f"{one.accuracy[distance]:.2f}" for distance in distances)
        + " |"
        for one in curves
    ]
    return "\n".join(lines) + "\n"


def draw(curves: list[Curve], longest: int, path: Path) -> None:
    """Accuracy over distance, a panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    distances = list(curves[0].accuracy)  # drawn evenly, as each doubles the one before
    for panel, task in zip(panels, TASKS, strict=True):
        for one in curves:
            if one.task == task:
                panel.plot(range(len(distances)), one.accuracy.values(), marker="o", markersize=3, label=one.model)
        panel.axvline(distances.index(longest), color="0.6", linestyle="--", linewidth=1)
        panel.axhline(1 / VALUES, color="0.6", linestyle=":", linewidth=1)
        panel.set_xticks(range(len(distances)), [str(distance) for distance in distances])
        panel.set(title=task, xlabel="blanks between memory and question", ylim=(-0.02, 1.04))
    panels[0].set_ylabel("answers right")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
