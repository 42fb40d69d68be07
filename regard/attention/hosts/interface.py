"""Models of transformers, through the one function by which all of their attention is looked up.

Where a model runs torch's scaled dot-product attention, this file only knows the call better: grouped heads before they
were repeated. Where it runs the function of its own file ("eager": Gemma 2 and GPT-OSS by choice, any model by
`attn_implementation="eager"`) the call is read from that function's arguments, and the answer is held against what the
function returned, because each file has its own. Any other kernel is refused by name.

While some context is open `AttentionInterface.get_interface` is replaced; its answers are the functions that it would
give, wrapped. In a thread that observes nothing they pass straight through.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.hosts.agreement import disagreement
from regard.attention.hosts.callers import Caller
from regard.attention.hosts.capture import KernelCapture, backend_of
from regard.attention.hosts.masks_of import with_mask
from regard.attention.hosts.running import in_backward
from regard.attention.hosts.sdpa import Sdpa, as_computed, refuse_wrapped
from regard.attention.hosts.undisturbed import as_it_is
from regard.attention.observation import Observe
from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError

if TYPE_CHECKING:
    from regard.attention.hosts.observe import Observer

# Parts of the names of implementations that compute apart from torch's attention, and may compile themselves.
UNREAD = ("flex_attention", "flash_attention", "paged|", "/")
EAGER = "eager (the model's choice)"


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.observers: list[Observer] = []


_here = _OfThread()
_lock = threading.Lock()
_open = 0  # contexts, in all threads
_original: Callable[..., Any] | None = None


@contextlib.contextmanager
def watched_by(observer: Observer) -> Iterator[None]:
    """The observer learns of this thread's calls; the interface is itself again when the last context has closed."""
    global _open, _original
    interface = getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
    if not hasattr(interface, "get_interface"):
        # No model of transformers is about; or of 5.0, which has no such look-up: there torch's attention is seen by
        # itself, and eager attention is refused as attention by hand.
        yield
        return
    assert interface is not None
    with _lock:
        _open += 1
        if _open == 1:
            _original = interface.get_interface
            interface.get_interface = _get_interface
    _here.observers.append(observer)
    try:
        yield
    finally:
        _here.observers.remove(observer)
        with _lock:
            _open -= 1
            if _open == 0:
                interface.get_interface = _original
                _original = None


def _get_interface(interface: Any, attn_implementation: str | None, default: Callable[..., Any]) -> Callable[..., Any]:
    original = _original
    if original is None:  # the last context closed between the look-up and the call
        return type(interface).get_interface(interface, attn_implementation, default)  # type: ignore[no-any-return]
    found: Callable[..., Any] = original(interface, attn_implementation, default)
    if not _here.observers or torch.compiler.is_compiling():
        return found
    return functools.partial(_run, found, attn_implementation, found is default)


def _run(function: Callable[..., Any], implementation: str | None, is_default: bool, *args: Any, **kwargs: Any) -> Any:
    """Runs a model's attention function as it is; each observer of this thread looks at it."""
    module = args[0] if args else kwargs.get("module")
    observers = [] if in_backward() else [observer for observer in _here.observers if module in observer.names]
    given = _by_name(function, args, kwargs) if observers and isinstance(module, nn.Module) else None
    if given is None:
        return function(*args, **kwargs)
    calls = [Expected(observer, _caller(observer, given.module), given) for observer in observers]
    with contextlib.ExitStack() as stack:
        for call in calls:
            if any(kind in (implementation or "") for kind in UNREAD):
                call.refuse(implementation)
                stack.enter_context(call.observer.running.aside())
            stack.enter_context(call.expected())
        result = function(*args, **kwargs)
    for call in calls:
        if not call.seen:
            call.look_at_result(implementation, is_default, result)
    return result


