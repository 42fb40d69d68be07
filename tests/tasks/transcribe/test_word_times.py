"""Edges of words from energy, windows of long sounds, segments and subtitles: cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.errors import ConfigError
from regard.tasks.transcribe.boundaries import following
from regard.tasks.transcribe.result import Transcript, Word, segments
from regard.tasks.transcribe.search import Found
from regard.tasks.transcribe.subtitles import srt, vtt
from regard.tasks.transcribe.windows import joined, quietest_place, windows
from regard.tasks.transcribe.word_times import Placement, Timing, by_attention, by_ctc, edges, energy_of


def loudness(*spoken: tuple[int, int], length: int = 100) -> torch.Tensor:
    """[length]: loud on the given frames, quiet elsewhere."""
    energy = torch.full((length,), -10.0)
    for begin, end in spoken:
        energy[begin:end] = 0.0
    return energy


@pytest.mark.parametrize(
    ("cores", "placement"),
    [
        ([(15, 16), (55, 56), (80, 81)], Placement()),  # in the midst of each word
        ([(12, 28), (50, 60), (74, 90)], Placement()),  # all of the word
        ([(31, 32), (63, 64), (95, 96)], Placement(share=0.0)),  # said behind the word
        ([(10, 11), (48, 49), (72, 73)], Placement(share=1.0)),  # said as it begins
        ([(16, 17), (50, 51), (74, 75)], Placement(share=0.0, offset_frames=16)),  # a while before its end
    ],
)
def test_edges_are_where_the_sound_begins_and_ends(cores, placement):
    found = edges(cores, loudness((10, 30), (48, 62), (72, 92)), placement)
    for (begin, end), (true_begin, true_end) in zip(found, [(10, 30), (48, 62), (72, 92)], strict=True):
        assert abs(begin - true_begin) <= 1 and abs(end - true_end) <= 1


def test_words_without_a_pause_meet_where_the_placement_says():
    cores = [(20, 22), (44, 46)]
    [(first, middle), (again, last)] = edges(cores, loudness((10, 60)), Placement(share=0.5))
    assert middle == again == 33
    assert abs(first - 10) <= 1 and abs(last - 60) <= 1
    assert edges(cores, loudness((10, 60)), Placement(share=0.0, offset_frames=6))[0][1] == 28


def test_edges_of_nothing_and_of_one_sound_throughout():
    assert edges([], loudness((0, 5))) == []
    assert edges([(3, 4)], torch.zeros(0)) == []
    assert edges([(40, 41)], torch.zeros(100)) == [(0, 100)]


def test_ctc_and_attention_find_the_vectors():
    log_probs = torch.full((6, 4), -5.0)
    for vector, label in enumerate([0, 2, 2, 0, 3, 0]):
        log_probs[vector, label] = 0.0
    assert by_ctc(log_probs, [2, 3]) == [(1, 3), (4, 5)]
    assert by_ctc(log_probs, []) == []
    assert by_ctc(log_probs[:1], [2, 3]) is None  # fewer vectors than tokens
    rows = torch.zeros(1, 3, 8)
    rows[0, 0, :4], rows[0, 1, 4:], rows[0, 2] = 0.25, 0.25, 0.125
    found = by_attention({"cross": rows}, 2)
    assert found is not None and len(found) == 2 and found[0][0] == 0 and found[1][1] == 8
    assert by_attention({}, 2) is None


WORD_FRAMES = 8


def one_follows_of_four(seed: int, tokens: int = 6) -> torch.Tensor:
    """[4, tokens + 1, frames]: head 2 looks at each token's own frames, the others nearly evenly; then an end token."""
    frames = WORD_FRAMES * tokens
    heads = 1 + 0.5 * torch.rand(4, tokens + 1, frames, generator=torch.Generator().manual_seed(seed))
    for token in range(tokens):
        heads[2, token, WORD_FRAMES * token : WORD_FRAMES * (token + 1)] += 4.0
    return heads / heads.sum(-1, keepdim=True)


def as_found(attention: torch.Tensor) -> Found:
    return Found(list(range(attention.shape[1] - 1)), 0.0, True, {"cross": attention}, None, attention.shape[2], 1)


def test_the_head_that_follows_the_sound_is_chosen_and_beats_all_heads():
    assert following([as_found(one_follows_of_four(seed)) for seed in range(5)]) == (("cross", 2),)
    misses = {"chosen": 0, "all": 0}
    for seed in range(10, 15):
        attention = {"cross": one_follows_of_four(seed)}
        for name, heads in (("chosen", (("cross", 2),)), ("all", None)):
            found = by_attention(attention, 6, heads)
            assert found is not None
            true = [(WORD_FRAMES * token, WORD_FRAMES * (token + 1)) for token in range(6)]
            misses[name] += sum(abs(a - c) + abs(b - d) for (a, b), (c, d) in zip(found, true, strict=True))
    assert misses["chosen"] < 0.5 * misses["all"]


def test_heads_of_all_layers_that_follow_are_chosen():
    one = one_follows_of_four(1)
    both = Found(list(range(6)), 0.0, True, {"low": one[[0, 2]], "high": one[[2, 1, 2]]}, None, 48, 1)
    assert following([both]) == (("low", 1), ("high", 0), ("high", 2))
    assert len(following([both], share_of_best=0.0)) == 5
    assert following([]) == following([as_found(one[:, :2])]) == (), "one token has all frames whatever a head does"


def test_a_head_that_is_not_there_is_named():
    attention = {"cross": one_follows_of_four(1)}
    expected = r"heads of timestamps: received cross 4, low 0, expected some of cross 0 to 3"
    with pytest.raises(ConfigError, match=expected):
        by_attention(attention, 6, (("cross", 4), ("cross", 2), ("low", 0)))
    with pytest.raises(ConfigError, match="received none"):
        by_attention(attention, 6, ())


