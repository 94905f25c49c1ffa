"""Prompts in chunks, and who is let into the KV memory of a server."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.decoding.answer import Answer
from uara.decoding.batcher import Batcher, add_prefill, compose, finish
from uara.decoding.contract import Contract
from uara.decoding.evolve import evolve
from uara.decoding.protocol import NO_TOKEN, RuleCode
from uara.decoding.rules import GREEDY
from uara.decoding.session import Session, Stage
from uara.decoding.state_view import server_profiles
from uara.errors import UserError
from uara.world.config import WorldConfig
from uara.world.memory import Claims, admit

CONTRACT = Contract(RuleCode.IDS, GREEDY, 4, 1)


def waiting(sid: int, text: int, *, unread: int = 0, max_new: int = 4) -> Session:
    """A session that nothing has been read of."""
    return Session(
        sid=sid,
        contract=CONTRACT,
        seed=0,
        text=tuple(range(text)),
        unread_tokens=unread,
        answer=Answer((), max_new, NO_TOKEN),
        server=0,
        draft_length=0,
    )


def queued(batcher: Batcher, *sessions: Session) -> Batcher:
    for session in sessions:
        batcher = add_prefill(batcher, session.sid, session.tokens_to_read, session.kv_tokens)
    return batcher


def test_chunks_hold_the_text_behind_the_priced_tokens_and_every_token_once() -> None:
    session = waiting(7, 9, unread=6)
    batcher = queued(Batcher(chunk_tokens=4, kv_capacity_tokens=99), session)
    seen, works = [], []
    while not works:
        batcher, forward = compose(batcher, {7: session}, 0.0)
        assert forward is not None
        assert forward.new_tokens <= 4
        seen.append([work.context for work in forward.readings])
        works += forward.works
        batcher = finish(batcher)
    # 4 priced tokens, 2 priced and 2 of the text, 4 of the text, and the rest with a token drawn.
    assert seen == [[], [(0, 1)], [(0, 1, 2, 3, 4, 5)], []]
    assert works[0].context == session.text
    assert works[0].draw


@given(
    residents=st.lists(st.integers(1, 30), max_size=4),
    claims=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    free=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_who_is_let_in_agrees_with_the_world(
    residents: list[int], claims: list[int], free: int
) -> None:
    capacity = sum(residents) + len(residents) + free
    everyone = [waiting(sid, n, max_new=1) for sid, n in enumerate((*residents, *claims))]
    known = [evolve(session, stage=Stage.DEVICE) for session in everyone[: len(residents)]]
    new = everyone[len(known) :]
    sessions = {session.sid: session for session in (*known, *new)}
    batcher = queued(Batcher(chunk_tokens=10**6, kv_capacity_tokens=capacity), *new)
    _, forward = compose(batcher, sessions, 0.0)
    let_in = [] if forward is None else [sid for sid, _ in forward.admitted]

    count = len(sessions)
    since = torch.arange(count, dtype=torch.float64)[None]
    world = admit(
        Claims(
            tokens=torch.tensor([[float(s.kv_tokens) for s in sessions.values()]]),
            server=torch.zeros(1, count, dtype=torch.long),
            wants=torch.ones(1, count, dtype=torch.bool),
            is_resident=since < len(known),
            since=since,
            cache_tokens=torch.zeros(1, count),
            cache_server=torch.zeros(1, count, dtype=torch.long),
            cache_since=torch.zeros(1, count, dtype=torch.float64),
        ),
        torch.tensor([[float(capacity)]]),
    )
    admitted = world.admitted[0].nonzero().squeeze(1).tolist()
    assert [sid for sid in admitted if sid >= len(known)] == let_in


def test_nobody_overtakes_and_the_wait_for_memory_is_told() -> None:
    big, small = waiting(1, 60), waiting(2, 4)
    holder = evolve(waiting(0, 50), stage=Stage.DEVICE)
    sessions = {s.sid: s for s in (holder, big, small)}
    batcher = queued(Batcher(chunk_tokens=512, kv_capacity_tokens=100), big, small)
    batcher, forward = compose(batcher, sessions, 1.0)
    assert forward is None, "the small one would fit, but it came later"
    del sessions[0]
    _, forward = compose(batcher, sessions, 3.5)
    assert forward is not None
    assert forward.admitted == ((1, 2.5), (2, 2.5))


def test_a_prompt_that_is_being_read_is_not_asked_for_memory_again() -> None:
    long, late = waiting(0, 90), waiting(1, 9)
    sessions = {0: long, 1: late}
    batcher = queued(Batcher(chunk_tokens=50, kv_capacity_tokens=100), long, late)
    batcher, first = compose(batcher, sessions, 0.0)
    batcher, second = compose(finish(batcher), sessions, 1.0)
    assert first is not None
    assert second is not None
    assert (first.sids, second.sids) == ((0,), (0,))
    assert second.rows == 1, "40 tokens of the chunk are taken, 10 could be, memory is not there"
    assert batcher.tickets[0].blocked_s == 0.0


def test_servers_have_the_memory_that_the_world_gives_them() -> None:
    own = WorldConfig.model_validate({"memory": {"admission": True, "capacity_tokens": [900] * 3}})
    assert [profile.kv_capacity_tokens for profile in server_profiles(own)] == [900] * 3
    assert all(p.kv_capacity_tokens > 900 for p in server_profiles(WorldConfig()))
    wrong = WorldConfig.model_validate({"memory": {"capacity_tokens": [900]}})
    with pytest.raises(UserError, match="has 1 entries but there are 3 servers"):
        server_profiles(wrong)


def test_random_queues_are_served_in_order() -> None:
    generator = np.random.default_rng(0)
    sessions = {sid: waiting(sid, int(generator.integers(1, 40))) for sid in range(30)}
    batcher = queued(Batcher(chunk_tokens=16, kv_capacity_tokens=120), *sessions.values())
    order: list[int] = []
    now = 0.0
    while len(order) < 30:
        batcher, forward = compose(batcher, sessions, now)
        assert forward is not None
        order += [sid for sid, _ in forward.admitted]
        batcher, now = finish(batcher), now + 1
        read = {sid for sid in sessions if sid in order} - {t.sid for t in batcher.tickets}
        held = sum(s.kv_tokens for s in sessions.values() if s.sid in order)
        assert held <= 120
        for sid in read:
            del sessions[sid]
    assert order == sorted(order)
