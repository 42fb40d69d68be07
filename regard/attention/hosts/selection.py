"""What `observe` was asked for: which layers, which heads of each, which statistics; and what was never found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from regard.attention.observation import Observe
from regard.errors import ObservationError, suggestion

Layers = str | Sequence[str] | Callable[[str], bool] | None
Heads = Sequence[int] | Mapping[str, Sequence[int]] | None
STATISTICS = tuple(field.name for field in fields(Observe) if field.name not in ("heads", "queries"))
SHOWN = 6  # names listed in a message


@dataclass(frozen=True)
class Selection:
    """Checked: some statistic is asked for, and every pattern fits the name of some module.

    layers: patterns of `fnmatch`, or a predicate on names; None for every layer. heads: pattern -> heads of the layers
    that fit it, the first that fits; layers that fit none keep all their heads.
    """

    layers: tuple[str, ...] | Callable[[str], bool] | None
    heads: Mapping[str, tuple[int, ...]]
    request: Observe

    def wants(self, name: str) -> bool:
        if self.layers is None:
            return True
        if callable(self.layers):
            return bool(self.layers(name))
        return any(fnmatchcase(name, pattern) for pattern in self.layers)

    def of(self, name: str) -> Observe | None:
        """What is wanted of a layer; None where it was not chosen."""
        if not self.wants(name):
            return None
        for pattern, heads in self.heads.items():
            if fnmatchcase(name, pattern):
                return replace(self.request, heads=heads)
        return self.request

    def patterns(self) -> list[tuple[str, str]]:
        """(argument, pattern) of every pattern that was given."""
        layers = self.layers if isinstance(self.layers, tuple) else ()
        return [("layers", pattern) for pattern in layers] + [
            ("heads", pattern) for pattern in self.heads if self.heads
        ]

    def check(self, names: Iterable[str], what: str) -> None:
        """Raises: ObservationError naming every pattern that fits none of `names`, which are those of `what`."""
        names = list(dict.fromkeys(names))
        problems = [
            f"{argument}: `{pattern}` fits no {what}{suggestion(pattern, names)}"
            for argument, pattern in self.patterns()
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        if callable(self.layers) and not any(self.layers(name) for name in names):
            problems.append(f"layers: the function chose no {what}")
        if problems:
            raise ObservationError(f"observe: {'; '.join(problems)}; there are {listed(names)}")


def select(
    layers: Layers, heads: Heads, queries: Tensor | None, statistics: dict[str, Any], names: list[str]
) -> Selection:
    """names: of all modules of the model, as layers would be called.

    Raises: ObservationError for a statistic that is not known, none at all, or a pattern that fits no module.
    """
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        told = "; ".join(f"statistic `{name}` is not known{suggestion(name, STATISTICS)}" for name in unknown)
        raise ObservationError(f"observe: {told}; known: {', '.join(STATISTICS)}")
    request = Observe(**statistics, queries=queries)
    if not request:
        raise ObservationError(
            f"observe: no statistic is asked for; give some of {', '.join(STATISTICS)}, as in entropy=True"
        )
    chosen: tuple[str, ...] | Callable[[str], bool] | None
    if layers is None or callable(layers):
        chosen = layers
    else:
        chosen = (layers,) if isinstance(layers, str) else tuple(layers) if isinstance(layers, Sequence) else ()
        if not chosen or not all(isinstance(pattern, str) for pattern in chosen):
            raise ObservationError(
                f"observe: layers is {layers!r}, expected a pattern such as '*.self_attn', several, or a function of "
                "a layer's name"
            )
    of_layers: dict[str, tuple[int, ...]] = {}
    if isinstance(heads, Mapping):
        of_layers = {pattern: _heads(some) for pattern, some in heads.items()}
    elif heads is not None:
        of_layers = {"*": _heads(heads)}
    selection = Selection(chosen, of_layers, request)
    if not callable(chosen):
        selection.check(names, "module of the model")
    return selection


def _heads(heads: object) -> tuple[int, ...]:
    if isinstance(heads, Sequence) and heads and all(isinstance(head, int) for head in heads):
        return tuple(heads)
    raise ObservationError(f"observe: heads is {heads!r}, expected query heads such as (0, 3), or layer -> heads")


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"
