"""What a stored record is: kept whole, opened without reading, migrated, and refused where it does not fit."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from second_pass_cases import CASES, inputs

from regard.attention.observation import Observation, Observe
from regard.attention.records import record_file
from regard.attention.records.axis import Axis
from regard.attention.records.record import FORMAT_VERSION, AttentionRecord
from regard.attention.records.record_file import coarser
from regard.attention.records.tensor_file import TensorFile
from regard.attention.second_pass import second_pass
from regard.errors import ModelFileError, ObservationError, RegardError

EVERYTHING = Observe(
    logsumexp=True, entropy=True, max_logit=True, received=True, sink_mass=2, top_k=3, rows=(5, 0), columns=(1, 6, 2),
    pooled=(4, 3), trace=True,
)  # fmt: skip
AXIS = Axis("ä 犬 \ud800", ("<s>", "ä", " 犬", "\ud800", "\udc00"), ((0, 0), (0, 1), (1, 3), (4, 5), (5, 5)))


def everything(tmp_path: Path, case: str = "everything") -> Path:
    """A small record with every part that the format knows; its name is new each time."""
    pairs = CASES[case](inputs(batch=1, heads=4, kv_heads=2, query_len=7, key_len=9, head_dim=3))
    observation = second_pass(pairs, EVERYTHING)
    chosen = second_pass(pairs, Observe(heads=(2, 0), entropy=True))
    layers = {"b": observation, "a/x": chosen, "b#1": Observation(received=torch.rand(1, 4, 9))}
    record = AttentionRecord(layers, AXIS, Axis("", ("0",), ((0, 0),)), backend={"b": "cpu flash"})
    return record.save(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors")


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> Path:
    """The file again, with its tensors and metadata changed."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


