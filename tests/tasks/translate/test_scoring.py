"""Translation scores against sacreBLEU called directly, and against a known length of a public test set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import sacrebleu

from regard.errors import ConfigError, DataError, RegardError
from regard.tasks.translate.scoring import Scores, score

REFERENCES = [
    "Ein Hund läuft über die grüne Wiese.",
    "Zwei Männer stehen an einem Herd und kochen.",
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
    "Vier Kinder spielen im Schnee vor dem Haus.",
    "Eine Frau in einem blauen Kleid liest ein Buch.",
]
HYPOTHESES = [
    "Ein Hund rennt über die grüne Wiese.",
    "Zwei Männer stehen am Herd und kochen etwas.",
    "Ein Mädchen klettert in ein Spielhaus.",
    "Vier Kinder spielen im Schnee vor einem Haus.",
    "Eine Frau im blauen Kleid liest.",
]


def metric(scores: Scores, name: str) -> tuple[float, tuple[float, float]]:
    [found] = [one for one in scores.metrics if one.name == name]
    assert found.interval is not None
    return found.value, found.interval


@pytest.mark.parametrize("name", ["BLEU", "chrF"])
def test_value_interval_and_signature_are_sacrebleus(name: str) -> None:
    oracle = {"BLEU": sacrebleu.BLEU(), "chrF": sacrebleu.CHRF()}[name]
    expected = oracle.corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=211)
    scores = score(HYPOTHESES, REFERENCES, language="de", bootstrap_samples=211)
    value, (low, high) = metric(scores, name)
    assert value == pytest.approx(expected.score, abs=1e-9)
    assert (high - low) / 2 == pytest.approx(expected._ci, abs=1e-3)  # sacreBLEU sums in float32
    assert low < value < high
    [signature] = [one.signature for one in scores.metrics if one.name == name]
    assert signature == str(oracle.get_signature())
    assert "bs:211|seed:12345" in signature


def test_lengths_and_brevity_are_of_the_right_side() -> None:
    forth = score(HYPOTHESES, REFERENCES, language="de", bootstrap_samples=0)
    back = score(REFERENCES, HYPOTHESES, language="de", bootstrap_samples=0)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES])
    assert (forth.hypothesis_length, forth.reference_length) == (expected.sys_len, expected.ref_len)
    assert (back.hypothesis_length, back.reference_length) == (expected.ref_len, expected.sys_len)
    assert expected.sys_len < expected.ref_len
    assert forth.brevity_penalty == pytest.approx(expected.bp) and forth.brevity_penalty < 1
    assert back.brevity_penalty == 1
    assert forth.metrics[0].value != back.metrics[0].value


def test_moses_lowercase_is_bleu_over_prepared_tokens() -> None:
    hypotheses = ["„Zwei“ MÄNNER – sie kochen im Freibad-Café, z.B. Suppe .", "Ein Hund's Ball & [Netz] liegt da."]
    references = ['"zwei" männer - sie kochen im freibad-café, z.b. Suppe.', "ein Hund's Ball & [Netz] liegt dort."]
    prepared = [
        '" zwei " männer - sie kochen im freibad-café , z.b. suppe .',
        "ein hund ' s ball & [ netz ] liegt da .",
    ]
    wanted = [prepared[0], "ein hund ' s ball & [ netz ] liegt dort ."]
    expected = sacrebleu.BLEU(tokenize="none", force=True).corpus_score(prepared, [wanted])
    scores = score(hypotheses, references, language="de", scoring="moses-lowercase")
    assert [one.name for one in scores.metrics] == ["BLEU"]
    assert scores.metrics[0].value == pytest.approx(expected.score, abs=1e-9)
    assert (scores.hypothesis_length, scores.reference_length) == (expected.sys_len, expected.ref_len)


def test_moses_signature_says_what_was_done() -> None:
    import sacremoses

    [found] = score(HYPOTHESES, REFERENCES, language="de", scoring="moses-lowercase", seed=7).metrics
    own, _, rest = found.signature.partition("|nrefs:")
    assert own == (
        "regard:moses-lowercase|language:de|steps:punctuation+lowercase+tokenize|dash-splits:no|escape:no"
        f"|sacremoses:{sacremoses.__version__}"
    )
    assert rest.startswith("1|bs:1000|seed:7|case:lc|eff:no|tok:moses|smooth:exp|version:")
    [plain, _] = score(HYPOTHESES, REFERENCES, language="de").metrics
    assert "|case:mixed|" in plain.signature and "|tok:13a|" in plain.signature
    assert all(len(field.split(":")) == 2 for field in found.signature.split("|"))


def test_multi30k_reference_length(shared_data: Path) -> None:
    path = shared_data / "multi30k" / "test_2016_flickr.de"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == 1000
    options = {"language": "de", "bootstrap_samples": 0}
    moses = score(lines, lines, scoring="moses-lowercase", **options)  # type: ignore[arg-type]
    assert moses.reference_length == 12103
    assert score(lines, lines, **options).reference_length == 12106  # type: ignore[arg-type]


@pytest.mark.parametrize("scoring", ["sacrebleu", "moses-lowercase"])
def test_identical_text_scores_100(scoring: str) -> None:
    scores = score(REFERENCES, REFERENCES, language="de", scoring=scoring)  # type: ignore[arg-type]
    for found in scores.metrics:
        assert found.value == pytest.approx(100)
        assert found.interval == pytest.approx((100, 100))
    assert scores.hypothesis_length == scores.reference_length > 0


def test_case_counts_only_for_sacrebleu() -> None:
    shouted = [text.upper().replace("Ü", "ü").replace("Ä", "ä") for text in REFERENCES]
    assert score(shouted, REFERENCES, language="de", scoring="moses-lowercase").metrics[0].value == pytest.approx(100)
    assert score(shouted, REFERENCES, language="de").metrics[0].value < 10


def test_intervals_are_determined_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = score(HYPOTHESES, REFERENCES, language="de", seed=3)
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    assert score(HYPOTHESES, REFERENCES, language="de", seed=3) == first
    assert os.environ["SACREBLEU_SEED"] == "99"
    other = score(HYPOTHESES, REFERENCES, language="de", seed=4, bootstrap_samples=101)
    again = score(HYPOTHESES, REFERENCES, language="de", seed=5, bootstrap_samples=101)
    assert metric(other, "chrF")[1] != metric(again, "chrF")[1]
    assert metric(other, "chrF")[0] == metric(again, "chrF")[0]


def test_no_samples_no_interval() -> None:
    scores = score(HYPOTHESES, REFERENCES, language="de", bootstrap_samples=0)
    assert all(found.interval is None for found in scores.metrics)
    assert all("bs:" not in found.signature for found in scores.metrics)
    assert "[" not in scores.lines()[0]


def test_other_scripts_and_empty_hypotheses() -> None:
    scores = score(["我看见了三只小狗。", "", "Ελλάδα 🐕"], ["我看见了三只小狗。", "你好", "Ελλάδα 🐕"], language="zh")
    assert "tok:zh" in scores.metrics[0].signature
    assert 0 < scores.metrics[1].value < 100
    nothing = score(["", ""], REFERENCES[:2], language="de", scoring="moses-lowercase")
    assert (nothing.hypothesis_length, nothing.brevity_penalty, nothing.metrics[0].value) == (0, 0, 0)


def test_json_and_lines() -> None:
    scores = score(HYPOTHESES, REFERENCES, language="de")
    found = json.loads(json.dumps(scores.to_json()))
    assert list(found["metrics"]) == ["BLEU", "chrF"]
    assert found["metrics"]["BLEU"]["interval"] == list(metric(scores, "BLEU")[1])
    assert found["num_sentences"] == 5 and found["scoring"] == "sacrebleu" and found["language"] == "de"
    bleu, chrf, lengths = scores.lines()
    value, (low, high) = metric(scores, "BLEU")
    assert bleu == f"BLEU {value:.2f} [{low:.2f}, {high:.2f}]  {scores.metrics[0].signature}"
    assert chrf.startswith("chrF ")
    assert lengths == (
        f"5 sentences, {scores.hypothesis_length} tokens against {scores.reference_length},"
        f" brevity penalty {scores.brevity_penalty:.3f}"
    )


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (
            ["a", "b"],
            ["a"],
            (
                "score: 2 hypotheses against 1 references, expected as many of each;"
                " line i of one must translate line i of the other"
            ),
        ),
        ([], [], "score: no sentences, expected at least one hypothesis with its reference"),
        ("abc", ["a", "b", "c"], "score: hypotheses is one string, expected a list of sentences; write [text]"),
        (["a", "b"], ["a", None], "score: references[1] is NoneType, expected a string; write '' for no text"),
    ],
)
def test_bad_texts(hypotheses: list[str], references: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        score(hypotheses, references, language="de")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "bleu"}, "scoring: received 'bleu', expected one of sacrebleu, moses-lowercase"),
        (
            {"bootstrap_samples": 1},
            "bootstrap_samples: received 1, expected 0 for no interval or at least 2; 1000 is usual",
        ),
        ({"seed": -1}, "seed: received -1, expected a whole number from 0 up"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        score(HYPOTHESES, REFERENCES, language="de", **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(RegardError) as caught:
        score(HYPOTHESES, REFERENCES, language="de", scoring="moses-lowercase")
    assert str(caught.value) == "scoring translations needs the package sacremoses: pip install sacremoses"


def test_missing_tokenizer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **options: object) -> None:
        raise RuntimeError("Japanese tokenization requires extra dependencies")

    monkeypatch.setattr(sacrebleu, "BLEU", absent)
    with pytest.raises(RegardError) as caught:
        score(["犬"], ["犬"], language="ja")
    assert str(caught.value) == (
        "scoring 'ja' with sacreBLEU needs a tokenizer that is not installed: pip install 'sacrebleu[ja]'"
    )
