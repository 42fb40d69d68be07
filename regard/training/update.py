"""One optimiser update: the loss of its batches, in however many processes and pieces, then one step.

An update is `training.accumulate` batches whatever the number of processes: each takes its share of them, or of one of
them where there are more processes than batches, and the loss is divided by the number of target tokens of all. A part
that does not fit into memory is cut into pieces by its rows. The losses of shares and pieces add up to the batch's, but
for dropout, whose masks are drawn anew for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from regard.data.batches import Batch
from regard.errors import TrainingError
from regard.training.attention_monitor import AttentionMonitor, Look
from regard.training.config import TrainingConfig
from regard.training.disk import write_atomically
from regard.training.memory import lacks_memory
from regard.training.objective import Loss
from regard.training.optimizer import adamw
from regard.training.parallel import Alone
from regard.training.processes import World
from regard.training.schedule import learning_rate


class Part(NamedTuple):
    """What a process takes of an update: the `share`-th share of its batch `number`, both from 0.

    counts: whether it adds to the sums. A batch with fewer rows than there are processes for it leaves some of them
    idle, which then go through a row of it for nothing: exchanges want everybody.
    """

    number: int
    batch: Batch
    share: int = 0
    counts: bool = True


class Outcome(NamedTuple):
    """What an update came to, over all processes.

    nll: nats, summed. norm: the gradient's, before clipping. num_tokens: target tokens. padding_share: mean over the
    batches. look: what attention was seen to do, if it was looked at.
    """

    nll: float
    norm: float
    num_tokens: int
    padding_share: float
    look: Look | None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.nll + self.norm)


class Updates:
    """Takes the updates of one run.

    spread: the model as the processes share it. seed: of dropout. pieces: how many pieces every batch is taken in; it
    doubles when memory runs out and never falls, and checkpoints keep it. wanted: the file that says so to the next
    start of the run, where this one cannot begin an update anew.
    """

    def __init__(
        self,
        spread: Alone,
        config: TrainingConfig,
        attention: AttentionMonitor,
        *,
        seed: int,
        wanted: Path,
        world: World,
        device: torch.device,
        said: Callable[[str], None],
    ) -> None:
        self.spread = spread
        self.config = config
        self.attention = attention
        self.seed = seed
        self.wanted = wanted
        self.world = world
        self.device = device
        self.said = said
        self.optimizer = adamw(spread.trained, config.optimizer)
        self.pieces = 1
        self.settled = 1  # pieces that all processes have agreed on
        self._exchanging = False  # other processes are in the midst of this one's forward or backward pass

    def go_on_with(self, pieces: int) -> None:
        """Takes batches in as many pieces as before, or as the former start of this run has found to be needed."""
        self.pieces = self.settled = max(pieces, self.world.first(self._asked_for))

    def take(self, step: int, parts: Sequence[Part], dtype: torch.dtype) -> Outcome:
        """Update number `step`, counted from 1. parts: this process's.

        Where the loss or its gradient is not finite, the weights stay what they are. Raises: TrainingError when memory
        does not hold a single row, or runs out where the other processes cannot begin again.
        """
        counted = [part.batch for part in parts if part.counts]
        longest = max(len(part.batch) for part in parts)
        tokens, padding, number, rows = self.world.exchanged(
            sum(batch.num_target_tokens for batch in counted),
            sum(batch.padding_share for batch in counted),
            len(counted),
            longest,
        ).unbind(1)
        num_tokens = int(tokens.sum())
        # The mean over the processes of what each divides by its part of the tokens is the sum divided by all of them.
        share = num_tokens / self.world.size
        # Where every pass is an exchange, all processes make equally many.
        limit = int(rows.max()) if self.spread.exchanges_in_forward else longest
        nll, look = self._backward(step, parts, dtype, share, limit)
        norm = self.spread.clipped_norm(self.config.clip_norm)
        sums, pieces = self.world.exchanged(nll, self.pieces).unbind(1)
        self._settle(step, int(pieces.max()))
        padding_share = float(padding.sum() / number.sum())
        look = None if look is None else self.attention.join(look, self.world)
        outcome = Outcome(float(sums.sum()), norm, num_tokens, padding_share, look)
        if outcome.is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.config.max_steps, self.config.schedule)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _backward(
        self, step: int, parts: Sequence[Part], dtype: torch.dtype, share: float, limit: int
    ) -> tuple[float, Look | None]:
        """Leaves the gradient of this process's parts in the parameters -> (their summed nll, the look at attention).

        share: what the loss is divided by. limit: the most pieces a part may be cut into. Out of memory it begins anew
        with smaller pieces.
        """
        while True:
            try:
                return self._attempt(step, self._cut(parts, limit), dtype, share)
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                reason = " ".join(str(error).split()) or type(error).__name__
            self._make_room(step, limit, reason)

    def _cut(self, parts: Sequence[Part], limit: int) -> list[Part]:
        """The parts in pieces, each of which is a smaller share of the same batch."""
        most = min(self.pieces, limit)
        pieces = []
        for part in parts:
            cut = part.batch.split(most)
            pieces += [part._replace(batch=one, share=part.share * most + index) for index, one in enumerate(cut)]
            if self.spread.exchanges_in_forward:
                pieces += [part._replace(batch=cut[0], counts=False)] * (most - len(cut))
        return pieces

    def _attempt(
        self, step: int, pieces: Sequence[Part], dtype: torch.dtype, share: float
    ) -> tuple[float, Look | None]:
        look = self.attention.look(step)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.spread.trained.train()
        self._exchanging = self.spread.exchanges_in_forward
        for index, part in enumerate(pieces):
            is_last = index == len(pieces) - 1
            piece = part.batch.to(self.device)
            forward = partial(self._loss, step, part.number, part.share, piece, dtype)
            with nullcontext() if is_last else self.spread.apart():
                loss = self.attention.through(look if part.counts else None, self.spread.trained, piece, forward)
                self._exchanging |= is_last and self.world.size > 1
                (loss.objective * part.counts / share).backward()
            total += loss.nll * part.counts
        return float(total), look

    def _loss(self, step: int, number: int, share: int, piece: Batch, dtype: torch.dtype) -> Loss:
        """The summed loss of a piece; nothing but the weights and its place in the run decides it."""
        seed_dropout(self.seed, step, number, share)
        return self.spread.loss(piece, dtype)

    def _make_room(self, step: int, limit: int, reason: str) -> None:
        """Cuts every batch into twice as many pieces, `limit` at most. Raises: TrainingError where that cannot be."""
        other = f"start another run with a lower data.batch.batch_tokens ({reason})"
        if self.pieces >= limit:
            raise TrainingError(f"step {step}: out of memory with a single row of a batch; {other}")
        if self._exchanging:
            write_atomically(self.wanted, lambda file: file.write(json.dumps(2 * self.pieces).encode()))
            same = f"run the same command to go on with every batch in {2 * self.pieces} pieces"
            what = "out of memory amid an exchange with the other processes, which cannot begin anew"
            raise TrainingError(f"step {step}: {what}; {same}, or {other}")
        self.optimizer.zero_grad(set_to_none=True)
        self.pieces *= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _asked_for(self) -> int:
        """How many pieces the former start of this run has asked for; 1 where it has not."""
        try:
            return int(json.loads(self.wanted.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return 1

    def _settle(self, step: int, pieces: int) -> None:
        """All processes take as many pieces as the one with the least memory."""
        if pieces > self.settled:
            self.said(
                f"step {step}: out of memory: from here on every batch is taken in {pieces} pieces; a run with a lower"
                " data.batch.batch_tokens needs none"
            )
        self.pieces = self.settled = pieces


def seed_dropout(seed: int, step: int, part: int, piece: int = 0) -> None:
    """Makes every random number of a piece of a part of a step a pure function of its place in the run."""
    mixed = np.random.SeedSequence([seed, step, part, piece]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))
