"""Frames on asyncio streams: whole ones in, shaped ones out, addresses and secrets.

What goes out is shaped by the link model of `uara.decoding.links`: a frame is served at the link's
rate, first come first served, and then delayed. Its deadline follows from the frame before it and
never from when that one was really written, so that errors do not add up.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from uara.decoding.links import FluidLink
from uara.decoding.protocol import ProtocolError
from uara.errors import UserError

SPIN_S = 1e-3
_WRITE = Callable[[bytes], None]


class FrameTooLongError(ProtocolError):
    """The length of a frame is above the limit; what follows cannot be read any more."""


async def read_frame(reader: asyncio.StreamReader, max_bytes: int) -> bytes | None:
    """Read one whole frame, length included.

    Args:
        reader: of the connection.
        max_bytes: allowed after the length.

    Returns:
        None once the connection has ended, be it in the middle of a frame.

    Raises:
        FrameTooLongError: before anything of such a frame is read.
    """
    try:
        head = await reader.readexactly(4)
        (size,) = struct.unpack("<I", head)
        if size > max_bytes:
            raise FrameTooLongError(f"a frame of {size} bytes; allowed: {max_bytes}")
        return head + await reader.readexactly(size)
    except (asyncio.IncompleteReadError, OSError):
        return None


class ShapedSender:
    """Writes frames when a link would have delivered them.

    Attributes:
        residuals_s: by how much each shaped frame was written too late.
    """

    def __init__(
        self, write: _WRITE, overhead_bytes: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Shape nothing until `shape` is called.

        Args:
            write: takes the bytes of a frame.
            overhead_bytes: priced with every frame.
            clock: seconds.
        """
        self._write = write
        self._overhead_bits = 8.0 * overhead_bytes
        self._clock = clock
        self._link: FluidLink[bytes] = FluidLink(rate_bps=math.inf)
        self._one_way_s = 0.0
        self._flying: deque[tuple[float, bytes]] = deque()
        self._changed = asyncio.Event()
        self.residuals_s: list[float] = []

    @property
    def backlog_bytes(self) -> float:
        """Bytes that have not been written yet."""
        return self._link.backlog_bits / 8 + sum(len(data) for _, data in self._flying)

    def shape(self, rate_bps: float, one_way_s: float) -> None:
        """Set rate and delay from now on, in the middle of a frame as well."""
        self._collect(self._clock())
        self._link.set_rate(rate_bps, self._clock())
        self._one_way_s = one_way_s
        self._changed.set()

    def send(self, data: bytes, attached_bits: float = 0.0) -> None:
        """Queue a frame; over a link without rate and delay it is written at once."""
        is_idle = not self._flying and not self._link.backlog_bits
        if is_idle and math.isinf(self._link.rate_bps) and self._one_way_s == 0:
            self._write(data)
            return
        bits = 8.0 * len(data) + self._overhead_bits + attached_bits
        self._link.push(data, bits, self._clock())
        self._changed.set()

    async def run(self) -> None:
        """Write what falls due, for ever."""
        while True:
            self._collect(self._clock())
            while self._flying and self._flying[0][0] <= self._clock():
                deadline, data = self._flying.popleft()
                self.residuals_s.append(self._clock() - deadline)
                self._write(data)
            self._changed.clear()
            await self._wait(
                min(self._link.next_finish(), self._flying[0][0] if self._flying else math.inf)
            )

    def _collect(self, now: float) -> None:
        """Let frames fly whose service has ended, at the time at which it should have."""
        while (finish := self._link.next_finish()) <= now:
            arrival = finish + self._one_way_s
            if self._flying:
                arrival = max(arrival, self._flying[-1][0])
            self._flying.append((arrival, self._link.pop(finish)))

    async def _wait(self, due: float) -> None:
        """Wait for a time, or a change: asleep at first, awake for the last millisecond."""
        rest_s = due - self._clock() - SPIN_S
        if rest_s > 0:
            try:
                timeout = None if math.isinf(rest_s) else rest_s
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                pass
        while self._clock() < due and not self._changed.is_set():
            await asyncio.sleep(0)


async def until(deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Wait for a time, spinning for the last millisecond."""
    rest_s = deadline - clock() - SPIN_S
    if rest_s > 0:
        await asyncio.sleep(rest_s)
    while clock() < deadline:
        await asyncio.sleep(0)


def set_no_delay(writer: asyncio.StreamWriter) -> None:
    """Send small frames at once."""
    link = writer.get_extra_info("socket")
    if link is not None and link.family in (socket.AF_INET, socket.AF_INET6):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT.

    Raises:
        UserError: if it is none.
    """
    host, sign, port = text.rpartition(":")
    if not sign or not host or not port.isdigit() or not 0 <= int(port) < 65_536:
        raise UserError(f"address '{text}' is no HOST:PORT; give for example 127.0.0.1:7070")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a name or number stands for this machine alone."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(f"host '{host}' is unknown; give a name or number") from error
    return all(entry[4][0] == "::1" or str(entry[4][0]).startswith("127.") for entry in found)


def read_token(path: Path | None, environment: str | None) -> bytes:
    """Take the secret token from a file or the environment; empty without either.

    Raises:
        UserError: if the file is missing or empty.
    """
    if path is None:
        return (environment or "").strip().encode()
    if not path.is_file():
        raise UserError(f"token file {path} does not exist; give a file that holds the token")
    token = path.read_bytes().strip()
    if not token:
        raise UserError(f"token file {path} is empty; write a long random word into it")
    return token


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load a server's certificate and key.

    Raises:
        UserError: if they cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"certificate {certificate} and key {key} cannot be used ({error}); give two PEM files"
        ) from error
    return context


def device_context(authority: Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, or one certificate alone.

    Raises:
        UserError: if the certificate cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=None if authority is None else str(authority))
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"certificate {authority} cannot be used ({error})") from error
