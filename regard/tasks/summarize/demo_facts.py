"""What the demo's headlines are held against: their facts, the names in them, and where they were looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention.records.record import AttentionRecord
from regard.tasks.summarize.demo_corpus import Report
from regard.tasks.summarize.result import Summary

Span = tuple[int, int]


@dataclass(frozen=True)
class FactsFound:
    """right: share of headlines that are one of their report's right ones. names: share of the right headlines' names
    that stand in the headline. attention: of the facts that stand in a headline, the share whose attention lies more on
    a sentence that states them than on any other; chance: what a sentence drawn at random would have."""

    right: float
    num_reports: int
    names: float
    num_names: int
    attention: float
    chance: float
    num_facts: int

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def facts_found(reports: Sequence[Report], summaries: Sequence[Summary]) -> FactsFound:
    """summaries: of the reports, with attention."""
    names: list[bool] = []
    looked: list[bool] = []
    chances: list[float] = []
    for report, summary in zip(reports, summaries, strict=True):
        said = {word.text: word.span for word in summary.words}
        names += [fact.value in said for fact in report.facts if fact.is_name]
        for fact in report.facts:
            if fact.value in said:
                masses = mass_by_sentence(summary, said[fact.value], report.sentences)
                looked.append(int(masses.argmax()) in fact.sentences)
                chances.append(len(fact.sentences) / len(report.sentences))
    right = [summary.text in report.right for report, summary in zip(reports, summaries, strict=True)]
    return FactsFound(_mean(right), len(right), _mean(names), len(names), _mean(looked), _mean(chances), len(looked))


def mass_by_sentence(summary: Summary, span: Span, sentences: Sequence[Span]) -> Tensor:
    """[sentences], how much of the attention that copies, at the tokens of these characters, lay on each sentence."""
    record = summary.pointed()
    assert isinstance(record, AttentionRecord) and record.query is not None and record.key is not None
    weights = record.rows()  # [summary_len, source_len], the mean over heads
    mine = [place for place, (begin, end) in enumerate(record.query.spans) if begin < span[1] and end > span[0]]
    found = torch.zeros(len(sentences))
    for place, (begin, end) in enumerate(record.key.spans):
        for number, (first, last) in enumerate(sentences):
            if first <= begin < end <= last:
                found[number] += float(weights[mine, place].sum())
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
