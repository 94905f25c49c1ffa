"""Modes of the event judge that go round by round, and the choice of a device's machine."""

from __future__ import annotations

import math
from itertools import accumulate

from tests.reference.judge_blocks import Asynchronous, PipelineParallel
from tests.reference.judge_device import DeviceSpec, Machine, Served


class DeviceOnly(Machine):
    """`device_only`: the device decodes alone, one token per `draft_token_s`."""

    def send_prompt(self, now: float) -> None:  # noqa: D102
        record = self.record
        record.prompt_at_server_s = record.prefilled_s = now
        at = record.started_s = self.drafter_ready_s
        first_s = math.nan
        for token in range(record.output_tokens):
            step_s = self.draft_token_s()
            at += step_s
            first_s = first_s if token else at
            self.count_round(1, step_s)
        self.commit(at, record.output_tokens)
        record.first_s = first_s


class ServerAr(Served):
    """`server_ar`: the request sits in each pass of its server, one token a pass, streamed down."""

    _since_s = 0.0

    def started(self, now: float, at_device_s: float) -> None:  # noqa: D102
        self._since_s = now
        self.server.join(now, self)

    def take(self, now: float) -> tuple[int, int]:  # noqa: D102
        self.tally.waits += 1
        self.tally.wait_s += now - self._since_s
        return 1, self.cached_tokens()

    def passed(self, now: float) -> None:  # noqa: D102
        self.count_round(1, now - self._since_s)
        self._since_s = now
        self.deliver(now, self.spec.token_bits, 1)
        if not self.is_over:
            self.server.join(now, self)


class Sequential(Served):
    """`sd`: draft gamma tokens, send them, wait for the verdict, draft again.

    A pass takes the last committed token and the gamma drafts (gamma + 1 new tokens, one row). The
    verdict brings the accepted tokens and one more of the server's own: the correction after a
    rejection, else the bonus.
    """

    _begun_s = 0.0
    _at_server_s = 0.0

    def started(self, now: float, at_device_s: float) -> None:  # noqa: D102
        self._draft(at_device_s)

    def _draft(self, begun_s: float) -> None:
        gamma = self.spec.draft_length
        drafted_s = begun_s + sum(self.draft_token_s() for _ in range(gamma))
        self.tally.drafted += gamma
        self._begun_s = begun_s
        self._at_server_s = self.send_up(drafted_s, self.spec.draft_bits(gamma))
        self.clock.at(self._at_server_s, self._draft_at_server)

    def _draft_at_server(self, now: float, _: None) -> None:
        self.server.join(now, self)

    def take(self, now: float) -> tuple[int, int]:  # noqa: D102
        self.tally.waits += 1
        self.tally.wait_s += now - self._at_server_s
        return self.spec.draft_length + 1, self.cached_tokens()

    def passed(self, now: float) -> None:  # noqa: D102
        spec, tally = self.spec, self.tally
        run = self.accepted_run(0, spec.draft_length)
        is_rejected = run < spec.draft_length
        tally.accepted += run
        tally.rejected += is_rejected
        tally.discarded += spec.draft_length - run - is_rejected
        at_device = self.deliver(
            now, spec.reject_bits if is_rejected else spec.accept_bits, run + 1
        )
        self.count_round(run + 1, at_device - self._begun_s)
        if not self.is_over:
            self._draft(at_device)


class PearlParallel(Served):
    """`psd` of form `pearl`: both ends work in steps with a barrier at the device.

    A step begins at the device when the verdict of the last step is there AND the block drafted in
    it has left the radio. Then two things run at the same time. The device drafts gamma tokens and
    sends them (gamma t_q + t_up). The server is released by what reaches it half an RTT after the
    step's beginning, waits for its pass, computes, and its verdict takes t_dn and the other half.

    *Pre* step (the first of a request and each one after a rejection): the pass takes the last
    committed token alone (one new token) and judges the first token of the block being drafted.
    Rejected: that block is thrown away, the server's token is committed, pre again. Accepted: one
    token is committed, the block is pending, post next.
    *Post* step: the pass takes the pending block (gamma new tokens) and judges a window of gamma
    tokens, the pending ones from the second on and the first of the block being drafted. All
    accepted: gamma tokens are committed, the new block is pending, post again, no bonus. Else: the
    accepted ones and the correction are committed, the new block is thrown away, pre next.

    The first token of a block goes up alone when it is drafted (`first_bits`); a verdict that needs
    it leaves when the pass has ended and it has arrived.
    """

    _is_pending = False
    _begun_s = 0.0
    _up_end_s = 0.0
    _first_at_server_s = 0.0

    def started(self, now: float, at_device_s: float) -> None:  # noqa: D102
        self._is_pending = False
        self._step(at_device_s)

    def _step(self, begun_s: float) -> None:
        gamma = self.spec.draft_length
        drafted_s = list(accumulate((self.draft_token_s() for _ in range(gamma)), initial=begun_s))
        self.tally.drafted += gamma
        self._begun_s = begun_s
        self._first_at_server_s = self.send_up(drafted_s[1], self.spec.first_bits)
        self._up_end_s = self.send_up(drafted_s[-1], self.spec.draft_bits(gamma)) - self.half_rtt_s
        self.clock.at(begun_s + self.half_rtt_s, self._release)

    def _release(self, now: float, _: None) -> None:
        self.server.join(now, self)

    def take(self, now: float) -> tuple[int, int]:  # noqa: D102
        self.tally.waits += 1
        self.tally.wait_s += now - self._begun_s - self.half_rtt_s
        return self.spec.draft_length if self._is_pending else 1, self.cached_tokens()

    def passed(self, now: float) -> None:  # noqa: D102
        spec, tally = self.spec, self.tally
        gamma = spec.draft_length
        run = self.accepted_run(1, gamma) if self._is_pending else gamma
        tally.accepted += run - 1 if self._is_pending else 0
        committed = run - 1 if self._is_pending else 0
        is_rejected = run < gamma
        if is_rejected:
            # The rejected one is counted; the rest of the pending block and the new one are void.
            tally.discarded += gamma - run - 1 + gamma
        else:
            now = max(now, self._first_at_server_s)
            is_rejected = self.accepted_run(0, 1) == 0
            tally.accepted += not is_rejected
            committed += not is_rejected
            tally.discarded += gamma - 1 if is_rejected else 0
        tally.rejected += is_rejected
        tokens = committed + is_rejected
        at_device = self.deliver(now, spec.reject_bits if is_rejected else spec.accept_bits, tokens)
        barrier_s = max(at_device, self._up_end_s)
        self.count_round(tokens, barrier_s - self._begun_s)
        self._is_pending = not is_rejected
        if not self.is_over:
            self._step(barrier_s)
        elif self._is_pending:
            tally.discarded += gamma - 1


def machine_class(spec: DeviceSpec) -> type[Machine]:
    """Choose the machine of a device's mode."""
    if spec.mode == "device_only":
        return DeviceOnly
    if spec.mode == "server_ar" or spec.draft_length == 0:
        return ServerAr
    if spec.mode == "psd":
        return PearlParallel if spec.psd_form == "pearl" else PipelineParallel
    return Sequential if spec.mode == "sd" else Asynchronous
