"""Keys and values of the tokens read so far, kept in memory that has room for those to come.

Joining tensors anew at every token copies all that was read. Here a new token is written behind the old ones, and all
is copied only when room runs out, into twice as much. States stay values all the same: what a state has read is never
changed, and a second continuation of one state gets room of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.layers.attention import KeysValues

LEAST_ROOM = 64  # tokens that new room holds at least beyond what was read


@dataclass(eq=False)
class Room:
    """keys, values: [rows, kv_heads, capacity, head_dim]; used: tokens written so far, by whichever state."""

    keys: Tensor
    values: Tensor
    used: int


@dataclass(frozen=True, eq=False)
class Cache:
    """The first `length` tokens of `room`, which other states may share."""

    room: Room
    length: int

    @staticmethod
    def of(first: KeysValues) -> Cache:
        """A cache that has read `first`: itself, until more comes."""
        return Cache(Room(first.keys, first.values, first.keys.shape[2]), first.keys.shape[2])

    @property
    def read(self) -> KeysValues:
        """[rows, kv_heads, length, head_dim] of what was read, without copying."""
        return KeysValues(self.room.keys[:, :, : self.length], self.room.values[:, :, : self.length])

    def followed_by(self, later: KeysValues) -> Cache:
        """The cache with `later` behind it; this one stays what it is."""
        if torch.is_grad_enabled() and (self.room.keys.requires_grad or later.keys.requires_grad):
            return Cache.of(self.read.followed_by(later))  # writing into what a gradient needs would spoil it
        more = later.keys.shape[2]
        begun = self.with_room(more)
        begun.room.keys[:, :, self.length : self.length + more] = later.keys
        begun.room.values[:, :, self.length : self.length + more] = later.values
        return begun.written(more)

    def with_room(self, more: int) -> Cache:
        """This cache, in room where `more` tokens can be written behind it without touching another state's."""
        room = self.room
        fits = room.used == self.length and self.length + more <= room.keys.shape[2]
        return self if fits else Cache(self._larger(self.length + more), self.length)

    def written(self, more: int) -> Cache:
        """The cache with `more` tokens, which the caller has written into room that `with_room` gave."""
        self.room.used = self.length + more
        return Cache(self.room, self.length + more)

    def select(self, rows: Tensor) -> Cache:
        """The cache of chosen rows, in the order given."""
        return Cache.of(self.read.select(rows))

    def _larger(self, length: int) -> Room:
        """Room of its own for twice `length`, with what was read in it."""
        keys, values = self.read
        capacity = length + max(length, LEAST_ROOM)
        room = Room(
            keys.new_empty(*keys.shape[:2], capacity, keys.shape[3]),
            values.new_empty(*values.shape[:2], capacity, values.shape[3]),
            self.length,
        )
        room.keys[:, :, : self.length] = keys
        room.values[:, :, : self.length] = values
        return room
