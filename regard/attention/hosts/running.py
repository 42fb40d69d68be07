"""Which modules are running: a stack that torch's global module hooks keep, and what they must not disturb.

Two of torch's habits decide the means. Its Transformer modules leave their fast path, and so change the last bits of
their output, where they see a hook on a module or any TorchFunctionMode: the hooks are therefore global ones, which
they do not look at, and the observer's mode leaves torch's stack of modes while their own code runs. And a module that
attends by hand shows nowhere: a module that is called attention, ran to its end and attended in no way that could be
read is reported as silent.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from regard.attention.hosts.capture import ENCODER_LAYER, KernelCapture
from regard.errors import ObservationError

# Their forward looks for a fast path that a TorchFunctionMode would close.
FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
FORWARDS = {kind.forward.__code__ for kind in FAST}
# How names of what merely serves attention end.
NO_ATTENTION = ("adapter", "norm", "dropout", "mask", "output", "embed", "embedding", "embeddings")


_observing: list[int] = []  # threads, once for each context that is open in them


class Finished(Protocol):
    def __call__(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None: ...


class Watching(TorchFunctionMode):
    """The observer's mode. busy: a call is in its hands, and torch has taken it off the stack for that long."""

    busy = False


@dataclass(eq=False)
class Run:
    """One run of a module.

    by_hand: it is called attention, or took a softmax over keys.
    fast: its own code may look for a fast path of torch's.
    attended: some attention call inside it was seen.
    whole: the fast path of a whole encoder layer ran in its own code.
    direct: its own code attended in a way that cannot be read, whatever attended inside it.
    silent: modules inside it that are by_hand and did not attend.
    capture: of an nn.MultiheadAttention's kernel, and of what others of torch's run while the mode stands aside.
    source: the positional arguments of an nn.TransformerEncoder, whose layers may see them cut into nested tensors.
    """

    module: nn.Module
    by_hand: bool
    fast: bool = False
    attended: bool = False
    whole: bool = False
    direct: bool = False
    silent: list[nn.Module] = field(default_factory=list)
    capture: KernelCapture | None = None
    source: tuple[Any, ...] = ()


