"""The edge server as a process: sockets, one thread for the target model, and the wall clock.

The event loop reads, writes and drives `ServerFront`; forwards run in a worker thread, one at a
time. Where times are those of a profile, a forward ends when the profile says so, counted from its
start, provided that this machine is faster.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from uara.decoding.batcher import Forward
from uara.decoding.control import is_control
from uara.decoding.protocol import ProtocolError
from uara.decoding.rules import Outcome
from uara.decoding.server_front import Action, HangUp, Run, ServerFront, Shape, Write
from uara.decoding.server_log import event
from uara.decoding.transport import ShapedSender, read_frame, set_no_delay, until
from uara.decoding.verifier import Verifier
from uara.serving.machine import ForwardTime

TICK_S = 0.5
LATE_S = 1e-3
_LOG = logging.getLogger("uara.serve")


Observe = Callable[[str, float], None]


@dataclass
class _Line:
    """A connection's writing side."""

    writer: asyncio.StreamWriter
    sender: ShapedSender
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class WallServer:
    """Serves devices until it is told to stop.

    Attributes:
        front: what goes on behind the sockets.
        residuals_s: how much too late shaped frames were written, of connections that have ended.
        late_forwards: forwards that took longer than the profile says.
    """

    def __init__(
        self,
        front: ServerFront,
        verifier: Verifier,
        *,
        max_frame_bytes: int,
        max_backlog_bytes: int,
        drain_s: float,
        pace: ForwardTime | None = None,
        overhead_bytes: int = 0,
        observe: Observe = lambda name, seconds: None,
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            front: of the same verifier.
            verifier: runs forwards.
            max_frame_bytes: longest frame read.
            max_backlog_bytes: unsent bytes at which a reader is too slow.
            drain_s: given to open requests when the server stops.
            pace: times of forwards; None: as fast as this machine is.
            overhead_bytes: priced with every frame on shaped links.
            observe: takes the name of a duration and seconds; see `server_metrics`.
        """
        self.front = front
        self._verifier = verifier
        self._max_frame_bytes = max_frame_bytes
        self._max_backlog_bytes = max_backlog_bytes
        self._drain_s = drain_s
        self._pace = pace
        self._overhead_bytes = overhead_bytes
        self._observe = observe
        self._lines: dict[int, _Line] = {}
        self._count = 0
        self._worker = ThreadPoolExecutor(1, "forward")
        self._running: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.residuals_s: list[float] = []
        self.late_forwards = 0

    async def listen(self, host: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """Begin to take connections; return the port."""
        self._listener = await asyncio.start_server(
            self._serve, host, port, ssl=context, limit=2**16, backlog=1024
        )
        self._spawn(self._tick())
        found = int(self._listener.sockets[0].getsockname()[1])
        event(_LOG, "listening", host=host, port=found)
        return found

    async def drain(self) -> None:
        """Refuse what is new, let open requests end, and hang up."""
        self.front.is_draining = True
        event(_LOG, "draining", sessions=self.front.num_sessions)
        deadline = time.monotonic() + self._drain_s
        while self.front.num_sessions and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self.close()

    async def close(self) -> None:
        """Stop at once."""
        if self._listener is not None:
            self._listener.close()
        for number in list(self._lines):
            self._obey(self.front.drop(number, "shutting down"))
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._worker.shutdown(wait=True, cancel_futures=True)
        event(_LOG, "stopped", **self.front.counts)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._obey(self.front.tick(time.monotonic()))

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read frames of one connection to its end."""
        number, self._count = self._count, self._count + 1
        set_no_delay(writer)
        line = _Line(writer, ShapedSender(self._writer_of(number, writer), self._overhead_bytes))
        line.tasks.append(self._spawn(line.sender.run()))
        self._lines[number] = line
        self._obey(self.front.connect(number, time.monotonic()))
        try:
            while number in self._lines:
                data = await read_frame(reader, self._max_frame_bytes)
                if data is None:
                    break
                begun, busy = time.monotonic(), time.thread_time()
                self._obey(self.front.receive(number, data, begun))
                if not is_control(data):
                    self._observe("take", time.monotonic() - begun)
                    self._observe("take_busy", time.thread_time() - busy)
        except ProtocolError as error:
            self._obey(self.front.drop(number, str(error)))
        finally:
            self._obey(self.front.disconnect(number, time.monotonic()))
            self._part(number)

    def _writer_of(self, number: int, writer: asyncio.StreamWriter) -> Callable[[bytes], None]:
        def write(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data)

        return write

    def _part(self, number: int) -> None:
        """Close a connection's writing side."""
        line = self._lines.pop(number, None)
        if line is None:
            return
        for task in line.tasks:
            task.cancel()
        self.residuals_s += line.sender.residuals_s
        line.writer.close()

    # What the front asks for

    def _obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Write(peer, data):
                    self._write(peer, data)
                case Shape(peer, plan):
                    if peer in self._lines:
                        self._lines[peer].sender.shape(plan.downlink_bps, plan.one_way_s)
                case HangUp(peer, reason):
                    event(_LOG, "hang up", connection=peer, reason=reason)
                    self._part(peer)
                case Run(forward):
                    self._spawn(self._forward(forward))

    def _write(self, number: int, data: bytes) -> None:
        line = self._lines.get(number)
        if line is None:
            return
        if is_control(data):
            line.writer.write(data)  # no part of the modelled traffic
        else:
            line.sender.send(data)
        waiting = line.writer.transport.get_write_buffer_size() + line.sender.backlog_bytes
        if waiting > self._max_backlog_bytes:
            line.writer.transport.abort()
            self._obey(self.front.drop(number, f"{waiting:.0f} bytes wait for a slow reader"))

    # Forwards

    async def _forward(self, forward: Forward) -> None:
        begun = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            outcomes, started, ended = await loop.run_in_executor(
                self._worker, self._compute, forward
            )
        except Exception:
            _LOG.exception("a forward has failed")
            self._obey(self.front.forward_failed(time.monotonic()))
            return
        self._observe("forward", ended - started)
        if self._pace is not None:
            deadline = begun + self._pace(
                float(forward.rows), float(forward.new_tokens), float(forward.context_tokens)
            )
            self.late_forwards += time.monotonic() > deadline + LATE_S
            await until(deadline)
            ended = time.monotonic()
        busy = time.thread_time()
        self._obey(self.front.forward_done(outcomes, time.monotonic()))
        if forward.works:
            self._observe("settle", started - begun + time.monotonic() - ended)
            self._observe("settle_busy", time.thread_time() - busy)

    def _compute(self, forward: Forward) -> tuple[tuple[Outcome | None, ...], float, float]:
        started = time.monotonic()
        outcomes = tuple(self._verifier.forward(forward.works)) if forward.works else ()
        return outcomes, started, time.monotonic()
