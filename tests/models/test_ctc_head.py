from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import ConfigError, ShapeError
from regard.models.ctc import CTCConfig, CTCHead, ctc_nll, frames_needed

FRAMES, VOCAB = 5, 4
LENGTHS = torch.tensor([5, 3, 4, 5, 2])
TARGETS = torch.tensor([[1, 2, 3], [2, 2, -1], [3, 3, 3], [-5, -5, -5], [1, 3, -100]])
TARGET_LENGTHS = torch.tensor([3, 2, 2, 0, 2])


def logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, FRAMES, VOCAB, generator=generator, dtype=torch.float64, requires_grad=True)


def by_enumeration(log_probs: Tensor, target: tuple[int, ...]) -> Tensor:
    """-log of the sum over all alignments of one row [frames, vocab]."""
    fitting = [
        torch.stack([log_probs[frame, label] for frame, label in enumerate(path)]).sum()
        for path in itertools.product(range(VOCAB), repeat=log_probs.shape[0])
        if tuple(label for label, _ in itertools.groupby(path) if label) == target
    ]
    return -torch.stack(fitting).logsumexp(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_are_those_of_all_alignments(dtype: torch.dtype) -> None:
    exact = logits()
    wanted = torch.stack(
        [
            by_enumeration(
                exact[row, : LENGTHS[row]].log_softmax(-1), tuple(TARGETS[row, : TARGET_LENGTHS[row]].tolist())
            )
            for row in range(5)
        ]
    )
    given = exact.detach().to(dtype).requires_grad_()
    found = ctc_nll(given.log_softmax(-1), LENGTHS, TARGETS, TARGET_LENGTHS)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (mine,) = torch.autograd.grad((found * weights.to(dtype)).sum(), given)
    (theirs,) = torch.autograd.grad((wanted * weights).sum(), exact)
    torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=10 * tolerance)
    padded = torch.arange(FRAMES) >= LENGTHS[:, None]
    assert not mine[padded].any(), "padding learns nothing"


def test_padding_of_frames_and_targets_changes_nothing() -> None:
    log_probs = logits().detach().log_softmax(-1)
    found = ctc_nll(log_probs, LENGTHS, TARGETS, TARGET_LENGTHS)
    for row in range(5):
        one = slice(row, row + 1)
        frames, count = int(LENGTHS[row]), int(TARGET_LENGTHS[row])
        alone = ctc_nll(log_probs[one, :frames], LENGTHS[one], TARGETS[one, :count], TARGET_LENGTHS[one])
        torch.testing.assert_close(found[one], alone)


def test_half_precision_is_summed_in_float32() -> None:
    log_probs = logits().detach().log_softmax(-1).bfloat16()
    found = ctc_nll(log_probs, LENGTHS, TARGETS, TARGET_LENGTHS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ctc_nll(log_probs.double(), LENGTHS, TARGETS, TARGET_LENGTHS).float())


def test_frames_needed() -> None:
    assert frames_needed(TARGETS, TARGET_LENGTHS).tolist() == [3, 3, 3, 0, 2]
    assert frames_needed(torch.tensor([[4, 4, 4, 5, 5]]), torch.tensor([5])).tolist() == [8]
    assert frames_needed(torch.empty(2, 0, dtype=torch.int64), torch.tensor([0, 0])).tolist() == [0, 0]


def test_too_few_frames_are_refused_or_skipped() -> None:
    given = logits()
    lengths = torch.tensor([5, 2, 4, 5, 1])
    with pytest.raises(ShapeError) as caught:
        ctc_nll(given.log_softmax(-1), lengths, TARGETS, TARGET_LENGTHS)
    assert str(caught.value) == (
        "ctc: row 1 has 2 frames for 2 tokens, which need at least 3; leave it out, subsample less or take longer "
        "tokens"
    )
    found = ctc_nll(given.log_softmax(-1), lengths, TARGETS, TARGET_LENGTHS, skip_impossible=True)
    assert (found == 0).tolist() == [False, True, False, False, True]
    (gradient,) = torch.autograd.grad(found.sum(), given)
    assert gradient.isfinite().all()
    assert [bool(row.any()) for row in gradient] == [True, False, True, True, False]


def test_every_mismatch_is_named() -> None:
    log_probs = logits().detach()
    with pytest.raises(ShapeError) as caught:
        ctc_nll(log_probs, LENGTHS[:4], TARGETS[:3], TARGET_LENGTHS)
    assert (
        str(caught.value)
        == "ctc: targets has shape (3, 3), expected (5, target_len); lengths has shape (4,), expected (5,)"
    )
    with pytest.raises(ShapeError, match=r"expected \(batch, frames, vocab\)"):
        ctc_nll(log_probs[0], LENGTHS, TARGETS, TARGET_LENGTHS)
    with pytest.raises(ShapeError, match="the target of row 0 holds id 0, which is the blank"):
        ctc_nll(log_probs, LENGTHS, torch.zeros_like(TARGETS), TARGET_LENGTHS)


def test_the_head_gives_log_probs_in_float32_at_least() -> None:
    torch.manual_seed(0)
    head = CTCHead(6, VOCAB, CTCConfig(dropout=0.5))
    memory = torch.randn(2, 3, 6)
    assert not torch.equal(head(memory), head(memory)), "dropout acts in training"
    head.eval()
    wanted = F.linear(memory, head.projection.weight, head.projection.bias).log_softmax(-1)
    torch.testing.assert_close(head(memory), wanted)
    assert head.bfloat16()(memory.bfloat16()).dtype == torch.float32
    assert head.double()(memory.double()).dtype == torch.float64


def test_a_weight_that_is_no_share_is_refused() -> None:
    for weight in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=rf"ctc: weight is {weight}, expected a share of the loss, from 0 to 1"):
            CTCHead(6, VOCAB, CTCConfig(weight=weight))
