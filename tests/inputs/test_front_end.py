"""Frames against the programs that set the conventions, and against laws of their own."""

from __future__ import annotations

import csv
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.errors import ConfigError, DataError
from regard.inputs.filter_banks import bands_of_cepstra, cepstral_transform, mel_filters
from regard.inputs.front_end import FrontEnd, FrontEndConfig

# The front end that made the corpus AN4 as it is handed round.
AN4 = FrontEndConfig("mfcc", "sphinx", num_mels=40, low_hz=130, high_hz=6800, frame_milliseconds=25.625)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    """Coloured, so that neighbouring samples and bands differ, and with a constant beside it."""
    chance = np.random.default_rng(seed)
    white = chance.normal(size=num_samples + 2)
    return (0.1 * np.convolve(white, [1, 0.7, 0.3], "valid") + 0.01).astype(np.float32)


def kaldi(sound: np.ndarray, config: FrontEndConfig) -> np.ndarray:
    """kaldi-native-fbank's answer, without dither."""
    oracle = pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is the oracle")
    options = oracle.FbankOptions() if config.kind == "log-mel" else oracle.MfccOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_milliseconds
    options.frame_opts.frame_shift_ms = config.shift_milliseconds
    options.mel_opts.num_bins = config.num_mels
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    if config.kind == "mfcc":
        options.num_ceps = config.num_cepstra
        options.use_energy = False
    computed = oracle.OnlineFbank(options) if config.kind == "log-mel" else oracle.OnlineMfcc(options)
    computed.accept_waveform(config.sample_rate, (sound * 32768.0).tolist())
    computed.input_finished()
    return np.array([computed.get_frame(frame) for frame in range(computed.num_frames_ready)])


@pytest.mark.parametrize(
    "config",
    [
        FrontEndConfig(),
        FrontEndConfig(num_mels=23, low_hz=64.0, high_hz=-400.0),
        FrontEndConfig(sample_rate=8000, num_mels=40),
        FrontEndConfig(frame_milliseconds=32.0, shift_milliseconds=12.5),
        FrontEndConfig("mfcc", num_mels=23),
        FrontEndConfig("mfcc", num_mels=40, num_cepstra=40, sample_rate=8000),
    ],
    ids=lambda config: f"{config.kind}-{config.sample_rate}-{config.num_mels}-{config.frame_milliseconds:g}",
)
def test_equals_kaldi(config):
    sound = noise(int(0.737 * config.sample_rate))
    expected = kaldi(sound, config)
    [found] = FrontEnd(config, torch.float64)([sound])
    assert found.shape == expected.shape and len(found) > 50
    # Kaldi computes in float32: a logarithm of 15 to 20 keeps some 1e-5, sums of 40 of them somewhat less.
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3 if config.kind == "mfcc" else 5e-4, rtol=0)
    [narrow] = FrontEnd(config)([sound])
    np.testing.assert_allclose(narrow.numpy(), found.numpy(), atol=2e-3 if config.kind == "mfcc" else 5e-4, rtol=0)


def test_digital_silence_is_the_floor_and_equals_kaldi():
    sound = np.zeros(4000, dtype=np.float32)
    [found] = FrontEnd(FrontEndConfig())([sound])
    np.testing.assert_allclose(found.numpy(), kaldi(sound, FrontEndConfig()), atol=1e-5)


def test_the_oracle_of_another_setting_is_noticed():
    sound = noise(8000)
    [found] = FrontEnd(FrontEndConfig(num_mels=40))([sound])
    assert np.abs(found.numpy() - kaldi(sound, FrontEndConfig(num_mels=40, low_hz=40.0))).max() > 0.05


