"""How fast a translation model trains, beside JoeyNMT 2.3 at the same size and batch setting.

    python -m venv ../joey && ../joey/bin/pip install torch==2.13.0
    ../joey/bin/pip install joeynmt==2.3.0 importlib_metadata sentencepiece==0.2.0
    .venv/bin/python benchmarks/joeynmt_speed.py --joey ../joey/bin/python --data PATH/TO/multi30k [--rounds 7]

Transformer-tiny on Multi30k, regard's subwords on both sides (JoeyNMT reads them as words), 4096 tokens a batch, the
same learning rates and initial distributions. JoeyNMT cuts its batches itself, as its users get them. Both train in
turn, a round of `--steps` steps each, JoeyNMT halted while regard runs and the other way round; the table gives real
target tokens a second, the median of the rounds' ratios and their spread, and the validation loss of both after the
same number of steps: the smoothed cross-entropy, which is JoeyNMT's own figure, a Kullback-Leibler divergence, plus
the entropy of its target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
import yaml
from training_speed import WARM_UP, Setting, processor, scratch, train, validation_loss

from regard.data.corpus import Corpus
from regard.inputs.text import Tokenizer
from regard.training.monitor import Silent

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")


def joey_config(setting: Setting, folder: Path, steps: int, every: int) -> dict[str, Any]:
    """JoeyNMT's configuration of the recipe; floats are written without exponents, which it does not read."""
    training, decoder = setting.recipe.training, setting.recipe.model.decoder
    embeddings = {"embedding_dim": decoder.model_dim, "scale": True, "dropout": decoder.dropout}
    side = {
        "type": "transformer",
        "num_layers": decoder.num_layers,
        "num_heads": decoder.attention.heads,
        "embeddings": embeddings,
        "hidden_size": decoder.model_dim,
        "ff_size": decoder.feed_forward.width,
        "dropout": decoder.dropout,
        "layer_norm": "post",
    }
    text = {"level": "word", "lowercase": False, "normalize": False, "voc_file": str(folder / "vocabulary.txt")}
    return {
        "name": "peer",
        "model_dir": str(folder / "model"),
        "use_cuda": False,
        "data": {
            "train": str(folder / "train"),
            "dev": str(folder / "validation"),
            "dataset_type": "plain",
            "src": {**text, "lang": "source"},
            "trg": {**text, "lang": "target"},
        },
        "testing": {
            "beam_size": 1,
            "batch_size": 4096,
            "batch_type": "token",
            "max_output_length": 2,
            "eval_metrics": [],
        },
        "training": {
            "optimizer": "adamw",
            "adam_betas": [training.optimizer.beta1, training.optimizer.beta2],
            "learning_rate": training.schedule.peak,
            "learning_rate_min": 0.0,
            "learning_rate_warmup": training.schedule.warmup_steps,
            "scheduling": "warmupinversesquareroot",
            "label_smoothing": training.label_smoothing,
            "clip_grad_norm": training.clip_norm,
            "normalization": "tokens",
            "batch_size": setting.recipe.data.batch.batch_tokens,
            "batch_type": "token",
            "epochs": 100,
            "updates": steps,
            "logging_freq": every,
            "validation_freq": steps,
            "print_valid_sents": [],
            "early_stopping_metric": "loss",
        },
        "model": {
            # regard's own start, or the two losses could not be compared after so few steps.
            "initializer": "xavier_uniform",
            "embed_initializer": "normal",
            "embed_init_weight": decoder.model_dim**-0.5,
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": side,
            "decoder": side,
        },
    }


def write_text(corpus: Corpus, tokenizer: Tokenizer, path: Path) -> None:
    """The corpus as lines of its subwords, a file a role, for a reader that splits at spaces."""
    for role in ("source", "target"):
        with path.with_name(f"{path.name}.{role}").open("w", encoding="utf-8") as file:
            for place in range(len(corpus)):
                ids = corpus[role, place]
                file.write(" ".join(f"{int(one)}" for one in ids if int(one) != Tokenizer.EOS) + "\n")


