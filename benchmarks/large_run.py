"""What training Transformer-base on 4.5 million sentence pairs would take on 8 GPUs: an estimate from what is counted.

    .venv/bin/python benchmarks/large_run.py --out benchmarks/results/large_run.md

Counted on the real model, objective and optimiser, forward and backward: arithmetic, bytes that operations read and
write, operations started. Measured: how fast this machine's processor prepares text and cuts epochs. Not
measured: a GPU. Its rates are its maker's, the shares of them that are reached are assumptions, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from regard.data.batches import Batch, BatchStream, Sequences, TokenBudget
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks.translate.demo_corpus import make_corpus
from regard.tasks.translate.job import objective

PAIRS = 4_500_000  # WMT 2014 English-German
LENGTH = 28  # subwords of a sentence, its end included, on either side
VOCAB = 37_000  # joint; Vaswani et al. 2017, sec. 5.1
UPDATES, UPDATE_TOKENS = 100_000, 25_000  # target tokens an update; Vaswani et al. 2017, sec. 5.1 and 5.2
GPUS = 8
SENTENCES = 48  # of the batch that is counted
PRODUCTS = ("mm", "bmm", "addmm", "_scaled_dot_product", "flash")
# The makers' figures: dense bfloat16 FLOP/s, memory bytes/s, NVLink bytes/s in one direction.
DEVICES = {"A100 80 GB SXM": (312e12, 2.039e12, 300e9), "H100 SXM": (989e12, 3.35e12, 450e9)}
REACHED_PRODUCTS, REACHED_MEMORY, REACHED_LINK = 0.5, 0.7, 0.6  # shares of these rates
SECONDS_AN_OPERATION = 7e-6  # to start one from Python, without CUDA graphs
OPTIMISER_BYTES = 28 + 12  # a parameter and update: AdamW reads and writes 7 floats, a moving average 3


@dataclass
class Counted:
    """Of one forward and backward pass: arithmetic, bytes of operations that are no products, operations."""

    flops: float
    other_bytes: float
    operations: int


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; those that only look at a tensor another way are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found
        self.operations += 1
        if not any(name in func.__name__ for name in PRODUCTS):
            flat = torch.utils._pytree.tree_leaves((args, kwargs, found))
            self.bytes += sum(one.numel() * one.element_size() for one in flat if isinstance(one, torch.Tensor))
        return found


def transformer_base() -> EncoderDecoder:
    attention, feed_forward = AttentionConfig(heads=8), FeedForwardConfig(width=2048)
    shared: dict[str, Any] = {"norm": NormConfig(placement="post"), "embedding": EmbeddingConfig(dropout=0.1)}
    config = EncoderDecoderConfig(
        TransformerEncoderConfig(512, 6, attention, feed_forward, dropout=0.1, **shared),
        TransformerDecoderConfig(512, 6, attention, feed_forward, dropout=0.1, **shared),
        tie="all",
    )
    torch.manual_seed(0)
    return EncoderDecoder(VOCAB, VOCAB, config).train()


def pass_over(model: EncoderDecoder) -> Callable[[], None]:
    """A forward and backward pass in bfloat16, as the trainer takes it."""
    ids = torch.randint(4, VOCAB, (2, SENTENCES, LENGTH))
    lengths = torch.full((SENTENCES,), LENGTH)
    batch = Batch({"source": Sequences(ids[0], lengths), "target": Sequences(ids[1], lengths)}, np.arange(SENTENCES))
    loss = objective(0.1)

    def work() -> None:
        model.zero_grad()
        loss(model, batch, torch.bfloat16).objective.backward()

    return work


def counted(work: Callable[[], None]) -> Counted:
    with FlopCounterMode(display=False) as flops:
        work()
    with Traffic() as traffic:
        work()
    return Counted(flops.get_total_flops(), traffic.bytes, traffic.operations)


def share_of_products(work: Callable[[], None]) -> float:
    """Of the time of a pass on this processor."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    products = sum(time for name, time in times.items() if any(part in name for part in PRODUCTS))
    return products / sum(times.values())


@dataclass
class Preparation:
    """Measured here: sentences of one side encoded a second; seconds to cut an epoch into batches."""

    encoded_a_second: float
    cut_seconds: float


