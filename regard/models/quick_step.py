"""One more token of one text, by native code: what writing a text with a language model does over and over.

The weights of a model of 10 million parameters are multiplied with a vector in the time it takes to read them; the
hundred small operations around these products cost twice as much in torch. Here a step is one call
(`attention/native/step.c`). It is taken where it computes the same as the modules do, which `refuses` decides: one row,
float32 on a CPU, pre-norm, plain or rotary attention, no gradient, nobody watching.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from regard.attention.masks import Causal
from regard.attention.native import SELF_CHECK_TOLERANCE, build, unavailable
from regard.attention.native.pairs import COUNT, POINTER
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.cache import Cache
from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.residual import Residual

ACTIVATIONS = {"relu": 0, "gelu": 1, "silu": 2}  # as step.c numbers them
POSITIONS_AT_ONCE = 256  # whose angles are worked out together

Layer = tuple[MultiHeadAttention, FeedForward, Residual, Residual]  # the residual block of each stands behind them


class _Matrix(ctypes.Structure):
    """`struct matrix` of step.c."""

    _fields_ = [("weight", POINTER), ("bias", POINTER), ("outputs", COUNT), ("inputs", COUNT)]


class _Norm(ctypes.Structure):
    """`struct norm` of step.c."""

    _fields_ = [("weight", POINTER), ("bias", POINTER), ("eps", ctypes.c_double), ("centred", COUNT)]


class _Layer(ctypes.Structure):
    """`struct layer` of step.c."""

    _fields_ = [
        *((name, _Norm) for name in ("before_attention", "before_feed_forward")),
        *((name, _Matrix) for name in ("query_key_value", "output", "inner", "outer")),
        *((name, POINTER) for name in ("keys", "values")),
        ("head_stride", COUNT),
    ]


class _Step(ctypes.Structure):
    """`struct step` of step.c."""

    _fields_ = [
        ("layers", POINTER),
        *((name, COUNT) for name in ("num_layers", "dim", "heads", "kv_heads", "head_dim", "width", "gated")),
        *((name, COUNT) for name in ("activation", "position", "threads")),
        *((name, POINTER) for name in ("cosines", "sines")),
        ("scale", ctypes.c_double),
        ("last", _Norm),
        ("vector", POINTER),
    ]


class QuickStep:
    """The layers of one model, laid out for native code. It holds the weights as they were when it was made.

    last: the norm after all layers.
    """

    def __init__(self, layers: list[Layer], last: nn.Module, library: ctypes.CDLL | str | None = None) -> None:
        library = _library() if library is None else library
        assert isinstance(library, ctypes.CDLL), library
        self._library = library
        attention, feed_forward, _, _ = layers[0]
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*(self._layer(*parts) for parts in layers))
        self._rooms: list[Any] = [None] * len(layers)
        self._rotary = attention.rotary
        self._angles: tuple[Tensor, Tensor] | None = None
        self._step = _Step(
            layers=ctypes.cast(self._layers, POINTER),
            num_layers=len(layers),
            dim=attention.output.out_features,
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            width=feed_forward.config.width,
            gated=feed_forward.config.gated,
            activation=ACTIVATIONS[feed_forward.config.activation],
            scale=1.0 / math.sqrt(attention.head_dim),
            last=self._norm(last),
        )

    def take(self, vector: Tensor, caches: tuple[Cache, ...]) -> tuple[Tensor, tuple[Cache, ...]]:
        """vector: the embedded token, float32 [1, 1, model_dim] -> (hidden, of the same shape; the caches, grown)."""
        caches = tuple(cache.with_room(1) for cache in caches)
        for index, cache in enumerate(caches):
            if self._rooms[index] is not cache.room:
                self._rooms[index] = cache.room
                place = self._layers[index]
                place.keys, place.values = cache.room.keys.data_ptr(), cache.room.values.data_ptr()
                place.head_stride = cache.room.keys.stride(1)
        step, position = self._step, caches[0].length
        hidden = vector.clone(memory_format=torch.contiguous_format)
        step.position, step.threads, step.vector = position, torch.get_num_threads(), hidden.data_ptr()
        if self._rotary is not None:
            cosines, sines = self._turning(position)
            step.cosines, step.sines = cosines, sines
        if self._library.regard_step(ctypes.byref(step)):
            raise MemoryError(f"no memory for a step behind {position} tokens")
        return hidden, tuple(cache.written(1) for cache in caches)

    def _turning(self, position: int) -> tuple[int, int]:
        """Where the cosines and the sines of a position's angles are."""
        if self._angles is None or self._angles[0].shape[0] <= position:
            assert self._rotary is not None
            half = self._step.head_dim // 2
            places = torch.arange(position + POSITIONS_AT_ONCE, dtype=torch.float64)[:, None]
            angles = places * self._rotary.frequencies(2 * half)
            self._angles = angles.cos().float().contiguous(), angles.sin().float().contiguous()
        at = position * self._angles[0].shape[1] * 4
        return self._angles[0].data_ptr() + at, self._angles[1].data_ptr() + at

    def _layer(
        self, attention: MultiHeadAttention, feed_forward: FeedForward, one: Residual, other: Residual
    ) -> _Layer:
        return _Layer(
            before_attention=self._norm(one.norm),
            before_feed_forward=self._norm(other.norm),
            query_key_value=self._matrix(attention.query_key_value),
            output=self._matrix(attention.output),
            inner=self._matrix(feed_forward.inner),
            outer=self._matrix(feed_forward.outer),
        )

    def _matrix(self, linear: nn.Linear) -> _Matrix:
        return _Matrix(self._at(linear.weight), self._at(linear.bias), linear.out_features, linear.in_features)

    def _norm(self, norm: nn.Module) -> _Norm:
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        centred = isinstance(norm, nn.LayerNorm)
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        assert norm.eps is not None
        return _Norm(self._at(norm.weight), self._at(bias), norm.eps, centred)

    def _at(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor)
        return tensor.data_ptr()


