"""Modes of the event judge that draft ahead in blocks: `psd` as a pipeline, and `async`."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.reference.judge_device import Served


@dataclass(eq=False)
class Block:
    """Draft tokens that travel together; `judged` of them have been accepted or rejected."""

    epoch: int
    number: int
    begun_s: float
    tokens: int = 0
    judged: int = 0
    is_first_accepted: bool = False
    sent_s: float = 0.0
    leaves_s: float = 0.0
    at_server_s: float | None = None
    is_cancelled: bool = False


class RowSession(Served):
    """The server's end of `async` and of `psd` in form `pipeline`: blocks judged in their order.

    The server keeps the target's row behind the last committed token whenever a pass has produced
    it. A block's first token is tested against that row with no pass, the moment both are there
    (rejected: the verdict leaves at once). An accepted first token, or a row still missing, sends
    the block into the next pass with its n tokens (one row; plus one token where the server's own
    last token has not been forwarded); all blocks that wait go together and are judged in order.
    A wholly accepted block gets a verdict and no bonus: the last row is kept for the next block. A
    rejection commits the tokens before it and the correction, which the server draws; it voids
    every later block of the old epoch. With `eager_row` the server forwards its own token (the
    first of the answer, each correction) at once in a pass of one new token.
    """

    epoch = 0
    _server_epoch = 0
    _has_row = False
    _is_joined = False
    _next_number = 0
    _last_verdict_s = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._waiting: deque[Block] = deque()
        self._in_pass: list[Block] = []
        self._firsts: dict[int, Block] = {}

    def started(self, now: float, at_device_s: float) -> None:  # noqa: D102
        self._server_epoch = self.epoch = self._server_epoch + 1
        self._firsts.clear()
        # The prompt's last row is there unless it has been spent on the answer's first token.
        self._has_row = self.record.start_tokens == 0
        self._next_number = 0
        self._last_verdict_s = at_device_s
        self._go_on(now)
        self.start_drafting(at_device_s)

    @abstractmethod
    def start_drafting(self, at_device_s: float) -> None:
        """Let the device draft its first block from the committed tokens."""

    def block_at_server(self, now: float, block: Block) -> None:
        """Receive a block; one of a dead epoch is dropped."""
        if block.is_cancelled:
            return
        if block.epoch != self._server_epoch:
            self.lose(block)
            return
        block.at_server_s = now
        self._waiting.append(block)
        self._go_on(now)

    def first_at_server(self, now: float, block: Block) -> None:
        """Receive the first token of a block ahead of the block."""
        if block.epoch == self._server_epoch:
            self._firsts[block.number] = block
            self._go_on(now)

    def lose(self, block: Block) -> None:
        """Count the tokens of a void block that nobody has judged."""
        self.tally.discarded += block.tokens - block.judged

    def _go_on(self, now: float) -> None:
        """Test the next block's first token where its row is kept; join a pass where one is due."""
        if self._is_joined:
            return
        block = self._waiting[0] if self._waiting else self._firsts.get(self._next_number)
        if self._has_row and block is not None and not block.is_first_accepted:
            block.judged = 1
            if self.accepted_run(0, 1) == 0:
                self._reject(now, block, 0)
                return
            block.is_first_accepted = True
        if self._waiting or (self.spec.eager_row and not self._has_row):
            self._is_joined = True
            self.server.join(now, self)

    def take(self, now: float) -> tuple[int, int]:  # noqa: D102
        self._in_pass = list(self._waiting)
        self._waiting.clear()
        for block in self._in_pass:
            assert block.at_server_s is not None, "a pass holds a block that has not arrived"
            self.tally.waits += 1
            self.tally.wait_s += now - block.at_server_s
        unfed = int(not self._has_row)
        cached = self.prompt_tokens + self.record.committed - unfed
        return sum(b.tokens for b in self._in_pass) + unfed, cached

    def passed(self, now: float) -> None:  # noqa: D102
        self._is_joined = False
        self._has_row = True
        blocks, self._in_pass = self._in_pass, []
        for index, block in enumerate(blocks):
            run = self.accepted_run(int(block.is_first_accepted), block.tokens)
            block.judged = min(run + 1, block.tokens)
            if run < block.tokens:
                self._waiting.extendleft(reversed(blocks[index + 1 :]))
                self._reject(now, block, run)
                return
            self._next_number = block.number + 1
            self.tally.accepted += run
            at_device = self.deliver(now, self.spec.accept_bits, run)
            self._count_verdict(at_device, run)
            if self.is_over:
                for later in blocks[index + 1 :]:
                    self.lose(later)
                return
            self.clock.at(at_device, self.on_accept, block)
        self._go_on(now)

    def _reject(self, now: float, block: Block, run: int) -> None:
        """Reject the token at position `run` of a block and void what stands behind it."""
        self.tally.accepted += run
        self.tally.rejected += 1
        for later in self._waiting:
            if later is not block:
                self.lose(later)
        # A block whose first token came ahead is still the device's, which will drop it.
        if block.at_server_s is not None:
            self.lose(block)
        self._waiting.clear()
        self._firsts.clear()
        self._server_epoch += 1
        self._next_number = 0
        self._has_row = False
        at_device = self.deliver(now, self.spec.reject_bits, run + 1)
        self._count_verdict(at_device, run + 1)
        if not self.is_over:
            self.clock.at(at_device, self.on_reject, (block, self._server_epoch))
            self._go_on(now)

    def _count_verdict(self, at_device_s: float, tokens: int) -> None:
        self.count_round(tokens, at_device_s - self._last_verdict_s)
        self._last_verdict_s = at_device_s

    def abandon(self) -> None:  # noqa: D102
        self._server_epoch += 1
        for block in self._waiting:
            self.lose(block)
        self._waiting.clear()

    @abstractmethod
    def on_accept(self, now: float, block: Block) -> None:
        """Let the device learn that a whole block was accepted."""

    @abstractmethod
    def on_reject(self, now: float, what: tuple[Block, int]) -> None:
        """Let the device learn of a rejection and of the number of the new epoch."""


