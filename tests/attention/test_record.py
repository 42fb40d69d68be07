from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from regard.attention.observation import Observation
from regard.attention.record import FORMAT_VERSION, AttentionRecord, Axis, Span, select_item
from regard.errors import ModelFileError, ObservationError, RegardError


def axis_from(lengths: Sequence[int]) -> Axis:
    """An axis with a token for each length, back to back; length 0 is a special token."""
    tokens, spans, place = [], [], 0
    for number, length in enumerate(lengths):
        tokens.append("x" * length or f"<{number}>")
        spans.append((place, place + length))
        place += length
    return Axis("x" * place, tuple(tokens), tuple(spans))


def spans_from(lengths: Sequence[int]) -> list[Span]:
    """Words and gaps in turn, as character spans."""
    found, place = [], 0
    for number, length in enumerate(lengths):
        if number % 2 == 0 and length:
            found.append((place, place + length))
        place += length
    return found


def random_record(query: Axis, key: Axis, *, layers: int = 2, heads: int = 3, batch: int = 1) -> AttentionRecord:
    generator = torch.Generator().manual_seed(len(query) * 101 + len(key))
    found = {}
    for number in range(layers):
        scores = torch.randn(batch, heads, len(query), len(key), generator=generator)
        found[f"layers.{number}"] = Observation(rows=scores.softmax(-1), row_index=torch.arange(len(query)))
    return AttentionRecord(found, query, key)


lengths = st.lists(st.integers(0, 5), min_size=1, max_size=11)


@settings(deadline=None, max_examples=60)
@given(query=lengths, key=lengths, query_words=lengths, key_words=lengths)
def test_words_keep_rows_that_sum_to_one_and_all_the_mass(
    query: list[int], key: list[int], query_words: list[int], key_words: list[int]
) -> None:
    record = random_record(axis_from(query), axis_from(key))
    over = record.over_words(spans_from(query_words), spans_from(key_words))
    by_key = record.over_words([], spans_from(key_words))
    for name, observation in over.layers.items():
        assert observation.rows.shape == (1, 3, len(over.query), len(over.key))
        torch.testing.assert_close(observation.rows.sum(-1), torch.ones(1, 3, len(over.query)))
        assert observation.row_index.tolist() == list(range(len(over.query)))
        # Grouping keys alone loses nothing: a word has the mass of its tokens.
        before, after = record[name].rows.sum(-2), by_key[name].rows.sum(-2)
        torch.testing.assert_close(after.sum(-1), before.sum(-1))
    for axis, words in ((over.query, query_words), (over.key, key_words)):
        for token, span in zip(axis.tokens, axis.spans, strict=True):
            assert span in spans_from(words) or token.startswith("<") or axis.text[slice(*span)] == token


def test_words_by_hand() -> None:
    query = Axis("ab c", ("a", "b", "c"), ((0, 1), (1, 2), (3, 4)))
    key = Axis("uv w", ("<s>", "u", "v", " w"), ((0, 0), (0, 1), (1, 2), (2, 4)))
    rows = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.1, 0.3], [0.0, 0.0, 0.0, 1.0]])[None, None]
    over = AttentionRecord({"a": Observation(rows=rows)}, query, key).over_words([(0, 2), (3, 4)], [(0, 2), (3, 4)])
    assert over.query == Axis("ab c", ("ab", "c"), ((0, 2), (3, 4)))
    assert over.key == Axis("uv w", ("<s>", "uv", "w"), ((0, 0), (0, 2), (3, 4)))
    torch.testing.assert_close(over.rows(), torch.tensor([[0.3, 0.35, 0.35], [0.0, 0.0, 1.0]]))


def test_words_are_those_of_the_text_unless_given() -> None:
    query = Axis("ab c!", ("a", "b", "c", "!", "</s>"), ((0, 1), (1, 2), (3, 4), (4, 5), (5, 5)))
    key = Axis("uv, 犬w", ("u", "v", ",", "犬", "w"), ((0, 1), (1, 2), (2, 3), (4, 5), (5, 6)))
    record = random_record(query, key)
    over = record.over_words()
    assert over.query is not None
    assert over.key is not None
    assert over.query.tokens == ("ab", "c", "!", "</s>")
    assert over.key.tokens == ("uv", ",", "犬", "w"), "a token of no word stands for itself"
    torch.testing.assert_close(over.rows().sum(-1), torch.ones(4))
    assert record.over_words([]).query == query, "none given is not the same as no words"


