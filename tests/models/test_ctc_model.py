from __future__ import annotations

from dataclasses import replace

import torch
from small_models import LENGTHS, SOURCE, SOURCE_VOCAB, TARGET, TARGET_VOCAB, build, conformer, transformer

from regard.decoding.ctc import prefix_beam_search
from regard.decoding.ctc_prefix import CTCPrefixScorer
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.models.ctc import CTCConfig, ctc_nll
from regard.models.ctc_model import CTCModel, CTCModelConfig
from regard.training.objective import cross_entropy, mixed, of_outputs


def test_ctc_alone() -> None:
    torch.manual_seed(0)
    model = CTCModel(SOURCE_VOCAB, TARGET_VOCAB, CTCModelConfig("ctc", conformer().encoder)).double().eval()
    log_probs, lengths = model(SOURCE, LENGTHS)
    assert log_probs.shape == (3, 7, TARGET_VOCAB)
    assert torch.equal(lengths, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        alone, _ = model(SOURCE[one, :length], LENGTHS[one])
        torch.testing.assert_close(log_probs[one, :length], alone, rtol=0, atol=1e-11)
    assert len(prefix_beam_search(log_probs, lengths, beam_size=4)) == 3
    nll = ctc_nll(log_probs, lengths, TARGET[:, :2], torch.tensor([2, 1, 2]))
    nll.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_joint_model_learns_from_both_and_decodes_by_both() -> None:
    model = build(conformer(rotary_base=100.0))
    assert model.ctc is not None
    hidden, memories = model.forced(SOURCE, LENGTHS, TARGET[:, :2])
    assert torch.equal(hidden, model(SOURCE, LENGTHS, TARGET[:, :2]))
    memory = memories["source"]
    log_probs = model.ctc(memory.vectors)
    attention = cross_entropy(hidden.flatten(0, 1), model.decoder.head, TARGET[:, 1:3].flatten())
    outputs = of_outputs(ctc_nll(log_probs, memory.lengths, TARGET[:, 1:3], torch.tensor([2, 1, 2])))
    mixed(attention, outputs, model.ctc.weight).objective.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    options = DecodingOptions(beam_size=3, max_length=20, length_penalty=0.0)
    scorer = CTCPrefixScorer(log_probs.detach(), memory.lengths, weight=0.5, eos=2)
    for [found] in decode(model.decoder, memories, options, bos=1, eos=2, scorers=[scorer]):
        assert found.finished


def test_without_a_head_nothing_changes() -> None:
    plain, joint = transformer(), transformer()
    assert plain.ctc is None
    assert build(plain).ctc is None
    names = {name for name, _ in build(plain).named_parameters()}
    more = {name for name, _ in build(replace(joint, ctc=CTCConfig())).named_parameters()}
    assert more - names == {"ctc.projection.weight", "ctc.projection.bias"}
