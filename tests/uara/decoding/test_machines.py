"""Device and server machines, fed by hand: turns, corrections, and frames that do not fit."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import pytest
from msgspec.structs import replace

from uara.decoding import device as dev
from uara.decoding import server as srv
from uara.decoding.answer import Answer
from uara.decoding.batcher import Batcher
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Error,
    Frame,
    NeedP,
    Open,
    ProtocolError,
    RuleCode,
    Tails,
    Token,
    Verdict,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs
from uara.decoding.rules import Outcome
from uara.decoding.session import Stage

PAIR = Pairs((3,), (0.5,))


def opening(max_new: int = 10, eos: int = NO_TOKEN) -> Open:
    return Open(1, RuleCode.ID_PROB, 2, 8, 2, max_new, 0, 5, 1.0, 0, 1.0, eos, (0, 0, 4, 5))


class Device:
    """A device machine with the frames it has sent and the jobs it waits for."""

    def __init__(self, draft_length: int, **options: int) -> None:
        self.state, self.sent, self.jobs = dev.DeviceState(), [], []
        self.step(dev.Start(opening(**options), draft_length))

    def step(self, event: dev.DeviceEvent) -> None:
        self.state, effects = dev.step_device(self.state, event)
        self.sent += [effect.frame for effect in effects if isinstance(effect, dev.SendUp)]
        self.jobs += [effect for effect in effects if not isinstance(effect, dev.SendUp)]

    def receive(self, frame: Frame) -> None:
        self.step(dev.Received(frame))


def device_in_turn(draft_length: int = 2, **options: int) -> Device:
    device = Device(draft_length, **options)
    device.receive(Token(1, 2, 6, True))
    return device


def verdict(accepted: int, token: int, device_turn: bool = True) -> Verdict:
    return Verdict(1, 0, 0, 3, accepted, token, device_turn, EMPTY_PAIRS, EMPTY_PAIRS, 0)


def test_a_block_goes_out_when_it_is_full() -> None:
    device = device_in_turn()
    assert device.jobs == [dev.DraftToken((4, 5, 6), 0)]
    device.step(dev.Drafted(3, PAIR))
    assert device.jobs[1] == dev.DraftToken((4, 5, 6, 3), 0)
    device.step(dev.Drafted(7, PAIR))
    draft = device.sent[-1]
    assert isinstance(draft, Draft)
    assert (draft.base, draft.tokens, draft.correction) == (3, (3, 7), NO_TOKEN)


def test_an_end_token_closes_the_block_but_is_submitted() -> None:
    device = device_in_turn(draft_length=5, eos=7)
    device.step(dev.Drafted(7, PAIR))
    assert isinstance(device.sent[-1], Draft)
    assert device.sent[-1].tokens == (7,)


def test_nothing_behind_a_correction_survives() -> None:
    device = device_in_turn()
    device.step(dev.Drafted(3, PAIR))
    device.step(dev.Drafted(7, PAIR))
    device.receive(verdict(accepted=0, token=1))
    assert device.state.answer.tokens == (6, 1)
    assert device.state.epoch == 1
    assert device.jobs[-1] == dev.DraftToken((4, 5, 6, 1), 1)


def test_a_drawn_correction_goes_up_with_the_next_draft() -> None:
    device = device_in_turn(draft_length=1)
    device.step(dev.Drafted(3, PAIR))
    device.receive(verdict(accepted=0, token=NO_TOKEN))
    assert isinstance(device.jobs[-1], dev.Resolve)
    device.step(dev.Resolved(None, 2))
    assert device.sent[-1] == NeedP(1, 0, 3, 2)
    device.receive(Tails(1, 0, 3, 2, PAIR))
    assert device.jobs[-1] == dev.Resolve(EMPTY_PAIRS, PAIR, 2, 3, 0)
    device.step(dev.Resolved(4, 3))
    device.step(dev.Drafted(5, PAIR))
    draft = device.sent[-1]
    assert isinstance(draft, Draft)
    assert (draft.epoch, draft.base, draft.correction, draft.tokens) == (1, 4, 4, (5,))


def test_an_end_that_the_device_draws_itself_is_announced() -> None:
    device = device_in_turn(draft_length=1, max_new=3)
    device.step(dev.Drafted(3, PAIR))
    device.receive(verdict(accepted=0, token=NO_TOKEN))
    device.step(dev.Resolved(4, 1))
    assert device.sent[-1] == Draft(1, 1, 1, 4, 4, (), ()), "one token is left: no draft pays"
    other = device_in_turn(draft_length=1, max_new=10, eos=4)
    other.step(dev.Drafted(3, PAIR))
    other.receive(verdict(accepted=0, token=NO_TOKEN))
    other.step(dev.Resolved(4, 1))
    assert other.sent[-1] == Close(1)
    assert other.jobs[-1] == dev.Finish((6, 4))


def test_draft_length_zero_hands_the_turn_over() -> None:
    device = device_in_turn()
    device.step(dev.Replan(0))
    device.step(dev.Drafted(3, PAIR))
    device.step(dev.Drafted(7, PAIR))
    device.receive(verdict(accepted=2, token=1))
    assert device.sent[-1] == Draft(1, 1, 0, 6, NO_TOKEN, (), ())
    assert device.state.turn is dev.Turn.SERVER


@pytest.mark.parametrize(
    "frame",
    [Token(1, 9, 6, True), verdict(0, 1), Tails(1, 0, 3, 0, PAIR), Close(1)],
    ids=lambda frame: type(frame).__name__,
)
def test_a_device_refuses_what_it_does_not_await(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        Device(2).receive(frame)


class Server:
    """A server machine with the frames it has sent and its other effects."""

    def __init__(self, draft_length: int = 2) -> None:
        batcher = Batcher(chunk_tokens=512, kv_capacity_tokens=100)
        self.state = srv.ServerState(0, 8, 0, 2, batcher)
        self.sent: list[Frame] = []
        self.effects: list[srv.ServerEffect] = []
        self.step(srv.Received(opening(), draft_length))

    def step(self, event: srv.ServerEvent) -> None:
        self.state, effects = srv.step_server(self.state, event, 0.0)
        self.sent += [effect.frame for effect in effects if isinstance(effect, srv.SendDown)]
        self.effects += effects

    def receive(self, frame: Frame) -> None:
        self.step(srv.Received(frame))

    def done(self, *outcomes: Outcome | None) -> None:
        self.step(srv.ForwardDone(outcomes))


def server_after_prefill(draft_length: int = 2) -> Server:
    server = Server(draft_length)
    server.done(Outcome(0, 6))
    return server


def draft(*tokens: int, base: int = 3, epoch: int = 0, correction: int = NO_TOKEN) -> Draft:
    return Draft(
        1, 0, epoch, base, correction, tokens, tuple(Pairs((token,), (0.5,)) for token in tokens)
    )


def test_the_first_token_comes_with_the_prefill_and_gives_the_turn() -> None:
    server = server_after_prefill()
    assert server.sent == [Token(1, 2, 6, True)]
    assert server.state.sessions[1].stage is Stage.DEVICE
    assert server_after_prefill(draft_length=0).sent == [Token(1, 2, 6, False)]


def test_a_rejection_is_answered_with_the_row_and_awaits_the_token() -> None:
    server = server_after_prefill()
    server.receive(draft(3, 7))
    server.done(Outcome(1, None, PAIR, PAIR))
    sent = server.sent[-1]
    assert isinstance(sent, Verdict)
    assert (sent.accepted, sent.token, sent.device_turn) == (1, NO_TOKEN, True)
    server.receive(NeedP(1, 0, 4, 2))
    assert server.effects[-1] == srv.DrawTails(NeedP(1, 0, 4, 2))
    server.receive(draft(5, base=5, epoch=1, correction=2))
    assert server.state.sessions[1].answer.tokens == (6, 3, 2)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (draft(3, base=4), "due"),
        (draft(3, epoch=1), "due"),
        (draft(3, correction=2), "only there"),
        (NeedP(1, 0, 3, 0), "no rejection"),
        (Token(1, 3, 1, True), "does not take Token"),
        (opening(), "is open already"),
    ],
)
def test_a_frame_that_does_not_fit_ends_the_session(frame: Frame, reason: str) -> None:
    server = server_after_prefill()
    server.receive(frame)
    refusal = server.sent[-1]
    assert isinstance(refusal, Error)
    assert reason in refusal.text
    assert 1 not in server.state.sessions
    assert server.effects[-1] == srv.CloseCache(1)


def test_a_request_too_large_for_the_cache_is_refused() -> None:
    server = Server()
    server.receive(replace(opening(max_new=97), sid=2))
    assert "KV memory" in server.sent[-1].text


def test_a_draft_out_of_turn_ends_the_session() -> None:
    server = Server(draft_length=0)
    server.receive(draft(3))
    assert "out of turn" in server.sent[-1].text


def test_a_session_moves_between_forwards_only() -> None:
    server = Server()
    server.step(srv.Replan(1, server=1, draft_length=2))
    assert 1 in server.state.sessions, "it is part of the running forward"
    server.done(Outcome(0, 6))
    moved = server.effects[-1]
    assert isinstance(moved, srv.Migrate)
    assert moved.session.answer.tokens == (6,)
    assert 1 not in server.state.sessions


def test_a_draft_may_arrive_before_its_session() -> None:
    old = server_after_prefill()
    old.step(srv.Replan(1, server=1, draft_length=2))
    moved = old.effects[-1]
    assert isinstance(moved, srv.Migrate)
    new = Server()
    new.state = replace(new.state, index=1, sessions={}, batcher=Batcher(512, 100))
    new.receive(draft(3, 7))
    new.step(srv.Arrived(moved.session))
    starts = [effect for effect in new.effects if isinstance(effect, srv.StartForward)]
    assert starts[-1].forward.works[0].draw is False
    assert starts[-1].forward.new_tokens == 4, "the context but its last token: 2 unread + 2 text"
    new.done(None)
    starts = [effect for effect in new.effects if isinstance(effect, srv.StartForward)]
    assert starts[-1].forward.works[0].tokens == (3, 7)


def test_an_answer_stops_at_its_end_on_both_sides() -> None:
    answer = Answer((1,), max_new=4, eos=9)
    assert answer.extend([2, 9, 3]).tokens == (1, 2, 9)
    assert answer.extend([2, 3, 4, 5]).tokens == (1, 2, 3, 4)
    assert answer.extend([2, 9]).remaining == 0
    assert answer.remaining == 3
