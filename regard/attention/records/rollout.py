"""Attention rollout: how much of each input position flows into a chosen output position, through all layers.

Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers". With A_l the mean over the heads of layer
l and the identity for the residual connection, the rollout is the product of the matrices (A_l + I) / 2. Taken from the
output down, one row of it is a weight vector that each layer turns into w / 2 + (w @ A_l) / 2, and w @ A_l is a
weighted column sum, which a second pass yields in memory that grows linearly with the length. Mass that a layer's
queries give to a sink without a value, or that a query without keys does not give, is lost and not put back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regard.attention import trace
from regard.attention.observation import Observation
from regard.errors import ObservationError

RESIDUAL = 0.5  # what the residual connection passes on beside the attention


def rollout(layers: Mapping[str, Observation], queries: Sequence[int], item: int) -> Tensor:
    """Rows of the rollout, [num_queries, key_len], float32 at least.

    layers: self-attention of one stack, the layer next to the input first. queries: output positions, negative ones
    from the end. Costs a second pass a layer and query.
    Raises: ObservationError, naming every layer that cannot take part and why.
    """
    length = _checked(layers, item)
    wrong = [query for query in queries if not -length <= query < length]
    if wrong:
        raise ObservationError(f"rollout: queries {wrong} asked for, but there are {length}; ask within them")
    found = []
    for query in queries:
        flow: Tensor | None = None
        for observation in reversed(list(layers.values())):
            if flow is None:
                flow = _start(observation, query, length)
            flow = RESIDUAL * flow + (1 - RESIDUAL) * _passed_on(observation, flow, item)
        assert flow is not None
        found.append(flow)
    return torch.stack(found) if found else torch.zeros(0, length)


def kinds(names: Sequence[str]) -> list[str]:
    """The layers' names with `*` for their numbers: one kind for one stack of layers."""
    return list(dict.fromkeys(re.sub(r"[0-9]+", "*", name) for name in names))


def _start(observation: Observation, query: int, length: int) -> Tensor:
    like = observation.rows if observation.trace is None else observation.trace.query
    assert like is not None
    flow = torch.zeros(length, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    flow[query] = 1.0
    return flow


def _passed_on(observation: Observation, flow: Tensor, item: int) -> Tensor:
    if observation.trace is not None and observation.logsumexp is not None:
        return trace.received(observation.trace, observation.logsumexp, item, flow).mean(0)
    assert observation.rows is not None
    # Head by head, so that low precision is widened for one head at a time.
    return torch.stack([flow @ head.to(flow.dtype) for head in observation.rows[item].detach()]).mean(0)


def _checked(layers: Mapping[str, Observation], item: int) -> int:
    """The length of all layers. Raises: ObservationError, naming every layer that cannot take part."""
    wrong: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    for name, observation in layers.items():
        if observation.head_index is not None:
            wrong.append(f"`{name}` holds chosen heads alone (observe all heads)")
        if observation.trace is not None and observation.logsumexp is not None:
            batch = observation.trace.batch
            sizes[name] = (observation.trace.query_len, observation.trace.key_len)
        elif observation.rows is not None:
            batch = observation.rows.shape[0]
            sizes[name] = (observation.rows.shape[2], observation.rows.shape[3])
            index = observation.row_index
            if index is not None and not torch.equal(index.cpu(), torch.arange(len(index))):
                wrong.append(f"`{name}` holds chosen rows alone (observe with trace=True)")
        else:
            wrong.append(f"`{name}` holds neither a trace nor rows (observe with trace=True)")
            continue
        if not 0 <= item < batch:
            wrong.append(f"`{name}` holds items 0 to {batch - 1}, not {item}")
    length = next((keys for _, keys in sizes.values()), 0)
    wrong += [
        f"`{name}` attends from {queries} to {keys} positions, expected {length} to {length}"
        for name, (queries, keys) in sizes.items()
        if (queries, keys) != (length, length)
    ]
    if not layers:
        wrong.append("no layer was chosen")
    if wrong:
        raise ObservationError(
            "rollout: " + "; ".join(wrong) + "; choose the self-attention of one stack of layers with `layers=`"
        )
    return length
