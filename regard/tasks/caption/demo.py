"""`regard demo caption`: from nothing to a model that describes drawn scenes, and shows where it looked, in minutes.

A convolution with a small field of view under Show, Attend and Tell learns generated scenes (see demo_scenes.py), is
scored on pairs of shapes that it has never seen together, and its gaze is held against where the shapes are.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.attention.records.record import AttentionRecord
from regard.data.batches import TokenBudget
from regard.data.picture_records import PictureSpec
from regard.decoding.options import DecodingOptions
from regard.errors import DataError, Interrupted
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
from regard.tasks.run import train
from regard.training.config import ScheduleConfig, TrainingConfig
from regard.training.monitor import Silent, Watcher

NUM_STEPS = 1200  # of both runs together
NUM_TRAIN, NUM_VALIDATION, NUM_HELD_OUT = 6_000, 100, 400
VOCABULARY = 310  # ids with which every word of the captions is one token
CONTENT = ("scenes", "first", "run", "gaze.html", "gaze.png", "gaze.svg")
NUM_SHOWN = 4


@dataclass(frozen=True)
class Demo:
    """What the demo came to. examples: held-out scenes and their captions, with attention."""

    exact_match: float
    num_held_out: int
    pointing: Pointing
    train_seconds: float
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
            f"trained in {self.train_seconds:.0f} s",
            "",
            f"where it looked: {self.page}",
            f"                 {self.picture}",
            f"try: regard caption {self.page.parent / 'run' / 'model'} {first} --attention why.html",
        ]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "task": "caption",
            "exact_match": round(self.exact_match, 6),
            "num_held_out": self.num_held_out,
            "pointing_accuracy": round(self.pointing.accuracy, 6),
            "pointing_chance": round(self.pointing.chance, 6),
            "pointing_shuffled": round(self.pointing.shuffled, 6),
            "train_seconds": round(self.train_seconds, 2),
            "page": str(self.page),
            "picture": str(self.picture),
        }


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
    Raises: DataError when `folder` holds anything else; Interrupted when it is stopped while it trains.
    """
    watcher = watcher or Silent()
    _make_room(folder)
    drawn, run = folder / "scenes", folder / "run"
    scenes = make_scenes(seed, num_train=num_train, num_validation=NUM_VALIDATION, num_held_out=num_held_out)
    write_scenes(drawn, scenes)
    began = time.monotonic()
    try:
        steps = max((NUM_STEPS if num_steps is None else num_steps) // 2, 1)
        train(recipe(drawn, seed=seed, num_steps=steps), folder / "first", origin="the demo's recipe", watcher=watcher)
        wanted = recipe(drawn, seed=seed, num_steps=steps, forgetting=0.5, init_from=folder / "first" / "model")
        train(wanted, run, origin="the demo's recipe", watcher=watcher)
    except Interrupted:
        raise Interrupted("the demo was stopped; the same command starts it anew") from None
    train_seconds = time.monotonic() - began
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
        train_seconds=train_seconds,
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
        training=TrainingConfig(
            max_steps=num_steps,
            clip_norm=1.0,
            label_smoothing=0.0,  # scenes leave nothing to doubt
            schedule=ScheduleConfig("cosine", peak=3e-3, warmup_steps=min(100, max(num_steps // 5, 1)), floor=0.02),
            validate_every=max(num_steps // 2, 1),
            checkpoint_every=max(num_steps // 2, 1),
            final=("last",),
            log_every=10,
        ),
        validation=Validation(metric="exact_match", decoding=DecodingOptions(max_length=20)),
        decoding=DecodingOptions(beam_size=2, max_length=20),
    )


def _make_room(folder: Path) -> None:
    """Removes an earlier demo from `folder`. Raises: DataError when something else lies there."""
    remedy = "give a new or empty folder with --out"
    try:
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        foreign = [name for name in found if name not in CONTENT]
        if {"scenes", "first", "run"} & set(found) and not (folder / "scenes" / "images").is_dir():
            foreign.append(next(name for name in ("scenes", "first", "run") if name in found))
        if foreign:
            raise DataError(f"{folder}: holds {foreign[0]}, which is of no demo; {remedy}")
        for name in ("run", "first", "scenes"):  # in this order: what is left by a kill between the two is known again
            if (folder / name).exists():
                shutil.rmtree(folder / name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be used ({(error.strerror or str(error)).lower()}); {remedy}") from None


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