class Running:
    """The stack, of the thread that made it.

    owned: whether a module belongs to the observed model; only such are reported.
    mode: what must step aside for torch's fast paths.
    finished: called with each run that ended without an error, when it is off the stack.
    refuse: called with the silent modules as soon as no module around them can speak for them.
    """

    def __init__(
        self,
        owned: Callable[[nn.Module], bool],
        mode: Watching,
        finished: Finished,
        refuse: Callable[[list[nn.Module]], None],
    ) -> None:
        self.stack: list[Run] = []
        self.ran = False
        self.ran_elsewhere = False  # some module of the model ran in another thread, which is not observed
        self.ran_in_new_thread = False  # ... in one that was started meanwhile and observes nothing itself
        self._threads_before: set[int | None] = set()
        self._owned = owned
        self._mode = mode
        self._place = 0  # of the mode on torch's stack, counted from the bottom, while it stands aside
        self._finished = finished
        self._refuse = refuse
        self._finishing = False  # the observer is at work
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def open(self) -> None:
        self._threads_before = {thread.ident for thread in threading.enumerate()}
        _observing.append(self._thread)
        torch._C._push_on_torch_function_stack(self._mode)
        self._handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def close(self) -> None:
        _observing.remove(self._thread)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self.stack:
            self._leave(self.stack.pop())
        _take_off(self._mode)

    def attended(self) -> None:
        """The module on top has attended in a way that could be read."""
        if self.stack:
            self.stack[-1].attended = True

    def by_hand(self) -> None:
        """The innermost module of the model took a softmax as one over keys is taken."""
        for run in reversed(self.stack):
            if self._owned(run.module) and not isinstance(run.module, nn.Softmax):
                run.by_hand = run.direct = True
                return

    def refuse_unhooked(self) -> None:
        """Raises: ObservationError where a forward of torch's that may be fast runs unknown to its hooks."""
        hooked = {id(run.module) for run in self.stack}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code in FORWARDS:
                module = frame.f_locals.get("self")
                if id(module) in hooked:
                    return
                if isinstance(module, FAST) and self._owned(module) and _could_be_fast(module):
                    raise ObservationError(
                        f"observe: {type(module).__name__}.forward is called past the module's hooks, and observing it "
                        "would close torch's fast path and change its output; call the module itself"
                    )
            frame = frame.f_back

    def source_of(self, kind: type[nn.Module]) -> tuple[Any, ...]:
        """The positional arguments of the innermost running module of a kind; none where there is none."""
        return next((run.source for run in reversed(self.stack) if isinstance(run.module, kind)), ())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The mode leaves torch's stack: for kernels that compile themselves, whose tracing it would disturb."""
        place = _place(self._mode)
        if place is None:
            yield
            return
        _take_off(self._mode)
        try:
            yield
        finally:
            _put_back(self._mode, place)

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            if self._owned(module):
                self.ran_elsewhere = True
                # Threads that were there before have work of their own, and so have those that observe it.
                here = threading.get_ident()
                self.ran_in_new_thread |= here not in self._threads_before and here not in _observing
            return
        if torch.compiler.is_compiling():
            return
        self.ran = self.ran or self._owned(module)
        if isinstance(module, FAST):
            self.refuse_unhooked()
        run = Run(module, self._owned(module) and attends_by_name(module), may_be_fast(module))
        if isinstance(module, nn.TransformerEncoder):
            run.source = args
        self.stack.append(run)
        self._show_mode()
        # What torch's encoder runs itself is its layers, if no subclass has changed it.
        if isinstance(module, nn.MultiheadAttention) or (run.fast and type(module) is not nn.TransformerEncoder):
            run.capture = KernelCapture(functools.partial(self._in_own_code, run))
            run.capture.__enter__()

    def _end(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if threading.get_ident() != self._thread or torch.compiler.is_compiling():
            return
        if not any(run.module is module for run in self.stack):
            return
        while (run := self.stack.pop()).module is not module:
            self._leave(run)  # its own hook was cut off, by an interrupt
        self._leave(run)
        self._show_mode()
        # After an error torch passes the result alone, without keyword arguments.
        if len(rest) == 2 and not in_backward():
            self._finishing = True
            try:
                self._finished(run, args, *rest)
            finally:
                self._finishing = False
            self._account(run)

    def _in_own_code(self, run: Run, operator: str) -> None:
        """An operator attended; it counts for the module in whose own code it ran."""
        if self._finishing or not self.stack or self.stack[-1] is not run:
            return
        if operator == ENCODER_LAYER and is_torchs(run.module, nn.TransformerEncoderLayer):
            run.whole = True
        elif not is_torchs(run.module, nn.MultiheadAttention):
            run.direct = run.by_hand = self._owned(run.module)

    def _leave(self, run: Run) -> None:
        if run.capture is not None:
            run.capture.__exit__(None, None, None)

    def _show_mode(self) -> None:
        """On torch's stack of modes, unless the module on top wants its fast path."""
        if self._mode.busy:
            return
        wanted = not self.stack or not self.stack[-1].fast
        place = _place(self._mode)
        if not wanted and place is not None:
            self._place = place
            _take_off(self._mode)
        elif wanted and place is None:
            _put_back(self._mode, self._place)

    def _account(self, run: Run) -> None:
        """Hands to the module around it what this one leaves open."""
        silent = run.silent
        if run.direct:
            self._refuse([run.module, *silent])
            silent = []
        elif run.by_hand and run.attended:
            silent = []
        elif run.by_hand and not silent:
            silent = [run.module]
        around = self.stack[-1] if self.stack else None
        if around is not None:
            around.attended = around.attended or run.attended
        if not silent:
            return
        if around is not None and any(outer.by_hand for outer in self.stack):
            around.silent += silent
        else:
            self._refuse(silent)


def in_backward() -> bool:
    """Whether autograd is at work: what runs now is a checkpoint's recomputation of what has been seen already."""
    return bool(torch._C._current_graph_task_id() != -1)


def may_be_fast(module: nn.Module) -> bool:
    """Whether torch's own forward runs, or may: a subclass' forward that mentions no other does without it."""
    if not isinstance(module, FAST):
        return False
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "forward" in module.__dict__ or any(type(module).forward is kind.forward for kind in FAST):
        return True
    return bool(code.co_freevars) or not {"super", "forward"}.isdisjoint(code.co_names)


def is_torchs(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether its forward is torch's own, of which all is known."""
    return type(module).forward is kind.forward and "forward" not in module.__dict__


def _could_be_fast(module: nn.Module) -> bool:
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    return not module.training and not learns


def attends_by_name(module: nn.Module) -> bool:
    """Whether its class is called attention and nothing that merely serves it."""
    name = type(module).__name__.lower()
    if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        return True
    return ("attention" in name or "attn" in name) and not name.rstrip("0123456789_").endswith(NO_ATTENTION)


# -- torch's stack of function modes -----------------------------------------------------------------------------------


def _place(mode: TorchFunctionMode) -> int | None:
    """Where a mode stands, counted from the bottom; None where it does not."""
    places = range(torch._C._len_torch_function_stack())
    return next((place for place in places if torch._C._get_function_stack_at(place) is mode), None)


def _take_off(mode: TorchFunctionMode) -> None:
    """Takes one mode off, wherever it stands, and leaves the others in their order."""
    above = []
    if _place(mode) is not None:
        while (top := torch._C._pop_torch_function_stack()) is not mode:
            above.append(top)
    _push(above)


def _put_back(mode: TorchFunctionMode, place: int) -> None:
    """Below the modes that have been entered meanwhile, so that each is the top when its context ends."""
    above = []
    while torch._C._len_torch_function_stack() > place:
        above.append(torch._C._pop_torch_function_stack())
    _push([*above, mode])


def _push(modes: list[Any]) -> None:
    """The last one first."""
    for mode in reversed(modes):
        torch._C._push_on_torch_function_stack(mode)