def test_a_record_is_equal_to_itself_alone_and_shown_by_its_shapes() -> None:
    one, other = (random_record(axis_from([1] * 5), axis_from([2] * 7), layers=1, batch=2) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "AttentionRecord('layers.0': Observation(rows=[2, 3, 5, 7], row_index=[5]))"


def test_a_token_goes_to_the_word_with_which_it_shares_most() -> None:
    axis = Axis("abcdefg", ("abcde", "fg"), ((0, 5), (5, 7)))
    rows = torch.eye(2)[None, None]
    over = AttentionRecord({"a": Observation(rows=rows)}, axis, axis).over_words([], [(0, 2), (2, 6), (6, 7)])
    # "abcde" shares 2, 3 and 0 characters with the words; "fg" one with either of two, and takes the first.
    assert over.key == Axis(axis.text, ("cdef",), ((2, 6),))


def test_words_need_axes_and_rows() -> None:
    axis = axis_from([1, 1])
    with pytest.raises(ObservationError, match="over_words: the record does not say what its axes are"):
        AttentionRecord({"a": Observation(rows=torch.ones(1, 1, 2, 2))}).over_words([], [])
    with pytest.raises(ObservationError, match="layer `a` holds no rows; observe with rows='all'"):
        AttentionRecord({"a": Observation(entropy=torch.ones(1, 1, 2))}, axis, axis).over_words([], [])
    chosen = Observation(rows=torch.ones(1, 1, 1, 2) / 2, row_index=torch.tensor([1]))
    with pytest.raises(ObservationError, match="layer `a` holds 1 of 2 rows"):
        AttentionRecord({"a": chosen}, axis, axis).over_words([], [])


def test_rows_are_means_of_what_was_not_chosen() -> None:
    record = random_record(axis_from([1] * 5), axis_from([2] * 7), batch=2)
    first, second = (record[f"layers.{number}"].rows[0] for number in (0, 1))
    torch.testing.assert_close(record.rows(), (first.mean(0) + second.mean(0)) / 2)
    torch.testing.assert_close(record.rows("layers.1"), second.mean(0))
    torch.testing.assert_close(record.rows(head=2), (first[2] + second[2]) / 2)
    torch.testing.assert_close(record.rows("layers.0", 1), first[1])
    half = AttentionRecord({"a": Observation(rows=first[None].bfloat16())})
    assert half.rows().dtype == torch.float32
    torch.testing.assert_close(select_item(record, 1).rows("layers.1"), record["layers.1"].rows[1].mean(0))
    assert select_item(record, 1)["layers.1"].row_index.tolist() == [0, 1, 2, 3, 4]


def test_what_was_not_observed_is_told() -> None:
    record = random_record(axis_from([1]), axis_from([1]))
    with pytest.raises(ObservationError, match=r"layer `x` was not observed; observed: layers\.0, layers\.1"):
        record["x"]
    with pytest.raises(ObservationError, match=r"layer `x` was not observed"):
        record.rows("x")
    for head in (3, -1):
        with pytest.raises(ObservationError, match=rf"`layers\.0` has heads 0 to 2, head {head} was asked for"):
            record.rows(head=head)
    with pytest.raises(ObservationError, match="layer `a` holds no rows; observe with rows='all'"):
        AttentionRecord({"a": Observation(entropy=torch.ones(1, 1, 2))}).rows()
    with pytest.raises(ObservationError, match="the record holds no layer"):
        AttentionRecord({}).rows()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    query, key = Axis("ä 犬", ("<s>", "ä", "犬"), ((0, 0), (0, 1), (2, 3))), axis_from([2, 0, 3, 1, 1])
    layers = {
        f"decoder.layers.{number}.cross": Observation(
            logsumexp=torch.randn(1, 2, 3),
            entropy=torch.rand(1, 2, 3, dtype=torch.float64),
            max_logit=torch.randn(1, 2, 3).bfloat16(),
            received=torch.rand(1, 2, 5),
            rows=torch.rand(1, 2, 3, 5, requires_grad=True).transpose(0, 0),
            row_index=torch.arange(3),
        )
        for number in (0, 2, 10)
    }
    layers["encoder/odd"] = Observation(received=torch.rand(7, 5).T[None])
    record = AttentionRecord(layers, query, key)
    path = tmp_path / "a.safetensors"
    assert record.save(str(path)) == path
    loaded = AttentionRecord.load(path)
    assert (loaded.query, loaded.key) == (query, key)
    assert list(loaded.layers) == list(record.layers), "in the order in which they were observed, 2 before 10"
    for name, observation in layers.items():
        before, after = observation.tensors(), loaded[name].tensors()
        assert list(before) == list(after)
        for statistic, tensor in before.items():
            assert after[statistic].dtype == tensor.dtype
            assert torch.equal(after[statistic], tensor)


def test_axes_that_nobody_described_stay_unknown(tmp_path: Path) -> None:
    AttentionRecord({"a": Observation(entropy=torch.ones(1, 1, 2))}).save(tmp_path / "a.safetensors")
    loaded = AttentionRecord.load(tmp_path / "a.safetensors")
    assert loaded.query is None
    assert loaded.key is None


def test_an_unknown_ending_is_told(tmp_path: Path) -> None:
    record = random_record(axis_from([1]), axis_from([1]))
    with pytest.raises(ObservationError, match=r"a\.pdf: ending '\.pdf' is not known; known: \.safetensors"):
        record.save(tmp_path / "a.pdf")
    with pytest.raises(ObservationError, match=r"ending 'missing' is not known"):
        record.save(tmp_path / "a")


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    record = random_record(axis_from([1]), axis_from([1]))
    path = tmp_path / "no" / "a.safetensors"
    with pytest.raises(RegardError) as caught:
        record.save(path)
    assert str(caught.value) == f"{path}: no such folder `{path.parent}`; create it or write elsewhere"
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(RegardError, match=r"b\.safetensors: cannot be written"):
        record.save(tmp_path / "b.safetensors")


@pytest.mark.parametrize("path", [None, 3, b"a.safetensors"])
def test_what_is_no_path_is_told(path: object) -> None:
    with pytest.raises(
        ModelFileError, match=r"^AttentionRecord\.load: .* is no path; give the file that `save` wrote$"
    ):
        AttentionRecord.load(path)  # type: ignore[arg-type]


ABOUT = {"query": {"text": "a", "tokens": ["a"], "spans": [[0, 1]]}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": str(FORMAT_VERSION + 1)}, "format 2, this regard reads up to 1; upgrade regard"),
        ({"format": "other"}, "not an attention record; write one with `record.save"),
        ({"format_version": "one"}, "not a readable attention record"),
        ({"axes": "{"}, "not a readable attention record"),
        ({"axes": "[]"}, "not a readable attention record"),
        ({"axes": json.dumps({"query": ["a"]})}, "not a readable attention record"),
        ({"axes": json.dumps({"query": {"text": "a", "tokens": ["a"]}})}, "not a readable attention record"),
        ({"axes": json.dumps({"query": ABOUT["query"] | {"spans": []}})}, "not a readable attention record"),
        ({"axes": json.dumps({"query": ABOUT["query"] | {"spans": [[0]]}})}, "not a readable attention record"),
    ],
)
def test_a_damaged_newer_or_foreign_file_is_told(tmp_path: Path, header: dict[str, str], message: str) -> None:
    path = tmp_path / "a.safetensors"
    good = {"format": "regard.attention", "format_version": str(FORMAT_VERSION), "axes": json.dumps(ABOUT)}
    save_file({"a/rows": torch.ones(1, 1, 1, 1)}, path, metadata=good)
    assert AttentionRecord.load(path).query == Axis("a", ("a",), ((0, 1),))
    save_file({"a/rows": torch.ones(1, 1, 1, 1)}, path, metadata=good | header)
    with pytest.raises(ModelFileError, match=message) as caught:
        AttentionRecord.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_cut_and_unknown_contents_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ModelFileError, match=r"no such record; write one with `record\.save\('a\.safetensors'\)`"):
        AttentionRecord.load(path)
    random_record(axis_from([1, 2]), axis_from([3])).save(path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="not a readable attention record"):
            AttentionRecord.load(path)
    header = {"format": "regard.attention", "format_version": str(FORMAT_VERSION), "axes": "{}"}
    save_file({"a/surprise": torch.ones(1)}, path, metadata=header)
    with pytest.raises(ModelFileError, match="statistic `surprise` is not known; upgrade regard"):
        AttentionRecord.load(path)
    save_file({"weight": torch.ones(1)}, path)
    with pytest.raises(ModelFileError, match="not an attention record"):
        AttentionRecord.load(path)


