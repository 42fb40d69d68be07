"""Pictures a second: decoded and brought to size, augmented, and what a training step consumes.

Decoding happens once, while a corpus is prepared; augmentation at every step. Photographs are made up (noise of many
sizes, saved as JPEG), unless a folder of some is given.

python benchmarks/pictures.py
python benchmarks/pictures.py --folder PATH/TO/ucm-captions/images --workers 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regard.data.batches import Batch, Sequences
from regard.inputs.augmentation import AugmentationConfig, augment
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.pictures import PictureSize, load_pictures
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.no_encoder import NoEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig
from regard.tasks.caption.objective import objective

AUGMENTATION = AugmentationConfig(
    crop=0.5, stretch=1.2, flip=True, turn=True, brightness=0.3, contrast=0.3, colour=0.3, erase=0.2
)
VOCABULARY = 700


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of JPEG files; 200 of 640 x 480 are made up unless given")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; pictures of {arguments.side} x {arguments.side}"
    )
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or photographs(Path(made), arguments.count)
        paths = sorted(folder.glob("*.jp*g"))[: arguments.count]
        size = PictureSize(arguments.side, arguments.side)
        for workers in arguments.workers:
            rates = []
            for _ in range(arguments.rounds):
                began = time.perf_counter()
                done = sum(1 for _ in load_pictures(paths, size, workers))
                rates.append(done / (time.perf_counter() - began))
            told(f"decoded and brought to size, {workers or 'no'} workers", rates)
    pixels = torch.randint(0, 256, (32, arguments.side, arguments.side, 3), dtype=torch.uint8)
    rates = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        augment(pixels.permute(0, 3, 1, 2).float() / 255, AUGMENTATION)
        rates.append(32 / (time.perf_counter() - began))
    told("augmented, batches of 32", rates)
    rates = []
    step = training_step(pixels)
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        step()
        rates.append(32 / (time.perf_counter() - began))
    told("trained on (recipes/caption/ucm-show-attend-tell.yaml, augmentation included)", rates)


def training_step(pixels: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of a batch of 32 pictures with five captions of twelve words each."""
    source = ConvolutionConfig("convolution", (48, 96, 192), stem_kernel=5, stem_stride=4, augmentation=AUGMENTATION)
    model = EncoderDecoder(
        3,
        VOCABULARY,
        EncoderDecoderConfig(
            NoEncoderConfig("none", 192, source), ShowAttendTellConfig("show-attend-tell", 192, 256, 192)
        ),
    ).train()
    captions = torch.randint(4, VOCABULARY, (32, 5, 12))
    captions[..., -1] = 2
    target = Sequences(captions.flatten(1), torch.full((32,), 60))
    batch = Batch({"source": Sequences(pixels, torch.full((32,), pixels.shape[1])), "target": target}, np.arange(32))
    loss = objective(0.1, 0.02)

    def step() -> None:
        model.zero_grad()
        loss(model, batch, torch.float32).objective.backward()

    return step


def photographs(folder: Path, count: int) -> Path:
    chance = np.random.default_rng(1)
    for number in range(count):
        coarse = chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:04}.jpg", quality=90)
    return folder


def told(what: str, rates: list[float]) -> None:
    rates = sorted(rates)
    print(f"{what}: {rates[len(rates) // 2]:,.0f} pictures a second [{rates[0]:,.0f}, {rates[-1]:,.0f}]")


if __name__ == "__main__":
    main()