class PipelineParallel(RowSession):
    """`psd` of form `pipeline`: a block is judged while the next one is drafted.

    *Fill* step (the first of a request and each one after a rejection): the device drafts gamma
    tokens and sends them; it lasts gamma t_q + t_up. *Verify* step: the block that has left the
    radio reaches the server half an RTT later and is judged as `RowSession` tells, while the device
    drafts and sends the next one; the step ends when the verdict is there AND the next block has
    left the radio. Accepted: verify next, with that block. Rejected: that block is thrown away,
    fill next. A round is a verdict; its time runs from verdict to verdict.
    """

    _number = 0

    def start_drafting(self, at_device_s: float) -> None:  # noqa: D102
        self._number = 0
        self._fill(at_device_s)

    def _draft(self, begun_s: float) -> tuple[Block, float]:
        """Draft and send a block: it, and the time at which it has left the radio."""
        gamma = self.spec.draft_length
        block = Block(self.epoch, self._number, begun_s, tokens=gamma)
        self._number += 1
        self.tally.drafted += gamma
        drafted_s = begun_s + sum(self.draft_token_s() for _ in range(gamma))
        return block, self.send_up(drafted_s, self.spec.draft_bits(gamma)) - self.half_rtt_s

    def _fill(self, begun_s: float) -> None:
        block, ready_s = self._draft(begun_s)
        self.clock.at(ready_s, self._verify, block)

    def _verify(self, now: float, block: Block) -> None:
        self.clock.at(now + self.half_rtt_s, self.block_at_server, block)
        self._next = self._draft(now)

    def on_accept(self, now: float, block: Block) -> None:  # noqa: D102
        following, ready_s = self._next
        self.clock.at(max(now, ready_s), self._verify, following)

    def on_reject(self, now: float, what: tuple[Block, int]) -> None:  # noqa: D102
        following, ready_s = self._next
        self.lose(following)
        _, self.epoch = what
        self._number = 0
        self._fill(max(now, ready_s))

    def ended(self, now: float) -> None:  # noqa: D102
        if self.record.committed > self.record.start_tokens:
            self.lose(self._next[0])


