"""`regard demo transcribe`: from nothing to a trained model, its transcripts and a picture of what it attends to.

A small Conformer with CTC and an attention decoder learns phrases of digits and months (see demo_corpus.py), is scored
on phrases that it has never heard, and the times it finds for words are held against the synthesiser's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.data.batches import TokenBudget
from regard.data.clips import Clip, frames_of_clip
from regard.data.speech_records import SpeechSpec, read_speech
from regard.decoding.options import DecodingOptions
from regard.inputs.front_end import FrontEndConfig
from regard.inputs.spec_augment import AugmentConfig
from regard.inputs.speech import SpeechSourceConfig
from regard.inputs.text import TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.conformer_encoder import ConformerEncoderConfig
from regard.models.ctc import CTCConfig
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.tasks import model_directory
from regard.tasks.demo_folder import Layout, Spent, drawn_json, last_lines, need, short_training, train_in_turn
from regard.tasks.transcribe.boundaries import TOLERANCE_SECONDS, Boundaries, measured, timed
from regard.tasks.transcribe.demo_corpus import phrases, write_manifest
from regard.tasks.transcribe.recipe import TranscribeData, TranscribeRecipe, Validation
from regard.tasks.transcribe.result import Transcript
from regard.tasks.transcribe.scoring import Scores, score
from regard.tasks.transcribe.search import SpeechDecoding
from regard.tasks.transcribe.transcriber import Transcriber
from regard.training.monitor import Silent, Watcher

NUM_STEPS = 500
NUM_PHRASES = {"train": 1_500, "validation": 60, "test": 200}
PARTS = ("train", "validation", "test")
LAYOUT = Layout(
    "speech",
    r"(train|validation|test)\.jsonl|wav(/(train|validation|test)-\d{4,}\.wav)?",
    proof="train.jsonl",
    drawings=("attention.html", "attention.png"),
)
NUM_SHOWN = 4


@dataclass(frozen=True)
class Demo:
    """What the demo came to. examples: (what was said, transcript with attention) of held-out phrases."""

    scores: Scores
    boundaries: Boundaries
    spent: Spent
    examples: tuple[tuple[str, Transcript], ...]
    page: Path
    picture: Path
    sound: Path  # of the first example

    @property
    def words_right(self) -> float:
        """Share of the held-out words; an inserted word counts as one that is wrong."""
        return 1.0 - self.scores.wer / 100.0

    def lines(self) -> list[str]:
        shown = []
        for text, transcript in self.examples:
            mark = "" if transcript.text == text else f"   (said: {text})"
            times = "  ".join(f"{word.text} {word.begin:.2f}" for word in transcript.words)
            shown += [f"  {transcript.text}{mark}", f"    begins, seconds: {times}"]
        return [
            *shown,
            "",
            f"words right: {self.words_right:.2%} of {self.scores.rates[0].reference_length:,} in "
            f"{self.scores.num_utterances:,} held-out phrases",
            f"words found within {TOLERANCE_SECONDS * 1000:.0f} ms of where the synthesiser began them: "
            f"{self.boundaries.within:.2%} (with shuffled vectors {self.boundaries.shuffled:.2%})",
            *last_lines(
                "the attention, to look at",
                self.spent,
                self.page,
                self.picture,
                f"transcribe {self.page.parent / 'run' / 'model'} {self.sound} --timestamps word",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        figures = {
            "words_right": round(self.words_right, 6),
            "num_held_out": self.scores.num_utterances,
            "boundaries": self.boundaries.to_json(),
        }
        return drawn_json("transcribe", figures, self.spent, self.page, self.picture)


def demo(
    folder: Path,
    *,
    seed: int = 1,
    num_steps: int | None = None,
    num_phrases: dict[str, int] | None = None,
    watcher: Watcher | None = None,
) -> Demo:
    """Trains, scores and draws into `folder`: what it hears (`speech/`), `run/`, `attention.html`, `attention.png`.

    An earlier demo's are replaced. num_steps, num_phrases: fewer for a quick look; the figures then mean less.
    Raises: DataError when `folder` holds anything else; RegardError without the extras `speech` and `voices`;
    Interrupted when it is stopped while it trains.
    """
    watcher = watcher or Silent()
    need("espeakng_loader", extra="voices")
    need("soundfile", "soxr", "jiwer", extra="speech")
    LAYOUT.make_room(folder)
    speech, run = folder / "speech", folder / "run"
    counts = NUM_PHRASES if num_phrases is None else num_phrases
    watcher.said(f"saying {sum(counts.values()):,} phrases")
    made = phrases(seed, counts["train"], counts["validation"], counts["test"])
    for part in PARTS:
        write_manifest(speech, part, made[part])
    steps = NUM_STEPS if num_steps is None else num_steps
    spent = train_in_turn([(recipe(speech, seed=seed, num_steps=steps), run)], watcher)
    transcriber = Transcriber.load(model_directory.read(run / "model"), "cpu", torch.float32)
    watcher.said(f"transcribing {counts['test']:,} held-out phrases")
    result = _result(transcriber, speech, folder, spent)
    records = [record for _, one in result.examples for record in one.attentions]
    for path in (result.page, result.picture):
        _write(records, path)
    return result


def _result(transcriber: Transcriber, speech: Path, folder: Path, spent: Spent) -> Demo:
    records = list(read_speech(SpeechSpec(str(speech / "test.jsonl"))))
    frames = [frames_of_clip(Clip.of_field(one.fields["source"]), transcriber.front_end) for one in records]
    texts = [one.fields["target"] for one in records]
    outputs = [transcriber.tokenizer.decode(one.tokens) for one in transcriber.recognise(frames)]
    places = [one.fields["words"] for one in records]
    # The synthesiser tells where words begin; where one ends within a pause it does not.
    config = transcriber.config
    found = timed(transcriber, frames, texts, places, config.timing)
    shift = config.front_end.shift_seconds
    boundaries = measured(found, config.timing, shift, begins_alone=True)
    assert boundaries is not None, "the demo's model has a CTC head"
    shown = sorted(range(len(texts)), key=lambda place: -len(json.loads(places[place])))[:NUM_SHOWN]
    paths = [Clip.of_field(records[place].fields["source"]).path for place in shown]
    transcripts = transcriber.transcribe(paths, timestamps=True, attention=True)
    return Demo(
        score(outputs, texts, bootstrap_samples=0),
        boundaries,
        spent,
        tuple(zip([texts[place] for place in shown], transcripts, strict=True)),
        folder / "attention.html",
        folder / "attention.png",
        Path(paths[0]),
    )


def recipe(speech: Path, *, seed: int, num_steps: int) -> TranscribeRecipe:
    """The demo's recipe over the manifests in `speech`."""
    front_end = FrontEndConfig(num_mels=40)
    # Seeing half a second to each side alone, a vector says what is said there, and nothing of the words around it.
    dim, attention = 96, AttentionConfig(heads=4, rotary_base=10_000.0, window=12)
    source = SpeechSourceConfig(
        "speech",
        channels=16,
        normalization="corpus",
        dropout=0.1,
        augment=AugmentConfig(frequency_masks=1, frequency_bins=6, time_masks=1, time_frames=8),
    )
    return TranscribeRecipe(
        task="transcribe",
        seed=seed,
        data=TranscribeData(
            root=speech,
            train=SpeechSpec("train.jsonl"),
            validation=SpeechSpec("validation.jsonl"),
            on_bad="stop",
            max_tokens=1000,
            batch=TokenBudget(8_000),
        ),
        front_end=front_end,
        tokenizer=TokenizerConfig("characters", 300),
        model=EncoderDecoderConfig(
            encoder=ConformerEncoderConfig(
                "conformer", dim, 2, attention, FeedForwardConfig(2 * dim, "silu"), kernel=9, embedding=source
            ),
            decoder=TransformerDecoderConfig(dim, 1, AttentionConfig(heads=4), FeedForwardConfig(2 * dim)),
            ctc=CTCConfig(weight=0.5),
        ),
        training=short_training(num_steps, peak=3e-3, ema_decay=0.97),
        validation=Validation(decoding=SpeechDecoding(ctc_weight=1.0)),
        decoding=SpeechDecoding(DecodingOptions(beam_size=4, length_penalty=0.0, max_length=64), ctc_weight=0.5),
    )


def _write(records: list[Any], path: Path) -> None:
    from regard.attention.records.record import WRITERS

    WRITERS[path.suffix](records, path)
