"""The parallel machines, fed by hand: what is late, doubled, out of order, or dead."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import pytest
from msgspec.structs import replace

from uara.decoding import device as dev
from uara.decoding import server as srv
from uara.decoding.batcher import Batcher
from uara.decoding.overlap import Overlap
from uara.decoding.parallel_device import ParallelDeviceState, step_parallel_device
from uara.decoding.parallel_session import ParallelSession
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Frame,
    Open,
    ProtocolError,
    RuleCode,
    Tails,
    Token,
    Verdict,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs
from uara.decoding.rules import Outcome

PAIR = Pairs((3,), (0.5,))
OPENING = Open(1, RuleCode.ID_PROB, 2, 8, 2, 20, 0, 5, 1.0, 0, 1.0, NO_TOKEN, (0, 0, 4, 5))


class Device:
    """A device machine that has just been given the turn at position 3."""

    def __init__(self, overlap: Overlap, draft_length: int) -> None:
        self.state = ParallelDeviceState(overlap)
        self.sent: list[Frame] = []
        self.cuts: list[bool] = []
        self.jobs: list[dev.DeviceEffect] = []
        self.step(dev.Start(OPENING, draft_length))
        self.receive(Token(1, 2, 6, True))
        self.sent.clear()

    def step(self, event: dev.DeviceEvent) -> None:
        self.state, effects = step_parallel_device(self.state, event)
        sent = [effect for effect in effects if isinstance(effect, dev.SendUp)]
        self.sent += [effect.frame for effect in sent]
        self.cuts += [effect.is_cut for effect in sent if isinstance(effect.frame, Draft)]
        self.jobs += [effect for effect in effects if not isinstance(effect, dev.SendUp)]

    def receive(self, frame: Frame) -> None:
        self.step(dev.Received(frame))

    def draft(self, *tokens: int) -> None:
        """End so many draft steps, each of the epoch in which the last one began."""
        for token in tokens:
            epoch = next(j for j in reversed(self.jobs) if isinstance(j, dev.DraftToken)).epoch
            self.step(dev.Drafted(token, PAIR, 1, epoch))

    @property
    def frames(self) -> list[tuple[int, int, tuple[int, ...], bool]]:
        drafts = [frame for frame in self.sent if isinstance(frame, Draft)]
        return [(f.epoch, f.base, f.tokens, f.continues) for f in drafts]


def accept(base: int, accepted: int, epoch: int = 0) -> Verdict:
    return Verdict(1, 0, epoch, base, accepted, NO_TOKEN, True, EMPTY_PAIRS, EMPTY_PAIRS, 0)


def reject(base: int, accepted: int, token: int = 7, epoch: int = 0) -> Verdict:
    return replace(accept(base, accepted, epoch), token=token)


def test_a_window_of_one_drafts_the_next_block_and_holds_it() -> None:
    device = Device(Overlap(1, sends_first_ahead=False), 2)
    device.draft(1, 2, 3, 4)
    assert device.frames == [(0, 3, (1, 2), False)]
    assert not device.state.is_busy, "a held block leaves nothing to draft"
    device.receive(accept(3, 2))
    assert device.frames[1:] == [(0, 5, (3, 4), False)]
    assert device.state.is_busy


def test_a_window_of_none_stops_and_waits() -> None:
    device = Device(Overlap(0, sends_first_ahead=False), 2)
    device.draft(1, 2)
    assert not device.state.is_busy
    device.receive(accept(3, 2))
    assert device.state.is_busy


def test_the_first_token_of_a_block_goes_ahead_of_the_rest() -> None:
    device = Device(Overlap(2), 3)
    device.draft(1, 2, 3, 4)
    assert device.frames == [(0, 3, (1,), True), (0, 4, (2, 3), False), (0, 6, (4,), True)]


def test_a_rejection_voids_the_tail_and_the_next_block_has_its_own_length() -> None:
    device = Device(Overlap(2, first_length=1), 2)
    device.draft(1)
    assert device.frames == [(0, 3, (1,), False)], "the first block of a chain is short"
    device.draft(2, 3, 4)
    device.receive(reject(3, 0))
    assert device.state.answer.tokens == (6, 7)
    assert (device.state.epoch, device.state.tail) == (1, ())


def test_p15_a_draft_step_under_way_ends_and_is_thrown_away() -> None:
    device = Device(Overlap(2, sends_first_ahead=False), 3)
    device.draft(1, 2, 3)
    begun = len(device.jobs)
    device.receive(reject(3, 1))
    assert not any(isinstance(job, dev.DraftToken) for job in device.jobs[begun:])
    device.step(dev.Drafted(5, PAIR, 1, 0))  # of the dead epoch
    assert device.state.tail == ()
    assert device.jobs[-1] == dev.DraftToken((4, 5, 6, 1, 7), 1)


def timed(device: Device, *ends_s: float) -> None:
    """End a draft step at each of these times."""
    for token, now_s in enumerate(ends_s):
        device.step(dev.Drafted(token, PAIR, 1, device.state.epoch, now_s=now_s))


def test_a_block_ends_at_the_first_token_past_its_budget() -> None:
    device = Device(Overlap(9, sends_first_ahead=False, draft_budget=2.5), 5)
    timed(device, 1.0, 2.0, 3.0, 3.1, 6.0)
    assert [tokens for _, _, tokens, _ in device.frames] == [(0, 1, 2), (3, 4)]
    assert device.cuts == [True, True]
    timed(device, 6.1, 6.2, 6.3, 6.4, 6.5)
    assert device.frames[2][2] == (0, 1, 2, 3, 4), "a quick block is whole"
    assert device.cuts[2] is False


def test_a_budget_below_a_draft_step_sends_every_token_alone() -> None:
    device = Device(Overlap(9, draft_budget=0.5), 4)
    timed(device, 1.0, 2.0, 3.0)
    assert device.frames == [(0, 3, (0,), False), (0, 4, (1,), False), (0, 5, (2,), False)]


def test_a_block_that_may_not_go_up_is_not_cut() -> None:
    device = Device(Overlap(1, sends_first_ahead=False, draft_budget=1.5), 4)
    timed(device, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert [tokens for _, _, tokens, _ in device.frames] == [(0, 1)]
    device.step(dev.Received(accept(3, 2), 5.5))
    timed(device, 6.0)
    assert device.frames[1][2] == (2, 3, 4, 0), "it goes up whole, with the token under way"
    assert device.cuts == [True, False]


def test_a_budget_of_a_verdict_is_what_verdicts_took() -> None:
    device = Device(Overlap(1, sends_first_ahead=False, draft_budget="verdict"), 4)
    timed(device, 1.0, 2.0, 3.0, 4.0)
    assert device.cuts == [False], "nothing is known before the first verdict"
    timed(device, 5.0)
    device.step(dev.Received(accept(3, 4), 6.5))
    assert device.state.pace is not None
    assert device.state.pace.verdict_s == 2.5
    timed(device, 6.9)
    assert device.cuts == [False, True], "begun at 4.0, it is past 2.5 at 6.9"
    # The block of two went up at 6.9; its second token is rejected.
    device.step(dev.Received(reject(7, 1), 13.4))
    assert device.state.pace.verdict_s == 2.5 + (6.5 - 2.5) / 8


def test_a_rejection_by_the_kept_row_says_nothing_of_verdicts() -> None:
    device = Device(Overlap(1, sends_first_ahead=False, draft_budget="verdict"), 2)
    timed(device, 1.0, 2.0)
    device.step(dev.Received(reject(3, 0), 2.1))
    assert device.state.pace is not None
    assert device.state.pace.verdict_s is None
    assert device.state.pace.flights == ()


def test_p3_a_verdict_acknowledges_all_that_came_before_it() -> None:
    device = Device(Overlap(3, sends_first_ahead=False), 2)
    device.draft(1, 2, 3, 4, 5, 6)
    device.receive(accept(7, 2))  # those on 3 and 5 were lost
    assert device.state.answer.tokens == (6, 1, 2, 3, 4, 5, 6)
    assert device.state.flying == ()


def test_p5_a_rejection_may_overtake_an_acceptance() -> None:
    device = Device(Overlap(3, sends_first_ahead=False), 2)
    device.draft(1, 2, 3, 4)
    device.receive(reject(5, 1))
    device.receive(accept(3, 2))
    assert device.state.answer.tokens == (6, 1, 2, 3, 7)
    assert device.state.dropped == 1


def test_verdicts_that_come_twice_or_from_a_dead_epoch_are_dropped() -> None:
    device = Device(Overlap(2, sends_first_ahead=False), 2)
    device.draft(1, 2, 3, 4)
    for frame in (accept(3, 2), accept(3, 2), reject(5, 0), reject(5, 0), accept(5, 2)):
        device.receive(frame)
    assert device.state.answer.tokens == (6, 1, 2, 7)
    assert device.state.dropped == 3


def test_a_verdict_on_tokens_that_were_never_sent_is_refused() -> None:
    device = Device(Overlap(2), 3)
    device.draft(1, 2)
    with pytest.raises(ProtocolError, match="never sent"):
        device.receive(accept(3, 2))


def test_behind_a_barrier_a_verdict_waits_for_the_block() -> None:
    device = Device(Overlap(has_barrier=True), 3)
    device.draft(1, 2)
    device.receive(reject(3, 0))
    assert device.state.epoch == 0
    device.draft(3)
    assert device.state.answer.tokens == (6, 7)
    device.draft(1, 2, 3)
    assert not device.state.is_busy, "the next step begins with the verdict of this one"
    device.receive(accept(4, 1, epoch=1))
    assert device.state.is_busy


def test_the_device_draws_a_correction_and_sends_it_at_once() -> None:
    device = Device(Overlap(1, sends_first_ahead=False), 2)
    device.draft(1, 2)
    top = Pairs((0, 1), (0.5, 0.25))
    device.receive(replace(accept(3, 1), top=top))
    assert isinstance(device.jobs[-1], dev.Resolve)
    device.step(dev.Resolved(None, 1))
    device.receive(Tails(1, 0, 4, 1, PAIR))
    device.step(dev.Resolved(0, 1))
    correction = device.sent[-1]
    assert isinstance(correction, Draft)
    assert (correction.base, correction.correction, correction.tokens) == (5, 0, ())
    assert (correction.epoch, correction.continues) == (1, True)


def test_draft_length_zero_lets_the_server_go_on_behind_the_drafts() -> None:
    device = Device(Overlap(2, sends_first_ahead=False), 2)
    device.step(dev.Replan(0))
    device.draft(1, 2)
    assert device.frames == [(0, 3, (1, 2), False), (0, 5, (), False)]
    device.receive(accept(3, 2))
    device.receive(Token(1, 5, 7, False))
    assert device.state.answer.tokens == (6, 1, 2, 7)


def test_a_last_token_drawn_by_the_device_closes_the_session() -> None:
    device = Device(Overlap(1, sends_first_ahead=False), 2)
    device.state = replace(device.state, answer=replace(device.state.answer, max_new=2))
    device.draft(1)
    device.receive(replace(accept(3, 0), top=PAIR))
    device.step(dev.Resolved(2, 0))
    assert device.sent[-1] == Close(1)
    assert device.jobs[-1] == dev.Finish((6, 2))


class Server:
    """A server machine with one parallel session, which reads as told and passes what is told."""

    def __init__(self, overlap: Overlap, draft_length: int = 3) -> None:
        self.state = srv.ServerState(0, 8, 0, 1, Batcher(512, 10_000))
        self.sent: list[Frame] = []
        self.forwards: list[tuple[int, ...]] = []
        self.verdicts: list[Outcome] = []
        self.receive(OPENING, draft_length, overlap)
        self.finish(Outcome(0, 6))
        self.sent.clear()

    def step(self, event: srv.ServerEvent) -> None:
        self.state, effects = srv.step_server(self.state, event, 0.0)
        for effect in effects:
            match effect:
                case srv.SendDown():
                    self.sent.append(effect.frame)
                case srv.StartForward():
                    self.forwards += [work.tokens for work in effect.forward.works]
                case srv.JudgeByKeptRow():
                    outcome = self.verdicts.pop(0) if self.verdicts else Outcome(1, None)
                    self.step(srv.KeptRowJudged(1, outcome))

    def receive(self, frame: Frame, length: int = 3, overlap: Overlap | None = None) -> None:
        self.step(srv.Received(frame, length, overlap))

    def finish(self, outcome: Outcome | None) -> None:
        self.step(srv.ForwardDone((outcome,)))

    @property
    def session(self) -> ParallelSession:
        session = self.state.sessions[1]
        assert isinstance(session, ParallelSession)
        return session

    @property
    def told(self) -> list[tuple[int, int, int, int]]:
        verdicts = [frame for frame in self.sent if isinstance(frame, Verdict)]
        return [(v.epoch, v.base, v.accepted, v.token) for v in verdicts]


def part(base: int, *tokens: int, epoch: int = 0) -> Draft:
    rows = tuple(Pairs((token,), (0.5,)) for token in tokens)
    return Draft(1, 0, epoch, base, NO_TOKEN, tokens, rows, continues=True)


def block(base: int, *tokens: int, epoch: int = 0) -> Draft:
    return replace(part(base, *tokens, epoch=epoch), continues=False)


def ready_server() -> Server:
    """Let the server read the token that it drew from the prompt."""
    server = Server(Overlap(2))
    assert server.forwards == [(), ()], (
        "the row behind the first token is wanted before drafts come"
    )
    server.finish(None)
    server.forwards.clear()
    return server


def test_p1_a_first_token_alone_starts_no_forward() -> None:
    server = ready_server()
    server.receive(part(3, 3))
    assert (server.forwards, server.session.unread) == ([], 1)
    server.receive(block(4, 4, 5))
    assert server.forwards == [(4, 5)]
    server.finish(Outcome(2, None))
    assert server.told == [(0, 3, 3, NO_TOKEN)]


def test_a_rejected_first_token_is_told_without_a_forward() -> None:
    server = ready_server()
    server.verdicts = [Outcome(0, 2)]
    server.receive(part(3, 3))
    assert server.told == [(0, 3, 0, 2)]
    assert server.forwards == [()], "only the correction is read"


def test_p8_the_next_first_token_is_judged_after_the_forward_and_after_an_acceptance() -> None:
    server = ready_server()
    server.receive(block(3, 3, 4))
    server.receive(part(5, 5))
    server.verdicts = [Outcome(0, 7)]
    server.finish(Outcome(1, None))
    assert server.told == [(0, 3, 2, NO_TOKEN), (0, 5, 0, 7)]


def test_p8_first_tokens_of_two_blocks_wait_side_by_side() -> None:
    server = ready_server()
    server.receive(block(3, 3, 4))
    server.receive(part(5, 5))
    server.receive(block(6, 1))
    server.receive(part(7, 2))
    server.finish(Outcome(1, None))
    assert server.forwards == [(4,), (1,)]
    server.finish(Outcome(1, None))
    assert server.session.position == 8


def test_p5_a_draft_that_overtakes_another_waits_for_it() -> None:
    server = ready_server()
    server.receive(block(5, 5, 6))
    assert server.forwards == []
    server.receive(block(3, 3, 4))
    server.finish(Outcome(3, None))
    assert server.session.position == 7


def test_p6_a_draft_that_comes_twice_is_judged_once() -> None:
    server = ready_server()
    for frame in (block(3, 3, 4), block(3, 3, 4)):
        server.receive(frame)
    server.finish(Outcome(1, None))
    server.receive(block(3, 3, 4))
    assert (server.session.position, server.session.duplicates) == (5, 2)


def test_p7_a_correction_that_comes_twice_counts_once() -> None:
    server = ready_server()
    server.verdicts = [Outcome(0, None, PAIR, PAIR)]
    server.receive(part(3, 3))
    correction = replace(part(4, epoch=1), correction=2)
    server.receive(correction)
    server.receive(correction)
    assert (server.session.position, server.session.duplicates) == (4, 1)
    assert server.forwards == [()], "the correction is read while the device drafts"


def test_p5_drafts_wait_for_the_correction_they_hang_on() -> None:
    server = ready_server()
    server.verdicts = [Outcome(0, None, PAIR, PAIR)]
    server.receive(part(3, 3))
    server.receive(block(4, 6, 7, epoch=1))
    assert server.forwards == []
    server.receive(replace(part(4, epoch=1), correction=2))
    assert server.forwards == [(6, 7)]


def test_p10_drafts_of_a_dead_epoch_are_dropped_and_counted() -> None:
    server = ready_server()
    server.receive(block(3, 3, 4))
    server.receive(block(5, 5, 6))
    server.finish(Outcome(0, 2))
    assert server.told == [(0, 3, 1, 2)]
    assert server.session.tokens == ()
    server.receive(block(5, 1, 2))
    assert (server.session.stale, server.session.tokens) == (1, ())
    server.finish(None)
    server.receive(block(5, 1, 2, epoch=1))
    assert server.session.position == 6, "the first token of the new epoch is judged"


def test_a_draft_of_an_epoch_that_has_not_begun_ends_the_session() -> None:
    server = ready_server()
    server.receive(block(3, 3, epoch=4))
    assert 1 not in server.state.sessions


def test_the_server_goes_on_alone_from_the_row_it_keeps() -> None:
    server = ready_server()
    server.state, _ = srv.step_server(server.state, srv.Replan(1, 0, 0), 0.0)
    server.receive(block(3, 3))
    server.finish(None)
    server.verdicts = [Outcome(0, 5)]
    server.receive(block(4))
    assert server.sent[-1] == Token(1, 4, 5, False)
    assert server.forwards == [(), ()]
