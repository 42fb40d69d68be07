"""A trained speech model on sounds of every kind."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import tone_language
import torch
from sound_files import broken_files, tone, wav_bytes

import regard
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, DataError, ModelFileError
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.text import Tokenizer
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.tasks.generate.generator import Generator, GeneratorConfig
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.transcribe.card import model_card
from regard.tasks.transcribe.recipe import TranscribeRecipe
from regard.tasks.transcribe.search import LanguageModelVoter, SpeechDecoding
from regard.tasks.transcribe.transcriber import Transcriber
from regard.tasks.transcribe.word_times import Timing, by_attention, edges, energy_of

RATE = tone_language.RATE


@pytest.fixture(scope="module")
def transcriber(trained) -> Transcriber:
    loaded = regard.load(trained.model)
    assert isinstance(loaded, Transcriber)
    return loaded


def sentence(seed: int, words: str) -> tuple[np.ndarray, list]:
    return tone_language.said(words.split(), np.random.default_rng(seed))


def test_the_run_learnt_and_says_what_it_found(trained):
    [test] = trained.result["test"]
    assert test["metrics"]["WER"]["value"] <= 15
    assert test["num_utterances"] == 20 and test["scoring"] == "exact"
    assert test["boundaries"]["within"] >= 0.85 > test["boundaries"]["shuffled"] + 0.1
    kept = json.loads((trained.model / "config.json").read_text())
    assert kept["task"] == "transcribe" and len(kept["model"]["encoder"]["embedding"]["mean"]) == 16
    by_ctc, by_attention = kept["training"]["timestamps"]
    assert (by_ctc["method"], by_attention["method"]) == ("ctc", "attention")
    assert "heads" not in by_ctc
    assert {layer for layer, _ in by_attention["heads"]} == {"decoder.layers.0.cross"}
    best = max(by_ctc, by_attention, key=lambda one: one["within"])
    assert [kept["timestamps"], kept["heads"]] == [best["method"], best.get("heads")]
    card = (trained.model / "README.md").read_text()
    assert "regard transcribe" in card and "WER" in card and "conformer encoder" in card


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_every_way_of_decoding_agrees_on_easy_sounds(transcriber, share, beam_size):
    decoding = SpeechDecoding(DecodingOptions(beam_size=beam_size, length_penalty=0.0, max_length=12), share)
    sounds = [sentence(seed, words)[0] for seed, words in enumerate(["low", "mid high", "high low mid"], 40)]
    found = transcriber.transcribe(sounds, decoding)
    assert sum(one.text == words for one, words in zip(found, ["low", "mid high", "high low mid"], strict=True)) >= 2
    assert all(np.isfinite(one.score) and one.finished for one in found)


def test_paths_arrays_and_rates_are_heard_alike(transcriber, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="the extra `speech` is not installed")
    pytest.importorskip("soxr", reason="the extra `speech` is not installed")
    sound, _ = sentence(50, "high mid low")
    (tmp_path / "a.wav").write_bytes(wav_bytes(sound, RATE))
    upsampled = np.repeat(sound, 2)  # crude, and good enough for tones
    soundfile.write(tmp_path / "b.flac", np.stack([upsampled, upsampled], 1), 2 * RATE)
    found = transcriber.transcribe(
        [tmp_path / "a.wav", str(tmp_path / "b.flac"), sound, (upsampled, 2 * RATE), io.BytesIO(wav_bytes(sound, RATE))]
    )
    assert {one.text for one in found} == {"high mid low"}
    assert found[0].source == str(tmp_path / "a.wav") and found[2].source == "sound 3"
    assert found[0].seconds == pytest.approx(len(sound) / RATE)
    assert found[0].tokens == ("▁high", "▁mid", "▁low")


def test_what_else_is_in_the_batch_changes_nothing(transcriber):
    sounds = [sentence(seed, words)[0] for seed, words in enumerate(["low mid", "high", "mid mid low high"], 60)]
    together = transcriber.transcribe(sounds)
    for sound, one in zip(sounds, together, strict=True):
        [alone] = transcriber.transcribe([sound])
        assert alone.text == one.text and alone.score == pytest.approx(one.score, abs=1e-3)


def test_words_have_times(transcriber):
    sound, places = sentence(70, "low high mid")
    [found] = transcriber.transcribe([sound], timestamps=True)
    assert [word.text for word in found.words] == ["low", "high", "mid"] and found.timestamps in ("ctc", "attention")
    for word, (_, begin, end) in zip(found.words, places, strict=True):
        assert abs(word.begin - begin) < 0.08 and abs(word.end - end) < 0.08
    assert found.to_json("word")["words"][0]["text"] == "low"
    assert not transcriber.transcribe([sound])[0].words


def test_words_are_timed_by_the_heads_that_the_model_names(transcriber, tmp_path):
    sound, _ = sentence(70, "low high mid")
    layer = "decoder.layers.0.cross"
    config = dataclasses.replace(transcriber.config, timestamps="attention", heads=((layer, 1),))
    Transcriber(transcriber.model, transcriber.tokenizer, config).save(tmp_path / "one")
    one = regard.load(tmp_path / "one")
    assert one.config.timing == Timing("attention", config.placement, ((layer, 1),))
    assert f"Times of words come from attention ({layer} head 1)." in model_card(one.config, None)
    for share in (0.5, 1.0):  # attention of the search, and of what CTC found
        [found] = one.transcribe([sound], timestamps=True, attention=True, ctc_weight=share)
        assert found.to_json("word")["heads"] == [[layer, 1]] and found.timestamps == "attention"
        record = found.attention
        assert record is not None
        rows = record.layers[layer].rows[0]
        [frames] = transcriber.front_end([sound])
        cores = [(4 * begin, 4 * end) for begin, end in by_attention({layer: rows}, 3, config.heads) or ()]
        placed = edges(cores, energy_of(frames, False), config.placement)
        assert [word.begin for word in found.words] == pytest.approx([0.01 * begin for begin, _ in placed])
    missing = dataclasses.replace(config, heads=((layer, 7),))
    with pytest.raises(ConfigError, match=f"received {layer} 7, expected some of {layer} 0 to 1"):
        Transcriber(transcriber.model, transcriber.tokenizer, missing).transcribe([sound], timestamps=True)


def test_a_decoder_alone_chooses_its_heads_without_true_places(trained, tmp_path):
    values = tone_language.recipe(trained.folder)
    values["model"]["ctc"] = None
    values["training"] |= {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2}
    for part in ("train", "validation"):
        values["data"][part]["columns"] = {"words": "none"}
    del values["data"]["test"]
    train(validated(TranscribeRecipe, values, "decoder"), tmp_path / "run")
    config = regard.load(tmp_path / "run" / "model").config
    assert config.timestamps == "attention" and config.heads
    assert {layer for layer, _ in config.heads} == {"decoder.layers.0.cross"}


def test_a_model_directory_that_names_no_heads_uses_all(transcriber, tmp_path):
    transcriber.save(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    kept = json.loads(path.read_text())
    del kept["heads"], kept["config_sha256"]
    path.write_text(json.dumps(kept))
    old = regard.load(tmp_path / "old")
    assert old.config.heads is None and old.config.timing.method == transcriber.config.timestamps
    [found] = old.transcribe([sentence(70, "low high mid")[0]], timestamps=True)
    assert len(found.words) == 3 and "heads" not in found.to_json("word")


def test_attention_has_rows_over_the_time_of_the_sound(transcriber):
    sound, _ = sentence(71, "low high")
    [found] = transcriber.transcribe([sound], attention=True)
    record = found.attention
    assert record is not None and record.key is not None and record.query is not None
    weights = record.rows()
    assert weights.shape == (3, len(record.key))  # two words and the end
    np.testing.assert_allclose(weights.sum(1).numpy(), 1.0, atol=1e-4)
    assert record.query.tokens == ("▁low", "▁high", "</s>")
    # By CTC alone the decoder is made to say what was found.
    [forced] = transcriber.transcribe([sound], attention=True, ctc_weight=1.0)
    assert forced.attention is not None and forced.attention.rows().shape == weights.shape


def test_a_long_sound_is_heard_in_windows(transcriber, monkeypatch):
    pieces = [sentence(100 + seed, words) for seed, words in enumerate(["low mid", "high", "mid low", "high high"] * 6)]
    sound = np.concatenate([piece for piece, _ in pieces])
    said = [word for _, places in pieces for word, _, _ in places]
    assert len(sound) / RATE > 3 * transcriber.config.window_seconds
    [found] = transcriber.transcribe([sound], timestamps=True)
    heard = SequenceMatcher(None, [word.text for word in found.words], said, autojunk=False)
    right = sum(block.size for block in heard.get_matching_blocks())
    assert abs(len(found.words) - len(said)) <= 1 and right >= 0.95 * len(said)
    begins = [word.begin for word in found.words]
    assert begins == sorted(begins) and found.words[-1].end <= found.seconds + 0.01
    assert found.text == " ".join(word.text for word in found.words)
    monkeypatch.setattr("regard.tasks.transcribe.transcriber.WINDOWS_AT_ONCE", 2)
    [by_two] = transcriber.transcribe([sound], timestamps=True)
    assert by_two.text == found.text


def test_silence_says_nothing_and_ten_milliseconds_are_refused(transcriber):
    [silent] = transcriber.transcribe([np.zeros(RATE, dtype=np.float32)], timestamps=True, attention=True)
    assert (silent.text, silent.tokens, silent.words, silent.attentions) == ("", (), (), ())
    with pytest.raises(DataError, match=r"sound 1: 0.010 s of sound, shorter than a frame \(0.025 s\)"):
        transcriber.transcribe([tone(0.01, RATE)])


def test_bad_sounds_are_told_and_the_rest_is_done(transcriber, tmp_path):
    broken = broken_files(tmp_path)
    good = tmp_path / "good.wav"
    good.write_bytes(wav_bytes(sentence(80, "mid low")[0], RATE))
    short = tmp_path / "short.wav"
    short.write_bytes(wav_bytes(tone(0.01, RATE), RATE))
    names = [good, *broken.values(), tmp_path / "nowhere.wav", short, good]
    found = list(transcriber.transcribe_each(names))
    assert len(found) == len(names)
    assert [one.text for one in (found[0], found[-1])] == ["mid low", "mid low"]
    for name, one in zip(names[1:-1], found[1:-1], strict=True):
        assert isinstance(one, DataError) and str(name) in str(one) and "\n" not in str(one)
    with pytest.raises(DataError, match="empty"):
        transcriber.transcribe(names)


def test_a_sound_that_breaks_off_later_takes_its_windows_along(transcriber, tmp_path, monkeypatch):
    from regard.tasks.transcribe import transcriber as module

    def blocks(*arguments, **options):
        yield from [np.ones(RATE * 4, dtype=np.float32) * np.sin(np.arange(RATE * 4)).astype(np.float32)] * 3
        raise DataError("b.wav: cut off: its header promises 99 s, the file holds 12 s; copy it again")

    good = tmp_path / "good.wav"
    good.write_bytes(wav_bytes(sentence(81, "high")[0], RATE))
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", 2)
    whole = module.sound_blocks
    monkeypatch.setattr(
        module, "sound_blocks", lambda sound, *a, **k: blocks() if "b.wav" in str(sound) else whole(sound, *a, **k)
    )
    (tmp_path / "b.wav").write_bytes(good.read_bytes())
    found = list(transcriber.transcribe_each([good, tmp_path / "b.wav", good]))
    assert found[0].text == found[2].text == "high" and "cut off" in str(found[1])


def test_mistakes_of_the_caller(transcriber):
    sound, _ = sentence(90, "low")
    with pytest.raises(DataError, match=r"as in transcribe\(\['a\.wav'\]\)"):
        transcriber.transcribe("a.wav")
    with pytest.raises(DataError, match=r"received \[2, 80\] of float32"):
        transcriber.transcribe([np.zeros((2, 80), dtype=np.float32)])
    with pytest.raises(ConfigError, match=r"ctc_weight is 1\.5, expected a share"):
        transcriber.transcribe([sound], ctc_weight=1.5)
    with pytest.raises(ConfigError, match="unknown key `beam_sice`, did you mean `beam_size`"):
        transcriber.transcribe([sound], beam_sice=2)
    with pytest.raises(ConfigError, match="have no place in transcription"):
        transcriber.transcribe([sound], num_best=2)
    with pytest.raises(ConfigError, match="expected SpeechDecoding"):
        transcriber.transcribe([sound], DecodingOptions())


def test_a_saved_model_says_the_same(transcriber, tmp_path):
    sound, _ = sentence(91, "low mid high")
    transcriber.save(tmp_path / "copy")
    again = regard.load(tmp_path / "copy")
    assert again.transcribe([sound])[0] == transcriber.transcribe([sound])[0]
    assert again.config == dataclasses.replace(transcriber.config, training=again.config.training)
    assert "Transcriber(8000 Hz" in repr(again)


def test_a_damaged_directory_is_told(trained, tmp_path):
    import shutil

    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="missing from the model directory"):
        regard.load(tmp_path / "model")


def test_a_language_model_votes(trained, transcriber, tmp_path):
    """A stand-in that knows one word alone."""
    from regard.decoding.ctc_prefix import SilentDecoder, SilentState
    from regard.models.decoder import Step

    wanted = transcriber.tokenizer.encode_ids(["mid"])[0][0]

    class OneWord(SilentDecoder):
        def start(self, memories):
            return SilentState(torch.zeros(1, dtype=torch.int64))

        def advance(self, state, tokens, observe=None):
            step, state = super().advance(state, tokens, observe)
            votes = torch.full_like(step.log_probs, -8.0)
            votes[..., [wanted, 2]] = -0.7
            return Step(votes, {}), state

    decoding = SpeechDecoding(
        DecodingOptions(beam_size=4, length_penalty=0.0, max_length=12), 0.5, language_model="x", language_weight=3.0
    )
    transcriber._language_models["x"] = LanguageModelVoter(OneWord(len(transcriber.tokenizer)))
    sound, _ = sentence(92, "high low")
    [found] = transcriber.transcribe([sound], decoding)
    assert set(found.text.split()) <= {"mid"}
    with pytest.raises(ModelFileError, match="no such model directory"):
        transcriber.transcribe([sound], language_model=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="not a language model"):
        transcriber.transcribe([sound], language_model=str(trained.model))


@pytest.mark.parametrize("begins", [True, False])
def test_a_language_model_of_short_texts_votes_on_a_longer_one(transcriber, tmp_path, begins):
    """It has learnt four positions and hears of eight words."""
    torch.manual_seed(1)
    feed_forward, embedding = FeedForwardConfig(16), EmbeddingConfig(positions="learned", max_positions=4)
    config = LanguageModelConfig(8, 1, AttentionConfig(2), feed_forward, embedding=embedding, dropout=0.0)
    Generator(
        LanguageModel(len(transcriber.tokenizer), config),
        transcriber.tokenizer,
        GeneratorConfig(config, DecodingOptions(), context=4, begins=begins, training={}),
    ).save(tmp_path / "model")
    words = "low high mid low mid high low mid"
    sound, _ = sentence(93, words)
    path = str(tmp_path / "model")
    [frames] = transcriber.front_end([sound])
    plain = transcriber.decoding_with(beam_size=1, ctc_weight=0.0, min_length=8)
    fused = transcriber.decoding_with(plain, language_model=path, language_weight=0.01)
    [alone], [found] = (transcriber.recognise([frames.numpy()], decoding) for decoding in (plain, fused))
    assert len(found.tokens) > 5 and found.tokens == alone.tokens
    # It votes on every token and on the end; on the first one only where a transcript is a beginning to it.
    ids = found.tokens
    read = [Tokenizer.BOS, *ids] if begins else list(ids)
    model, vote = regard.load(path).model, 0.0 if begins else -math.log(len(transcriber.tokenizer))
    held: list[int] = []
    for token, follows in zip(read, [*ids, Tokenizer.EOS][-len(read) :], strict=True):
        held = [*held, token] if len(held) < 4 else [*held[-1:], token]  # half of the context is read anew
        vote += float(model.head.log_probs(model(torch.tensor([held])))[0, -1, follows].detach())
    assert found.score == pytest.approx(alone.score + 0.01 * vote, abs=1e-4)


def test_evaluation_on_other_data_and_with_other_options(trained, transcriber):
    from regard.tasks.transcribe.evaluation import evaluate_directory

    said: list[str] = []
    test = str(trained.folder / "test.jsonl")
    found, outputs = evaluate_directory(transcriber, test, {"beam_size": 1}, said.append)
    assert len(outputs) == 20 and said == ["transcribing 20 sounds"] and found.scores.num_utterances == 20
    assert any(line.startswith("word boundaries by") for line in found.lines())
    again, _ = evaluate_directory(transcriber, None, {}, said.append)
    assert again.to_json()["metrics"].keys() == {"WER", "CER"}
    spec = f"{{path: {test}, format: jsonl}}"
    assert evaluate_directory(transcriber, spec, {"ctc_weight": 1.0}, said.append)[0].scores.num_utterances == 20
    with pytest.raises(ConfigError, match="scoring has no meaning for transcripts"):
        evaluate_directory(transcriber, test, {"scoring": "sacrebleu"}, said.append)
    with pytest.raises(DataError, match="no such file"):
        evaluate_directory(transcriber, str(Path(test).with_name("none.jsonl")), {}, said.append)
