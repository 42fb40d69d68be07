from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.errors import DataError, ObservationError
from regard.lens import Link, align, alignment_error_rate, from_pharaoh, to_pharaoh

QUERY = Axis("ab c d", ("a", "b", "c", "d", "</s>"), ((0, 1), (1, 2), (3, 4), (5, 6), (6, 6)))
KEY = Axis("u vw x", ("<en>", "u", "v", "w", "x", "</s>"), ((0, 0), (0, 1), (2, 3), (3, 4), (5, 6), (6, 6)))
ROWS = torch.tensor(
    [  # <en>  u    v    w    x   </s>
        [0.00, 0.8, 0.1, 0.1, 0.0, 0.00],  # a: with b, most lies on u
        [0.00, 0.4, 0.1, 0.1, 0.4, 0.00],  # b
        [0.00, 0.4, 0.3, 0.3, 0.0, 0.00],  # c: no token of it beats u, its two tokens together do
        [0.10, 0.1, 0.0, 0.1, 0.0, 0.70],  # d: most lies on the end; u and w are equal without it
        [0.00, 0.0, 0.0, 0.0, 0.9, 0.10],  # the end
    ]
)


def record(*maps: torch.Tensor) -> AttentionRecord:
    """One layer a map, with one head each."""
    layers = {f"layer{number}": Observation(rows=rows[None, None]) for number, rows in enumerate(maps)}
    return AttentionRecord(layers, QUERY, KEY)


def test_each_word_is_linked_with_its_heaviest_source_word() -> None:
    links = align(record(ROWS))
    assert [(query, key) for query, key, _ in links] == [(0, 0), (1, 1), (2, 0)]
    assert [weight for _, _, weight in links] == pytest.approx([0.6, 0.6, 0.1])
    assert to_pharaoh(links) == "0-0 0-2 1-1"


def test_mutual_keeps_what_both_sides_choose() -> None:
    assert [link[:2] for link in align(record(ROWS), method="mutual")] == [(0, 0), (1, 1)]


def test_special_tokens_take_part_when_asked() -> None:
    links = align(record(ROWS), special=True)
    assert [link[:2] for link in links] == [(0, 1), (1, 2), (2, 4), (3, 3)]  # counted with <en> in front


def test_light_links_and_rows_of_zeros_are_left_out() -> None:
    assert [link[:2] for link in align(record(ROWS), threshold=0.5)] == [(0, 0), (1, 1)]
    assert align(record(torch.zeros(5, 6))) == []


def test_layers_and_heads_are_averaged_unless_chosen() -> None:
    straight = torch.eye(5, 6)
    both = record(ROWS, straight)
    assert align(both, layer="layer0") == align(record(ROWS))
    assert align(both, layer="last") == align(record(straight))
    assert align(both, layer="mean") == align(both)
    assert [link[:2] for link in align(both)] == [link[:2] for link in align(record((ROWS + straight) / 2))]
    assert [link.weight for link in align(both)] == pytest.approx([0.3 + 0.25, 0.3 + 0.5, 0.05 + 0.5], abs=1e-6)
    heads = AttentionRecord({"a": Observation(rows=torch.stack([ROWS, straight])[None])}, QUERY, KEY)
    assert align(heads, head=1) == align(record(straight))


def test_an_index_counts_the_words_of_the_text_even_where_one_has_no_token() -> None:
    key = Axis("u v w", ("u v", "w"), ((0, 3), (4, 5)))  # no token is mostly v
    query = Axis("犬が x", ("犬", "が", "x"), ((0, 1), (1, 2), (3, 4)))
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 0.8]])
    links = align(AttentionRecord({"a": Observation(rows=rows[None, None])}, query, key))
    assert [link[:2] for link in links] == [(0, 2), (1, 0), (2, 2)]


def test_other_words_may_be_given() -> None:
    links = align(record(ROWS), words=lambda text: [(0, len(text))])
    assert [link[:2] for link in links] == [(0, 0)]


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ObservationError, match="align: method 'max' is not known; known: 'argmax', 'mutual'"):
        align(record(ROWS), method="max")  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match="does not say what its axes are"):
        align(AttentionRecord({"a": Observation(rows=torch.ones(1, 1, 2, 2))}))
    empty = Axis("", (), ())
    nothing = AttentionRecord({"a": Observation(rows=torch.zeros(1, 1, 0, 0))}, empty, empty)
    assert align(nothing) == []


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_pharaoh_format_survives_the_round_trip(pairs: set[tuple[int, int]]) -> None:
    assert from_pharaoh(to_pharaoh(pairs)) == sorted(pairs)


def test_pharaoh_format_names_the_source_first() -> None:
    assert to_pharaoh([Link(2, 1, 0.5), Link(0, 0, 1.0), (1, 2)]) == "0-0 1-2 2-1"
    for wrong in ("0:1", "0-1-2", "-1-0", "0-\u0661"):
        with pytest.raises(DataError, match="is not a link; expected source-target"):
            from_pharaoh("0-0 " + wrong)


def test_alignment_error_rate_by_hand(make_record: Callable[..., AttentionRecord]) -> None:
    sure, possible = [(0, 0), (1, 1)], [(2, 1), (2, 2)]
    assert alignment_error_rate([(0, 0), (1, 1)], sure, possible) == 0.0
    assert alignment_error_rate([(0, 0), (2, 2), (3, 3)], sure, possible) == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert alignment_error_rate([], sure) == 1.0
    assert alignment_error_rate([], []) == 0.0
