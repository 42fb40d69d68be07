"""Torch's own attention: `nn.MultiheadAttention`, the Transformer layers around it, `F.multi_head_attention_forward`.

Torch runs these through one of three ways: a fused C++ fast path of the whole module or the whole encoder layer, its
scaled dot-product attention, or materialised weights where the caller wants them. None shows its queries and keys to a
function mode, so the projections are computed again, in linear time, from what the module was given.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from regard.attention.hosts.capture import KernelCapture, backend_of
from regard.attention.hosts.masks_of import with_mask
from regard.attention.hosts.running import is_torchs
from regard.attention.hosts.sdpa import causal, refuse_wrapped
from regard.attention.observation import Observe
from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError

if TYPE_CHECKING:
    from regard.attention.hosts.observe import Observer
    from regard.attention.hosts.running import Run

FAST_PATH = "torch fast path"


@dataclass(frozen=True, eq=False)
class Multihead:
    """What decides the weights of one call, the batch first.

    query: [batch, query_len, query_dim] or [query_len, query_dim]; key: [batch, key_len, key_dim], likewise.
    weights, biases: of the projections of query and key; biases None for none.
    extra_key: [1, 1, model_dim], a learned key behind the others; zero_key: one of zeros behind it.
    key_padding_mask: [batch, key_len], attn_mask: [query_len, key_len] or [batch * heads, query_len, key_len]: True
        where attending is *not* allowed, or added.
    causal: the call was computed with torch's own causal mask, top-left, in place of attn_mask.
    own: query and key are one tensor.
    """

    query: Tensor
    key: Tensor
    heads: int
    weights: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor] | None
    extra_key: Tensor | None = None
    zero_key: bool = False
    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    causal: bool = False
    own: bool = False

    def pairs(self) -> PairScores:
        """Raises: ObservationError inside a function transform."""
        refuse_wrapped(self.query, self.key)
        query_bias, key_bias = self.biases or (None, None)
        query = self._apart(F.linear(self.query, self.weights[0], query_bias))
        key = self._apart(F.linear(self.key, self.weights[1], key_bias))
        key_len = key.shape[2]
        extra = []
        if self.extra_key is not None:
            extra.append(self._apart(self.extra_key.to(key.dtype)).expand(len(key), -1, -1, -1))
        if self.zero_key:
            extra.append(torch.zeros_like(key[:, :, :1]))
        key = torch.cat([key, *extra], 2) if extra else key
        pairs = PairScores(query, key, query.shape[-1] ** -0.5)
        if self.causal:
            return replace(pairs, ranges=causal(query, key))
        if self.attn_mask is not None:
            pairs = with_mask(pairs, self._four(self.attn_mask), disallows=True, extra=len(extra))
        if self.key_padding_mask is not None:
            padding = self.key_padding_mask.view(-1, key_len)
            pairs = with_mask(pairs, padding[:, None, None], disallows=True, extra=len(extra))
        return pairs

    def real_queries(self) -> Tensor | None:
        """bool [batch, query_len]: of self-attention, queries whose own keys are no padding."""
        padding = self.key_padding_mask
        if not self.own or padding is None:
            return None
        real = padding > torch.finfo(padding.dtype).min / 2 if padding.is_floating_point() else ~padding
        return real.view(-1, padding.shape[-1])

    def _apart(self, vectors: Tensor) -> Tensor:
        vectors = vectors if vectors.ndim == 3 else vectors[None]
        apart: Tensor = vectors.unflatten(-1, (self.heads, -1))
        return apart.transpose(1, 2)

    def _four(self, mask: Tensor) -> Tensor:
        return mask[None, None] if mask.ndim == 2 else mask.view(-1, self.heads, *mask.shape[-2:])


def look_at_module(observer: Observer, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Looks at a module of torch's that has ended; every other module is left alone."""
    module = run.module
    if isinstance(module, nn.MultiheadAttention) and is_torchs(module, nn.MultiheadAttention):
        given = _Given(*args, **kwargs)
        name = observer.names.of(module)
        request = observer.wanted(name)
        run.attended = True
        if request is not None and run.capture is not None:
            fast = run.capture.backend == FAST_PATH
            with observer.explained(name):
                call = _of_module(module, given, fast=fast)
            backend = _backend(run.capture, given.need_weights, module.dropout if module.training else 0.0)
            _look(observer, name, request, call, run.capture, backend)
    elif isinstance(module, nn.TransformerEncoderLayer) and run.whole:
        _look_at_fast_layer(observer, module, *args, **kwargs)
        run.attended = True