class Given(NamedTuple):
    """The arguments of an attention function, of which the first five have their places and the rest their names.

    query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, key_len, ...].
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Any
    rest: dict[str, Any]


_signature = functools.lru_cache(maxsize=64)(inspect.signature)


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
    """None where it is no such call; torch or the function itself will say what is wrong with it."""
    try:
        bound = _signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    first = bound.args[:5]
    if len(first) < 5 or not all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in first[1:4]):
        return None
    rest: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        rest |= value if name == "kwargs" and isinstance(value, dict) else {name: value}
    return Given(first[0], first[1], first[2], first[3], first[4], rest)


def _caller(observer: Observer, module: nn.Module) -> Caller:
    found = observer.names.caller()
    if found is not None and found.module is module:
        return found
    return Caller(module, observer.names.of(module), one_sequence=False)


@dataclass(eq=False)
class Expected:
    """One call of an attention function that runs. seen: it has called attention that the observer saw by itself."""

    observer: Observer
    caller: Caller
    given: Given
    seen: bool = False

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """While the function runs, what it calls is known to belong to this call."""
        self.observer.expected = self
        try:
            yield
        finally:
            self.observer.expected = None

    def refuse(self, implementation: str | None) -> None:
        """Raises: ObservationError where the layer was chosen; else its call counts as seen."""
        self.seen = True
        if self.observer.wanted(self.caller.name) is not None:
            raise ObservationError(
                f"observe: layer `{self.caller.name}` runs transformers' `{implementation}`, whose weights regard "
                'cannot read exactly; load the model with attn_implementation="sdpa" or "eager"'
            )

    def look_at_sdpa(self, request: Observe, call: Sdpa, capture: KernelCapture) -> None:
        """The function called torch's attention; its queries and keys are told by what the model gave it."""
        query, key = self.given.query, self.given.key
        batch, heads, query_len, _ = query.shape
        kv_heads = key.shape[1]
        logsumexp = capture.logsumexp_of(*call.query.shape[:3]) if call.query.ndim == 4 else None
        if query_len == 1 and kv_heads < heads and call.query.shape[:3] == (batch, kv_heads, heads // kv_heads):
            # A single query's heads of a group were handed over as so many queries of one head.
            mask = call.attn_mask
            if mask is not None and mask.shape[1] != 1:
                mask = mask.reshape(mask.shape[0], heads, 1, mask.shape[-1])
            call = replace(call, query=query, attn_mask=mask)
            logsumexp = None if logsumexp is None else logsumexp.reshape(batch, heads, 1)
        elif kv_heads < call.key.shape[1] == heads and call.query.shape == query.shape:
            # Keys were repeated for their groups; what the kernel was given is read, and not what the model gave.
            groups = call.key.unflatten(1, (kv_heads, -1))
            if bool((groups == groups[:, :, :1]).all()):
                call = replace(call, key=groups[:, :, 0])
        self.observer.look(
            self.caller.name,
            request,
            call.pairs,
            logsumexp=logsumexp,
            backend=backend_of(capture, call.dropout_p),
            one_sequence=self.caller.one_sequence,
        )

    def look_at_result(self, implementation: str | None, is_default: bool, result: Any) -> None:
        """The function did everything by itself; read from its arguments, held against what it returned."""
        name = self.caller.name
        if not is_default:
            self.refuse(implementation)
            return
        request = self.observer.wanted(name)
        if request is not None:
            self.observer.look(
                name, request, lambda: self._checked(result), backend=EAGER, one_sequence=self.caller.one_sequence
            )

    def _checked(self, result: Any) -> PairScores:
        pairs = self._pairs()
        output, weights = (*result, None)[:2] if isinstance(result, tuple) else (result, None)
        dropout = float(self.given.rest.get("dropout") or 0.0) if self.caller.module.training else 0.0
        with as_it_is(pairs.query.device):
            problem = disagreement(pairs, as_computed(self.given.value), output, weights, dropout)
        if problem is not None:
            raise ObservationError(
                f"{type(self.caller.module).__name__} computes something else than a softmax of products, mask and "
                f"bias ({problem}), so its attention cannot be read exactly; choose other layers with `layers`"
            )
        return pairs

    def _pairs(self) -> PairScores:
        """What the model's own function computes, by the arguments that such functions take."""
        query, key, rest = as_computed(self.given.query), as_computed(self.given.key), self.given.rest
        refuse_wrapped(query, key)
        scale, sink = rest.get("scaling"), rest.get("s_aux")
        sink = getattr(self.caller.module, "sinks", None) if sink is None else sink
        pairs = PairScores(
            query,
            key,
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            soft_cap=rest.get("softcap"),
            sink=sink.detach().flatten() if isinstance(sink, Tensor) else None,
        )
        for added in (rest.get("position_bias"), self.given.attention_mask):
            if isinstance(added, Tensor):
                pairs = with_mask(pairs, added[(None,) * (4 - added.ndim)])
        return pairs
