"""One output as it comes into being: the tokens that `decode` would return for one row, each as soon as chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from regard.decoding.draws import Draw, Pick, likeliest
from regard.decoding.frontier import Frontier, refuse_nan
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import Scorer, own_scorers
from regard.errors import ConfigError, ShapeError
from regard.models.decoder import Decoder
from regard.models.memory import Memory


def stream(
    decoder: Decoder,
    memories: Mapping[str, Memory],
    options: DecodingOptions,
    *,
    bos: int,
    eos: int,
    prefix: Tensor | None = None,
    scorers: Sequence[Scorer] = (),
    sentence_number: int = 0,
) -> Iterator[int]:
    """Output ids by greedy search or sampling, without BOS and prefix; the last one is EOS unless the length ran out.

    Arguments are as for `decode`; there is one row. sentence_number: what the draws are made from beside options.seed.

    Raises: ConfigError for a beam, whose best output is known at its end alone, for several outputs, and for a coverage
    penalty without memories; ShapeError for several rows.
    """
    options.check()
    if (options.beam_size > 1 and not options.sample) or options.num_best > 1:
        raise ConfigError(
            f"stream: beam_size is {options.beam_size} and num_best {options.num_best}, but a stream is one path; set"
            " both to 1, or use decode"
        )
    rows = {len(memory.lengths) for memory in memories.values()} | ({len(prefix)} if prefix is not None else set())
    if rows - {1}:
        raise ShapeError(f"stream: {max(rows)} rows, expected one; use decode for several")
    voters = [*scorers, *own_scorers(options, memories, eos)]
    return _tokens(decoder, memories, options, bos, eos, prefix, voters, sentence_number)


@torch.inference_mode()
def _tokens(
    decoder: Decoder,
    memories: Mapping[str, Memory],
    options: DecodingOptions,
    bos: int,
    eos: int,
    prefix: Tensor | None,
    voters: list[Scorer],
    sentence_number: int,
) -> Iterator[int]:
    frontier = Frontier(decoder, memories, bos=bos, prefix=prefix, scorers=voters, observe=None)
    path = torch.zeros(1, dtype=torch.int64, device=frontier.device)
    pick: Pick = likeliest
    if options.sample:
        keys = torch.tensor([[sentence_number, 0]], device=frontier.device)
        pick = Draw(keys, seed=options.seed, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    for step in range(options.max_length):
        _, scores = frontier.advance()
        tokens = pick(scores, path, step)
        chosen = scores.gather(-1, tokens[:, None])[:, 0]
        refuse_nan(chosen, step)
        if float(chosen) == float("-inf"):  # scorers left no way to go on
            return
        token = int(tokens)
        yield token
        if token == eos:
            return
        frontier.select(path, tokens, chosen)
