"""regard's own forward in C, for a CPU: faster than torch's kernel, with entropy and largest score on the way.

It is taken only where it is asked for by name: its output differs from torch's in rounding, and nobody's output changes
because a compiler is there. It has no gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from regard.attention.backends.call import Attended, Call
from regard.attention.native import forward as kernel
from regard.attention.observation import Observation
from regard.attention.second_pass import second_pass


class Native:
    """See the module."""

    def refuses(self, call: Call) -> str | None:
        if call.query.device.type != "cpu":
            return "it runs on a CPU"
        if call.dropout > 0:
            return "dropout on the weights is served materialised"
        if not call.distribution.has_logsumexp:
            return f"it normalises by softmax, not by {type(call.distribution).__name__}"
        if call.masked_pairs is None:
            return f"it compares by products, not by {call.score_name}"
        if torch.compiler.is_compiling():
            return "a compiled graph does not know it"
        return kernel.refuses(call.masked_pairs, call.value)

    def declines(self, call: Call) -> str | None:
        return "it is taken only where it is asked for by name"

    def run(self, call: Call) -> Attended:
        pairs, request = call.masked_pairs, call.observe
        assert pairs is not None
        made = kernel.forward(pairs, call.value)
        if request is None:
            return Attended(made.output, Observation())
        if request.heads is not None or request.queries is not None:
            return Attended(made.output, second_pass(pairs, request, made.logsumexp))
        # What the forward has found already needs no second pass.
        found = Observation(
            logsumexp=made.logsumexp if request.logsumexp else None,
            entropy=made.entropy.clamp(min=0.0) if request.entropy else None,
            max_logit=made.max_logit if request.max_logit else None,
        )
        rest = replace(request, logsumexp=False, entropy=False, max_logit=False)
        if rest:
            logsumexp = made.logsumexp if request.logsumexp or request.trace else None
            observed = second_pass(pairs, rest, made.logsumexp)
            found = replace(observed, logsumexp=logsumexp, entropy=found.entropy, max_logit=found.max_logit)
        return Attended(made.output, found)
