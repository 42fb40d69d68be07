"""Generation of one text by a language model of 10 million parameters, beside transformers' `generate`, same weights.

.venv/bin/python benchmarks/generation_speed.py [--rounds 7] [--tokens 200] [--threads 2] [--write]

A Llama with random weights; both sides go on greedily from the same prompt, and no speed is printed unless their
tokens are the same. Of each round's pair the ratio counts, since a shared machine's speed swings.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from regard.decoding.options import DecodingOptions
from regard.decoding.stream import stream
from regard.models.foreign.llama import llama_config, llama_weights
from regard.models.language_model import LanguageModel
from regard.training.averaging import load_weights

SIZES = {
    "vocab_size": 260,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
RESULT = Path(__file__).parent / "results" / "generation_speed.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"also into {RESULT.name}")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    for parameter in theirs.parameters():  # wide enough that the likeliest token is clear
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    config = llama_config(theirs.config.to_dict())
    ours = LanguageModel(SIZES["vocab_size"], config).eval()
    load_weights(ours, llama_weights(theirs.state_dict(), config))
    prompt = torch.randint(4, SIZES["vocab_size"], (1, arguments.prompt))

    def run_theirs() -> list[int]:
        found = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=arguments.tokens,
            min_new_tokens=arguments.tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=2,
        )
        return found[0, arguments.prompt :].tolist()

    options = DecodingOptions(max_length=arguments.tokens + 1, min_length=arguments.tokens)

    def run_ours() -> list[int]:
        tokens = stream(ours, {}, options, bos=int(prompt[0, 0]), eos=2, prefix=prompt[:, 1:])
        return [token for token, _ in zip(tokens, range(arguments.tokens), strict=False)]

    if run_theirs() != run_ours():
        sys.exit("the two sides do not write the same tokens: no speed is quoted")
    ratios, ours_rate, theirs_rate = [], [], []
    for _ in range(arguments.rounds):
        seconds = []
        for run in (run_theirs, run_ours):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
        theirs_rate.append(arguments.tokens / seconds[0])
        ours_rate.append(arguments.tokens / seconds[1])
    lines = [
        "# Generation of one text",
        "",
        f"    python benchmarks/generation_speed.py --rounds {arguments.rounds} --tokens {arguments.tokens} "
        f"--prompt {arguments.prompt} --threads {arguments.threads}",
        "",
        f"{_processor()}, {arguments.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {ours.num_parameters():,} parameters, float32, greedy, equal tokens.",
        "",
        "| | tokens a second, median | slowest to fastest |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(rate):.0f} | {min(rate):.0f} to {max(rate):.0f} |"
            for name, rate in (("transformers `generate`", theirs_rate), ("regard `stream`", ours_rate))
        ),
        "",
        f"Ratio of {arguments.rounds} pairs: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to "
        f"{max(ratios):.2f}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