def test_a_timing_says_how():
    heads = (("a.cross", 0), ("b.cross", 1), ("b.cross", 3))
    assert str(Timing("attention", heads=heads)) == "attention (a.cross head 0; b.cross heads 1, 3)"
    assert [str(Timing("attention")), str(Timing("ctc", heads=heads))] == ["attention", "ctc"]


def test_energy_is_the_mean_band_or_the_zeroth_cepstrum():
    frames = torch.arange(6.0).view(2, 3)
    assert energy_of(frames, True).tolist() == [0.0, 3.0]
    assert energy_of(frames, False).tolist() == [1.0, 4.0]


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 100, 1000])
def test_windows_overlap_and_cover_everything(block):
    sound = np.arange(1000, dtype=np.float32)
    found = list(windows((sound[at : at + block] for at in range(0, 1000, block)), 100, 2.0))
    assert all(len(one.samples) == 200 for one in found[:-1]) and found[-1].is_last
    assert not any(one.is_last for one in found[:-1])
    for one in found:
        begin = round(one.begin_seconds * 100)
        np.testing.assert_array_equal(one.samples, sound[begin : begin + len(one.samples)])
    begins = [round(one.begin_seconds * 100) for one in found]
    assert begins == list(range(0, 150 * len(found), 150)) and begins[-1] + len(found[-1].samples) == 1000


def test_a_sound_a_little_longer_than_a_window_stays_whole():
    assert len(list(windows([np.zeros(250, dtype=np.float32)], 100, 2.0))) == 1
    assert len(list(windows([np.zeros(251, dtype=np.float32)], 100, 2.0))) == 2


def test_a_word_of_two_windows_counts_once():
    early = [Word("one", 0.1, 0.4), Word("two", 1.0, 1.4), Word("thr", 1.8, 2.0)]
    late = [Word("wo", 1.2, 1.4), Word("three", 1.8, 2.3), Word("four", 2.5, 2.8)]
    assert [word.text for word in joined([early, late], [1.6])] == ["one", "two", "three", "four"]
    same = [Word("two", 1.05, 1.4)], [Word("two", 1.1, 1.5)]  # the cut goes right through it
    assert [word.text for word in joined(same, [1.26])] == ["two"]
    assert joined([], []) == []


def test_a_word_that_each_window_leaves_to_the_other_is_kept():
    early = [Word("one", 0.1, 0.4), Word("two", 1.0, 1.8)]  # what follows broke off and was taken for a part of it
    late = [Word("two", 1.05, 1.2), Word("three", 1.6, 2.0)]
    assert joined([early, late], [1.3]) == [Word("one", 0.1, 0.4), Word("two", 1.0, 1.2), Word("three", 1.6, 2.0)]


@pytest.mark.parametrize("level", [0.0, 20.0, -20.0])  # log-mel energies of a recording lie at about 10 to 20
def test_the_cut_is_at_the_quietest_place(level):
    energy = np.array([0.0] * 10 + [-5.0] * 7 + [0.0] * 10) + level
    assert quietest_place(energy, 3.0, 3.27, 0.01) == pytest.approx(3.135, abs=0.02)
    assert quietest_place(energy[:13], 3.0, 3.13, 0.01) == pytest.approx(3.125, abs=0.01)  # the pause is its end
    assert quietest_place(np.array([1.0, 0.0, 1.0]) + level, 3.0, 3.03, 0.01) == pytest.approx(3.015, abs=0.02)
    assert quietest_place(np.zeros(0), 3.0, 4.0, 0.01) == 3.5


# -- segments and subtitles --------------------------------------------------------------------------------------------

WORDS = (Word("well", 0.0, 0.4), Word("then", 0.5, 0.9), Word("<go>", 2.0, 2.5))


def test_segments_end_at_pauses_and_at_a_subtitles_length():
    assert segments(WORDS) == (Word("well then", 0.0, 0.9), Word("<go>", 2.0, 2.5))
    long = [Word("word", 0.3 * place, 0.3 * place + 0.25) for place in range(60)]
    parts = segments(long)
    assert len(parts) > 2 and all(part.end - part.begin <= 7.0 and len(part.text) <= 84 for part in parts)
    assert " ".join(part.text for part in parts).split() == ["word"] * 60
    assert segments(()) == ()


def test_subrip_and_webvtt():
    parts = segments(WORDS)
    assert srt(parts) == ("1\n00:00:00,000 --> 00:00:00,900\nwell then\n\n2\n00:00:02,000 --> 00:00:02,500\n<go>\n")
    assert vtt(parts, note="a.wav") == (
        "WEBVTT\n\nNOTE a.wav\n\n00:00:00.000 --> 00:00:00.900\nwell then\n\n"
        "00:00:02.000 --> 00:00:02.500\n&lt;go&gt;\n"
    )
    assert "01:01:01,500" in srt([Word("late", 3661.5, 3662.0)])
    assert srt([Word("a\n-->\nb", 0, 1)]).splitlines()[2] == "a -> b"


def test_a_transcript_as_plain_values():
    transcript = Transcript("a.wav", "well then <go>", -1.25, ("well", "then", "<go>"), 3.0, WORDS, "ctc")
    assert transcript.to_json() == {
        "source": "a.wav",
        "text": "well then <go>",
        "score": -1.25,
        "tokens": ["well", "then", "<go>"],
        "seconds": 3.0,
        "finished": True,
    }
    assert transcript.to_json("word")["words"][0] == {"text": "well", "begin": 0.0, "end": 0.4}
    assert len(transcript.to_json("segment")["segments"]) == 2 and transcript.to_json("word")["timestamps"] == "ctc"
    assert transcript.attention is None
