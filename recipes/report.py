"""Prints what a finished run came to, as the Markdown that recipes/*/README.md holds, and draws its validation curve.

.venv/bin/python recipes/report.py runs/multi30k-en-de [--curve recipes/translate/multi30k-en-de.svg]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--curve", type=Path, help="where to draw the validation curve (.svg or .png)")
    arguments = parser.parse_args()
    result = json.loads((arguments.run / "result.json").read_text(encoding="utf-8"))
    lines = (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    curve = [values for line in lines if "validation_bleu" in (values := json.loads(line))]
    print("| scoring | metric | score | 95 % interval | signature |\n|---|---|---|---|---|")
    for scores in result["test"]:
        for name, metric in scores["metrics"].items():
            low, high = metric["interval"]
            print(
                f"| {scores['scoring']} | {name} | {metric['value']:.2f} | {low:.2f} to {high:.2f} "
                f"| `{metric['signature']}` |"
            )
    candidates = ", ".join(f"{name} {score:.2f}" for name, score in result["validation"]["candidates"].items())
    print(f"\n{result['parameters']:,} parameters, {result['steps']:,} steps.")
    print(f"Candidates on validation: {candidates}; kept: {result['validation']['chosen']}.")
    print(f"Prepared corpus sha256 `{result['data']['train']}`.\n")
    print("| step | " + " | ".join(str(values["step"]) for values in curve) + " |")
    print("|---" * (len(curve) + 1) + "|")
    print("| validation BLEU | " + " | ".join(f"{values['validation_bleu']:.1f}" for values in curve) + " |")
    if arguments.curve:
        draw([values["step"] for values in curve], curve, arguments.curve)


def draw(steps: list[int], curve: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="validation BLEU")
    axes.plot(steps, [values["validation_bleu"] for values in curve], marker="o", markersize=3)
    axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
