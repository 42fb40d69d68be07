"""`regard evaluate`: the recipe's test set and others, with signatures, intervals and the trivial baseline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import Command, Trained
from tiny_language import TEST


def test_the_recipes_test_set_by_default(command: Command, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    done = command("evaluate", trained.model, "--output", path)
    assert done.status == 0, done.err
    bleu, chrf, lengths, trivial = done.out.splitlines()
    assert re.fullmatch(r"BLEU [\d.]+ \[[\d.]+, [\d.]+\]  nrefs:1\|bs:1000\|seed:12345\|.*tok:13a.*version:.*", bleu)
    assert re.fullmatch(r"chrF [\d.]+ \[[\d.]+, [\d.]+\]  nrefs:1\|bs:1000\|.*nc:6\|nw:0.*", chrf)
    assert lengths.startswith(f"{len(TEST)} sentences, ")
    assert re.fullmatch(r"the untranslated source, for comparison: BLEU [\d.]+, chrF [\d.]+", trivial)
    assert float(bleu.split()[1]) > 90 > 30 > float(re.findall(r"[\d.]+", trivial)[0])
    written = path.read_text(encoding="utf-8").splitlines()
    assert sum(a == target for a, (_, target) in zip(written, TEST, strict=True)) >= 0.9 * len(TEST)
    card = (trained.model / "README.md").read_text(encoding="utf-8")
    assert all(line in card for line in (bleu, chrf, lengths, trivial))


def test_json_is_one_object(command: Command, trained: Trained) -> None:
    done = command("evaluate", trained.model, "--json", "--beam-size", "1", "--scoring", "moses-lowercase")
    found = json.loads(done.out)
    assert len(done.out.splitlines()) == 1
    assert (found["scoring"], found["num_sentences"], list(found["metrics"])) == (
        "moses-lowercase",
        len(TEST),
        ["BLEU"],
    )
    bleu = found["metrics"]["BLEU"]
    assert bleu["interval"][0] <= bleu["value"] <= bleu["interval"][1]
    assert bleu["signature"].startswith("regard:moses-lowercase|")
    assert found["untranslated_source"]["BLEU"] < bleu["value"]
    assert done.err == f"translating {len(TEST)} sentences\n"


def test_every_way_to_name_data(command: Command, trained: Trained, tmp_path: Path) -> None:
    part = TEST[:13]
    (tmp_path / "t.en").write_text("".join(f"{source}\n" for source, _ in part), encoding="utf-8")
    (tmp_path / "t.de").write_text("".join(f"{target}\n" for _, target in part), encoding="utf-8")
    (tmp_path / "t.tsv").write_text("source\ttarget\n" + "".join(f"{s}\t{t}\n" for s, t in part), encoding="utf-8")
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{t},{s}\n" for s, t in part), encoding="utf-8")
    specs = [
        f"{tmp_path}/t.en,{tmp_path}/t.de",
        f"{tmp_path}/t.tsv",
        f"{{path: {tmp_path}/t.csv, columns: {{source: b, target: a}}}}",
    ]
    found = [command("evaluate", trained.model, "--beam-size", "1", "--data", spec).out for spec in specs]
    assert "13 sentences" in found[0]
    assert found[0] == found[1] == found[2]


def test_a_bad_record_stops_it(command: Command, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("source\ttarget\nThe dog.\tDem hund.\n\tLeer.\n", encoding="utf-8")
    command("evaluate", trained.model, "--data", tmp_path / "t.tsv").refused("t.tsv:3", "empty source")


def test_the_anchors_scoring_counts_the_anchors_tokens(command: Command, trained: Trained, shared_data: Path) -> None:
    """The reference length does not depend on the model, so translations may be short and poor."""
    folder = shared_data / "multi30k"
    spec = f"{folder / 'test_2016_flickr.en'},{folder / 'test_2016_flickr.de'}"
    arguments = ("--data", spec, "--scoring", "moses-lowercase", "--beam-size", "1", "--max-length", "5")
    done = command("evaluate", trained.model, *arguments)
    assert done.status == 0, done.err
    assert re.search(r"^1000 sentences, \d+ tokens against 12103, brevity penalty 0\.\d+$", done.out, re.MULTILINE)
    assert done.out.startswith("BLEU 0.00 [0.00, 0.00]  regard:moses-lowercase|language:de|")


@pytest.mark.parametrize("beam_size", [1, 5])
def test_options_reach_the_search(command: Command, trained: Trained, tmp_path: Path, beam_size: int) -> None:
    arguments = ("--beam-size", beam_size, "--max-length", "2", "--output", tmp_path / "out.txt", "--json")
    found = json.loads(command("evaluate", trained.model, *arguments).out)
    assert found["hypothesis_length"] <= 2 * len(TEST)


def test_settings_of_other_tasks_are_refused(command: Command, trained: Trained) -> None:
    done = command("evaluate", trained.model, "--ctc-weight", "0.5")
    assert done.status == 2 and "ctc_weight" in done.err and len(done.err.splitlines()) == 1
