"""The frames that a device and a server exchange: MessagePack arrays behind a u32 length.

Every field is a binary: a header of fixed-width little-endian integers and arrays of ids and
probabilities, so that a frame's size depends on counts alone (sizes: `uara.serving.payload`).
A draft is named by (sid, epoch, base): the epoch grows at every rejection, base is the position of
its first token in the context.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import msgspec

from uara.decoding.packing import Format as Format  # names of the protocol as well
from uara.decoding.packing import ProtocolError as ProtocolError
from uara.decoding.packing import RuleCode as RuleCode
from uara.decoding.packing import unpack_probabilities
from uara.decoding.row import Pairs

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 64 * 2**20
NO_TOKEN = 0xFFFFFFFF


class _Frame(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    header: bytes


class _Open(_Frame, tag=1, frozen=True):
    prompt: bytes


class _Draft(_Frame, tag=2, frozen=True):
    tokens: bytes
    rows: bytes


class _DraftPart(_Frame, tag=9, frozen=True):
    tokens: bytes
    rows: bytes


class _Verdict(_Frame, tag=3, frozen=True):
    row: bytes


class _NeedP(_Frame, tag=4, frozen=True):
    pass


class _Tails(_Frame, tag=5, frozen=True):
    row: bytes


class _Token(_Frame, tag=6, frozen=True):
    pass


class _ShadowToken(_Frame, tag=10, frozen=True):
    probability: bytes


class _Close(_Frame, tag=7, frozen=True):
    pass


class _Error(_Frame, tag=8, frozen=True):
    text: bytes


_Wire = (
    _Open
    | _Draft
    | _DraftPart
    | _Verdict
    | _NeedP
    | _Tails
    | _Token
    | _ShadowToken
    | _Close
    | _Error
)
_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[_Wire] = msgspec.msgpack.Decoder(_Wire)


class Open(msgspec.Struct, frozen=True, gc=False):
    """Open a request (up). The prompt ends in the `text_tokens` that the models read.

    The byte of the rule holds its code (4 bits), the width of a probability (2 bits: 32, 16 or 8
    bits) and whether the residual is cut to the Top-K (1 bit).
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BBHIIIIQQdIdI")
    sid: int
    rule: RuleCode
    row_top_k: int
    vocab_size: int
    text_tokens: int
    max_new: int
    tokenizer_hash: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    eos: int
    prompt: tuple[int, ...]
    probability_bits: int = 32
    is_lossy: bool = False


class Draft(msgspec.Struct, frozen=True, gc=False):
    """Ask for verification of drafted tokens (up); with none, hand the turn to the server.

    `correction` is the token that the device drew after the last rejection, or `NO_TOKEN`.
    `rows` holds what the codec sends: nothing, one pair per token, K pairs per token or V.
    `continues` marks a frame whose block is not complete (parallel modes); a correction may then
    go up without any token.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIII")
    sid: int
    round: int
    epoch: int
    base: int
    correction: int
    tokens: tuple[int, ...]
    rows: tuple[Pairs, ...]
    continues: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Answer a draft (down).

    Attributes:
        accepted: how many of the drafted tokens are committed.
        token: the token after them, or `NO_TOKEN` if the device draws it from the target's row.
        device_turn: whether the device goes on (else the server decodes alone).
        top: the target's Top-K at the rejected position (`id_prob` only).
        tails: draws from the target outside that Top-K.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIIIIBHI")
    sid: int
    round: int
    epoch: int
    base: int
    accepted: int
    token: int
    device_turn: bool
    top: Pairs
    tails: Pairs
    queue_us: int


class NeedP(msgspec.Struct, frozen=True, gc=False):
    """Ask for more tail draws at a position (up), after `drawn` were refused."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")
    sid: int
    epoch: int
    position: int
    drawn: int


class Tails(msgspec.Struct, frozen=True, gc=False):
    """Bring more draws from the target outside its Top-K (down), after `drawn` earlier ones."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")
    sid: int
    epoch: int
    position: int
    drawn: int
    tails: Pairs


class Token(msgspec.Struct, frozen=True, gc=False):
    """Bring one token that the server decoded alone (down).

    `probability` is the target's for it, sent where the device compares its draft's; else None.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIB")
    sid: int
    position: int
    token: int
    device_turn: bool
    probability: float | None = None


class Close(msgspec.Struct, frozen=True, gc=False):
    """End a session (either way)."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<I")
    sid: int


class Error(msgspec.Struct, frozen=True, gc=False):
    """Refuse a session (down), with one line of text."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<I")
    sid: int
    text: str


Frame = Open | Draft | Verdict | NeedP | Tails | Token | Close | Error


def encode(frame: Frame, form: Format) -> bytes:
    """Encode a frame: u32 length, then MessagePack."""
    body = _ENCODER.encode(_to_wire(frame, form))
    assert len(body) <= MAX_FRAME_BYTES, "a frame is larger than the protocol allows"
    return _LENGTH.pack(len(body)) + body


def decode(data: bytes, form: Format | None = None) -> Frame:
    """Decode one whole frame.

    Args:
        data: what `encode` returned.
        form: what the session agreed on; None only for `Open`, which carries it.

    Raises:
        ProtocolError: if the bytes are no frame of this version.
    """
    if len(data) < 4 or _LENGTH.unpack_from(data)[0] != len(data) - 4:
        raise ProtocolError("the length prefix does not match the frame")
    if len(data) > MAX_FRAME_BYTES + 4:
        raise ProtocolError(f"a frame of {len(data)} bytes is above {MAX_FRAME_BYTES}")
    try:
        return _from_wire(_DECODER.decode(data[4:]), form)
    except (msgspec.MsgspecError, struct.error, ValueError) as error:
        raise ProtocolError(f"malformed frame: {error}") from error


