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
    from regard.attention.distributions import Entmax15 as Entmax15
    from regard.attention.distributions import Sigmoid as Sigmoid
    from regard.attention.distributions import SinkSoftmax as SinkSoftmax
    from regard.attention.distributions import Softmax as Softmax
    from regard.attention.distributions import Sparsemax as Sparsemax
    from regard.attention.hosts.implementation import use_in_transformers as use_in_transformers
    from regard.attention.hosts.observe import observe as observe
    from regard.attention.masks import Causal as Causal
    from regard.attention.masks import Dense as Dense
    from regard.attention.masks import Global as Global
    from regard.attention.masks import Packed as Packed
    from regard.attention.masks import Padding as Padding
    from regard.attention.masks import Prefix as Prefix
    from regard.attention.masks import Window as Window
    from regard.attention.modifiers import ALiBi as ALiBi
    from regard.attention.modifiers import RelativeBias as RelativeBias
    from regard.attention.modifiers import SoftCap as SoftCap
    from regard.attention.observation import Observation as Observation
    from regard.attention.observation import Observe as Observe
    from regard.attention.records.record import AttentionRecord as AttentionRecord
    from regard.attention.rotary import DynamicNTK as DynamicNTK
    from regard.attention.rotary import Llama3 as Llama3
    from regard.attention.rotary import NTKAware as NTKAware
    from regard.attention.rotary import PositionInterpolation as PositionInterpolation
    from regard.attention.rotary import Rotary as Rotary
    from regard.attention.rotary import YaRN as YaRN
    from regard.attention.scores import Additive as Additive
    from regard.attention.scores import Bilinear as Bilinear
    from regard.attention.scores import Cosine as Cosine
    from regard.attention.scores import CoverageAware as CoverageAware
    from regard.attention.scores import Dot as Dot
    from regard.attention.scores import LocationAware as LocationAware
    from regard.attention.scores import ScaledDot as ScaledDot
    from regard.errors import RegardError as RegardError
    from regard.tasks.load import load as load

__version__ = "0.1.0"

# Public name -> the module that defines it. A type checker reads the imports above; a test holds the two equal.
_HOMES = {
    "ALiBi": "regard.attention.modifiers",
    "Additive": "regard.attention.scores",
    "Attended": "regard.attention.attend",
    "AttentionRecord": "regard.attention.records.record",
    "Bilinear": "regard.attention.scores",
    "Causal": "regard.attention.masks",
    "Cosine": "regard.attention.scores",
    "CoverageAware": "regard.attention.scores",
    "Dense": "regard.attention.masks",
    "Dot": "regard.attention.scores",
    "DynamicNTK": "regard.attention.rotary",
    "Entmax15": "regard.attention.distributions",
    "Global": "regard.attention.masks",
    "Llama3": "regard.attention.rotary",
    "LocationAware": "regard.attention.scores",
    "NTKAware": "regard.attention.rotary",
    "Observation": "regard.attention.observation",
    "Observe": "regard.attention.observation",
    "Packed": "regard.attention.masks",
    "Padding": "regard.attention.masks",
    "PositionInterpolation": "regard.attention.rotary",
    "Prefix": "regard.attention.masks",
    "RegardError": "regard.errors",
    "RelativeBias": "regard.attention.modifiers",
    "Rotary": "regard.attention.rotary",
    "ScaledDot": "regard.attention.scores",
    "Sigmoid": "regard.attention.distributions",
    "SinkSoftmax": "regard.attention.distributions",
    "SoftCap": "regard.attention.modifiers",
    "Softmax": "regard.attention.distributions",
    "Sparsemax": "regard.attention.distributions",
    "Window": "regard.attention.masks",
    "YaRN": "regard.attention.rotary",
    "attend": "regard.attention.attend",
    "explain_backend": "regard.attention.attend",
    "load": "regard.tasks.load",
    "observe": "regard.attention.hosts.observe",
    "use_in_transformers": "regard.attention.hosts.implementation",
}
# Whoever holds a record may save it as a page or a picture, which `regard.lens` teaches it.
_NEED_LENS = {"AttentionRecord", "load", "observe"}

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
