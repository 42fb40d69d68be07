"""`regard demo caption`: from nothing to a model that describes drawn scenes, and shows where it looked, in minutes.

A convolution with a small field of view under Show, Attend and Tell learns generated scenes (see demo_scenes.py), is
scored on pairs of shapes that it has never seen together, and its gaze is held against where the shapes are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.attention.records.record import AttentionRecord
from regard.data.batches import TokenBudget
from regard.data.picture_records import PictureSpec
from regard.decoding.options import DecodingOptions
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.pictures import PictureSize
from regard.inputs.pixels import GridPositionsConfig
from regard.inputs.text import TokenizerConfig
from regard.lens.gaze import draw_gaze, write_gaze_page
from regard.models.encoder_decoder import EncoderDecoderConfig
from regard.models.no_encoder import NoEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig
from regard.tasks import model_directory
from regard.tasks.caption.captioner import Captioner
from regard.tasks.caption.demo_pointing import Pointing, pointing
from regard.tasks.caption.demo_scenes import SIDE, Scene, make_scenes, write_scenes
from regard.tasks.caption.recipe import CaptionData, CaptionRecipe, Validation
from regard.tasks.caption.result import Caption
from regard.tasks.demo_folder import Layout, Spent, drawn_json, last_lines, need, short_training, train_in_turn
from regard.training.monitor import Silent, Watcher

NUM_STEPS = 1200  # of both runs together
NUM_TRAIN, NUM_VALIDATION, NUM_HELD_OUT = 6_000, 100, 400
VOCABULARY = 310  # ids with which every word of the captions is one token
LAYOUT = Layout(
    "scenes",
    r"captions\.tsv|images(/(train|validation|held_out)-\d{5,}\.png)?",
    proof="captions.tsv",
    drawings=("gaze.html", "gaze.png", "gaze.svg"),
    runs=("first", "run"),
)
NUM_SHOWN = 4


@dataclass(frozen=True)
class Demo:
    """What the demo came to. examples: held-out scenes and their captions, with attention."""

    exact_match: float
    num_held_out: int
    pointing: Pointing
    spent: Spent
    examples: tuple[tuple[Scene, Caption], ...]
    page: Path
    picture: Path

    def lines(self) -> list[str]:
        """What to print."""
        shown = []
        for scene, caption in self.examples:
            mark = "" if caption.text == scene.caption else f"   (expected: {scene.caption})"
            shown.append(f"  {Path(caption.picture).name}\n    -> {caption.text}{mark}")
        first = self.examples[0][1].picture
        return [
            *shown,
            "",
            f"exactly right: {self.exact_match:.2%} of {self.num_held_out:,} scenes of pairs never seen together",
            f"gaze inside what a word names: {self.pointing.accuracy:.2%} of {self.pointing.num_words:,} words"
            f" (chance {self.pointing.chance:.2%}, with the picture's vectors shuffled {self.pointing.shuffled:.2%})",
            *last_lines(
                "where it looked",
                self.spent,
                self.page,
                self.picture,
                f"caption {self.page.parent / 'run' / 'model'} {first} --attention why.html",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        figures = {
            "exact_match": round(self.exact_match, 6),
            "num_held_out": self.num_held_out,
            "pointing_accuracy": round(self.pointing.accuracy, 6),
            "pointing_chance": round(self.pointing.chance, 6),
            "pointing_shuffled": round(self.pointing.shuffled, 6),
        }
        return drawn_json("caption", figures, self.spent, self.page, self.picture)


def demo(
    folder: Path,
    *,
    seed: int = 1,
    num_steps: int | None = None,
    num_train: int = NUM_TRAIN,
    num_held_out: int = NUM_HELD_OUT,
    watcher: Watcher | None = None,
) -> Demo:
    """Draws, trains, scores and shows into `folder`: `scenes/`, `first/`, `run/`, `gaze.html`, `gaze.png`, `gaze.svg`.

    An earlier demo's are replaced. num_steps: fewer for a quick look; the figures then mean less.
    Raises: DataError when `folder` holds anything else; RegardError without the extra `image`; Interrupted when it is
    stopped while it trains.
    """
    watcher = watcher or Silent()
    need("PIL", extra="image")
    LAYOUT.make_room(folder)
    drawn, run = folder / "scenes", folder / "run"
    scenes = make_scenes(seed, num_train=num_train, num_validation=NUM_VALIDATION, num_held_out=num_held_out)
    write_scenes(drawn, scenes)
    steps = max((NUM_STEPS if num_steps is None else num_steps) // 2, 1)
    seeing = recipe(drawn, seed=seed, num_steps=steps)
    looking = recipe(drawn, seed=seed, num_steps=steps, forgetting=0.5, init_from=folder / "first" / "model")
    spent = train_in_turn([(seeing, folder / "first"), (looking, run)], watcher)
    captioner = Captioner.load(model_directory.read(run / "model"), "cpu", torch.float32)
    watcher.said(f"describing {len(scenes.held_out):,} held-out scenes")
    paths = [drawn / "images" / f"held_out-{number:05}.png" for number in range(len(scenes.held_out))]
    pixels = captioner.prepared(paths)
    outputs = captioner.describe(pixels, captioner.config.decoding)
    right = [output == scene.caption for output, scene in zip(outputs, scenes.held_out, strict=True)]
    examples = tuple(zip(scenes.held_out[:NUM_SHOWN], captioner.caption(paths[:NUM_SHOWN]), strict=True))
    result = Demo(
        exact_match=sum(right) / len(right),
        num_held_out=len(right),
        pointing=pointing(captioner, scenes.held_out, pixels, seed=seed),
        spent=spent,
        examples=examples,
        page=folder / "gaze.html",
        picture=folder / "gaze.png",
    )
    _show(result)
    return result


def recipe(
    drawn: Path, *, seed: int, num_steps: int, forgetting: float = 0.0, init_from: Path | None = None
) -> CaptionRecipe:
    """The demo's recipe over the scenes in `drawn`; two runs follow each other.

    The state begins from nothing, so that the decoder knows of a scene what it has looked at and no more: with one that
    begins from the mean of all vectors the same model learns pairs by heart, see docs/decisions.md. In the second run
    half the looks are forgotten at once, so that each word looks for itself. With an encoder that knows nothing yet
    some seeds then stay on a plateau, so the first run forgets nothing, and the second begins with its encoder.
    """
    source = ConvolutionConfig(
        "convolution",
        channels=(32, 64),
        block="plain",
        stem_kernel=4,
        stem_stride=4,
        positions=GridPositionsConfig(most=16),
    )
    width = 128
    return CaptionRecipe(
        task="caption",
        seed=seed,
        init_from=init_from,
        data=CaptionData(
            root=drawn,
            train=PictureSpec("captions.tsv", where={"split": "train"}),
            validation=PictureSpec("captions.tsv", where={"split": "validation"}),
            picture=PictureSize(SIDE, SIDE),
            batch=TokenBudget(1 << 20, max_sentences=64, length_noise=1.0),
        ),
        tokenizer=TokenizerConfig("bpe", VOCABULARY),
        model=EncoderDecoderConfig(
            NoEncoderConfig("none", width, source),
            ShowAttendTellConfig(
                "show-attend-tell", width, width, width, initial="learned", forgetting=forgetting, dropout=0.0
            ),
        ),
        # Scenes leave nothing to doubt.
        training=short_training(num_steps, peak=3e-3, clip_norm=1.0, label_smoothing=0.0),
        validation=Validation(metric="exact_match", decoding=DecodingOptions(max_length=20)),
        decoding=DecodingOptions(beam_size=2, max_length=20),
    )


def _show(result: Demo) -> None:
    records: list[AttentionRecord] = []
    for _, caption in result.examples:
        assert isinstance(caption.attention, AttentionRecord)
        records.append(caption.attention)
    notes = [
        f"{result.exact_match:.1%} of {result.num_held_out:,} scenes are described exactly; no two of their shapes "
        "stood together in training.",
        f"For {result.pointing.accuracy:.1%} of the words that name a thing, the middle of the attention lies inside "
        f"it (chance: {result.pointing.chance:.1%}; with the picture's vectors in shuffled places: "
        f"{result.pointing.shuffled:.1%}).",
    ]
    title = "regard demo: what it saw, and where it looked"
    write_gaze_page(records, result.page, title=title, notes=notes)
    draw_gaze(records, result.picture, title=title)
    draw_gaze(records, result.picture.with_suffix(".svg"), title=title)
