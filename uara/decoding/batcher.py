"""What waits at a server, and what one forward takes along: what is ready, prompts in chunks."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from uara.decoding.evolve import evolve
from uara.decoding.session import Session, Stage
from uara.decoding.verifier import Work


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """A context in the queue for reading.

    Attributes:
        sid: its session; None for a sequence of another network.
        tokens_left: still to be read.
        tokens_read: read so far.
        kv_tokens: KV memory reserved when reading begins.
        blocked_s: since when it waits for memory, its own or that of one before it; None: not yet.
    """

    sid: int | None
    tokens_left: int
    tokens_read: int
    kv_tokens: int
    blocked_s: float | None = None


class Forward(msgspec.Struct, frozen=True, gc=False):
    """One forward pass.

    Attributes:
        works: for the models, in the order of `sids` without those whose reading goes on.
        readings: chunks of those whose reading goes on; nothing is decided about them yet.
        admitted: sessions whose reading begins, and how long memory kept them waiting, seconds.
        sids: sessions that take part.
        rows: sequences in the batch, others' included.
        new_tokens: fed in, over all rows.
        context_tokens: cached tokens read, over all rows of this network.
        started_s: when.
    """

    works: tuple[Work, ...]
    sids: tuple[int, ...]
    rows: int
    new_tokens: int
    context_tokens: int
    started_s: float
    readings: tuple[Work, ...] = ()
    admitted: tuple[tuple[int, float], ...] = ()


class Batcher(msgspec.Struct, frozen=True, gc=False):
    """Queue and running forward of one server.

    Attributes:
        chunk_tokens: prompt tokens that one forward takes along.
        kv_capacity_tokens: KV memory; a context is read once it fits beside those held.
        foreign_rows: sequences in every forward that belong to other networks.
        tickets: contexts to be read, first come first served.
        running: the forward in progress.
    """

    chunk_tokens: int
    kv_capacity_tokens: int
    foreign_rows: int = 0
    tickets: tuple[Ticket, ...] = ()
    running: Forward | None = None

    def is_running(self, sid: int) -> bool:
        """Tell whether a session is part of the running forward."""
        return self.running is not None and sid in self.running.sids

    @property
    def foreign_prefill_tokens(self) -> int:
        """Prompt tokens of other networks still to be read."""
        return sum(ticket.tokens_left for ticket in self.tickets if ticket.sid is None)


def add_prefill(batcher: Batcher, sid: int | None, tokens: int, kv_tokens: int) -> Batcher:
    """Queue a context for reading."""
    return evolve(batcher, tickets=(*batcher.tickets, Ticket(sid, tokens, 0, kv_tokens)))


def drop_prefill(batcher: Batcher, sid: int) -> Batcher:
    """Take a session's context out of the queue."""
    if not batcher.tickets:
        return batcher
    return evolve(batcher, tickets=tuple([t for t in batcher.tickets if t.sid != sid]))


def finish(batcher: Batcher) -> Batcher:
    """End the running forward."""
    return evolve(batcher, running=None)


def compose(
    batcher: Batcher, sessions: Mapping[int, Session], now: float
) -> tuple[Batcher, Forward | None]:
    """Start a forward if none runs and something waits.

    Returns:
        The batcher with the forward running and its chunk taken off the queue, and the forward.
    """
    if batcher.running is not None:
        return batcher, None
    ready = [s for s in sessions.values() if s.stage is Stage.VERIFY or s.stage is Stage.DECODE]
    if len(ready) > 1:
        ready.sort(key=lambda session: (session.queued_s, session.sid))
    tickets, chunk = _take_chunk(batcher, sessions, now)
    if not ready and not chunk and not batcher.foreign_rows:
        return batcher if tickets == batcher.tickets else evolve(batcher, tickets=tickets), None
    reading = [sessions[t.sid] for t, _ in chunk if t.sid is not None]
    complete = [
        sessions[t.sid] for t, taken in chunk if t.sid is not None and taken == t.tokens_left
    ]
    forward = Forward(
        works=tuple(session.work() for session in (*ready, *complete)),
        sids=tuple(session.sid for session in (*ready, *reading)),
        rows=len(ready) + len(chunk) + batcher.foreign_rows,
        new_tokens=sum(s.new_tokens for s in ready)
        + sum(taken for _, taken in chunk)
        + batcher.foreign_rows,
        context_tokens=sum(s.priced_tokens - 1 for s in ready)
        + sum(t.tokens_read for t, _ in chunk),
        started_s=now,
        readings=tuple(
            work
            for t, taken in chunk
            if t.sid is not None
            and taken < t.tokens_left
            and (work := _part(sessions[t.sid], t.tokens_read + taken)) is not None
        ),
        admitted=tuple(
            (t.sid, 0.0 if t.blocked_s is None else now - t.blocked_s)
            for t, _ in chunk
            if t.sid is not None and t.tokens_read == 0
        ),
    )
    return evolve(batcher, tickets=tickets, running=forward), forward


def _part(session: Session, priced_tokens: int) -> Work | None:
    """Describe the reading of a context up to some priced token; None while none is text."""
    end = priced_tokens - session.unread_tokens
    if end <= 0:
        return None
    return Work(session.sid, session.work().context[:end], epoch=session.epoch, draw=False)


def _take_chunk(
    batcher: Batcher, sessions: Mapping[int, Session], now: float
) -> tuple[tuple[Ticket, ...], list[tuple[Ticket, int]]]:
    """Take the next prompt tokens off the queue; return what is left and what was taken.

    Nobody overtakes: while the first in the queue does not fit, those behind it wait too.
    """
    if not batcher.tickets:
        return (), []
    unread = {ticket.sid for ticket in batcher.tickets if ticket.tokens_read == 0}
    held = sum(s.kv_tokens for s in sessions.values() if s.sid not in unread)
    budget = batcher.chunk_tokens
    left: list[Ticket] = []
    taken: list[tuple[Ticket, int]] = []
    for index, ticket in enumerate(batcher.tickets):
        begins = ticket.tokens_read == 0
        fits = not begins or held + ticket.kv_tokens <= batcher.kv_capacity_tokens
        if budget == 0 or not fits:
            rest = batcher.tickets[index:]
            left.extend(rest if fits else (_blocked(waiting, now) for waiting in rest))
            break
        count = min(budget, ticket.tokens_left)
        held += ticket.kv_tokens if begins else 0
        budget -= count
        taken.append((ticket, count))
        if count < ticket.tokens_left:
            left.append(
                evolve(
                    ticket,
                    tokens_left=ticket.tokens_left - count,
                    tokens_read=ticket.tokens_read + count,
                )
            )
    return tuple(left), taken


def _blocked(ticket: Ticket, now: float) -> Ticket:
    return ticket if ticket.blocked_s is not None else evolve(ticket, blocked_s=now)
