"""Whose attention a call is: the module that made it, found on the call stack, and its name in the model.

A hook would know which module runs, but not which one calls `read` or another method that is no forward, nor what was
passed by keyword. The call stack knows both; it is only read.
"""

from __future__ import annotations

import sys
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = "attention"  # the name of attention that the observed module computes itself, not in a module of its own
# What arguments that are no sequence of vectors to attend to are called: positions, masks, biases and caches.
_NAMES = (
    "position_ids positions position position_embeddings position_embedding pos_embed pos_emb pos position_bias "
    "cache_position query_pos rotary_pos_emb rotary_emb rotary_embeddings freqs_cis freqs cos sin "
    "relative_position relative_positions relative_position_bias relative_pos rel_pos rel_pos_bias rel_bias "
    "attention_bias attn_bias bias alibi mask masks attention_mask attn_mask self_attn_mask causal_mask "
    "padding_mask key_padding_mask src_mask tgt_mask src_key_padding_mask tgt_key_padding_mask "
    "encoder_attention_mask head_mask layer_head_mask output_attentions past_key_value past_key_values layer_past"
)
NO_SEQUENCES = frozenset(_NAMES.split())


class Caller(NamedTuple):
    """module: the model's innermost module on the call stack; name: the layer's; one_sequence: whether its forward was
    certainly given a single sequence of vectors, which makes the call self-attention."""

    module: nn.Module
    name: str
    one_sequence: bool


class Names:
    """The names of a model's attention layers: the paths of its modules.

    Of regard's own models "..._attention" is shortened ("encoder.layers.0.self"); a module that attends outside any
    forward says its layer's name itself, in `attention_name`, relative to its own path.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths: dict[int, str] = {}
        self._modules: dict[int, nn.Module] = {}  # keeps ids from being reused while they are looked up
        self._read()

    def _read(self) -> None:
        for path, module in self._model.named_modules():
            self._paths.setdefault(id(module), path)
            self._modules.setdefault(id(module), module)

    def __contains__(self, module: object) -> bool:
        return id(module) in self._paths

    def of(self, module: nn.Module) -> str:
        """The layer's name; `module` belongs to the model."""
        path = self._paths[id(module)]
        own = getattr(module, "attention_name", None)
        if isinstance(own, str):
            return f"{path}.{own}" if path else own
        if type(module).__module__.startswith("regard."):
            path = path.removesuffix("_attention")
        return path or ROOT

    def all(self) -> list[str]:
        """What every module's layer would be called."""
        return [self.of(module) for module in self._modules.values()]

    def caller(self) -> Caller | None:
        """Of the call that is being looked at; None where no module of the model is on the stack."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            module = _self_of(frame)
            if module is not None and id(module) in self._paths:
                return Caller(module, self.of(module), _one_sequence(frame, module))
            frame = frame.f_back
        return None


def _self_of(frame: FrameType) -> nn.Module | None:
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, nn.Module) else None


def _one_sequence(frame: FrameType, module: nn.Module) -> bool:
    """Whether the module's forward, this frame or one above it, certainly received one sequence of vectors alone."""
    if getattr(module, "is_cross_attention", False) is True or getattr(module, "is_self", None) is False:
        return False
    above: FrameType | None = frame
    while above is not None and (above is frame or _self_of(above) in (None, module)):
        if above.f_code.co_name == "forward" and _self_of(above) is module:
            return _only_one(_arguments(above.f_code, above.f_locals))
        above = above.f_back
    return False


def _arguments(code: CodeType, values: dict[str, Any]) -> dict[str, Any]:
    """What a function was given, by name, as its variables stand now; of `*args` and `**kwargs` each one by itself.

    A variable that has been deleted is there as an object of unknown kind.
    """
    count = code.co_argcount + code.co_kwonlyargcount
    given = {name: values.get(name, ...) for name in code.co_varnames[1:count]}
    if code.co_flags & CO_VARARGS:
        rest = values.get(code.co_varnames[count], ...)
        given |= {f"*{i}": value for i, value in enumerate(rest)} if isinstance(rest, tuple) else {"*": ...}
        count += 1
    if code.co_flags & CO_VARKEYWORDS:
        named = values.get(code.co_varnames[count], ...)
        given |= named if isinstance(named, dict) else {"**": ...}
    return given


def _only_one(given: dict[str, Any]) -> bool:
    """Whether there is certainly one sequence of vectors, [batch, length, width], and nothing else to attend to."""
    found = set()
    for name, value in given.items():
        if name in NO_SEQUENCES or value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
            continue
        if isinstance(value, Tensor) and (value.ndim == 0 or not (value.is_floating_point() or value.is_complex())):
            continue
        if not isinstance(value, Tensor) or value.ndim != 3:
            return False
        found.add(id(value))
    return len(found) == 1