def look_at_function(observer: Observer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a call of `F.multi_head_attention_forward` as it is, and looks at it."""
    observer.running.refuse_unhooked()
    caller = observer.names.caller()
    request = None if caller is None else observer.wanted(caller.name)
    if request is None or caller is None:
        return F.multi_head_attention_forward(*args, **kwargs)
    with KernelCapture() as capture:
        output = F.multi_head_attention_forward(*args, **kwargs)
    given = FUNCTION.bind(*args, **kwargs)
    given.apply_defaults()
    values = given.arguments
    backend = _backend(capture, values["need_weights"], values["dropout_p"] if values["training"] else 0.0)
    _look(observer, caller.name, request, _of_function(values), capture, backend)
    return output


@dataclass(frozen=True, eq=False)
class _Given:
    """The arguments of `nn.MultiheadAttention.forward`."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None = None
    need_weights: bool = True
    attn_mask: Tensor | None = None
    average_attn_weights: bool = True
    is_causal: bool = False


def _of_module(module: nn.MultiheadAttention, given: _Given, *, fast: bool) -> Multihead:
    _refuse_parametrized(module, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "in_proj_bias", "bias_k"))
    own = given.query is given.key
    query, key = given.query, given.key
    padding = given.key_padding_mask
    if query.is_nested:
        query, padding = _padded(query, None)
        key = query
    elif query.ndim == 3 and not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    if module.in_proj_weight is not None:
        weights = _of_query_and_key(module.in_proj_weight)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight)
    return Multihead(
        query,
        key,
        module.num_heads,
        weights,
        None if module.in_proj_bias is None else _of_query_and_key(module.in_proj_bias),
        extra_key=module.bias_k,
        zero_key=module.add_zero_attn,
        key_padding_mask=padding,
        attn_mask=given.attn_mask,
        # Only the slow path takes the hint, and only where nothing needs the mask itself.
        causal=given.is_causal and not fast and padding is None and not given.need_weights,
        own=own,
    )


FUNCTION = inspect.signature(F.multi_head_attention_forward)


def _of_function(given: dict[str, Any]) -> Multihead:
    """Of the arguments of `F.multi_head_attention_forward`, which stand the length first."""
    query, key = given["query"], given["key"]
    own = query is key
    if query.ndim == 3:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    if given["static_k"] is not None:
        raise ObservationError(
            "observe: F.multi_head_attention_forward with static_k, whose queries alone are projected, is not read; "
            "leave the layer out with `layers`"
        )
    if given["use_separate_proj_weight"]:
        weights = (given["q_proj_weight"], given["k_proj_weight"])
    else:
        weights = _of_query_and_key(given["in_proj_weight"])
    return Multihead(
        query,
        key,
        given["num_heads"],
        weights,
        None if given["in_proj_bias"] is None else _of_query_and_key(given["in_proj_bias"]),
        extra_key=given["bias_k"],
        zero_key=given["add_zero_attn"],
        key_padding_mask=given["key_padding_mask"],
        attn_mask=given["attn_mask"],
        causal=given["is_causal"] and given["key_padding_mask"] is None and not given["need_weights"],
        own=own,
    )


def _refuse_parametrized(module: nn.Module, names: tuple[str, ...]) -> None:
    """Raises: ObservationError where reading a parameter computes it anew, which may draw numbers or change buffers."""
    found = [name for name in names if is_parametrized(module, name)]
    if found:
        raise ObservationError(
            f"observe: `{found[0]}` of {type(module).__name__} is parametrized, and reading it again would compute it "
            "anew; call torch.nn.utils.parametrize.remove_parametrizations first, or choose other layers with `layers`"
        )


def _of_query_and_key(packed: Tensor) -> tuple[Tensor, Tensor]:
    query, key, _ = packed.chunk(3)
    return query, key


def _look_at_fast_layer(
    observer: Observer,
    layer: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> None:
    """An encoder layer whose fast path ran; it ignores the hint `is_causal` and takes the mask."""
    attention = layer.self_attn
    name = observer.names.of(attention)
    request = observer.wanted(name)
    if request is None:
        return
    if src.is_nested:
        # Inside an encoder the batch had one length before it was cut.
        encoder = observer.running.source_of(nn.TransformerEncoder)
        src, src_key_padding_mask = _padded(src, encoder[0].shape[1] if encoder else None)
    capture = KernelCapture()
    capture.backend = FAST_PATH
    norm = layer.norm1
    if layer.norm_first:
        _refuse_parametrized(norm, ("weight", "bias"))
    vectors = F.layer_norm(src, norm.normalized_shape, norm.weight, norm.bias, norm.eps) if layer.norm_first else src
    given = _Given(vectors, vectors, vectors, src_key_padding_mask, False, src_mask)
    with observer.explained(name):
        call = _of_module(attention, given, fast=True)
    _look(observer, name, request, call, capture, FAST_PATH)


def _padded(nested: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    """([batch, length, width], padding [batch, length]); the longest item's length unless given."""
    lengths = nested._nested_tensor_size()[:, 0].to(nested.device)
    length = int(lengths.max()) if length is None else length
    padded = nested.to_padded_tensor(0.0, (len(lengths), length, nested.size(2)))
    return padded, torch.arange(length, device=nested.device) >= lengths[:, None]


def _look(
    observer: Observer, name: str, request: Observe, call: Multihead, capture: KernelCapture, backend: str
) -> None:
    if request.queries is None:
        request = replace(request, queries=call.real_queries())
    batch = call.query.shape[0] if call.query.ndim == 3 else 1
    logsumexp = capture.logsumexp_of(batch, call.heads, call.query.shape[-2])
    observer.look(name, request, call.pairs, logsumexp=logsumexp, backend=backend)


def _backend(capture: KernelCapture, need_weights: bool, dropout: float) -> str:
    if capture.backend is None and need_weights:
        return "torch materialised: need_weights"
    return backend_of(capture, dropout)
