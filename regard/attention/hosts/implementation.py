"""regard's attention as an implementation that users choose for a model of transformers.

    use_in_transformers()
    model.set_attn_implementation("regard")

The model then attends through `regard.attend`: sinks on a fused kernel where torch's own wants them materialised, and
masks in memory that grows linearly with the length, where transformers' own take query_len x key_len for every padded
or windowed batch. It is never put under a model that did not ask for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.compact import offsets_of, ranges_of
from regard.attention.distributions import Distribution, SinkSoftmax, Softmax
from regard.attention.hosts.model_score import CompactMask, ModelScore, Rows
from regard.attention.intervals import intersection, one_range, trimmed
from regard.attention.masks import Causal, Dense, Mask
from regard.errors import ConfigError

NAME = "regard"
BLOCK_ELEMENTS = 2**18  # pairs of a mask that are evaluated at once


def use_in_transformers() -> None:
    """Makes "regard" known to transformers as an attention implementation; once is enough.

    Raises: ConfigError where transformers is missing.
    """
    try:
        from transformers import masking_utils, modeling_utils
    except ImportError as error:
        raise ConfigError(f"use_in_transformers: {error}; install transformers, 5.0 or later") from None
    modeling_utils.AttentionInterface.register(NAME, attention_forward)
    masking_utils.AttentionMaskInterface.register(NAME, make_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; returns ([batch, query_len, heads, value_dim], None).

    attention_mask: what `make_mask` returned, or a tensor that the model's user gave in its place.
    Raises: ConfigError for a paged cache.
    """
    if others.get("cache") is not None:
        raise ConfigError('attention "regard" knows no paged cache; generate with attn_implementation="sdpa"')
    query_len, key_len = query.shape[2], key.shape[2]
    bias = offset_bias = None
    mask: Mask | None = None
    if isinstance(attention_mask, CompactMask):
        mask = attention_mask.mask
    elif attention_mask is not None:
        mask, bias = _of_tensor(attention_mask[..., :key_len], query_len)
    elif query_len > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        # As transformers does: without a mask the queries stand at the first keys, what is behind them being empty.
        mask, key, value = Causal(), key[:, :, :query_len], value[:, :, :query_len]
    if position_bias is not None:
        position_bias = position_bias[..., : key.shape[2]]
        learns = position_bias.requires_grad and torch.is_grad_enabled()
        found = None if learns else offsets_of(position_bias)
        if found is not None and found[1] is None:
            offset_bias = found[0]
        else:
            bias = position_bias if bias is None else bias + position_bias
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    score = ModelScore(scale, softcap, offset_bias, bias)
    distribution: Distribution = Softmax() if s_aux is None else SinkSoftmax(s_aux)
    attended = attend(query, key, value, score=score, distribution=distribution, mask=mask, dropout=dropout)
    return attended.output.transpose(1, 2).contiguous(), None


def _of_tensor(mask: Tensor, query_len: int) -> tuple[Mask | None, Tensor | None]:
    """(mask, bias) of a dense one, [batch, heads or 1, query_len or 1, key_len]."""
    whole = mask.expand(-1, -1, query_len, -1)
    ranges = ranges_of(whole)
    if ranges is not None:
        return Rows(ranges, mask.shape[-1]), None
    return (Dense(whole), None) if mask.dtype == torch.bool else (None, mask)


# -- the mask ----------------------------------------------------------------------------------------------------------


def make_mask(
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    kv_offset: int = 0,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    **others: Any,
) -> CompactMask | None:
    """As transformers calls it; what each query may attend to, as ranges of keys. None where that is every key.

    mask_function: (item, head, query, key), indices that broadcast -> bool. attention_mask: bool [batch, positions],
    False for padding. others: q_length and q_offset, or cache_position, where the queries stand.

    Cost: causal masks cost nothing; others are evaluated pair by pair, a block at a time, as transformers does at once.
    """
    place = _query_places(others, device)
    padding = None if attention_mask is None else _padding(attention_mask.to(device).bool(), kv_offset, kv_length)
    mask = _mask(batch_size, place, kv_offset, kv_length, mask_function, padding, use_vmap)
    return None if mask is None else CompactMask.of(mask, (batch_size, 1, len(place), kv_length), device)