def test_equals_the_front_end_that_made_an4(shared_data: Path):
    with (shared_data / "an4-mfcc" / "index.tsv").open() as file:
        places = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    kept = np.load(shared_data / "an4-mfcc" / "mfcc.npy", mmap_mode="r")
    clips = sorted((shared_data / "mini-an4" / "wav").glob("*.wav"))
    assert len(clips) == 7
    for clip in clips:
        with wave.open(str(clip)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        first, count = (int(places[clip.stem][name]) for name in ("start", "nframes"))
        [found] = FrontEnd(AN4, torch.float64)([samples.astype(np.float32) / 32768.0])
        # Every one of the 13 numbers of every frame, the last one included, which is filled up with silence. The
        # corpus was computed in float32; the cepstra reach from -8 to 12.
        np.testing.assert_allclose(found.numpy(), kept[first : first + count], atol=2e-5, rtol=0)
        [narrow] = FrontEnd(AN4)([samples.astype(np.float32) / 32768.0])
        np.testing.assert_allclose(narrow.numpy(), kept[first : first + count], atol=2e-3, rtol=0)


@pytest.mark.parametrize("config", [FrontEndConfig(), AN4], ids=["kaldi", "sphinx"])
def test_a_batch_equals_its_sounds_alone_and_counts_frames_as_said(config):
    front_end = FrontEnd(config)
    sounds = [noise(length, length) for length in (7013, 409, 100, 4000, 0)]
    together = front_end(sounds)
    for sound, frames in zip(sounds, together, strict=True):
        [alone] = front_end([sound])
        assert frames.shape == (config.num_frames(len(sound)), config.bins) == alone.shape
        torch.testing.assert_close(frames, alone, atol=1e-4, rtol=1e-5)
    assert len(together[2]) == len(together[4]) == 0


def test_long_sounds_are_computed_in_parts(monkeypatch):
    sound = noise(30_000)
    [whole] = FrontEnd(FrontEndConfig())([sound])
    monkeypatch.setattr("regard.inputs.front_end._FRAMES_AT_ONCE", 7)
    [parts] = FrontEnd(FrontEndConfig())([sound])
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-5)


def test_bands_of_cepstra_have_the_cepstra_they_were_made_of():
    for convention in ("kaldi", "sphinx"):
        transform = cepstral_transform(convention, 13, 40)
        bands = bands_of_cepstra(convention, 13, 40)
        torch.testing.assert_close(transform @ bands, torch.eye(13, dtype=torch.float64), atol=1e-9, rtol=0)


def test_cepstral_bands_of_sound_equal_those_of_its_cepstra():
    bands = FrontEndConfig("cepstral-bands", "sphinx", num_mels=40, low_hz=130, high_hz=6800, frame_milliseconds=25.625)
    sound = noise(8000)
    [cepstra] = FrontEnd(AN4)([sound])
    front_end = FrontEnd(bands)
    [found] = front_end([sound])
    assert found.shape[1] == bands.bins == 40
    np.testing.assert_allclose(front_end.of_features(cepstra.numpy()), found.numpy(), atol=2e-3)
    np.testing.assert_array_equal(front_end.of_features(found.numpy()), found.numpy())  # bands already


def test_features_that_do_not_fit_are_refused():
    front_end = FrontEnd(FrontEndConfig("cepstral-bands", num_mels=40))
    with pytest.raises(DataError, match=r"mfcc.npy: \[5, 12\] numbers, expected \[frames, 13 or 40\]"):
        front_end.of_features(np.zeros((5, 12), dtype=np.float32), "mfcc.npy")
    with pytest.raises(DataError, match="not finite"):
        front_end.of_features(np.full((5, 13), np.nan, dtype=np.float32))


def test_filters_tile_the_range():
    filters = mel_filters("kaldi", 40, 512, 16000, 20.0, 8000.0)
    bins = torch.arange(257) * (16000 / 512)
    inside = (bins > 200) & (bins < 7500)
    torch.testing.assert_close(filters.sum(0)[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
    with pytest.raises(ConfigError, match="narrower than the"):
        mel_filters("kaldi", 120, 256, 16000, 20.0, 8000.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 0}, "sample_rate is 0, expected 1000 to 768000"),
        ({"low_hz": 5000.0, "high_hz": 4000.0}, "low_hz is 5000 and high_hz 4000"),
        ({"high_hz": 9000.0}, "half the sampling rate"),
        ({"num_cepstra": 90}, r"num_cepstra is 90, expected 1 to num_mels \(80\)"),
        ({"shift_milliseconds": 40.0}, "expected 1 <= shift <= frame"),
        ({"num_mels": 1, "num_cepstra": 1}, "num_mels is 1"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        FrontEndConfig(**changes)


def test_sounds_that_are_none():
    front_end = FrontEnd(FrontEndConfig())
    with pytest.raises(DataError, match=r"received \[2, 800\] of float32, expected one vector"):
        front_end([np.zeros((2, 800), dtype=np.float32)])
    with pytest.raises(DataError, match="divide 16-bit samples by 32768"):
        front_end([np.zeros(800, dtype=np.int16)])
    with pytest.raises(DataError, match="not finite"):
        front_end([np.full(800, np.inf, dtype=np.float32)])
