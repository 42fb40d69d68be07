"""Prints what a finished run came to, as the Markdown that recipes/*/README.md holds, and draws its validation curve.

.venv/bin/python recipes/report.py runs/multi30k-en-de [--curve recipes/translate/results/multi30k-en-de.svg]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--curve", type=Path, help="where to draw the validation curve (.svg or .png)")
    arguments = parser.parse_args()
    result = json.loads((arguments.run / "result.json").read_text(encoding="utf-8"))
    metric = yaml.safe_load((arguments.run / "recipe.yaml").read_text(encoding="utf-8"))["validation"]["metric"]
    lines = (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [values for line in lines if f"validation_{metric}" in (values := json.loads(line))]
    curve = {values["step"]: float(values[f"validation_{metric}"]) for values in found}
    print("| scoring | metric | score | 95 % interval | signature |\n|---|---|---|---|---|")
    for scores in result["test"]:
        for name, score in scores["metrics"].items():
            cells = (scores.get("scoring", ""), name, f"{score['value']:.4g}", interval(score), signature(score))
            print(f"| {' | '.join(cells)} |")
    candidates = ", ".join(f"{name} {score:.4g}" for name, score in result["validation"]["candidates"].items())
    print(f"\n{result['parameters']:,} parameters, {result['steps']:,} updates.")
    print(f"Candidates on the validation set, {metric}: {candidates}; kept: {result['validation']['chosen']}.")
    print(f"Prepared corpus sha256 `{result['data']['train']}`.\n")
    print("| update | " + " | ".join(str(step) for step in curve) + " |")
    print("|---" * (len(curve) + 1) + "|")
    print(f"| {metric} | " + " | ".join(f"{value:.4g}" for value in curve.values()) + " |")
    if arguments.curve:
        draw(curve, metric, arguments.curve)


def interval(score: dict[str, Any]) -> str:
    """Of a metric, in words; empty where it has none."""
    return "" if score.get("interval") is None else "{:.2f} to {:.2f}".format(*score["interval"])


def signature(score: dict[str, Any]) -> str:
    """How a metric was computed; empty where it does not say."""
    return f"`{score['signature']}`" if score.get("signature") else ""


def draw(curve: dict[int, float], metric: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel=f"{metric} on the validation set")
    axes.plot(list(curve), list(curve.values()), marker="o", markersize=3)
    axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
