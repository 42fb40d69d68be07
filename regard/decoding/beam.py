"""Beam search over a batch of sentences, with back-pointers, exact stopping, and removal of finished sentences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regard.decoding.frontier import Frontier, precise, refuse_nan
from regard.decoding.hypotheses import Ends, Hypothesis
from regard.decoding.leading import leading
from regard.models.memory import Memory

DEAD = float("-inf")  # the total of a place in the beam that holds nothing


def beam_search(
    frontier: Frontier,
    memories: Mapping[str, Memory],
    *,
    beam_size: int,
    num_best: int,
    eos: int,
    max_lengths: Tensor,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    """Of each sentence at most num_best distinct hypotheses: finished ones first, among them the best score first.

    Each step looks at the 2 * beam_size best continuations of a sentence's live hypotheses, which always leaves
    beam_size that do not end. One that ends is kept if it stands among the best beam_size of them. Ties go to the
    lower place in the beam, then to the lower id, so that results are the same in any batch.

    A sentence stops when no live hypothesis can still enter its num_best, whatever follows (Huang, Zhao and Ma 2017,
    with a bound for division by length): a total that future tokens cannot raise, divided by the most favourable
    length. With length_penalty 1 the bound is loose, and a search runs on for some steps after its best hypothesis has
    ended (fewer under tight max_lengths); the result is never worse than that of a search that never stops early.
    Hypotheses cut off by max_lengths fill places that finished ones leave empty.

    max_lengths: int64 [sentences], at least 1.
    """
    num_sentences, device = frontier.num_rows, frontier.device
    active = torch.arange(num_sentences, device=device)  # the sentences that are still searched
    live = precise(torch.zeros((num_sentences, 1), device=device))  # totals [active, width], best first
    pool = Pool(num_sentences, num_best, live)
    bound = sum(max(scorer.bound, 0.0) for scorer in frontier.scorers)
    step = 0
    while len(active):
        log_probs, scores = frontier.advance()
        totals, parents, tokens = continuations(live, scores, 2 * beam_size)
        refuse_nan(totals, step)
        token_log_probs = precise(log_probs[parents, tokens])
        length = step + 1
        normalised = totals / length**length_penalty
        ends = tokens == eos

        finished = ends[:, :beam_size] & (totals[:, :beam_size] > DEAD)
        candidates = (parents, tokens, token_log_probs, normalised)
        if bool(finished.any()):
            pool.add(active, finished, length, candidates, ended=True)

        # The best beam_size that do not end, in order.
        next_live, order = totals.masked_fill(ends, DEAD).sort(dim=-1, descending=True, stable=True)
        next_live, order = next_live[:, :beam_size], order[:, :beam_size]
        stuck = next_live[:, 0] == DEAD
        caps = max_lengths[active]
        capped = caps <= length
        hopeless = optimistic(next_live[:, 0], length, caps, length_penalty, bound) <= pool.worst(active)
        closed = capped | hopeless | stuck
        if bool(closed.any()):
            if bool((capped & ~stuck).any()):
                survivors = tuple(part.gather(1, order) for part in candidates)
                pool.add(active, (next_live > DEAD) & capped[:, None], length, survivors, ended=False)
            abandoned = stuck & pool.empty(active)
            if bool(abandoned.any()):
                width = live.shape[1]
                rows = abandoned.nonzero()[:, 0] * width
                score = live[abandoned, 0] / max(step, 1) ** length_penalty
                pool.add_single(active[abandoned], frontier.trail.before(rows, score))
            kept = (~closed).nonzero()[:, 0]
            active, next_live, order = active[kept], next_live[kept], order[kept]
            parents, tokens, token_log_probs = parents[kept], tokens[kept], token_log_probs[kept]
        live = next_live
        if len(active):
            frontier.select(*(part.gather(1, order).flatten() for part in (parents, tokens, token_log_probs)))
        step += 1
    return pool.hypotheses(frontier, memories)


def continuations(live: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `count` continuations of each sentence: totals, rows they extend and tokens, each [active, count].

    live: [active, width]; scores: [active * width, num_outputs]. Where there are fewer, DEAD ones follow.
    """
    num_active, width = live.shape
    values, ids = leading(scores, min(count, scores.shape[-1]))  # no row can place more than `count`
    totals = (live.reshape(-1, 1) + precise(values)).view(num_active, -1)
    # Flattened by place in the beam, then best first, then lowest id: a stable sort breaks ties as promised.
    totals, order = totals.sort(dim=-1, descending=True, stable=True)
    totals, order = totals[:, :count], order[:, :count]
    first_rows = torch.arange(num_active, device=live.device)[:, None] * width
    parents = first_rows + order // ids.shape[1]
    tokens = ids.view(num_active, -1).gather(1, order)
    missing = count - totals.shape[1]
    if missing:
        totals = torch.nn.functional.pad(totals, (0, missing), value=DEAD)
        parents = torch.cat([parents, first_rows.expand(-1, missing)], dim=1)
        tokens = torch.nn.functional.pad(tokens, (0, missing))
    return totals, parents, tokens


