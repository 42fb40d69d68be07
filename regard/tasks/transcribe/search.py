"""From frames to outputs: CTC alone, an attention decoder alone, or both in one search, with a language model if given.

One-pass joint decoding adds CTC's prefix scores to the decoder's votes (Watanabe et al. 2017); shallow fusion adds a
language model's (Gulcehre et al. 2015). What each of them is stands in regard/decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.attention.observation import Observation, Observe
from regard.decoding.ctc import best_path, prefix_beam_search
from regard.decoding.ctc_prefix import CTCPrefixScorer, SilentDecoder
from regard.decoding.force import force
from regard.decoding.fusion import LanguageModelScorer, LengthReward
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import Scorer
from regard.decoding.search import decode
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer
from regard.models.ctc_model import CTCModel, CTCModelConfig
from regard.models.decoder import Decoder
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.memory import Memory

AcousticConfig = EncoderDecoderConfig | CTCModelConfig
AcousticModel = EncoderDecoder | CTCModel


@dataclass(frozen=True)
class SpeechDecoding:
    """How transcripts are searched for."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # Totals are compared as they are (length_penalty 0): CTC, which must account for every frame, needs no correction.
    search: DecodingOptions = field(default_factory=lambda: DecodingOptions(length_penalty=0.0))
    # CTC's share of the votes, the decoder has the rest. 0: the decoder alone. 1: CTC alone; then a beam of 1 takes the
    # likeliest label of every frame. Without a CTC head it is 0, without a decoder 1, whatever stands here.
    ctc_weight: float = 0.3
    language_model: str | None = None  # directory of a language model with the same vocabulary
    language_weight: float = 0.3  # of its log-probabilities, beside votes that sum to 1
    length_reward: float = 0.0  # nats for each token: what a language model takes from long outputs

    def check(self) -> None:
        """Raises: ConfigError for what cannot work."""
        self.search.check()
        problems = []
        if not 0.0 <= self.ctc_weight <= 1.0:
            problems.append(f"ctc_weight is {self.ctc_weight}, expected a share from 0 to 1")
        if self.language_weight < 0.0:
            problems.append(f"language_weight is {self.language_weight}, expected 0 or above")
        if self.search.sample or self.search.num_best > 1:
            problems.append("search.sample and search.num_best have no place in transcription; remove them")
        if problems:
            raise ConfigError(f"decoding: {'; '.join(problems)}")

    def share_of(self, model: AcousticModel) -> float:
        """CTC's share with this model."""
        if isinstance(model, CTCModel):
            return 1.0
        return self.ctc_weight if model.ctc is not None else 0.0


@dataclass(frozen=True)
class LanguageModelVoter:
    """A language model that votes. decoder: reads no memory, and text of any length. begins: whether it reads a
    transcript as the beginning of a document; else as the middle of one."""

    decoder: Decoder
    begins: bool = True


@dataclass(frozen=True)
class Found:
    """One sound's output. tokens: ids without the end; score: what the search ranked by, nats.

    attention: layer -> [heads, tokens, vectors], a row for the end token behind those of the tokens. ctc:
    log-probabilities [vectors, vocab]; None without a CTC head. num_vectors: of the memory.
    """

    tokens: list[int]
    score: float
    finished: bool
    attention: Mapping[str, Tensor]
    ctc: Tensor | None
    num_vectors: int
    stride: int  # frames that a vector stands for


@torch.no_grad()
def search(
    model: AcousticModel,
    frames: Tensor,
    lengths: Tensor,
    decoding: SpeechDecoding,
    *,
    language_model: LanguageModelVoter | None = None,
    attention: bool = False,
) -> list[Found]:
    """frames: [batch, frames, bins], padded; lengths: [batch] -> the best output of each. attention: also return it.

    Raises: ConfigError for a language model of another vocabulary.
    """
    memories, _ = model.encode(frames, lengths)
    memory = memories["source"]
    ctc = None if model.ctc is None else model.ctc(memory.vectors)
    share, options = decoding.share_of(model), decoding.search
    alone = share == 1.0 and language_model is None
    if alone and ctc is not None:
        outputs, seen = _by_ctc(ctc, memory, options, decoding.length_reward), None
    else:
        outputs, seen = _jointly(model, memories, ctc, share, decoding, language_model, attention)
    if attention and seen is None and isinstance(model, EncoderDecoder):
        seen = _forced(model, memories, [tokens for tokens, _, _ in outputs])
    results = []
    for place, (tokens, score, finished) in enumerate(outputs):
        count = int(memory.lengths[place])
        of_frames = None if ctc is None else ctc[place, :count].cpu()
        results.append(Found(tokens, score, finished, seen[place] if seen else {}, of_frames, count, memory.stride))
    return results


