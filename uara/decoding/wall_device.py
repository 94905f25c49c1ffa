"""The phone as a process: one connection, one thread for the draft model, and the wall clock.

The event loop reads, writes and drives `DeviceFront`; drafts are made in a worker thread, one after
the other. Where times are those of a profile, a draft step ends when the profile says so, counted
from its start, provided that this machine is faster.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from uara.decoding import device as dev
from uara.decoding.contract import Contract
from uara.decoding.control import Plan
from uara.decoding.device_front import (
    Action,
    Compute,
    DeviceFront,
    Finished,
    HangUp,
    Judged,
    Write,
)
from uara.decoding.drafter import Drafter
from uara.decoding.kv import SequenceModel
from uara.decoding.protocol import MAX_FRAME_BYTES, Draft, Open, ProtocolError
from uara.decoding.randomness import Draws, Ledger
from uara.decoding.records import RequestRecord
from uara.decoding.scenario import DeviceProfile
from uara.decoding.transport import ShapedSender, read_frame, set_no_delay, until

BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TICK_S = 0.25


@dataclass(frozen=True)
class Dial:
    """Where a server is and how it is reached."""

    host: str
    port: int
    token: bytes = b""
    context: ssl.SSLContext | None = None
    connect_s: float = 5.0
    patience_s: float = 60.0  # for a server that cannot be reached, say while it is restarted


@dataclass
class _Job:
    """A request that is under way."""

    record: RequestRecord
    drafter: Drafter
    attached_bits: float
    ended: asyncio.Future[RequestRecord]
    unread_tokens: int = 0


@dataclass
class Uplink:
    """How frames go up: rate and delay; and bytes priced with every frame."""

    rate_bps: float = float("inf")
    one_way_s: float = 0.0
    overhead_bytes: int = 0


class WallDevice:
    """One device that sends its requests to one server, one after the other.

    Attributes:
        front: what goes on behind the socket.
        residuals_s: how much too late shaped frames were written.
        late_drafts: draft steps that took longer than the profile says.
        busy_until_s: when the draft model is free again.
    """

    def __init__(
        self,
        model: SequenceModel,
        dial: Dial,
        *,
        pace: DeviceProfile | None = None,
        uplink: Uplink | None = None,
        max_losses: int = 8,
    ) -> None:
        """Make a device that is not connected yet.

        Args:
            model: the draft.
            dial: of the server.
            pace: times of draft steps; None: as fast as this machine is.
            uplink: shapes what goes up; None: nothing.
            max_losses: lost connections in a row that a request survives.
        """
        self.front = DeviceFront(os.urandom(16), dial.token, max_losses)
        self._model = model
        self._dial = dial
        self._pace = pace
        uplink = uplink or Uplink()
        self._sender = ShapedSender(self._write_bytes, uplink.overhead_bytes)
        self._sender.shape(uplink.rate_bps, uplink.one_way_s)
        self._overhead_bytes = uplink.overhead_bytes
        self._worker = ThreadPoolExecutor(1, "draft")
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._jobs: set[asyncio.Task[None]] = set()
        self._job: _Job | None = None
        self._welcomed = asyncio.Event()
        self.late_drafts = 0
        self.busy_until_s = 0.0

    @property
    def residuals_s(self) -> list[float]:
        """How much too late shaped frames were written."""
        return self._sender.residuals_s

    async def __aenter__(self) -> WallDevice:
        """Begin to connect."""
        self._tasks = [
            asyncio.create_task(work)
            for work in (self._stay_connected(), self._sender.run(), self._tick())
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Hang up."""
        for task in (*self._tasks, *self._jobs):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._jobs, return_exceptions=True)
        self._hang_up()
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def welcomed(self) -> None:
        """Wait until a server has answered the greeting."""
        await self._welcomed.wait()

    def shape(self, rate_bps: float, one_way_s: float) -> None:
        """Set rate and delay of what goes up."""
        self._sender.shape(rate_bps, one_way_s)

    def replan(self, plan: Plan) -> None:
        """Follow another plan from now on."""
        self._obey(self.front.replan(plan))

    async def request(
        self,
        opening: Open,
        plan: Plan,
        contract: Contract,
        record: RequestRecord,
        attached_bits: float = 0.0,
    ) -> RequestRecord:
        """Have a request answered.

        Args:
            opening: its first frame.
            plan: how it is served.
            contract: of the session.
            record: is filled in; its times are those of this process's monotonic clock.
            attached_bits: sent along with the prompt, in time only.

        Returns:
            The record, with a refusal if the request failed.
        """
        drafter = Drafter(self._model, contract, Draws(opening.seed, ledger=Ledger(False)))
        ended: asyncio.Future[RequestRecord] = asyncio.get_running_loop().create_future()
        text = opening.prompt[len(opening.prompt) - opening.text_tokens :]
        self._job = _Job(record, drafter, attached_bits, ended)
        self._job.unread_tokens = len(opening.prompt) - len(text)
        record.start_s = time.monotonic()
        if plan.draft_length and len(text) > 1:
            self._spawn(self._read(self._job, text))
        self._obey(self.front.start(opening, plan))
        return await ended

    # Connection

    async def _stay_connected(self) -> None:
        """Connect, read to the end, connect again."""
        failures, reached_s = 0, time.monotonic()
        while True:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(
                        self._dial.host, self._dial.port, ssl=self._dial.context
                    ),
                    self._dial.connect_s,
                )
            except (OSError, TimeoutError) as error:
                away_s = time.monotonic() - reached_s
                if isinstance(error, ssl.SSLCertVerificationError):
                    # Waiting does not make a certificate trusted.
                    reason = f"the server's certificate is not trusted: {error.verify_message}"
                    self._obey(self.front.give_up(reason))
                elif away_s > self._dial.patience_s:
                    self._obey(self.front.give_up(f"no server was reached for {away_s:.0f} s"))
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                continue
            set_no_delay(writer)
            self._writer = writer
            self._obey(self.front.connected(time.monotonic()))
            failures = 0 if await self._listen(reader) else failures + 1
            self._hang_up()
            self._obey(self.front.disconnected())
            reached_s = time.monotonic()
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _listen(self, reader: asyncio.StreamReader) -> bool:
        """Take frames until the connection ends; tell whether there was a welcome."""
        while self._writer is not None:
            try:
                data = await read_frame(reader, MAX_FRAME_BYTES)
            except ProtocolError:
                break
            if data is None or self._writer is None:
                break
            self._obey(self.front.receive(data, time.monotonic()))
            if self.front.welcome is not None:
                self._welcomed.set()
            self._note_progress()
        return self.front.welcome is not None

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    def _write_bytes(self, data: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._writer is not None:
                self._obey(self.front.tick(time.monotonic()))

    # What the front asks for

    def _obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Write(data, frame):
                    self._write(data, frame)
                case Compute():
                    self._spawn(self._compute(action))
                case HangUp():
                    self._hang_up()
                case Judged(accepted, drafted):
                    self._judged(accepted, drafted)
                case Finished(tokens, refusal):
                    self._finish(tokens, refusal)

    def _write(self, data: bytes, frame: object) -> None:
        job = self._job
        if frame is None or job is None:
            self._write_bytes(data)
            return
        attached = job.attached_bits if isinstance(frame, Open) else 0.0
        size = len(data) + self._overhead_bytes + int(attached / 8)
        job.record.uplink_bytes += size
        if isinstance(frame, Open):
            job.record.prompt_bytes = size
        if isinstance(frame, Draft) and frame.tokens:
            job.record.verifications += 1
        self._sender.send(data, attached)

    def _judged(self, accepted: int, drafted: int) -> None:
        if self._job is not None:
            record = self._job.record
            record.accepted += accepted
            record.tested += min(accepted + 1, drafted)

    def _note_progress(self) -> None:
        if self._job is not None and self.front.state is not None:
            self._commit(self._job.record, self.front.state.answer.tokens)

    def _commit(self, record: RequestRecord, tokens: tuple[int, ...]) -> None:
        if len(tokens) > len(record.tokens):
            now = time.monotonic()
            if not record.tokens:
                record.first_token_s = now
            record.end_s = now
            record.tokens = list(tokens)

    def _finish(self, tokens: tuple[int, ...], refusal: str) -> None:
        job, self._job = self._job, None
        if job is None:
            return
        self._commit(job.record, tokens)
        job.record.refusal, job.record.finish_s = refusal, time.monotonic()
        if not job.ended.done():
            job.ended.set_result(job.record)

    # Drafting

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _read(self, job: _Job, text: tuple[int, ...]) -> None:
        """Read the prompt ahead of drafting, while it is on its way up."""
        if self._pace is not None:
            read = len(text) - 1 + job.unread_tokens
            self.busy_until_s = time.monotonic() + read * self._pace.read_token_s
        job.unread_tokens = 0
        await asyncio.get_running_loop().run_in_executor(self._worker, job.drafter.read, text)

    async def _compute(self, action: Compute) -> None:
        job = self._job
        if job is None:
            return
        begun = time.monotonic()
        work, loop = action.job, asyncio.get_running_loop()
        done: dev.Drafted | dev.Resolved
        if isinstance(work, dev.Resolve):
            found = job.drafter.resolve(work.top, work.tails, work.drawn, work.position, work.epoch)
            done = dev.Resolved(found.token, found.drawn)
        else:
            drawn = await loop.run_in_executor(
                self._worker, job.drafter.draft, work.context, work.epoch
            )
            if self._pace is not None:
                extra = drawn.tokens_read - 1 + job.unread_tokens
                job.unread_tokens = 0
                step_s = self._pace.draft_time_s + extra * self._pace.read_token_s
                deadline = max(begun, self.busy_until_s) + step_s
                self.busy_until_s = deadline
                self.late_drafts += time.monotonic() > deadline + 1e-3
                await until(deadline)
            now = time.monotonic()
            done = dev.Drafted(drawn.token, drawn.row, job.record.sid, work.epoch, now_s=now)
        if self._job is job:
            self._obey(self.front.computed(done, action.number))
            self._note_progress()