def use(record: AttentionRecord) -> None:
    """Everything that reads a record."""
    _ = record.query, record.key, repr(record)
    for name in record.layers:
        observation = record.layers[name]
        for tensor in observation.tensors().values():
            tensor.double().sum()
        if observation.trace is not None:
            record.tile(f"{name}#0", 0, slice(None), slice(None))
            record.rows(f"{name}#0", queries=[0])
            second_pass(observation.trace, Observe(received=True, pooled=(2, 2)), observation.logsumexp)
        if observation.pooled is not None:
            record.pooled(f"{name}#0", level=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_kept(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pairs = CASES[case](inputs(batch=2, query_len=17, key_len=23, dtype=dtype))
    before = second_pass(pairs, EVERYTHING)
    after = AttentionRecord.load(AttentionRecord({"a": before}).save(tmp_path / "a.safetensors"))["a"]
    assert list(after.tensors()) == list(before.tensors())
    assert before.trace is not None
    assert after.trace is not None
    assert (after.trace.scale, after.trace.soft_cap) == (before.trace.scale, before.trace.soft_cap)
    assert after.trace.tensors().keys() == before.trace.tensors().keys()
    for one, other in ((before.tensors(), after.tensors()), (before.trace.tensors(), after.trace.tensors())):
        for name, tensor in one.items():
            assert other[name].dtype == tensor.dtype
            assert torch.equal(other[name], tensor), name
            assert not other[name].requires_grad


def test_broadcast_axes_take_no_room(tmp_path: Path) -> None:
    plain = inputs(batch=2)
    bias = torch.randn(53, 67)
    allowed = (torch.rand(1, 1, 1, 67) > 0.5).expand(2, 6, 53, 67)
    ranges = torch.tensor([0, 60], dtype=torch.int32).view(1, 1, 1, 2).expand(2, 53, 1, 2)
    pairs = replace(plain, bias=bias.expand(2, 6, 53, 67), allowed=allowed, ranges=ranges)
    observation = second_pass(pairs, Observe(trace=True))
    stored = AttentionRecord.load(AttentionRecord({"a": observation}).save(tmp_path / "a.safetensors"))
    trace = stored["a"].trace
    assert trace is not None
    assert trace.bias is not None and trace.bias.shape == (1, 1, 53, 67)
    assert trace.allowed is not None and trace.allowed.shape == (1, 1, 1, 67)
    assert trace.ranges is not None and trace.ranges.shape == (1, 53, 1, 2)
    memory = AttentionRecord({"a": observation})
    for item, head in ((0, 0), (1, 5)):
        area = (3, 50), (5, 66)
        torch.testing.assert_close(stored.tile("a", head, *area, item=item), memory.tile("a", head, *area, item=item))
    two_axes = AttentionRecord({"a": replace(observation, trace=replace(pairs, bias=bias))})
    path = two_axes.save(tmp_path / "b.safetensors")
    torch.testing.assert_close(AttentionRecord.load(path).tile("a", 4, *area), memory.tile("a", 4, *area))


def test_opening_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = everything(tmp_path)
    read: list[str] = []
    tensor = TensorFile.tensor

    def noted(self: TensorFile, name: str) -> torch.Tensor:
        read.append(name)
        return tensor(self, name)

    monkeypatch.setattr(TensorFile, "tensor", noted)
    record = AttentionRecord.load(path)
    assert list(record.layers) == ["b", "a/x", "b#1"]
    assert record.backend == {"b": "cpu flash"}
    assert len(record.layers) == 3
    assert read == []
    record.tile("b#0", 1, (2, 5), (0, 9))
    assert {name.rpartition("/")[0] for name in read} == {"b"}, "neither other layers nor the axes"
    assert record.query == AXIS
    assert [name for name in read if name.startswith("key/")] == []
    read.clear()
    _ = record.query, record["a/x"], record["a/x"]
    assert sorted(read) == ["a/x/entropy", "a/x/head_index"], "read once"


def test_the_parts_of_the_file_are_those_of_its_description(tmp_path: Path) -> None:
    """docs/record_format.md names every tensor and every text of the metadata."""
    description = (Path(__file__).resolve().parents[2] / "docs" / "record_format.md").read_text(encoding="utf-8")
    path = everything(tmp_path)
    with safe_open(path, framework="pt") as file:
        names = {name.rpartition("/")[2] for name in file.keys()} | set(file.metadata())  # noqa: SIM118
    for name in names:
        assert f"`{name}`" in description, name
    assert f"`format_version` | `{FORMAT_VERSION}`" in description


def test_a_pyramid_is_made_by_summing_and_stored(tmp_path: Path) -> None:
    pooled = torch.rand(2, 3, 200, 131)
    one = coarser(pooled)
    assert one.shape == (2, 3, 100, 66)
    torch.testing.assert_close(one[..., 7, 9], pooled[..., 14:16, 18:20].sum((-2, -1)))
    torch.testing.assert_close(one[..., 7, 65], pooled[..., 14:16, 130].sum(-1))
    record = AttentionRecord({"a": Observation(pooled=pooled, head_index=torch.tensor([4, 1, 6]))})
    path = record.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["a/head_index", "a/pooled", "a/pooled.1", "a/pooled.2"]
    loaded = AttentionRecord.load(path)
    for level, (rows, columns) in enumerate([(200, 131), (100, 66), (50, 33), (25, 17), (13, 9), (7, 5), (4, 3)]):
        for found in (loaded, record):
            assert found.pooled("a", 1, level, item=1).shape == (rows, columns)
            torch.testing.assert_close(found.pooled("a", 1, level, item=1).sum(), pooled[1, 1].sum())
        torch.testing.assert_close(loaded.pooled("a", None, level), record.pooled("a", None, level))
    assert loaded.pooled("a", 6, 8).shape == (1, 1)
    with pytest.raises(
        ObservationError, match="layer `a` has heads 4, 1, 6 alone, head 0 was asked for; levels 0 to 8"
    ):
        loaded.pooled("a", 0, 9)
    rewritten(path, lambda tensors, _: tensors["a/pooled.2"].fill_(7.0))
    assert AttentionRecord.load(path).pooled("a", 4, 2).eq(7.0).all(), "read from the file, not summed again"


def test_coarser_levels_are_the_pooled_maps_of_coarser_grids() -> None:
    pairs = CASES["causal"](inputs(dtype=torch.float64))
    fine = AttentionRecord({"a": second_pass(pairs, Observe(pooled=(32, 16)))})
    for level in (1, 2, 3):
        coarse = second_pass(pairs, Observe(pooled=(32 >> level, 16 >> level))).pooled
        assert coarse is not None
        torch.testing.assert_close(fine.pooled("a", 5, level, item=1), coarse[1, 5])


# -- what is refused ---------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, torch.Tensor], dict[str, str]], object]


def set_tensor(name: str, tensor: torch.Tensor) -> Change:
    return lambda tensors, _: tensors.update({name: tensor})


def drop(name: str) -> Change:
    return lambda tensors, _: tensors.pop(name)


def set_text(name: str, text: str) -> Change:
    return lambda _, metadata: metadata.update({name: text})


def set_trace(**about: Any) -> Change:
    return set_text("traces", json.dumps({"b": {"scale": 1.0, "soft_cap": None} | about}))


UNFIT: dict[str, tuple[Change, str]] = {
    "a logsumexp of another length": (set_tensor("b/logsumexp", torch.zeros(1, 4, 8)), "query_len"),
    "a logsumexp of no trace": (drop("b/logsumexp"), "a trace without logsumexp"),
    "another batch": (set_tensor("b/entropy", torch.zeros(2, 4, 7)), "batch 2"),
    "other heads": (set_tensor("b/received", torch.zeros(1, 3, 9)), "heads 3"),
    "key heads that do not divide": (set_tensor("b/trace.key", torch.zeros(1, 3, 9, 3)), "do not divide among 3"),
    "no key heads": (set_tensor("b/trace.key", torch.zeros(1, 0, 9, 3)), "4 heads do not divide among 0"),
    "another width": (set_tensor("b/trace.key", torch.zeros(1, 2, 9, 5)), "head_dim"),
    "no width": (
        lambda tensors, _: tensors.update(
            {"b/trace.key": torch.zeros(1, 2, 9, 0), "b/trace.query": torch.zeros(1, 4, 7, 0)}
        ),
        "its vectors have no elements",
    ),
    "a query of integers": (set_tensor("b/trace.query", torch.zeros(1, 4, 7, 3).int()), "is of type int32"),
    "a query of three axes": (set_tensor("b/trace.query", torch.zeros(4, 7, 3)), "has 3 axes, expected batch, heads"),
    "no query": (drop("b/trace.query"), "a trace without trace.query"),
    "a bias of another shape": (set_tensor("b/trace.bias", torch.zeros(1, 1, 5, 9)), "trace.bias has query_len 5"),
    "an offset bias too short": (set_tensor("b/trace.offset_bias", torch.zeros(4, 14)), "has 14 offsets, expected 7"),
    "allowed of numbers": (set_tensor("b/trace.allowed", torch.zeros(1, 1, 7, 9)), "expected BOOL"),
    "ranges of one end": (set_tensor("b/trace.ranges", torch.zeros(1, 7, 2, 1).int()), "begin_and_end 1"),
    "ranges of few queries": (set_tensor("b/trace.ranges", torch.zeros(1, 6, 2, 2).int()), "query_len"),
    "a sink too many": (set_tensor("b/trace.sink", torch.zeros(5)), "heads 5"),
    "a level of another size": (set_tensor("b/pooled.1", torch.zeros(1, 4, 2, 1)), "grid_columns 1, expected 2"),
    "a level of nothing": (set_tensor("a/x/pooled.1", torch.zeros(1, 2, 2, 1)), "without the map"),
    "columns of other numbers": (set_tensor("b/column_index", torch.zeros(4).long()), "num_columns"),
    "top keys of other numbers": (set_tensor("b/top_index", torch.zeros(1, 4, 7, 2).long()), "top_k"),
    "an infinite scale": (set_trace(scale=1e999), "Infinity, which is no JSON"),
    "a scale that is none": (set_trace(scale="1"), "scale '1' is no finite number"),
    "a scale of truth": (set_trace(scale=True), "scale True is no finite number"),
    "a huge scale": (set_text("traces", '{"b": {"scale": 1e999, "soft_cap": null}}'), "scale inf is no finite number"),
    "a huge whole scale": (set_trace(scale=10**400), "is no finite number"),
    "a negative soft cap": (set_trace(soft_cap=-1.0), "soft_cap -1.0 is no positive number"),
    "no scale": (set_text("traces", "{}"), "a trace without its scale"),
    "a trace that says more": (set_trace(more=1), "lacks its scale and soft_cap"),
    "a trace of no layer": (
        set_text("traces", '{"b": {"scale": 1, "soft_cap": null}, "z": {"scale": 1, "soft_cap": null}}'),
        "'z': a trace without trace.query",
    ),
    "traces that are none": (set_text("traces", "[]"), "its traces are no JSON object"),
    "traces nested": (set_text("traces", "[" * 100_000), "nested too deeply"),
    "layers that are none": (set_text("layers", '{"a": 1}'), "its layers are no list of names"),
    "layers of numbers": (set_text("layers", "[1]"), "its layers are no list of names"),
    "layers nested": (set_text("layers", "[" * 100_000), "nested too deeply"),
    "backends of numbers": (set_text("backend", '{"b": 1}'), "no texts by layer"),
    "half an axis": (drop("query/spans"), "its query axis lacks spans"),
    "spans of three": (set_tensor("query/spans", torch.zeros(5, 3).long()), "begin_and_end 3"),
    "spans of fewer tokens": (set_tensor("query/spans", torch.zeros(4, 2).long()), "num_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_tensors_that_do_not_fit_are_refused_when_opened(case: str, tmp_path: Path) -> None:
    change, message = UNFIT[case]
    path = rewritten(everything(tmp_path), change)
    with pytest.raises(ModelFileError) as caught:
        AttentionRecord.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not a readable attention record (")
    assert text.endswith("; write it again")
    assert message in text
    assert "\n" not in text


LATE: dict[str, tuple[Change, str]] = {
    "ranges beyond the keys": (set_tensor("b/trace.ranges", torch.full((1, 7, 2, 2), 10).int()), "its 9 keys"),
    "ranges below 0": (set_tensor("b/trace.ranges", torch.full((1, 7, 2, 2), -1).int()), "its 9 keys"),
    "ranges backwards": (set_tensor("b/trace.ranges", torch.tensor([5, 2]).int().expand(1, 7, 2, 2).clone()), "9 keys"),
    "rows of no query": (set_tensor("b/row_index", torch.tensor([0, 7])), "a row_index out of bounds"),
    "rows of negative queries": (set_tensor("b/row_index", torch.tensor([0, -1])), "a row_index out of bounds"),
    "columns of no key": (set_tensor("b/column_index", torch.tensor([0, 1, 2**40])), "a column_index out of bounds"),
    "heads of no model": (set_tensor("a/x/head_index", torch.tensor([0, -2])), "a head_index out of bounds"),
    "text of no characters": (set_tensor("query/text", torch.tensor([255], dtype=torch.uint8)), "query axis: 'utf-8'"),
    "tokens that end early": (
        set_tensor("query/token_ends", torch.tensor([0, 2, 6, 9, 11])),
        "query axis: the ends of",
    ),
    "tokens that end backwards": (set_tensor("query/token_ends", torch.tensor([3, 2, 6, 9, 12])), "the ends of"),
    "tokens that end far off": (set_tensor("query/token_ends", torch.tensor([0, 2, 6, 9, 2**62])), "the ends of"),
    "spans far off": (set_tensor("query/spans", torch.full((5, 2), 2**62)), "token 0 has the span"),
    "spans backwards": (set_tensor("query/spans", torch.tensor([[2, 1]] * 5)), "token 0 has the span (2, 1)"),
}


@pytest.mark.parametrize("case", LATE)
def test_contents_that_do_not_fit_are_refused_when_looked_at(case: str, tmp_path: Path) -> None:
    change, message = LATE[case]
    record = AttentionRecord.load(rewritten(everything(tmp_path), change))
    with pytest.raises(ModelFileError) as caught:
        use(record)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unchanged_file_is_used_without_complaint(tmp_path: Path) -> None:
    """What shows that the tests above fail for the change that they make."""
    use(AttentionRecord.load(rewritten(everything(tmp_path), lambda *_: None)))


def test_what_the_format_cannot_say_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    wrong = Observation(entropy=torch.zeros(1, 2, 3), received=torch.zeros(1, 3, 5), rows=torch.zeros(4))
    with pytest.raises(ObservationError) as caught:
        AttentionRecord({"a": wrong}).save(path)
    assert str(caught.value) == (
        f"{path}: the record cannot be stored: 'a': received has heads 3, entropy has 2; "
        "'a': rows has 1 axes, expected batch, heads, num_rows, key_len"
    )
    axis = Axis("abc", ("ab", "cd"), ((0, 2), (2, 4)))
    with pytest.raises(ObservationError, match=r"query axis cannot be stored: token 1 has the span \(2, 4\)"):
        AttentionRecord({"a": Observation(entropy=torch.zeros(1, 2, 3))}, axis).save(path)
    with pytest.raises(
        ObservationError, match="layer `a` holds a trace without its logsumexp; observe with trace=True"
    ):
        AttentionRecord({"a": Observation(trace=inputs())}).save(path)
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_no_file_is_told_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    messages: dict[str, str] = {}

    def attempt(name: str) -> None:
        try:
            AttentionRecord.load(tmp_path / name)
        except ModelFileError as error:
            messages[name] = str(error)

    for name, message in {
        "pipe": "it is no regular file",
        ".": "it is no regular file",
        "loop": "Too many levels of symbolic links",
        "nowhere": "no such record",
        "none": "no such record",
        "pipe/a": "no such record",
    }.items():
        thread = threading.Thread(target=attempt, args=(name,), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive(), f"{name}: hangs"
        assert message in messages[name]
        assert "\n" not in messages[name]


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_works(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    whole = _whole(folder)
    content = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of the file is numbers, of which any will do: the header and indices are hit more often.
        place = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789[]{}",:-ae')))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    message = ""
    try:
        use(AttentionRecord.load(path))
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message


def _whole(folder: Path) -> bytes:
    path = folder / "0.safetensors"
    return (path if path.exists() else everything(folder)).read_bytes()


def test_cuts_at_every_length_are_refused(tmp_path: Path) -> None:
    whole = everything(tmp_path).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in {*range(0, 80), *random.Random(0).sample(range(len(whole)), 200)}:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="not a readable attention record"):
            AttentionRecord.load(path)


# -- versions ----------------------------------------------------------------------------------------------------------


def version_1(path: Path, **changed: str) -> Path:
    """A file as regard wrote them before traces: axes as JSON in the metadata."""
    about = {"text": "ä 犬", "tokens": ["<s>", "ä", "犬"], "spans": [[0, 0], [0, 1], [2, 3]]}
    metadata = {
        "format": "regard.attention",
        "format_version": "1",
        "axes": json.dumps({"query": about}),
        "layers": json.dumps(["decoder.layers.2.cross", "decoder.layers.10.cross"]),
    }
    tensors = {
        "decoder.layers.10.cross/rows": torch.rand(1, 2, 3, 5),
        "decoder.layers.10.cross/row_index": torch.arange(3),
        "decoder.layers.2.cross/entropy": torch.rand(1, 2, 3, dtype=torch.float64),
    }
    save_file(tensors, path, metadata=metadata | changed)
    return path


def test_files_of_version_1_are_read_and_migrated_by_saving(tmp_path: Path) -> None:
    path = version_1(tmp_path / "a.safetensors")
    old = AttentionRecord.load(path)
    new = AttentionRecord.load(old.save(tmp_path / "b.safetensors"))
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()["format_version"] == str(FORMAT_VERSION)
    for record in (old, new):
        assert list(record.layers) == ["decoder.layers.2.cross", "decoder.layers.10.cross"]
        assert record.query == Axis("ä 犬", ("<s>", "ä", "犬"), ((0, 0), (0, 1), (2, 3)))
        assert record.key is None
        assert record.backend == {}
    for name, tensor in load_file(path).items():
        layer, _, statistic = name.rpartition("/")
        assert torch.equal(new[layer].tensors()[statistic], tensor)


@pytest.mark.parametrize(
    "about",
    [
        {"text": "a"},
        {"text": 1, "tokens": [], "spans": []},
        {"text": "a", "tokens": [1], "spans": [[0, 1]]},
        {"text": "a", "tokens": ["a"], "spans": []},
        {"text": "a", "tokens": ["a"], "spans": [[0]]},
        {"text": "a", "tokens": ["a"], "spans": [[0, 1.0]]},
        {"text": "a", "tokens": ["a"], "spans": [[0, 2]]},
        {"text": "a", "tokens": ["a"], "spans": [[0, 4611686018427387904]]},
        ["a"],
    ],
    ids=json.dumps,
)
def test_axes_of_version_1_that_do_not_fit_are_refused(about: Any, tmp_path: Path) -> None:
    path = version_1(tmp_path / "a.safetensors", axes=json.dumps({"query": about}))
    with pytest.raises(ModelFileError, match="not a readable attention record"):
        AttentionRecord.load(path)


def test_a_newer_version_is_refused_before_anything_else(tmp_path: Path) -> None:
    path = everything(tmp_path)
    rewritten(path, lambda tensors, metadata: (tensors.update(new=torch.ones(1)), metadata.update(format_version="4")))
    with pytest.raises(ModelFileError) as caught:
        AttentionRecord.load(path)
    assert str(caught.value) == f"{path}: format 4, this regard reads up to 3; upgrade regard"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = everything(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_file, "write_tensors", full)
    with pytest.raises(RegardError) as caught:
        AttentionRecord({"a": Observation(entropy=torch.zeros(1, 2, 3))}).save(path)
    assert str(caught.value) == f"{path}: cannot be written (No space left on device); choose a folder that can"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_can_be_saved_over_the_file_that_it_was_read_from(tmp_path: Path) -> None:
    path = everything(tmp_path)
    record = AttentionRecord.load(path)
    record.save(path)
    again = AttentionRecord.load(path)
    assert again.query == record.query == AXIS
    for name, observation in record.layers.items():
        for statistic, tensor in observation.tensors().items():
            assert torch.equal(again.layers[name].tensors()[statistic], tensor)