Output = tuple[list[int], float, bool]  # tokens without the end, score, finished


def _by_ctc(ctc: Tensor, memory: Memory, options: DecodingOptions, reward: float) -> list[Output]:
    if options.beam_size == 1:
        return [(one.tokens, one.log_prob, True) for one in best_path(ctc, memory.lengths)]
    beams = prefix_beam_search(
        ctc, memory.lengths, beam_size=options.beam_size, num_best=options.beam_size, candidates=_candidates(ctc)
    )
    best = [max(beam, key=lambda one: one.log_prob + reward * len(one.tokens)) for beam in beams]
    return [(one.tokens, one.log_prob + reward * len(one.tokens), True) for one in best]


def _candidates(ctc: Tensor) -> int | None:
    """So many tokens a frame as can matter: beyond some dozens their mass is nothing."""
    return None if ctc.shape[-1] <= 64 else 64


def _jointly(
    model: AcousticModel,
    memories: Mapping[str, Memory],
    ctc: Tensor | None,
    share: float,
    decoding: SpeechDecoding,
    language_model: LanguageModelVoter | None,
    attention: bool,
) -> tuple[list[Output], list[dict[str, Tensor]] | None]:
    memory, eos = memories["source"], Tokenizer.EOS
    voters: list[Scorer] = []
    if share < 1.0:
        assert isinstance(model, EncoderDecoder)
        decoder: Decoder = model.decoder
        scale = 1.0 / (1.0 - share)  # of the votes, so that the decoder's weight is 1
    else:
        assert ctc is not None, "a model has a decoder or a CTC head"
        decoder, scale = SilentDecoder(ctc.shape[-1]), 1.0
    if share > 0.0 and ctc is not None:
        voters.append(CTCPrefixScorer(ctc, memory.lengths, weight=share * scale, eos=eos))
    if language_model is not None and decoding.language_weight > 0:
        bos = Tokenizer.BOS if language_model.begins else None
        weight = decoding.language_weight * scale
        voters.append(LanguageModelScorer(language_model.decoder, weight=weight, bos=bos))
    if decoding.length_reward:
        voters.append(LengthReward(decoding.length_reward * scale, eos))
    beams = decode(
        decoder,
        memories,
        decoding.search,
        bos=Tokenizer.BOS,
        eos=eos,
        max_lengths=decoding.search.max_lengths(memory.lengths),
        scorers=voters,
        observe=Observe(rows="all") if attention and share < 1.0 else None,
    )
    outputs: list[Output] = []
    seen: list[dict[str, Tensor]] = []
    for [best, *_] in beams:
        outputs.append((best.tokens[:-1] if best.finished else best.tokens, best.score / scale, best.finished))
        seen.append({layer: rows.float().cpu() for layer, rows in best.attention.items()})
    return outputs, seen if share < 1.0 and attention else None


def _forced(model: EncoderDecoder, memories: Mapping[str, Memory], tokens: list[list[int]]) -> list[dict[str, Tensor]]:
    """Where the decoder looks when it is made to say what CTC found."""
    memory = memories["source"]
    longest = max(len(one) for one in tokens) + 1
    outputs = torch.zeros(len(tokens), longest, dtype=torch.int64, device=memory.lengths.device)
    for place, one in enumerate(tokens):
        outputs[place, : len(one) + 1] = torch.tensor([*one, Tokenizer.EOS])
    forced = force(model.decoder, memories, outputs, bos=Tokenizer.BOS, observe=Observe(rows="all"))
    return cross_attention(forced.attention, memory, [len(one) + 1 for one in tokens])


def cross_attention(
    observations: Mapping[str, Observation], memory: Memory, num_tokens: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Of a forced decoder's observations those of the memory: a row's layer -> [heads, its tokens, its vectors]."""
    width = memory.vectors.shape[1]
    return [
        {
            layer: seen.rows[place, :, :count, : int(memory.lengths[place])].float().cpu()
            for layer, seen in observations.items()
            if seen.rows is not None and seen.rows.shape[-1] == width and "self" not in layer.split(".")
        }
        for place, count in enumerate(num_tokens)
    ]
