"""Frames that only sockets need: greeting, plan, resumption and signs of life.

They travel beside the frames of `uara.decoding.protocol`, in the same envelope, under tags of 16
and above. A connection begins with `Hello` and `Welcome`. Whoever loses it greets again and names
the request by what is committed: (session, epoch, base), with the tokens that lead there.
"""

from __future__ import annotations

import math
import struct
from typing import Annotated

import msgspec

from uara.decoding.overlap import Overlap, overlap_of
from uara.decoding.protocol import ProtocolError

CONTROL_VERSION = 1
CLIENT_BYTES = 16
WIRE_MODES = ("sd", "psd", "async")
MAX_DRAFT_LENGTH = 64
MAX_WINDOW = 16

_U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Control(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    pass


class Hello(_Control, tag=16, frozen=True):
    """Greet a server (up): with the secret token, if it asks for one, and a name of one's own.

    A connection of the same client is taken for dead and replaced.
    """

    version: int
    client: Annotated[bytes, msgspec.Meta(min_length=CLIENT_BYTES, max_length=CLIENT_BYTES)]
    token: Annotated[bytes, msgspec.Meta(max_length=1024)] = b""


class Welcome(_Control, tag=17, frozen=True):
    """Answer a greeting (down): what the target reads, and how long silence is suffered."""

    version: int
    vocab_size: int
    tokenizer_hash: int
    idle_s: float


class Plan(_Control, tag=18, frozen=True):
    """Say how the connection's requests are served from now on (up).

    Attributes:
        draft_length: planned; 0 leaves decoding to the server.
        mode: index into `WIRE_MODES`, for requests that open from now on.
        window: of `async`.
        downlink_bps: at which the server shapes what it sends; inf: not at all.
        one_way_s: added to each frame that it sends.
    """

    draft_length: Annotated[int, msgspec.Meta(ge=0, le=MAX_DRAFT_LENGTH)]
    mode: Annotated[int, msgspec.Meta(ge=0, lt=len(WIRE_MODES))] = 0
    window: Annotated[int, msgspec.Meta(ge=0, le=MAX_WINDOW)] = 1
    downlink_bps: float = math.inf
    one_way_s: float = 0.0

    @property
    def overlap(self) -> Overlap | None:
        """Form of the sessions that open; None where the ends take turns."""
        return overlap_of(WIRE_MODES[self.mode], self.window)


class Resume(_Control, tag=19, frozen=True):
    """Go on with a request (up).

    Attributes:
        opening: the frame that opened it.
        answer: committed tokens, little-endian u32 each.
        epoch: rejections so far.
        base: position behind the answer.
    """

    opening: bytes
    answer: bytes
    epoch: _U32
    base: _U32

    @property
    def tokens(self) -> tuple[int, ...]:
        """Committed tokens."""
        return struct.unpack(f"<{len(self.answer) // 4}I", self.answer)


class Ping(_Control, tag=20, frozen=True):
    """Ask for a sign of life (up)."""


class Pong(_Control, tag=21, frozen=True):
    """Give one (down)."""


Control = Hello | Welcome | Plan | Resume | Ping | Pong
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


def pack_answer(tokens: tuple[int, ...]) -> bytes:
    """Pack committed tokens for `Resume`."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def is_control(data: bytes) -> bool:
    """Tell a whole frame of this file from one of the protocol, by its tag."""
    return len(data) > 5 and 16 <= data[5] < 0x80


def encode_control(frame: Control) -> bytes:
    """Encode a frame: u32 length, then MessagePack."""
    body = _ENCODER.encode(frame)
    return struct.pack("<I", len(body)) + body


def decode_control(data: bytes) -> Control:
    """Decode one whole frame.

    Raises:
        ProtocolError: if it is none, or a number in it cannot be.
    """
    try:
        frame = _DECODER.decode(data[4:])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"malformed frame: {error}") from error
    if isinstance(frame, Hello | Welcome) and frame.version != CONTROL_VERSION:
        raise ProtocolError(f"version {frame.version} of the greeting is not {CONTROL_VERSION}")
    if isinstance(frame, Plan) and not (
        frame.downlink_bps >= 0 and 0 <= frame.one_way_s < math.inf
    ):
        raise ProtocolError("a rate or delay of the plan is no number of at least 0")
    if isinstance(frame, Resume) and len(frame.answer) % 4:
        raise ProtocolError("the answer of a resumption is no whole number of tokens")
    return frame