def smoothed_entropy(smoothing: float, vocab: int) -> float:
    """Of JoeyNMT's target, in nats: the share `smoothing` lies evenly on all words but the right one and padding."""
    return -(1.0 - smoothing) * math.log(1.0 - smoothing) - smoothing * math.log(smoothing / (vocab - 2))


class InTurn(Silent):
    """Watches regard's trainer; after every round JoeyNMT has one."""

    def __init__(self, joey: subprocess.Popen[str], every: int) -> None:
        self.joey, self.every = joey, every
        self.ours: list[tuple[int, float]] = []  # tokens, seconds of each round
        self.theirs: list[tuple[int, float]] = []
        self.tokens, self.seconds = 0, 0.0

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        self.tokens, self.seconds = self.tokens + num_tokens, self.seconds + seconds
        if step % self.every:
            return
        self.ours.append((self.tokens, self.seconds))
        self.tokens, self.seconds = 0, 0.0
        assert self.joey.stdin is not None and self.joey.stdout is not None
        self.joey.stdin.write("go on\n")
        self.joey.stdin.flush()
        said = json.loads(self.joey.stdout.readline())
        assert said["steps"] == step, "both sides have taken equally many steps"
        self.theirs.append((said["tokens"], said["seconds"]))
        rates = [tokens / spent for tokens, spent in (self.ours[-1], self.theirs[-1])]
        print(f"step {step}: regard {rates[0]:,.0f}, JoeyNMT {rates[1]:,.0f} target tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joey", type=Path, required=True, help="the Python that has JoeyNMT")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=WARM_UP, help="a round; one more is the warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = (arguments.rounds + 1) * arguments.steps
    side = Path(__file__).with_name("joeynmt_side.py")
    with scratch(arguments.data) as setting, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for corpus, part in ((setting.corpus, "train"), (setting.validation, "validation")):
            write_text(corpus, setting.tokenizer, folder / part)
        words = (str(index) for index in range(len(setting.tokenizer)))
        (folder / "vocabulary.txt").write_text("\n".join((*SPECIAL, *words)) + "\n", encoding="utf-8")
        (folder / "model").mkdir()
        config = joey_config(setting, folder, steps, arguments.steps)
        (folder / "joey.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command: list[Path | str] = [arguments.joey, side, folder / "joey.yaml", str(arguments.threads)]
        with (folder / "joey.log").open("w") as log:
            joey = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        watcher = InTurn(joey, arguments.steps)
        try:
            train(setting, folder / "regard", steps, watcher)
            last = threading.Timer(900, joey.kill)
            last.start()
            joey.communicate("go on\n")
            last.cancel()
        except Exception:
            print((folder / "joey.log").read_text()[-2000:])
            raise
        finally:
            joey.kill()
        reached = re.search(r"loss: ([\d.]+)", (folder / "model" / "validations.txt").read_text())
        assert reached is not None
        smoothing = setting.recipe.training.label_smoothing
        ours = validation_loss(setting, smoothing)
        theirs = float(reached[1]) + smoothed_entropy(smoothing, len(SPECIAL) + len(setting.tokenizer))
    pairs = list(zip(watcher.ours, watcher.theirs, strict=True))[1:]
    ratios = [(one[0] / one[1]) / (other[0] / other[1]) for one, other in pairs]
    rates = [sum(p[side][0] for p in pairs) / sum(p[side][1] for p in pairs) for side in (0, 1)]
    lines = [
        f"{processor()}, {arguments.threads} threads, torch {torch.__version__}; {arguments.rounds} rounds of"
        f" {arguments.steps} steps after as many.\n",
        "| side | real target tokens/s | regard is faster, median | spread | validation loss, smoothed, nats a token |",
        "|---|---|---|---|---|",
        f"| regard | {rates[0]:,.0f} | | | {ours:.3f} |",
        f"| JoeyNMT 2.3 | {rates[1]:,.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        f" {theirs:.3f} |",
    ]
    print("\n" + "\n".join(lines))
    if arguments.out:
        command_line = f"python benchmarks/joeynmt_speed.py --rounds {arguments.rounds} --steps {arguments.steps}"
        head = f"# Training speed beside JoeyNMT\n\n`{command_line}`\n\n"
        arguments.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
