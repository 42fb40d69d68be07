"""regard trains, runs and looks inside attention models.

Names are imported when they are first used, so that ``import regard`` itself is instant and needs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.attention.attend import Attended as Attended
    from regard.attention.attend import attend as attend
    from regard.attention.attend import explain_backend as explain_backend
    from regard.attention.distributions import Softmax as Softmax
    from regard.attention.masks import Causal as Causal
    from regard.attention.masks import Padding as Padding
    from regard.attention.observation import Observation as Observation
    from regard.attention.observation import Observe as Observe
    from regard.attention.record import AttentionRecord as AttentionRecord
    from regard.attention.scores import Additive as Additive
    from regard.attention.scores import Bilinear as Bilinear
    from regard.attention.scores import Dot as Dot
    from regard.attention.scores import ScaledDot as ScaledDot
    from regard.errors import RegardError as RegardError
    from regard.tasks.load import load as load

__version__ = "0.1.0"

# Public name -> the module that defines it. A type checker reads the imports above; a test holds the two equal.
_HOMES = {
    "Additive": "regard.attention.scores",
    "Attended": "regard.attention.attend",
    "AttentionRecord": "regard.attention.record",
    "Bilinear": "regard.attention.scores",
    "Causal": "regard.attention.masks",
    "Dot": "regard.attention.scores",
    "Observation": "regard.attention.observation",
    "Observe": "regard.attention.observation",
    "Padding": "regard.attention.masks",
    "RegardError": "regard.errors",
    "ScaledDot": "regard.attention.scores",
    "Softmax": "regard.attention.distributions",
    "attend": "regard.attention.attend",
    "explain_backend": "regard.attention.attend",
    "load": "regard.tasks.load",
}
# Whoever holds a record may save it as a page or a picture, which `regard.lens` teaches it.
_NEED_LENS = {"AttentionRecord", "load"}

__all__ = [
    *_HOMES,
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    if name in _NEED_LENS:
        importlib.import_module("regard.lens")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
