"""`decode`: the one door to greedy search, beam search and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.beam import beam_search
from regard.decoding.draws import Draw, likeliest
from regard.decoding.frontier import Frontier
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import Scorer, own_scorers
from regard.decoding.walk import walk
from regard.errors import ConfigError, ObservationError, ShapeError
from regard.models.decoder import Decoder
from regard.models.memory import Memory


@torch.no_grad()
def decode(
    decoder: Decoder,
    memories: Mapping[str, Memory],
    options: DecodingOptions,
    *,
    bos: int,
    eos: int,
    max_lengths: Tensor | int | None = None,
    prefix: Tensor | None = None,
    scorers: Sequence[Scorer] = (),
    observe: Observe | None = None,
    sentence_numbers: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Of every row of the batch its num_best hypotheses, best first.

    Beam search may find fewer than num_best, never none. What else is in the batch changes neither tokens nor draws,
    and scores only as far as the model's own rounding does.

    memories: by name, as the decoder expects them; rows are sentences. A decoder without memories takes its rows from
    `prefix`.
    bos: token id that is fed first. eos: output id that ends an output.
    max_lengths: int64 [rows] or one number, most tokens of each output, EOS counted; options.max_length holds besides.
    prefix: output ids [rows, prefix_len] that are read after BOS in the first step. They are no part of the hypotheses'
    tokens, scores and attention, nor of max_lengths. For prefixes of different lengths, or scored: `ForcedPrefix`.
    scorers: further voters; options.min_length, no_repeat_ngram and coverage_penalty bring theirs.
    observe: Observe(rows="all") gives every hypothesis the attention of its own steps, at the cost of keeping each
    step's rows for all live hypotheses; nothing else can be asked for, since everything else follows from the rows.
    sentence_numbers: int64 [rows], what a sentence's draws are made from beside options.seed; its place in the batch
    unless given. Give the sentence's number in the corpus to make samples independent of batching.

    Raises: ConfigError for options or lengths that cannot be, a coverage penalty without memories among them;
    ShapeError for rows that differ; ObservationError for a statistic other than rows.
    """
    options.check()
    _check_observe(observe)
    if any(len(memory.lengths) == 0 for memory in memories.values()):
        return []
    voters = [*scorers, *own_scorers(options, memories, eos)]
    frontier = Frontier(decoder, memories, bos=bos, prefix=prefix, scorers=voters, observe=observe)
    caps = _caps(max_lengths, options, frontier)
    if not options.sample and options.beam_size > 1:
        return beam_search(
            frontier,
            memories,
            beam_size=options.beam_size,
            num_best=options.num_best,
            eos=eos,
            max_lengths=caps,
            length_penalty=options.length_penalty,
        )
    pick = _draw(options, frontier, sentence_numbers) if options.sample else likeliest
    return walk(
        frontier,
        memories,
        pick,
        paths_per_sentence=options.num_best,
        eos=eos,
        max_lengths=caps,
        length_penalty=options.length_penalty,
    )


def _check_observe(observe: Observe | None) -> None:
    if observe is not None and not observe.asks_rows_alone:
        asked = ", ".join([*observe.beside_rows, *([f"rows={observe.rows!r}"] if observe.rows != "all" else [])])
        raise ObservationError(
            f"decode: observe asks for {asked}; a hypothesis carries the rows of all its steps and nothing else:"
            ' pass Observe(rows="all") and derive the rest from them'
        )


def _caps(max_lengths: Tensor | int | None, options: DecodingOptions, frontier: Frontier) -> Tensor:
    rows = frontier.num_rows
    if not isinstance(max_lengths, Tensor):
        limit = options.max_length if max_lengths is None else max_lengths
        max_lengths = torch.full((rows,), limit, dtype=torch.int64, device=frontier.device)
    if max_lengths.shape != (rows,):
        raise ShapeError(f"decode: max_lengths has shape {list(max_lengths.shape)}, expected [{rows}]: one a sentence")
    if int(max_lengths.min()) < 1:
        row = int(max_lengths.argmin())
        raise ConfigError(
            f"decode: max_lengths is {int(max_lengths[row])} for row {row}, expected at least 1; drop the sentence or"
            " allow a token"
        )
    return max_lengths.to(device=frontier.device, dtype=torch.int64).clamp(max=options.max_length)


def _draw(options: DecodingOptions, frontier: Frontier, sentence_numbers: Tensor | None) -> Draw:
    rows, device = frontier.num_rows, frontier.device
    if sentence_numbers is None:
        sentence_numbers = torch.arange(rows, device=device)
    if sentence_numbers.shape != (rows,):
        raise ShapeError(
            f"decode: sentence_numbers has shape {list(sentence_numbers.shape)}, expected [{rows}]: one a sentence"
        )
    numbers = sentence_numbers.to(device=device, dtype=torch.int64).repeat_interleave(options.num_best)
    samples = torch.arange(options.num_best, device=device).repeat(rows)
    return Draw(
        torch.stack([numbers, samples], dim=1),
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