def _mask(
    batch_size: int,
    place: Tensor,
    kv_offset: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    padding: Tensor | None,
    use_vmap: bool,
) -> Mask | None:
    """place: [query_len], where the queries stand; padding: bool [batch, 1, 1, kv_length]."""
    from transformers import masking_utils

    query_len, device = len(place), place.device
    ranges = None
    if mask_function is masking_utils.causal_mask_function:
        end = place[None] - kv_offset + 1
        ranges = one_range(torch.zeros_like(end), end, query_len, kv_length)
    elif mask_function is not getattr(masking_utils, "bidirectional_mask_function", None):
        function = masking_utils._vmap_expansion_sdpa(mask_function) if use_vmap else mask_function
        items = torch.arange(batch_size, device=device)
        heads = torch.zeros(1, dtype=torch.int64, device=device)
        keys = torch.arange(kv_length, device=device) + kv_offset

        def evaluated(begin: int, end: int) -> Tensor:
            found: Tensor
            if use_vmap:  # a function that reads tensors by its indices
                with masking_utils.TransformGetItemToIndex():
                    found = function(items, heads, place[begin:end], keys)
                return found
            rows = place[begin:end][None, None, :, None]
            found = function(items[:, None, None, None], heads[None, :, None, None], rows, keys[None, None, None, :])
            return found.expand(batch_size, -1, end - begin, kv_length)

        step = max(1, BLOCK_ELEMENTS // max(batch_size * kv_length, 1))
        blocks = [(begin, min(begin + step, query_len)) for begin in range(0, query_len, step)]
        ranges = _joined([ranges_of(evaluated(*block)) for block in blocks])
        if ranges is None:
            dense = evaluated(0, query_len)
            return Dense(dense if padding is None else dense & padding)
    if padding is not None and not bool(padding.all()):
        of_keys = ranges_of(padding.expand(-1, -1, query_len, -1))
        if of_keys is None:
            kept = Dense(padding)
            return kept if ranges is None else Rows(ranges, kv_length) & kept
        ranges = of_keys if ranges is None else trimmed(intersection(*_alike(ranges, of_keys)))
    return None if ranges is None else Rows(ranges, kv_length)


def _query_places(given: dict[str, Any], device: torch.device | str) -> Tensor:
    """[query_len], positions of the queries, in whichever way this version of transformers tells them."""
    place: Tensor
    if "q_length" in given:
        place = torch.arange(int(given["q_length"]), device=device) + given.get("q_offset", 0)
    else:
        place = given["cache_position"].to(device)
    return place


def _padding(real: Tensor, first: int, key_len: int) -> Tensor:
    """bool [batch, 1, 1, key_len]; positions that it does not reach are empty places of a cache."""
    missing = first + key_len - real.shape[-1]
    real = torch.nn.functional.pad(real, (0, missing)) if missing > 0 else real
    return real[:, None, None, first : first + key_len]


def _joined(blocks: list[Tensor | None]) -> Tensor | None:
    """The ranges of consecutive blocks of queries; None where a block has none."""
    found = [block for block in blocks if block is not None]
    if len(found) < len(blocks) or not found:
        return None
    batch, most = max(len(block) for block in found), max(block.shape[2] for block in found)
    wide = [torch.nn.functional.pad(block, (0, 0, 0, most - block.shape[2])) for block in found]
    return torch.cat([block.expand(batch, -1, -1, -1) for block in wide], 1).contiguous()


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many items."""
    batch = max(len(first), len(second))
    return first.expand(batch, -1, -1, -1), second.expand(batch, -1, -1, -1)