def _to_wire(frame: Frame, form: Format) -> _Wire:
    match frame:
        case Draft():
            header = Draft.LAYOUT.pack(
                frame.sid, frame.round, frame.epoch, frame.base, frame.correction
            )
            wire = _DraftPart if frame.continues else _Draft
            return wire(header, form.pack_ids(frame.tokens), form.pack_rows(frame.rows))
        case Verdict():
            header = Verdict.LAYOUT.pack(
                frame.sid,
                frame.round,
                frame.epoch,
                frame.base,
                frame.accepted,
                frame.token,
                frame.device_turn,
                len(frame.top),
                frame.queue_us,
            )
            return _Verdict(header, form.pack_pairs(frame.top) + form.pack_pairs(frame.tails))
        case Open():
            header = Open.LAYOUT.pack(
                PROTOCOL_VERSION,
                _rule_byte(frame),
                frame.row_top_k,
                frame.sid,
                frame.vocab_size,
                frame.text_tokens,
                frame.max_new,
                frame.tokenizer_hash,
                frame.seed,
                frame.temperature,
                frame.top_k,
                frame.top_p,
                frame.eos,
            )
            return _Open(header, form.pack_ids(frame.prompt))
        case NeedP():
            return _NeedP(NeedP.LAYOUT.pack(frame.sid, frame.epoch, frame.position, frame.drawn))
        case Tails():
            header = Tails.LAYOUT.pack(frame.sid, frame.epoch, frame.position, frame.drawn)
            return _Tails(header, form.pack_pairs(frame.tails))
        case Token():
            header = Token.LAYOUT.pack(frame.sid, frame.position, frame.token, frame.device_turn)
            if frame.probability is None:
                return _Token(header)
            return _ShadowToken(header, struct.pack("<f", frame.probability))
        case Close():
            return _Close(Close.LAYOUT.pack(frame.sid))
        case Error():
            return _Error(Error.LAYOUT.pack(frame.sid), frame.text.encode())


def _from_wire(wire: _Wire, form: Format | None) -> Frame:
    if form is None:
        if not isinstance(wire, _Open):
            raise ProtocolError("a session begins with Open")
        return _read_open(wire)
    match wire:
        case _Draft() | _DraftPart():
            tokens = form.unpack_ids(wire.tokens)
            rows = form.unpack_rows(wire.rows, tokens)
            continues = isinstance(wire, _DraftPart)
            values = [*Draft.LAYOUT.unpack(wire.header), tokens, rows, continues]
            return Draft(*values)
        case _Verdict():
            *first, device_turn, top_count, queue_us = Verdict.LAYOUT.unpack(wire.header)
            cut = top_count * (form.id_bytes + 4)
            top = form.unpack_pairs(wire.row[:cut])
            tails = form.unpack_pairs(wire.row[cut:])
            values = [*first, bool(device_turn), top, tails, queue_us]
            return Verdict(*values)
        case _NeedP():
            return NeedP(*NeedP.LAYOUT.unpack(wire.header))
        case _Tails():
            values = [*Tails.LAYOUT.unpack(wire.header), form.unpack_pairs(wire.row)]
            return Tails(*values)
        case _Token() | _ShadowToken():
            sid, position, token, device_turn = Token.LAYOUT.unpack(wire.header)
            probability = None
            if isinstance(wire, _ShadowToken):
                (probability,) = unpack_probabilities(wire.probability)
            return Token(sid, position, token, bool(device_turn), probability)
        case _Open():
            return _read_open(wire)
        case _Close():
            return Close(*Close.LAYOUT.unpack(wire.header))
        case _Error():
            (sid,) = Error.LAYOUT.unpack(wire.header)
            return Error(sid, wire.text.decode())


_PROBABILITY_BITS = (32, 16, 8)
_LOSSY_BIT = 0x40


def _rule_byte(frame: Open) -> int:
    width = _PROBABILITY_BITS.index(frame.probability_bits)
    return frame.rule | width << 4 | (_LOSSY_BIT if frame.is_lossy else 0)


def _read_open(wire: _Open) -> Open:
    version, byte, row_top_k, sid, vocab_size, *rest = Open.LAYOUT.unpack(wire.header)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {version} is not {PROTOCOL_VERSION}")
    rule, width, is_lossy = RuleCode(byte & 0xF), byte >> 4 & 3, bool(byte & _LOSSY_BIT)
    if byte & 0x80 or width > 2 or ((width or is_lossy) and rule is not RuleCode.ID_PROB):
        raise ProtocolError(f"rule {byte:#04x} is unknown")
    form = Format(rule, vocab_size, row_top_k)
    prompt, bits = form.unpack_ids(wire.prompt), _PROBABILITY_BITS[width]
    values = [sid, rule, row_top_k, vocab_size, *rest, prompt, bits, is_lossy]
    frame = Open(*values)
    if frame.text_tokens > len(prompt):
        raise ProtocolError(f"{frame.text_tokens} text tokens in a prompt of {len(prompt)}")
    return frame
