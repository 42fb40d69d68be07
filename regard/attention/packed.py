"""The mask of several documents packed into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention.mask import Kind, Lowered, Mask, Range, as_integers, is_readable, misfits

NO_DOCUMENT = 2**31 - 1  # sorts behind every document
MOST_PIECES = 8  # of one document; with more, ranges would take no less memory than the dense mask


@dataclass(frozen=True, eq=False, init=False)
class Packed(Mask):
    """Several documents in one sequence: a query sees its own document only. For self-attention.

    documents: [batch or 1, key_len], integers: the document of each position, below 0 for padding, which sees nothing
        and is not seen. Queries stand at the last query_len positions.
    contiguous: whether each document is known to be one piece, which lets the mask be carried without reading the
        device; found out unless given.
    """

    documents: Tensor
    contiguous: bool | None

    def __init__(self, documents: Tensor | Sequence[Sequence[int]], contiguous: bool | None = None) -> None:
        object.__setattr__(self, "documents", as_integers("Packed.documents", documents))
        object.__setattr__(self, "contiguous", contiguous)

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        documents = self.documents.to(query_index.device)
        asking = _documents_at(documents, query_index)[..., None]
        return ((asking == documents[:, None, key_index]) & (asking >= 0))[:, None]

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        if not is_readable(self.documents):
            return "partial"
        asking = self.documents[:, max(query_range[0], 0) : max(query_range[1], 0)]
        asked = self.documents[:, slice(*key_range)]
        if not asking.numel() or not asked.numel():
            return "empty"
        (least, most), (first, last) = asking.aminmax(dim=1), asked.aminmax(dim=1)
        if query_range[0] >= 0 and bool(((least == most) & (first == last) & (least == first) & (least >= 0)).all()):
            return "full"
        return "empty" if bool(((most < first) | (last < least) | (most < 0) | (last < 0)).all()) else "partial"

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None) -> Lowered:
        documents, place = self.documents.to(device), torch.arange(key_len, device=device)
        asking = _documents_at(documents, torch.arange(key_len - query_len, key_len, device=device))
        # A piece is a run of one document. Sorted by document, and stably, a document's pieces stand together in order.
        differs, edge = documents[:, 1:] != documents[:, :-1], torch.ones_like(documents[:, :1], dtype=torch.bool)
        named, begins = torch.where(torch.cat([edge, differs], 1), documents, NO_DOCUMENT).sort(dim=1, stable=True)
        ends = torch.where(torch.cat([differs, edge], 1), place + 1, key_len).flip(1).cummin(1).values.flip(1)
        first, last = (torch.searchsorted(named, asking, right=right) for right in (False, True))
        pieces = 1 if self.contiguous or not asking.numel() else max(int((last - first).max()), 1)
        if pieces > MOST_PIECES:
            return None, self.dense(query_len, key_len, device)
        piece = first[..., None] + torch.arange(pieces, device=device)  # [batch, query_len, pieces]
        is_real = (piece < last[..., None]) & (asking >= 0)[..., None]
        begin = begins.gather(1, torch.where(is_real, piece, 0).flatten(1))
        ranges = torch.stack([begin, ends.gather(1, begin)], -1).view(*piece.shape, 2)
        return (ranges * is_real[..., None]).to(torch.int32), None

    def to_record(self) -> dict[str, Any]:
        return {"mask": "packed", "documents": self.documents, "contiguous": self.contiguous}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        return misfits("Packed.documents", self.documents, batch, key_len)


def _documents_at(documents: Tensor, query_index: Tensor) -> Tensor:
    """[batch, query_tile]: the document of each query, -1 before the first key."""
    if not documents.shape[1]:
        return documents.new_full((documents.shape[0], len(query_index)), -1)
    return torch.where(query_index >= 0, documents[:, query_index.clamp(min=0)], -1)
