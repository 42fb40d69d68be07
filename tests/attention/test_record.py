from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from second_pass_cases import CASES, inputs, materialised

from regard.attention.observation import Observation, Observe
from regard.attention.records import map_parts, record
from regard.attention.records.record import AttentionRecord, Axis, Span, select_item
from regard.attention.second_pass import second_pass
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


# What damaged files of version 1 said; tests/attention/test_record_file.py has those of this version.
ABOUT = {"query": {"text": "a", "tokens": ["a"], "spans": [[0, 1]]}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": "4"}, "format 4, this regard reads up to 3; upgrade regard"),
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
    good = {"format": "regard.attention", "format_version": "1", "axes": json.dumps(ABOUT)}
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
    header = {"format": "regard.attention", "format_version": "1", "axes": "{}"}
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


# -- calls, selections, traces -----------------------------------------------------------------------------------------


def test_the_calls_of_a_layer() -> None:
    one, two, three = (Observation(entropy=torch.full((1, 1, 2), float(number))) for number in range(3))
    seen = AttentionRecord({"a": one, "b": two, "a#1": two, "a#2": three}, backend={"a": "cpu flash"})
    assert seen.calls("a") == (one, two, three)
    assert seen.calls("b") == (two,)
    assert seen.calls("a#1") == (two,)
    assert (seen["a#0"], seen["a#1"], seen["a#2"], seen["b"], seen["b#0"]) == (one, two, three, two, two)
    with pytest.raises(ObservationError) as caught:
        seen["a"]
    assert str(caught.value) == (
        "layer `a` was called 3 times; choose one call, `a#0` to `a#2`, or take record.calls('a')"
    )
    for unknown in ("a#3", "c", "b#1"):
        with pytest.raises(ObservationError, match=f"layer `{unknown}` was not observed; observed: a, b, a#1, a#2"):
            seen[unknown]
    with pytest.raises(ObservationError, match="layer `c` was not observed"):
        seen.calls("c")
    assert seen.backend == {"a": "cpu flash"}


def test_a_record_shows_what_a_running_observer_fills() -> None:
    layers: dict[str, Observation] = {}
    seen = AttentionRecord(layers)
    layers["a"] = Observation(entropy=torch.ones(1, 1, 2))
    assert seen["a"] is layers["a"]
    layers["a#1"] = layers["a"]
    assert len(seen.calls("a")) == 2


def test_only_some_layers() -> None:
    query, key = axis_from([1] * 5), axis_from([2] * 7)
    four = random_record(query, key, layers=4)
    some = four.only("layers.3", "layers.[01]")
    assert list(some.layers) == ["layers.0", "layers.1", "layers.3"]
    assert (some.query, some.key) == (query, key)
    with pytest.raises(ObservationError, match=r"`layers\.9` was not observed; .*, did you mean `layers\.[0-3]`\?"):
        four.only("layers.1", "layers.9")
    with pytest.raises(ObservationError, match=r"layer `decoder\.\*` was not observed"):
        four.only("decoder.*")


def test_a_record_is_told_what_it_is_about() -> None:
    query, key, empty = axis_from([1] * 5), axis_from([2] * 7), Axis("", (), ())
    bare = AttentionRecord(random_record(query, key).layers)
    assert (bare.query, bare.key) == (None, None)
    assert (bare.about(query).query, bare.about(query).key) == (query, None)
    assert (bare.about(query, key).about(key=empty).query, bare.about(query).about(empty).query) == (query, empty)


def test_many_layers_are_shown_in_short() -> None:
    text = repr(AttentionRecord({str(number): Observation(entropy=torch.ones(1, 1, 2)) for number in range(99)}))
    assert text.endswith("'7': Observation(entropy=[1, 1, 2]), and 91 more)")


def test_tiles_of_stored_rows() -> None:
    rows = torch.rand(2, 3, 4, 7, dtype=torch.bfloat16)
    layers = {
        "whole": Observation(rows=rows),
        "chosen": Observation(rows=rows, row_index=torch.tensor([5, 1, 2, 9])),
        "heads": Observation(rows=rows.double(), head_index=torch.tensor([4, 8, 1])),
    }
    seen = AttentionRecord(layers)
    assert torch.equal(seen.tile("whole", 2, (1, 3), (0, 5), item=1), rows[1, 2, 1:3, :5].float())
    assert torch.equal(seen.tile("whole", 2, slice(-2, None), slice(3)), rows[0, 2, 2:, :3].float())
    assert torch.equal(seen.tile("chosen", 0, (1, 3), (0, 7)), rows[0, 0, [1, 2]].float())
    assert torch.equal(seen.tile("heads", 8, (0, 4), (0, 7)), rows[0, 1].double())
    assert torch.equal(seen.rows("heads", 1), rows[0, 2].float())
    assert torch.equal(seen.rows("chosen", 1, queries=[9, 5], item=1), rows[1, 1, [3, 0]].float())
    with pytest.raises(
        ObservationError, match=r"`chosen` holds the rows of 4 queries, not of 3, 4; observe with trace"
    ):
        seen.tile("chosen", 0, (1, 5), (0, 7))
    with pytest.raises(ObservationError, match=r"`chosen` holds the rows of 4 queries, not of 0; observe with trace"):
        seen.rows("chosen", queries=[5, 0])
    with pytest.raises(ObservationError, match=r"layer `heads` has heads 4, 8, 1 alone, head 0 was asked for"):
        seen.rows("heads", 0)


def test_everything_that_is_wrong_with_a_tile_is_told_at_once() -> None:
    seen = AttentionRecord(
        {"a": second_pass(inputs(), Observe(trace=True)), "b": Observation(entropy=torch.ones(1, 1, 2))}
    )
    with pytest.raises(ObservationError) as caught:
        seen.tile("a", 6, (40, 54), (9, 3), item=2)
    assert str(caught.value) == (
        "layer `a` has heads 0 to 5, head 6 was asked for; queries 0 to 53, not 40 to 54; keys 0 to 67, not 9 to 3; "
        "items 0 to 1, item 2 was asked for"
    )
    with pytest.raises(ObservationError, match="keys in steps of 1, not of 2"):
        seen.tile("a", 0, slice(3), slice(0, 9, 2))
    with pytest.raises(ObservationError, match="layer `b` holds neither a trace nor rows; observe with trace=True"):
        seen.tile("b", 0, (0, 1), (0, 1))
    with pytest.raises(ObservationError, match="layer `b` holds no pooled map; observe with pooled="):
        seen.pooled("b")
    with pytest.raises(ObservationError, match=r"layer `a` has queries 0 to 52, not 53, -54"):
        seen.rows("a", queries=[53, 0, -54])
    assert seen.tile("a", 0, (5, 5), (0, 67)).shape == (0, 67)


def test_a_map_too_large_to_be_made_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = AttentionRecord({"a": second_pass(inputs(), Observe(trace=True))})
    assert seen.rows("a").shape == (53, 67)
    monkeypatch.setattr(map_parts, "MOST_WEIGHTS", 53 * 67 - 1)
    with pytest.raises(ObservationError) as caught:
        seen.rows("a")
    assert str(caught.value) == (
        "layer `a`: 53 x 67 weights are too many to make at once (at most 3550); choose rows with queries=, an area "
        "with record.tile, or a picture with record.plot"
    )
    assert seen.rows("a", queries=range(50)).shape == (50, 67)


def test_maps_of_different_sizes_have_no_mean() -> None:
    seen = AttentionRecord(
        {"a": Observation(rows=torch.ones(1, 1, 2, 3)), "b": Observation(rows=torch.ones(1, 1, 5, 3))}
    )
    with pytest.raises(
        ObservationError, match=r"rows: the layers' maps differ in size: `a` 2 x 3, `b` 5 x 3; choose one"
    ):
        seen.rows()


def test_an_item_of_everything() -> None:
    pairs = CASES["everything"](inputs(dtype=torch.float64))
    wanted = Observe(entropy=True, rows=(5, 7), columns=(2,), top_k=3, pooled=(4, 4), trace=True, heads=(3, 1))
    seen = AttentionRecord({"a": second_pass(pairs, wanted)}, backend={"a": "eager"})
    one = select_item(seen, 1)
    assert one.backend == {"a": "eager"}
    for name, tensor in seen["a"].tensors().items():
        kept = one["a"].tensors()[name]
        assert torch.equal(kept, tensor if name in ("row_index", "column_index", "head_index") else tensor[1:])
    area = (3, 31), (5, 60)
    torch.testing.assert_close(one.tile("a", 3, *area), seen.tile("a", 3, *area, item=1))
    torch.testing.assert_close(one.tile("a", 3, *area), materialised(pairs)[1][1, 3, 3:31, 5:60])
    with pytest.raises(ObservationError, match="layer `a` has items 0 to 1, item 2 was asked for"):
        select_item(seen, 2)


def test_words_of_a_trace() -> None:
    pairs = inputs(batch=2, query_len=5, key_len=7)
    query, key = axis_from([1] * 5), axis_from([2] * 7)
    traced = AttentionRecord({"a": second_pass(pairs, Observe(trace=True, heads=(5, 2)))}, query, key)
    kept = AttentionRecord({"a": second_pass(pairs, Observe(rows="all", heads=(5, 2)))}, query, key)
    words = [(0, 3), (3, 5)], [(0, 6), (6, 14)]
    torch.testing.assert_close(traced.over_words(*words)["a"].rows, kept.over_words(*words)["a"].rows)
    torch.testing.assert_close(traced.over_words(*words).rows("a", 2), kept.over_words(*words).rows("a", 2))


def test_views_that_nobody_taught_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "VIEWS", {})
    seen = random_record(axis_from([1]), axis_from([1]))
    for view in (seen.alignment, lambda: seen.plot("layers.0")):
        with pytest.raises(ObservationError, match=r"regard\.lens, which is not loaded; `import regard\.lens` first"):
            view()