def refuses(layers: list[Layer], last: nn.Module) -> str | None:
    """Why a model's steps are not taken so, or None. Compiles the code when first needed."""
    attention, _, block, _ = layers[0]
    if not block.is_pre or not isinstance(last, nn.LayerNorm | nn.RMSNorm):
        return "it knows layers with their norms before them"
    plain = attention._score() is None and attention._distribution() is None and attention.window is None
    if not plain or (attention.rotary is not None and attention.rotary.scaling is not None):
        return "it knows scaled dot products with rotary positions or without"
    modules = [part for parts in layers for whole in parts for part in whole.modules()]
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return "a hook waits for the modules to be called"
    parameters = [parameter for module in (*modules, last) for parameter in module.parameters(recurse=False)]
    if any(type(parameter) is not nn.Parameter or not parameter.is_contiguous() for parameter in parameters):
        return "it reads weights that lie in memory row by row"
    if any(parameter.dtype != torch.float32 or parameter.device.type != "cpu" for parameter in parameters):
        return "it computes in float32 on a CPU"
    reason = unavailable()
    if reason is None and isinstance(library := _library(), str):
        return library
    return reason


def is_watched() -> bool:
    """Whether somebody sees operations as they are called: an observer, a tracer, a compiler, a gradient."""
    return (
        torch.is_grad_enabled()
        or bool(_global_forward_hooks or _global_forward_pre_hooks)
        or bool(_get_current_function_mode_stack())
        or bool(_get_current_dispatch_mode_stack())
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
    )


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    try:
        library = build.load("step.c")
    except build.BuildError as error:
        return str(error)
    library.regard_size_of_step.restype = ctypes.c_int64
    if library.regard_size_of_step() != ctypes.sizeof(_Step) + ctypes.sizeof(_Layer) or not _is_right(library):
        return "the compiled code gives wrong results"
    return library


@torch.no_grad()
def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a step of a small layer comes out as the modules have it."""
    dim, length, norm = 21, 19, NormConfig("rms")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        attention = MultiHeadAttention(dim, AttentionConfig(4, 2, 6, rotary_base=100.0), is_self=True)
        feed_forward = FeedForward(dim, FeedForwardConfig(53, "silu", gated=True))
        blocks = [Residual(dim, norm, 0.0) for _ in range(2)]
        last, vectors = norm.build(dim), torch.randn(1, length, dim)
    query, keys_values = attention.project_self(blocks[0].norm(vectors), 0)
    right = vectors + attention(query, keys_values, Causal())[0]
    right = last(right + feed_forward(blocks[1].norm(right)))[:, -1:]
    read = keys_values.select(torch.zeros(1, dtype=torch.int64))
    cache = Cache.of(type(read)(read.keys[:, :, :-1], read.values[:, :, :-1]))
    step = QuickStep([(attention, feed_forward, *blocks)], last, library)  # type: ignore[list-item]
    found, _ = step.take(vectors[:, -1:], (cache,))
    return torch.allclose(found, right, rtol=SELF_CHECK_TOLERANCE, atol=SELF_CHECK_TOLERANCE)
