"""The loss of captions: several of one picture apart again, and the penalty worked by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from regard.attention.observation import Observation
from regard.data.batches import Batch, Sequences
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.no_encoder import NoEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig
from regard.tasks.caption.objective import captions_apart, objective, unevenness

END, PAD = Tokenizer.EOS, Tokenizer.PAD


def joined(*rows: list[int]) -> Sequences:
    longest = max(len(row) for row in rows)
    return Sequences(
        torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])
    )


def test_captions_come_apart_at_their_ends() -> None:
    rows, captions = captions_apart(joined([5, 6, END, 7, END, 8, 9, 5, END], [4, END]))
    assert rows.tolist() == [0, 0, 0, 1]
    assert captions.lengths.tolist() == [3, 2, 4, 2]
    assert captions.values.tolist() == [[5, 6, END, PAD], [7, END, PAD, PAD], [8, 9, 5, END], [4, END, PAD, PAD]]


def test_the_penalty_by_hand() -> None:
    """Two words, of which the second caption has one: places get 0.5 + 1 and 0.5 + 0; 0.2 and 0.8."""
    rows = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]], [[[0.2, 0.8], [9.0, 9.0]]]])
    real = torch.tensor([[True, True], [True, False]])
    expected = 0.5**2 + 0.5**2 + 0.8**2 + 0.2**2
    assert float(unevenness({"a": Observation(rows=rows)}, real)) == pytest.approx(expected)


def test_a_batch_of_pictures_is_its_captions_one_by_one() -> None:
    """The loss and its gradient are the sums over captions, each with its own picture."""
    torch.manual_seed(1)
    model = EncoderDecoder(
        3,
        11,
        EncoderDecoderConfig(
            NoEncoderConfig("none", 12, ConvolutionConfig("convolution", (8,), stem_kernel=4, stem_stride=4)),
            ShowAttendTellConfig("show-attend-tell", 12, 10, 8, dropout=0.0),
        ),
    ).eval()
    pictures = Sequences(torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8), torch.tensor([8, 8]))
    texts = [[[5, 6, END], [7, END]], [[8, 9, 5, END]]]
    loss = objective(0.1, 0.3)

    def batch(choice: list[tuple[int, list[int]]]) -> Batch:
        source = Sequences(torch.stack([pictures.values[row] for row, _ in choice]), torch.full((len(choice),), 8))
        return Batch({"source": source, "target": joined(*(text for _, text in choice))}, torch.arange(1).numpy())

    together = loss(
        model, batch([(row, list(itertools.chain(*several))) for row, several in enumerate(texts)]), torch.float32
    )
    apart = [loss(model, batch([(row, text)]), torch.float32) for row, several in enumerate(texts) for text in several]
    torch.testing.assert_close(together.nll, torch.stack([one.nll for one in apart]).sum())
    total = torch.stack([one.objective for one in apart]).sum()
    torch.testing.assert_close(together.objective, total)
    parameters = list(model.parameters())
    found = torch.autograd.grad(together.objective, parameters)
    wanted = torch.autograd.grad(total, parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