def optimistic(totals: Tensor, length: int, max_lengths: Tensor, length_penalty: float, bound: float) -> Tensor:
    """No hypothesis that goes on from these totals can end with a higher score; all [active].

    The model's part of a total only falls, and votes add at most `bound` a token; what is then left is divided by the
    most favourable of the lengths from `length` to max_lengths.
    """
    # An infinite bound makes this infinite, or NaN where no token may follow, which is closed on other grounds.
    reached = totals + bound * (max_lengths - length) if bound else totals
    here = torch.full_like(totals, float(length)) ** length_penalty
    there = max_lengths.to(totals.dtype) ** length_penalty
    return torch.maximum(reached / here, reached / there)


class Pool:
    """The best hypotheses found so far: of every sentence `size` places, finished ones first, best first.

    A place holds a rank and the number of an entry; what an entry is stands in lists that only grow.
    """

    def __init__(self, num_sentences: int, size: int, like: Tensor) -> None:
        self.scores = like.new_full((num_sentences, size), DEAD)
        self.finished = torch.zeros((num_sentences, size), dtype=torch.bool, device=like.device)
        self.entries = torch.full((num_sentences, size), -1, dtype=torch.int64, device=like.device)
        self.ends: list[Ends] = []
        self.count = 0

    def worst(self, sentences: Tensor) -> Tensor:
        """The score to beat: that of the last place, -inf while it is not held by a finished hypothesis."""
        return self.scores[sentences, -1].masked_fill(~self.finished[sentences, -1], DEAD)

    def empty(self, sentences: Tensor) -> Tensor:
        """Whether nothing was found yet."""
        return self.entries[sentences, 0] < 0

    def add(
        self, sentences: Tensor, chosen: Tensor, length: int, candidates: tuple[Tensor, ...], *, ended: bool
    ) -> None:
        """Enters hypotheses of one step.

        sentences: [active]; chosen: [active, n], True for those to enter; candidates: rows, tokens, log-probabilities
        and scores, each [active, at least n], of which the first n are meant.
        """
        rows, tokens, token_log_probs, scores = (part[:, : chosen.shape[1]] for part in candidates)
        number = torch.full_like(rows, -1)
        new = int(chosen.sum())
        number[chosen] = torch.arange(self.count, self.count + new, device=rows.device)
        self.count += new
        self.ends.append(
            Ends(
                torch.full_like(rows[chosen], length),
                rows[chosen],
                tokens[chosen],
                token_log_probs[chosen],
                scores[chosen],
                torch.full_like(chosen[chosen], ended),
            )
        )
        self._merge(sentences, scores.masked_fill(~chosen, DEAD), number, torch.full_like(chosen, ended) & chosen)

    def add_single(self, sentences: Tensor, ends: Ends) -> None:
        """Enters one unfinished hypothesis for each of the sentences."""
        number = torch.arange(self.count, self.count + len(sentences), device=sentences.device)
        self.count += len(sentences)
        self.ends.append(ends)
        self._merge(sentences, ends.score[:, None], number[:, None], ends.finished[:, None])

    def _merge(self, sentences: Tensor, scores: Tensor, entries: Tensor, finished: Tensor) -> None:
        size = self.scores.shape[1]
        scores = torch.cat([self.scores[sentences], scores], dim=1)
        finished = torch.cat([self.finished[sentences], finished], dim=1)
        entries = torch.cat([self.entries[sentences], entries], dim=1)
        by_score = scores.argsort(dim=1, descending=True, stable=True)  # of equals, the earlier found
        rank = finished.gather(1, by_score).to(torch.int8).argsort(dim=1, descending=True, stable=True)
        order = by_score.gather(1, rank)[:, :size]
        self.scores[sentences] = scores.gather(1, order)
        self.finished[sentences] = finished.gather(1, order)
        self.entries[sentences] = entries.gather(1, order)

    def hypotheses(self, frontier: Frontier, memories: Mapping[str, Memory]) -> list[list[Hypothesis]]:
        """The contents, sentence by sentence."""
        sentences, places = (self.entries >= 0).nonzero(as_tuple=True)
        chosen = Ends.join(self.ends).take(self.entries[sentences, places])
        results: list[list[Hypothesis]] = [[] for _ in range(len(self.scores))]
        for sentence, found in zip(sentences.tolist(), frontier.trail.trace(chosen, sentences, memories), strict=True):
            results[sentence].append(found)
        return results
