"""Greedy search and sampling: every path picks one token a step and never looks back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regard.decoding.draws import Pick
from regard.decoding.frontier import Frontier, precise, refuse_nan
from regard.decoding.hypotheses import Ends, Hypothesis
from regard.models.memory import Memory


def walk(
    frontier: Frontier,
    memories: Mapping[str, Memory],
    pick: Pick,
    *,
    paths_per_sentence: int,
    eos: int,
    max_lengths: Tensor,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    """Of each sentence its paths, best score first; paths that have ended are taken out of the batch at once.

    max_lengths: int64 [sentences], at least 1.
    """
    num_sentences = frontier.num_rows
    sentences = torch.arange(num_sentences, device=frontier.device).repeat_interleave(paths_per_sentence)
    paths = torch.arange(len(sentences), device=frontier.device)
    rows = sentences  # the row of the frontier that each path extends; at first, paths of a sentence share one
    total = precise(torch.zeros(len(sentences), device=frontier.device))
    ends: list[Ends] = []
    ended_paths: list[Tensor] = []
    step = 0
    while len(paths):
        log_probs, scores = frontier.advance()
        if step == 0:
            log_probs, scores = log_probs[rows], scores[rows]
        tokens = pick(scores, paths, step)
        chosen = scores.gather(-1, tokens[:, None])[:, 0]
        refuse_nan(chosen, step)
        possible = chosen > float("-inf")
        length = step + 1
        token_log_probs = precise(log_probs.gather(-1, tokens[:, None])[:, 0])
        before, total = total, total + precise(chosen)
        ended = (tokens == eos) | (max_lengths[sentences[paths]] <= length) | ~possible
        if bool(ended.any()):
            stuck = ended & ~possible
            done = ended & possible
            ends.append(
                Ends(
                    torch.full_like(tokens[done], length),
                    rows[done],
                    tokens[done],
                    token_log_probs[done],
                    total[done] / length**length_penalty,
                    tokens[done] == eos,
                )
            )
            ended_paths.append(paths[done])
            if bool(stuck.any()):
                score = before[stuck] / max(step, 1) ** length_penalty
                ends.append(frontier.trail.before(rows[stuck], score))
                ended_paths.append(paths[stuck])
            kept = (~ended).nonzero()[:, 0]
            rows, tokens, token_log_probs = rows[kept], tokens[kept], token_log_probs[kept]
            paths, total = paths[kept], total[kept]
        if len(paths):
            frontier.select(rows, tokens, token_log_probs)
        rows = torch.arange(len(paths), device=frontier.device)
        step += 1
    order = torch.cat(ended_paths).argsort()
    found = frontier.trail.trace(Ends.join(ends).take(order), sentences, memories)
    groups = [found[first : first + paths_per_sentence] for first in range(0, len(found), paths_per_sentence)]
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]
