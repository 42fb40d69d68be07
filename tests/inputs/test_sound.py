"""Sound files of every kind: what comes back, and one line for each that is none."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from sound_files import broken_files, tone, wav_bytes

from regard.errors import DataError, RegardError
from regard.inputs.sound import at_speed, is_silent, read_sound, resampled, sound_blocks, sound_info

soundfile = pytest.importorskip("soundfile", reason="the extra `speech` is not installed")
pytest.importorskip("soxr", reason="the extra `speech` is not installed")

RATE = 16000


@pytest.mark.parametrize(("ending", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_format_rate_and_number_of_channels(tmp_path, ending, tolerance, channels, rate):
    path = tmp_path / f"tone.{ending}"
    given = tone(0.8, rate)
    soundfile.write(path, np.repeat(given[:, None], channels, 1), rate)
    info = sound_info(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.seconds == pytest.approx(0.8, abs=0.06)
    found = read_sound(path, RATE)
    assert found.dtype == np.float32 and found.ndim == 1
    assert len(found) == pytest.approx(0.8 * RATE, abs=0.06 * RATE)
    middle = slice(RATE // 5, RATE // 2)  # away from the ends, where filters ring
    expected = tone(0.8, RATE)
    lag = 0
    if ending == "mp3":  # its encoder delays; the decoder takes off what the file says, to a sample of the old rate
        lag = max(range(-40, 41), key=lambda shift: float(np.roll(found, -shift)[middle] @ expected[middle]))
    np.testing.assert_allclose(np.roll(found, -lag)[middle], expected[middle], atol=max(tolerance, 2e-3))


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "two.wav"
    left, right = tone(0.2, RATE, 300.0), tone(0.2, RATE, 700.0)
    soundfile.write(path, np.stack([left, right], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_sound(path, RATE), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [16000, 11025])
def test_blocks_joined_are_the_whole(tmp_path, rate):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(3.3, rate) * np.linspace(0, 1, round(3.3 * rate), dtype=np.float32), rate)
    blocks = list(sound_blocks(path, RATE, block_seconds=0.5))
    assert len(blocks) >= 6 and max(map(len, blocks)) <= 0.7 * RATE
    np.testing.assert_allclose(np.concatenate(blocks), read_sound(path, RATE), atol=1e-6)


def test_a_part_is_the_same_as_cutting_the_whole(tmp_path):
    path = tmp_path / "long.flac"
    given = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
    soundfile.write(path, given, RATE)
    whole = read_sound(path, RATE)
    np.testing.assert_array_equal(read_sound(path, RATE, begin_seconds=0.5, seconds=1.25), whole[8000:28000])
    np.testing.assert_array_equal(read_sound(path, RATE, begin_seconds=2.5), whole[40000:])
    nothing = read_sound(path, RATE, begin_seconds=0.5, seconds=0.0)
    assert nothing.shape == (0,) and nothing.dtype == np.float32
    with pytest.raises(DataError, match=r"has 3.00 s, asked for a part from 3.5 s on"):
        read_sound(path, RATE, begin_seconds=3.5)


def test_a_file_may_be_bytes(tmp_path):
    content = wav_bytes(tone(0.3, RATE), RATE)
    (tmp_path / "a.wav").write_bytes(content)
    found = read_sound(io.BytesIO(content), RATE, name="standard input")
    np.testing.assert_array_equal(found, read_sound(tmp_path / "a.wav", RATE))
    with pytest.raises(DataError, match=r"^standard input: cut off"):
        read_sound(io.BytesIO(content[:-900]), RATE, name="standard input")
    with pytest.raises(DataError, match=r"^standard input: the file is empty"):
        read_sound(io.BytesIO(b""), RATE, name="standard input")


MESSAGES = {
    "empty": r"empty\.wav: the file is empty, expected a sound",
    "text": r"text\.wav: no readable sound \(.+\); expected WAV, FLAC, OGG or MP3",
    "cut": r"cut\.wav: cut off: its header promises 0\.50 s, the file holds 0\.28 s; copy it again",
    "header alone": r"header-alone\.wav: no readable sound",
    "no samples": r"no-samples\.wav: holds no sound \(0 samples\)",
    "0 Hz": r"0-Hz\.wav: (its header says 0 Hz|no readable sound)",
    "1 GHz": r"1-GHz\.wav: (its header says 1000000000 Hz, expected 1000 to 768000|no readable sound)",
    "noise": r"noise\.wav: no readable sound",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_is_no_sound_is_told_in_one_line(tmp_path, kind):
    path = broken_files(tmp_path)[kind]
    for read in (lambda: read_sound(path, RATE), lambda: sound_info(path)):
        with pytest.raises(DataError, match=MESSAGES[kind]) as caught:
            read()
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_a_compressed_file_that_was_cut_off(tmp_path, ending):
    path = tmp_path / f"whole.{ending}"
    chance = np.random.default_rng(1)
    soundfile.write(path, chance.uniform(-0.5, 0.5, 4 * RATE).astype(np.float32), RATE)
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if ending == "ogg":  # a stream without a promise: what is there is a sound
        assert 0.5 * RATE < len(read_sound(cut, RATE)) < 3 * RATE
        return
    with pytest.raises(DataError, match=rf"cut\.{ending}: (cut off|no readable sound)"):
        read_sound(cut, RATE)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.wav: cannot be read \(No such file or directory\)"):
        read_sound(tmp_path / "nowhere.wav", RATE)
    with pytest.raises(DataError, match="is a folder, expected a sound file"):
        read_sound(tmp_path, RATE)


def test_samples_that_are_not_finite(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.full(1000, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: holds samples that are not finite"):
        read_sound(path, RATE)


def test_a_header_of_unknown_length_is_read_to_the_end(tmp_path):
    path = tmp_path / "piped.wav"
    path.write_bytes(wav_bytes(tone(0.25, RATE), RATE, promised_bytes=0xFFFFFFFF))
    assert len(read_sound(path, RATE)) == RATE // 4


def test_ten_milliseconds_and_silence_are_sounds(tmp_path):
    path = tmp_path / "short.wav"
    path.write_bytes(wav_bytes(tone(0.01, RATE), RATE))
    assert len(read_sound(path, RATE)) == 160
    assert is_silent(np.zeros(100, dtype=np.float32)) and is_silent(np.full(100, 0.3, dtype=np.float32))
    assert not is_silent(tone(0.01, RATE)) and is_silent(np.zeros(0, dtype=np.float32))


def test_speed_changes_length_and_pitch():
    given = tone(1.0, RATE, 400.0)
    fast = at_speed(given, 1.25)
    assert len(fast) == pytest.approx(0.8 * RATE, abs=2)
    spectrum = np.abs(np.fft.rfft(fast[2000:-2000]))
    assert spectrum.argmax() * RATE / (len(fast) - 4000) == pytest.approx(500.0, abs=2)
    assert at_speed(given, 1.0) is given
    with pytest.raises(RegardError, match=r"speed is 9, expected 0\.25 to 4"):
        at_speed(given, 9.0)


def test_arrays_are_resampled():
    assert len(resampled(tone(0.5, 44100), 44100, RATE)) == pytest.approx(RATE / 2, abs=2)
    with pytest.raises(DataError, match="its rate is 0 Hz"):
        resampled(tone(0.5, RATE), 0, RATE)


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(0.1, 8000), 8000))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RegardError, match=rf"{package}, which is missing; pip install 'regard\[speech\]'"):
        read_sound(path, RATE)