def preparation() -> Preparation:
    texts = [phrase.source for phrase in make_corpus(1, num_train=5000, num_validation=1, num_held_out=1).train]
    tokenizer = Tokenizer.train(texts, TokenizerConfig("bpe", 400))
    began = time.perf_counter()
    tokenizer.encode_ids(texts)
    encoded = len(texts) / (time.perf_counter() - began)
    chance = np.random.default_rng(1)

    class Lengths:
        """Stands for a corpus of which only lengths are asked."""

        folder, roles = Path("made"), ("source", "target")
        of = np.clip(chance.poisson(LENGTH, (2, PAIRS)), 2, 250).astype(np.int32)

        def __len__(self) -> int:
            return PAIRS

        def lengths(self, role: str) -> np.ndarray:
            return np.asarray(self.of[self.roles.index(role)])

    stream = BatchStream(Lengths(), TokenBudget(UPDATE_TOKENS // GPUS), seed=1)  # type: ignore[arg-type]
    began = time.perf_counter()
    stream.num_batches(0)
    return Preparation(encoded, time.perf_counter() - began)


def estimate(count: Counted, parameters: int, device: str) -> dict[str, float]:
    """Seconds of an update on each of the GPUs, by what they go into."""
    flops, memory, link = DEVICES[device]
    passes = UPDATE_TOKENS / GPUS / (SENTENCES * LENGTH)
    products = passes * count.flops / (REACHED_PRODUCTS * flops)
    others = (passes * count.other_bytes + parameters * OPTIMISER_BYTES) / (REACHED_MEMORY * memory)
    exchange = 2 * (GPUS - 1) / GPUS * parameters * 4 / (REACHED_LINK * link)
    return {
        "products": products,
        "others": others,
        "starting": count.operations * SECONDS_AN_OPERATION,
        "exchange": exchange,
    }


def report(count: Counted, parameters: int, share: float, prepared: Preparation) -> str:
    tokens = SENTENCES * LENGTH
    epochs = UPDATES * UPDATE_TOKENS / (PAIRS * LENGTH)
    lines = [
        "# An estimate: Transformer-base, 4.5 million sentence pairs, 8 GPUs",
        "",
        "`python benchmarks/large_run.py`",
        "",
        "No GPU has run this. Counted and measured figures are of regard's own code; the rest are the makers' figures"
        " and assumptions, marked as such.",
        "",
        "| quantity | value | where it comes from |",
        "|---|---|---|",
        f"| parameters | {parameters / 1e6:.1f} million | counted |",
        f"| arithmetic, forward and backward | {count.flops / tokens / 1e9:.3f} GFLOP a target token | counted |",
        f"| read and written beside products | {count.other_bytes / tokens / 1e6:.2f} MB a target token | counted,"
        " bfloat16 products, float32 weights |",
        f"| operations of a forward and backward pass | {count.operations:,} | counted |",
        f"| share of products in the time of a pass on a CPU | {share:.0%} | measured: {processor()}, one thread |",
        f"| sentences encoded | {prepared.encoded_a_second:,.0f} a second and core | measured, phrases of 8 words |",
        f"| cutting an epoch of {PAIRS / 1e6:.1f} million pairs | {prepared.cut_seconds:.1f} s | measured |",
        f"| subwords of a sentence | {LENGTH} on either side | assumed |",
        f"| training | {UPDATES:,} updates of {UPDATE_TOKENS:,} target tokens: {epochs:.0f} epochs | as Vaswani et al."
        " 2017 |",
        f"| share of a GPU's arithmetic that products reach | {REACHED_PRODUCTS:.0%} | assumed |",
        f"| share of its memory's speed that the rest reaches | {REACHED_MEMORY:.0%} | assumed |",
        f"| share of its link's speed that summing gradients reaches | {REACHED_LINK:.0%} | assumed |",
        f"| starting an operation | {SECONDS_AN_OPERATION * 1e6:.0f} us | assumed, without CUDA graphs |",
        "",
        "| an update on each of 8 | products | memory | products and memory | starting operations | gradients | all |"
        " 100,000 updates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device, (flops, memory, link) in DEVICES.items():
        part = estimate(count, parameters, device)
        computing = part["products"] + part["others"]
        whole = max(computing, part["starting"]) + part["exchange"]
        milliseconds = [part["products"], part["others"], computing, part["starting"], part["exchange"], whole]
        cells = " | ".join(f"{1e3 * value:.1f} ms" for value in milliseconds)
        about = f"{flops / 1e12:.0f} TFLOP/s, {memory / 1e12:.2f} TB/s, {link / 1e9:.0f} GB/s"
        lines.append(f"| {device} (maker: {about}) | {cells} | {UPDATES * whole / 3600:.1f} h |")
    cuts = epochs * prepared.cut_seconds / 60
    prepare = 2 * PAIRS / prepared.encoded_a_second / 60
    lines += [
        "",
        "All: the longer of computing and starting, which go on at the same time, and gradients, as if none were summed"
        f" while others are still computed. To be added: encoding the text once, {prepare:.0f} min on one core; cutting"
        f" epochs, {cuts:.0f} min in all; learning the vocabulary, validations and checkpoints.",
    ]
    return "\n".join(lines) + "\n"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = transformer_base()
    work = pass_over(model)
    text = report(counted(work), model.num_parameters(), share_of_products(work), preparation())
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
