"""`regard.observe`: statistics of every attention call that a model makes, while it runs as it always does.

A TorchFunctionMode sees the calls of `regard.attend`, of `F.scaled_dot_product_attention` and of
`F.multi_head_attention_forward`; torch's own attention modules are read when they end, and models of transformers that
run their attention by a function of their own through transformers' attention interface. Each is computed by the kernel
that the model chose; then one second pass over its queries, keys and logsumexp yields what was asked for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.hosts import interface, multihead, own
from regard.attention.hosts.callers import Names
from regard.attention.hosts.capture import KernelCapture, backend_of
from regard.attention.hosts.padding import real_queries
from regard.attention.hosts.running import Run, Running, Watching, in_backward
from regard.attention.hosts.sdpa import Sdpa
from regard.attention.hosts.selection import Heads, Layers, Selection, listed, select
from regard.attention.hosts.undisturbed import as_it_is, undisturbed
from regard.attention.observation import Observation, Observe, problems_of
from regard.attention.pair_scores import PairScores
from regard.attention.records.record import AttentionRecord
from regard.attention.second_pass import second_pass
from regard.errors import ObservationError, RegardError

SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
SDPA = {
    F.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
KERNEL = "_scaled_dot_product"  # how the names of the kernels behind it begin
FLEX = "flex_attention.py"  # its functions are Python, and seen only by what they call


@contextlib.contextmanager
def observe(
    model: nn.Module,
    *,
    layers: Layers = None,
    heads: Heads = None,
    queries: Tensor | None = None,
    **statistics: Any,
) -> Iterator[AttentionRecord]:
    """Yields a record that fills as the model runs; its output and gradients keep every bit.

    model: regard's, transformers' or any module that attends through `F.scaled_dot_product_attention`,
        `nn.MultiheadAttention` or transformers' attention interface. Only calls inside it, made in this thread, count.
    layers: which, by name: patterns such as "*.cross", or a function of the name; all unless given. Names are the
        paths of the attention modules; `Names` says how regard's own are shortened.
    heads: of every layer, or pattern -> heads; all unless given.
    queries: bool [batch, query_len], which queries are real, of every chosen layer; as `Observe.queries`.
    statistics: as the fields of `Observe`: entropy=True, received=True, top_k=8, trace=True...

    The n-th call of a layer, such as a step of `generate()`, is kept apart as "name#n" and never summed: beams may have
    been reordered between. What a backward pass recomputes (activation checkpointing) is not recorded again.
    Padded keys count nowhere. Unless `queries` says which are real, padded queries are left out of what is certainly
    self-attention, where the mask shows them: where nobody may attend to a query's own position. It is certain where
    the attending module is given one sequence of vectors and nothing else that might be attended to. All queries of
    other calls count: of cross-attention nothing says which are padding.
    Raises: ObservationError for a statistic or a layer that does not exist, for a model whose attention cannot be read
    exactly (compiled, written by hand, a kernel that is not known), and on leaving the context when a pattern fitted no
    layer that ran, or nothing was seen of a model that ran.
    """
    if not isinstance(model, nn.Module):
        raise ObservationError(f"observe: the model is {type(model).__name__}, expected a torch.nn.Module")
    _refuse_compiled(model)
    observer = Observer(model, layers, heads, queries, statistics)
    with observer.watching():
        yield observer.record
    observer.check_found()


class Observer:
    """One `observe` at work: what is wanted, what has been seen, and where it goes."""

    def __init__(
        self, model: nn.Module, layers: Layers, heads: Heads, queries: Tensor | None, statistics: dict[str, Any]
    ) -> None:
        self.names = Names(model)
        self.selection: Selection = select(layers, heads, queries, statistics, self.names.all())
        self.running = Running(self.names.__contains__, _Mode(self), self._finished, self._refuse_silent)
        self.expected: interface.Expected | None = None  # the call of transformers' interface that is running
        self._model = model
        self._layers: dict[str, Observation] = {}
        self._backend: dict[str, str] = {}
        self._seen: dict[str, int] = {}  # layer -> how many of its calls were seen, chosen or not
        self._kept: dict[str, int] = {}  # layer -> how many of its calls are in the record
        self.record = AttentionRecord(self._layers, backend=self._backend)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with interface.watched_by(self):
            self.running.open()
            try:
                yield
            finally:
                self.running.close()

    def check_found(self) -> None:
        """Raises: ObservationError where patterns fitted nothing, or nothing was seen of a model that ran."""
        if self.running.ran_in_new_thread or (self.running.ran_elsewhere and not self._seen and not self.running.ran):
            raise ObservationError(
                "observe: the model ran in another thread, which is not observed; enter the context in that thread"
            )
        if self._seen:
            self.selection.check(self._seen, "layer that ran")
        elif self.running.ran:
            raise ObservationError(
                f"observe: {type(self._model).__name__} ran, but nowhere in it was attention seen: it calls neither "
                "F.scaled_dot_product_attention nor nn.MultiheadAttention nor transformers' attention interface; give "
                "a model that attends by one of them, or change its attention to do so"
            )

    # -- one call ------------------------------------------------------------------------------------------------------

    def wanted(self, name: str) -> Observe | None:
        """Notes that a call was seen, and says what is wanted of it; None where nothing is."""
        self.running.attended()
        if in_backward():
            return None
        self._seen[name] = self._seen.get(name, 0) + 1
        return self.selection.of(name)

    def keep(self, name: str, observation: Observation, backend: str) -> None:
        # Calls that failed are not counted, so that the first entry is always the layer's name alone.
        calls = self._kept[name] = self._kept.get(name, 0) + 1
        entry = name if calls == 1 else f"{name}#{calls - 1}"
        self._layers[entry] = observation
        self._backend[entry] = backend

    def look(
        self,
        name: str,
        request: Observe,
        pairs: Callable[[], PairScores],
        *,
        logsumexp: Tensor | None = None,
        backend: str,
        one_sequence: bool = False,
    ) -> None:
        """The second pass over one call; pairs: made here, where nothing of the model's surroundings reaches it."""
        with self.explained(name), undisturbed(request):
            made = pairs()
            problems = problems_of(request, made.batch, made.heads, made.query_len, made.key_len)
            if problems:
                raise ObservationError("; ".join(problems))
            if one_sequence and request.queries is None:
                request = replace(request, queries=real_queries(made))
            if request.trace:
                made = _kept_apart(made, request)
            with as_it_is(made.query.device):
                observation = second_pass(made, request, logsumexp)
            self.keep(name, observation, backend)

    @contextlib.contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Errors name the layer."""
        try:
            yield
        except RegardError as error:
            text = str(error).removeprefix("observe: ")
            raise type(error)(f"observe: layer `{name}`: {text}") from error

    # -- who calls -----------------------------------------------------------------------------------------------------

    def sdpa(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call of `F.scaled_dot_product_attention` as it is, and looks at it."""
        expected = self.expected
        caller = self.names.caller() if expected is None else expected.caller
        request = None if caller is None else self.wanted(caller.name)
        if expected is not None:
            expected.seen = True
        if request is None or caller is None:
            return func(*args, **kwargs)
        with KernelCapture() as capture:
            output = func(*args, **kwargs)
        call = Sdpa(*args, **kwargs)
        if expected is not None:
            expected.look_at_sdpa(request, call, capture)
            return output
        # Torch serves inputs of other than four axes materialised, without a logsumexp.
        logsumexp = capture.logsumexp_of(*call.query.shape[:3]) if call.query.ndim == 4 else None
        self.look(
            caller.name,
            request,
            call.pairs,
            logsumexp=logsumexp,
            backend=backend_of(capture, call.dropout_p),
            one_sequence=caller.one_sequence,
        )
        return output

    def _finished(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Torch's own attention modules are read when they have ended."""
        if run.module in self.names:
            multihead.look_at_module(self, run, args, kwargs)

    def _refuse_silent(self, silent: list[nn.Module]) -> None:
        for module in silent:
            if self.selection.wants(self.names.of(module)):
                raise ObservationError(
                    f"observe: layer `{self.names.of(module)}` ({type(module).__name__}) attends in a way of its own: "
                    "it calls neither F.scaled_dot_product_attention nor transformers' attention interface, so its "
                    "attention cannot be read exactly; choose other layers with `layers`"
                )


def _kept_apart(pairs: PairScores, request: Observe) -> PairScores:
    """Copies of what the model may write on while the trace is kept: a cache or a mask that is allocated whole."""
    copied = ["bias", "allowed", "offset_bias", "sink"]
    if request.heads is None:  # chosen heads are copies anyway
        copied += ["query", "key"]
    tensors = {name: tensor for name, tensor in pairs.tensors().items() if name in copied}
    return replace(pairs, **{name: _copy(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _copy(tensor: Tensor) -> Tensor:
    """Of the same shape; what is expanded stays so."""
    narrow = tensor
    for axis, stride in enumerate(tensor.stride()):
        narrow = narrow.narrow(axis, 0, 1) if stride == 0 and tensor.shape[axis] > 1 else narrow
    return narrow.clone().expand_as(tensor)


class _Mode(Watching):
    """Hands the calls that are attention to the observer, and all others on."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        self.busy = True
        try:
            if func in SDPA:
                return self._observer.sdpa(func, args, kwargs)
            if func is attend:
                return own.look_at_attend(self._observer, args, kwargs)
            if func is F.multi_head_attention_forward:
                return multihead.look_at_function(self._observer, args, kwargs)
            if self._observer.expected is None and _by_hand(func, args, kwargs, sys._getframe(1)):
                self._observer.running.by_hand()
            return func(*args, **kwargs)
        finally:
            self.busy = False


def _by_hand(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], caller: FrameType) -> bool:
    """Whether a call is attention, or a part of it, that nothing here reads."""
    if func in SOFTMAXES:
        return _over_keys(args, kwargs)
    return getattr(func, "__name__", "").startswith(KERNEL) or caller.f_code.co_filename.endswith(FLEX)


def _over_keys(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a softmax is taken over the last axis of [batch, heads, query_len, key_len]."""
    scores = args[0] if args else kwargs.get("input")
    axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return isinstance(scores, Tensor) and scores.ndim >= 4 and axis in (-1, scores.ndim - 1)


def _refuse_compiled(model: nn.Module) -> None:
    if torch.compiler.is_compiling():
        raise ObservationError("observe: entered while torch.compile traces; enter it outside the compiled function")
    found = []
    for path, module in model.named_modules():
        compiled = "_orig_mod" in module._modules and "dynamo_ctx" in module.__dict__
        compiled = compiled or getattr(module, "_compiled_call_impl", None) is not None
        compiled = compiled or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        if compiled or isinstance(module, torch.jit.ScriptModule):
            found.append(path or type(module).__name__)
    if found:
        raise ObservationError(
            f"observe: compiled: {listed(found)}; a compiled graph shows no attention calls: observe the model as it "
            "was before torch.compile or torch.jit"
        )