def test_an_axis_has_a_span_for_each_token() -> None:
    assert len(axis_from([1, 0, 2])) == 3
    with pytest.raises(AssertionError):
        Axis("a", ("a",), ())


def test_a_lone_mark_of_a_words_beginning_belongs_to_the_word() -> None:
    axis = Axis("an Ox", ("▁", "an", "▁", "O", "x", "</s>"), ((0, 0), (0, 2), (3, 3), (3, 4), (4, 5), (5, 5)))
    rows = torch.eye(6)[None, None]
    words = AttentionRecord({"a": Observation(rows=rows)}, axis, axis).over_words([(0, 2), (3, 5)], [(0, 2), (3, 5)])
    assert words.key is not None
    assert words.key.tokens == ("an", "Ox", "</s>")
    torch.testing.assert_close(words.rows("a"), torch.eye(3))


def test_words_are_found_unless_given() -> None:
    axis = Axis("a dog.", ("a", "do", "g", ".", "</s>"), ((0, 1), (2, 4), (4, 5), (5, 6), (6, 6)))
    record = AttentionRecord({"a": Observation(rows=torch.eye(5)[None, None])}, axis, axis)
    assert record.over_words().query.tokens == ("a", "dog", ".", "</s>")  # type: ignore[union-attr]
    assert "rows=[1, 1, 5, 5]" in repr(record)
    assert record != AttentionRecord(record.layers, axis, axis)  # a record is itself and no other