class Asynchronous(RowSession):
    """`async`: the device drafts on and on, up to `window` blocks fly unverified, no barrier.

    A block is sent when it has gamma tokens and fewer than `window` blocks are in flight (sent and
    without a verdict at the device). At a full window the finished block is held and the drafter
    rests; the next verdict sends it, and drafting goes on. The server judges as `RowSession` tells.
    A rejection is an interrupt that carries the correction: the device drops the block under way,
    the held one and the frames that have not begun to leave, and drafts from the correction. The
    draft token under way is finished first and wasted unless the drafter is `interruptible`. Frames
    of the dead epoch that are on their way are dropped by the server. With `early_first` the first
    token of each block goes up alone the moment it is drafted.

    Latency-aware truncation: whenever a token is drafted, the window being open, a block whose
    drafting began `draft_budget` seconds ago or more is cut there and sent. A budget of `verdict`
    is the running mean (weight 1/8) of the time from sending a block to its verdict, over verdicts
    that took a pass; before the first of a request nothing is cut.
    """

    _number = 0
    _block: Block | None = None
    _held: Block | None = None
    _wasted: Block | None = None
    _verdict_time_s: float | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._in_flight: deque[Block] = deque()

    def start_drafting(self, at_device_s: float) -> None:  # noqa: D102
        self._number = 0
        self._verdict_time_s = None
        self._start_block(at_device_s)

    def _start_block(self, now: float) -> None:
        block = self._block = Block(self.epoch, self._number, now)
        self._number += 1
        self.clock.at(now + self.draft_token_s(), self._token, block)

    def _token(self, now: float, block: Block) -> None:
        if block is self._wasted:
            self._wasted = None
            self.tally.drafted += 1
            self.tally.discarded += 1
            self._start_block(now)
            return
        if block is not self._block:
            return
        spec = self.spec
        self.tally.drafted += 1
        block.tokens += 1
        if block.tokens == 1 and spec.early_first and spec.draft_length > 1:
            self.clock.at(self.send_up(now, spec.first_bits), self.first_at_server, block)
        if block.tokens < spec.draft_length and not self._is_late(now, block):
            self.clock.at(now + self.draft_token_s(), self._token, block)
        elif len(self._in_flight) < spec.window:
            self._send(now, block)
            self._start_block(now)
        else:
            self._held, self._block = block, None

    def _is_late(self, now: float, block: Block) -> bool:
        """Say whether the block has used up its time and may go up at once."""
        budget_s = self.spec.draft_budget
        if budget_s == "verdict":
            budget_s = self._verdict_time_s
        if budget_s is None or len(self._in_flight) >= self.spec.window:
            return False
        return now - block.begun_s >= budget_s

    def _send(self, now: float, block: Block) -> None:
        block.sent_s = now
        block.leaves_s = max(now, self.up_free_s)
        at_server_s = self.send_up(now, self.spec.draft_bits(block.tokens))
        self._in_flight.append(block)
        self.clock.at(at_server_s, self.block_at_server, block)

    def _note_verdict(self, seconds: float) -> None:
        mean_s = self._verdict_time_s
        self._verdict_time_s = seconds if mean_s is None else mean_s + (seconds - mean_s) / 8

    def on_accept(self, now: float, block: Block) -> None:  # noqa: D102
        self._in_flight.popleft()
        self._note_verdict(now - block.sent_s)
        if self._held is not None:
            self._send(now, self._held)
            self._held = None
            self._start_block(now)

    def on_reject(self, now: float, what: tuple[Block, int]) -> None:  # noqa: D102
        block, self.epoch = what
        if block.is_first_accepted:
            self._note_verdict(now - block.sent_s)
        under_way = self._block
        self._drop_all(now)
        self._number = 0
        if under_way is None or self.spec.interruptible:
            self._start_block(now)
        else:
            self._wasted = under_way

    def ended(self, now: float) -> None:  # noqa: D102
        self._drop_all(now)

    def _drop_all(self, now: float) -> None:
        """Drop the block under way, the held one and the frames that have not begun to leave."""
        for block in (self._block, self._held):
            if block is not None:
                self.lose(block)
        self._block = self._held = self._wasted = None
        free_s = now
        for block in self._in_flight:
            frame_bits = self.spec.draft_bits(block.tokens)
            if block.leaves_s > now:
                block.is_cancelled = True
                self.tally.bits_up -= frame_bits
                self.lose(block)
            else:
                free_s = max(free_s, block.leaves_s + frame_bits / self.spec.uplink_bps)
        self._in_flight.clear()
        self.up_free_s = min(self.up_free_s, free_s)
