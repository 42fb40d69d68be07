"""What observation costs: attention with exact statistics beside the plain fused forward, in time and in memory.

    .venv/bin/python benchmarks/attention.py [--lengths 4096 8192] [--repeats 7] [--threads 2] [--out FILE]

8 heads of 64 (float32 on a CPU, bfloat16 on a GPU); causal and full; one sequence, and two of which the second is a
quarter padding. Each pair is measured in turn in one process, and the table gives the median of the ratios and their
spread; peak memory, above inputs and output, is that of a process of its own. Before any figure the statistics are held
to the materialised ones in float64; a red check ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regard.attention import chunked, second_pass
from regard.attention.attend import Attended, attend, explain_backend
from regard.attention.masks import Causal, Global, Mask, Packed, Padding, Window
from regard.attention.observation import Observe
from regard.attention.records.record import AttentionRecord
from regard.errors import ConfigError

HEADS, HEAD_DIM = 8, 64
HEALTH = Observe(entropy=True, max_logit=True, received=True)
ERRORS = ("rows", "columns", "top_weights", "logsumexp", "max_logit", "entropy", "received")  # the last is relative
TILE, RECORD_TOKENS = 512, 100_000
MEMORY_LENGTHS = (8192, 16384, 32768, 65536)


class Case(NamedTuple):
    """One shape and one mask."""

    length: int
    causal: bool
    padded: bool

    @property
    def name(self) -> str:
        return f"{self.length} {'causal' if self.causal else 'full'}, {'padded batch 2' if self.padded else 'batch 1'}"

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        shape = (2 if self.padded else 1, HEADS, self.length, HEAD_DIM)
        query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        return query, key, value

    def lengths(self) -> Tensor:
        return torch.tensor([self.length, self.length * 3 // 4])

    def mask(self, device: str) -> Mask | None:
        padding = Padding(self.lengths().to(device), shortest=int(self.lengths().min())) if self.padded else None
        if not self.causal:
            return padding
        return Causal() if padding is None else Causal() & padding

    def plain(self, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Torch's fused forward with the arguments that its own users pass."""
        if not self.padded:
            return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        place = torch.arange(self.length)
        allowed = (place < self.lengths()[:, None])[:, None, None, :]
        if self.causal:
            allowed = allowed & (place[None, :] <= place[:, None])
        allowed = allowed.to(device)
        return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def everything(length: int) -> Observe:
    """All statistics but the trace."""
    chosen = tuple(range(0, length, length // 8))
    return Observe(
        logsumexp=True,
        entropy=True,
        max_logit=True,
        received=True,
        sink_mass=4,
        top_k=8,
        rows=chosen,
        columns=chosen,
        pooled=(64, 64),
    )


def materialised(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> tuple[Tensor, ...]:
    """(output, entropy, max logit, received), as they are read off a materialised distribution."""
    scores = (query @ key.transpose(-2, -1)).mul_(HEAD_DIM**-0.5)
    if allowed is not None:
        scores.masked_fill_(~allowed, float("-inf"))
    greatest = scores.amax(-1)
    weights = scores.softmax(-1)
    entropy = torch.special.entr(weights).sum(-1)
    return weights @ value, entropy, greatest, weights.sum(-2)


# -- measuring ---------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Ratio(NamedTuple):
    """first over second: medians of both in seconds, the median of the ratios and their extremes."""

    first: float
    second: float
    median: float
    least: float
    most: float


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int, device: str) -> Ratio:
    first(), second()
    pairs = [(seconds(first, device), seconds(second, device)) for _ in range(repeats)]
    ratios = [one / other for one, other in pairs]
    times = (statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs))
    return Ratio(*times, statistics.median(ratios), min(ratios), max(ratios))


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within the context the second pass is plain torch, as on a machine that has no compiler."""
    before = second_pass.kernels
    second_pass.kernels = lambda device: [chunked]  # type: ignore[assignment, list-item]
    try:
        yield
    finally:
        second_pass.kernels = before


def check(device: str) -> None:
    """Holds forward and statistics to the materialised ones in float64, at an odd length. Raises: SystemExit."""
    for causal in (False, True):
        for padded in (False, True):
            case = Case(1021, causal, padded)
            query, key, value = case.inputs(device)
            mask = case.mask(device)
            found = attend(query, key, value, mask=mask, observe=everything(case.length))
            wide = [side.double() for side in (query, key, value)]
            with torch.no_grad():
                truth = attend(*wide, mask=mask, observe=everything(case.length), backend="reference")
            tolerance = 2e-5 if query.dtype == torch.float32 else 2e-2
            for name, expected in {"output": truth.output, **truth.observation.tensors()}.items():
                mine = found.output if name == "output" else getattr(found.observation, name)
                if name == "top_index":
                    continue  # equal weights may change places; top_weights are compared
                scale = max(1.0, float(expected.abs().max()))
                error = float((mine.double() - expected.double()).abs().nan_to_num(0.0).max()) / scale
                if not error <= tolerance:
                    raise SystemExit(f"{case.name}: {name} is off by {error:.2g} (at most {tolerance:.0e}); no figures")


# -- the tables --------------------------------------------------------------------------------------------------------


def time_table(cases: list[Case], repeats: int, device: str, chosen: str) -> Iterator[str]:
    yield "| ratio of time to torch's plain fused forward | forward, s | ratio, median | spread |\n|---|---|---|---|"
    for case in cases:
        yield from times_of(case, repeats, device, chosen)


@torch.no_grad()
def times_of(case: Case, repeats: int, device: str, chosen: str) -> Iterator[str]:
    query, key, value = case.inputs(device)
    mask, plain = case.mask(device), case.plain(device)

    def forward() -> Tensor:
        if device == "cpu":
            return plain(query, key, value)
        peer = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        with sdpa_kernel(peer, set_priority=True):
            return plain(query, key, value)

    def ours(observe: Observe | None = None) -> Attended:
        return attend(query, key, value, mask=mask, observe=observe)

    def without() -> Attended:
        with without_compiler():
            return ours(HEALTH)

    def native(observe: Observe | None = None) -> Attended:
        return attend(query, key, value, mask=mask, observe=observe, backend="native")

    runs: dict[str, Callable[[], object]] = {
        "plain attend": ours,
        "+ entropy, max_logit, received": lambda: ours(HEALTH),
        "+ everything but trace": lambda: ours(everything(case.length)),
        "+ entropy, max_logit, received, no compiler": without,
    }
    if native_refusal(query, key, value) is None:
        runs["backend native, entropy and max_logit"] = lambda: native(Observe(entropy=True, max_logit=True))
        runs["backend native, + received"] = lambda: native(HEALTH)
    for name, run in runs.items():
        if chosen not in f"{case.name}: {name}":
            continue
        found = ratio(run, forward, repeats, device)
        told = f"| {found.second:.3f} | {found.median:.3f} | {found.least:.3f} to {found.most:.3f} |"
        yield f"| {case.name}: {name} {told}"


@torch.no_grad()
def cost_table(length: int, repeats: int, device: str) -> Iterator[str]:
    """What each statistic alone adds to a forward; docs/observation.md quotes it."""
    yield f"| statistic alone, {length} full, batch 1 | added to one forward, in forwards | spread |\n|---|---|---|"
    query, key, value = Case(length, False, False).inputs(device)
    chosen = everything(length).columns
    window = torch.zeros(1, length, device=device)
    window[:, -64:] = 1.0
    requests = {
        "logsumexp": Observe(logsumexp=True),
        "entropy": Observe(entropy=True),
        "max_logit": Observe(max_logit=True),
        "received": Observe(received=True),
        "received, weighted": Observe(received=window),
        "sink_mass 4": Observe(sink_mass=4),
        "top_k 8": Observe(top_k=8),
        "8 rows": Observe(rows=chosen),
        "8 columns": Observe(columns=chosen),
        "pooled 64 x 64": Observe(pooled=(64, 64)),
        "pooled 4096 x 4096": Observe(pooled=(4096, 4096)),
        "trace": Observe(trace=True),
        "entropy of one head": Observe(entropy=True, heads=(3,)),
    }
    for name, request in requests.items():
        yield cost_line(name, (query, key, value), request, repeats, device)


def cost_line(name: str, inputs: tuple[Tensor, ...], request: Observe, repeats: int, device: str) -> str:
    found = ratio(lambda: attend(*inputs, observe=request), lambda: attend(*inputs), repeats, device)
    return f"| {name} | {found.median - 1:.2f} | {found.least - 1:.2f} to {found.most - 1:.2f} |"


@torch.no_grad()
def error_table(device: str) -> Iterator[str]:
    """Largest errors against float64 of the same inputs; docs/observation.md states bounds above these."""
    yield "| inputs, 2048 causal | " + " | ".join(ERRORS) + " |\n|---|" + "---|" * len(ERRORS)
    mask = Causal()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        query, key, value = (side.to(dtype) for side in Case(2048, True, False).inputs(device))
        found = attend(query, key, value, mask=mask, observe=everything(2048)).observation
        wide = (side.double() for side in (query, key, value))
        truth = attend(*wide, mask=mask, observe=everything(2048), backend="reference").observation
        errors = []
        for name in ERRORS:
            mine, expected = getattr(found, name).double(), getattr(truth, name).double()
            relative = expected.abs().clamp(min=1e-300) if name == "received" else 1.0
            errors.append(float(((mine - expected).abs() / relative).max()))
        yield f"| {str(dtype).removeprefix('torch.')} | " + " | ".join(f"{error:.1e}" for error in errors) + " |"


def native_refusal(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why regard's own forward does not serve these inputs, or None."""
    small = [side[:, :, :8] for side in (query, key, value)]
    try:
        attend(*small, backend="native")
    except ConfigError as error:
        return str(error)
    return None


@torch.no_grad()
def parts_table(length: int, repeats: int, device: str) -> Iterator[str]:
    """What fused calls in parts save over torch with the mask that its own users pass."""
    yield f"| torch with a dense mask, over attend, {length} | torch, s | ratio, median | spread |\n|---|---|---|---|"
    documents = torch.arange(length, device=device)[None] // 300
    masks: dict[str, Mask] = {
        "causal window of 512": Causal() & Window(511, 0),
        "window of 256 to each side, 16 global tokens": Window(256, 256) | Global(16),
        "packed documents of 300": Packed(documents),
        "packed documents of 300, causal": Causal() & Packed(documents),
        "causal over a quarter of the queries": Causal(),
    }
    for name, mask in masks.items():
        query, key, value = Case(length, False, False).inputs(device)
        if "quarter" in name:
            query = query[:, :, : length // 4].contiguous()
        yield parts_line(name, (query, key, value), mask, repeats, device)


def parts_line(name: str, inputs: tuple[Tensor, Tensor, Tensor], mask: Mask, repeats: int, device: str) -> str:
    dense = mask.dense(inputs[0].shape[2], inputs[1].shape[2], device)
    torch.testing.assert_close(
        attend(*inputs, mask=mask).output,
        F.scaled_dot_product_attention(*inputs, attn_mask=dense),
        rtol=1e-2,
        atol=1e-4,
    )
    found = ratio(
        lambda: F.scaled_dot_product_attention(*inputs, attn_mask=dense),
        lambda: attend(*inputs, mask=mask),
        repeats,
        device,
    )
    return f"| {name} | {found.first:.3f} | {found.median:.2f} | {found.least:.2f} to {found.most:.2f} |"


@torch.no_grad()
def materialising_line(case: Case, repeats: int, device: str) -> str:
    query, key, value = case.inputs(device)
    mask = case.mask(device)
    allowed = None if mask is None else mask.dense(case.length, case.length, device)

    def peer() -> object:
        return materialised(query, key, value, allowed)

    def ours() -> object:
        return attend(query, key, value, mask=mask, observe=HEALTH)

    found = ratio(peer, ours, repeats, device)
    return f"| {case.name} | {found.first:.3f} | {found.median:.2f} | {found.least:.2f} to {found.most:.2f} |"


def peak_megabytes(what: str, length: int, device: str) -> float:
    """Peak memory above inputs and output, in MB, of one call in a process of its own."""
    command = [sys.executable, __file__, "--child", what, "--lengths", str(length), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["bytes"]) / 1e6


def child(what: str, length: int, device: str) -> None:
    """Prints the peak of one call as JSON."""
    case = Case(length, True, False)
    mask = case.mask(device)
    small = Case(256, True, False).inputs(device)
    observe = everything if what == "everything" else (lambda length: HEALTH)
    with torch.no_grad():
        attend(*small, mask=mask, observe=observe(256))  # loads and compiles what it needs
        query, key, value = case.inputs(device)
        reset_peak(device)
        before = memory(device, "VmRSS")
        if what == "materialised":
            result = materialised(query, key, value, Causal().dense(length, length, device))
            output = result[0]
        elif what == "plain":
            output = case.plain(device)(query, key, value)
        else:
            output = attend(query, key, value, mask=mask, observe=observe(length)).output
        peak = memory(device, "VmHWM") - before - output.numel() * output.element_size()
    print(json.dumps({"bytes": peak}))


def reset_peak(device: str) -> None:
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def memory(device: str, which: str) -> int:
    """Bytes held now (VmRSS) or at the peak (VmHWM)."""
    if device != "cpu":
        return torch.cuda.memory_allocated() if which == "VmRSS" else torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status does not say {which}: peak memory is measured on Linux")


def memory_table(device: str) -> Iterator[str]:
    yield "| peak memory above inputs and output, causal, batch 1 | MB |\n|---|---|"
    for what in ("plain", "observed", "everything", "materialised"):
        yield f"| 8192: {what} | {peak_megabytes(what, 8192, device):.0f} |"
    found = [peak_megabytes("observed", length, device) for length in MEMORY_LENGTHS]
    slopes = [
        (after - before) * 1e6 / (longer - shorter)
        for before, after, shorter, longer in zip(found, found[1:], MEMORY_LENGTHS, MEMORY_LENGTHS[1:], strict=False)
    ]
    for length, megabytes in zip(MEMORY_LENGTHS, found, strict=True):
        yield f"| {length}: observed | {megabytes:.0f} |"
    yield f"| slope between these, bytes a token | {', '.join(f'{slope:.0f}' for slope in slopes)} |"


def tile_line(repeats: int) -> str:
    """A tile of a long record, freshly opened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.safetensors"
        torch.manual_seed(0)
        query, key = (torch.randn(1, HEADS, RECORD_TOKENS, HEAD_DIM) for _ in range(2))
        pairs = second_pass.PairScores(query, key, HEAD_DIM**-0.5)
        logsumexp = torch.full((1, HEADS, RECORD_TOKENS), 12.0)  # any will do: what is timed does not depend on it
        observation = second_pass.Observation(logsumexp=logsumexp, trace=pairs)
        AttentionRecord({"layers.0.self": observation}).save(path)

        def run() -> Tensor:
            begin = 40_000
            return AttentionRecord.load(path).tile("layers.0.self", 3, (begin, begin + TILE), (begin, begin + TILE))

        run()
        times = [seconds(run, "cpu") * 1e3 for _ in range(max(repeats, 7))]
    return (
        f"A {TILE} x {TILE} tile of a {RECORD_TOKENS}-token record, freshly opened, one head: median "
        f"{statistics.median(times):.2f} ms ({min(times):.2f} to {max(times):.2f})."
    )


def hardware(device: str, threads: int) -> str:
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {threads} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--rows", default="", help="only the rows of the first table whose name has this text")
    parser.add_argument("--child", choices=["plain", "observed", "everything", "materialised"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    lengths = arguments.lengths or ([4096, 8192] if device == "cpu" else [16384, 32768])
    if arguments.child:
        child(arguments.child, lengths[0], device)
        return
    check(device)
    told: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        told.append(line)

    say(f"{hardware(device, arguments.threads)}; {HEADS} heads of {HEAD_DIM}; {arguments.repeats} pairs each.\n")
    cases = [Case(length, causal, padded) for length in lengths for padded in (False, True) for causal in (True, False)]
    for line in time_table(cases, arguments.repeats, device, arguments.rows):
        say(line)
    if arguments.rows:
        return
    say("")
    say("| materialising the same, over regard | materialised, s | ratio, median | spread |\n|---|---|---|---|")
    for causal in (False, True):
        say(materialising_line(Case(8192, causal, False), arguments.repeats, device))
    say("")
    for line in parts_table(lengths[0], arguments.repeats, device):
        say(line)
    say("")
    for line in cost_table(lengths[0], arguments.repeats, device):
        say(line)
    say("")
    for line in error_table(device):
        say(line)
    say("")
    for line in memory_table(device):
        say(line)
    say("")
    say(tile_line(arguments.repeats))
    small = Case(256, True, False).inputs(device)
    say(f"\nBackend: {explain_backend(*small, mask=Causal(), observe=HEALTH).chosen}.")
    if arguments.out is not None:
        arguments.out.write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
