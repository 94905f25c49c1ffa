"""Both ends over real sockets on loopback: tokens, faults, limits, secrets."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import math
import random
import shutil
import ssl
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from uara.decoding import transport
from uara.decoding.contract import Contract
from uara.decoding.control import Hello, Plan, decode_control, encode_control
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import SequenceModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.protocol import Format, RuleCode, encode
from uara.decoding.records import RequestRecord
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.server_front import ServerFront, ServerLimits
from uara.decoding.server_log import log_to
from uara.decoding.transport import ShapedSender
from uara.decoding.wall_device import Dial, WallDevice
from uara.decoding.wall_server import WallServer
from uara.errors import UserError
from uara.serving.machine import ForwardTime

VOCAB = 16
MODES = ("sd", "psd", "async")
Model = Callable[[int, int], SequenceModel]


def settings_of(rule: RuleCode = RuleCode.ID_PROB, mode: str = "sd") -> KernelSettings:
    sampling = GREEDY if rule is RuleCode.IDS else Sampling()
    return KernelSettings(
        slot_s=1.0,
        contract=Contract(rule, sampling, 4, 8),
        session_seed=lambda sid: 100 + sid,
        mode=mode,
        window=2,
    )


def request_of(sid: int, device: int = 0, max_new: int = 24) -> Request:
    return Request(sid, device, 0.0, (1, 2, 3), 3, max_new)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ends:
    """A server and the means to connect devices to it."""

    def __init__(self, target: SequenceModel, token: bytes = b"", **limits: float) -> None:
        self.target, self.token = target, token
        self.limits = ServerLimits.model_validate(limits)
        self.port = 0
        self.pace: ForwardTime | None = None
        self.context: ssl.SSLContext | None = None

    async def serve(self, metrics_of: Callable | None = None) -> WallServer:
        verifier, limits = ModelVerifier(self.target), self.limits
        front = ServerFront(verifier, VOCAB, 0, limits, self.token or None)
        self.metrics = None if metrics_of is None else metrics_of(front)
        self.server = WallServer(
            front,
            verifier,
            max_frame_bytes=limits.max_frame_bytes,
            max_backlog_bytes=limits.max_backlog_bytes,
            drain_s=limits.drain_s,
            pace=self.pace,
            observe=self.metrics.observe if self.metrics else lambda name, seconds: None,
        )
        self.port = await self.server.listen("127.0.0.1", self.port, self.context)
        return self.server

    def device(self, draft: SequenceModel, token: bytes | None = None) -> WallDevice:
        secret = self.token if token is None else token
        return WallDevice(draft, Dial("127.0.0.1", self.port, secret))

    async def stranger(
        self, hello: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect without a device behind it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(hello)
        return reader, writer


async def ask(
    device: WallDevice, settings: KernelSettings, request: Request, length: int = 3
) -> RequestRecord:
    plan = Plan(length, MODES.index(settings.mode), settings.window)
    record = RequestRecord(
        sid=request.sid,
        device=request.device,
        task=0,
        arrival_s=time.monotonic(),
        prompt_tokens=request.prompt_tokens,
        text_tokens=len(request.text),
    )
    opening = settings.opening(request, VOCAB)
    return await device.request(opening, plan, settings.contract, record)


def virtual(
    target: SequenceModel,
    draft: SequenceModel,
    settings: KernelSettings,
    requests: list[Request],
    plan: object,
) -> list[list[int]]:
    """Answer the same requests under the virtual clock."""
    count = 1 + max(request.device for request in requests)
    kernel = VirtualKernel(
        draft,
        target,
        [DeviceProfile(0.01)] * count,
        [ServerProfile(ForwardTime(0.03, 0.0, 0.0, 0.0), 10**6)],
        requests,
        plan,
        settings,
    )
    records = kernel.run().requests
    return [records[request.sid].tokens for request in requests]


def play(work: Awaitable[None], limit_s: float = 60.0) -> None:
    asyncio.run(asyncio.wait_for(work, limit_s))


@pytest.fixture
def models(table_model: Model) -> tuple[SequenceModel, SequenceModel]:
    target, draft = table_model(VOCAB, 1), table_model(VOCAB, 1)
    draft.logits = draft.logits + np.random.default_rng(2).normal(0, 0.6, draft.logits.shape)
    return target, draft


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", [RuleCode.IDS, RuleCode.ID_PROB, RuleCode.TOPK])
def test_sockets_and_the_virtual_clock_give_the_same_tokens(
    models: tuple[SequenceModel, SequenceModel], fixed_plan: type, rule: RuleCode, mode: str
) -> None:
    target, draft = models
    settings = settings_of(rule, mode)
    requests = [request_of(sid, device=sid) for sid in range(3)]
    plan = fixed_plan.of(draft_length=3, devices=3)
    expected = virtual(target, draft, settings, requests, plan)

    async def run() -> None:
        ends = Ends(target)
        server = await ends.serve()
        devices = [ends.device(draft) for _ in requests]
        for device in devices:
            await device.__aenter__()
        found = await asyncio.gather(
            *(ask(d, settings, r) for d, r in zip(devices, requests, strict=True))
        )
        assert [record.tokens for record in found] == expected
        assert not any(record.refusal for record in found)
        for device in devices:
            await device.__aexit__()
        await server.close()

    play(run())


@pytest.mark.parametrize("mode", MODES)
def test_a_server_restarted_in_mid_request_goes_on_where_the_device_stands(
    models: tuple[SequenceModel, SequenceModel], fixed_plan: type, mode: str
) -> None:
    target, draft = models
    settings, request = settings_of(mode=mode), request_of(0, max_new=120)
    expected = virtual(target, draft, settings, [request], fixed_plan.of(draft_length=3))

    async def run() -> None:
        ends = Ends(target)
        ends.pace = ForwardTime(2e-3, 0.0, 0.0, 0.0)
        server = await ends.serve()
        async with ends.device(draft) as device:
            asked = asyncio.create_task(ask(device, settings, request))
            for stop in (20, 50, 80):
                while device.front.state is None or len(device.front.state.answer.tokens) < stop:
                    await asyncio.sleep(0)
                await server.close()
                assert server.front.num_sessions == 0
                server = await ends.serve()
            record = await asked
        assert not record.refusal
        assert [record.tokens] == expected
        assert device.front.resumptions >= 3
        await server.close()

    play(run())


def test_a_server_out_of_reach_ends_a_request_with_a_reason(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    async def run() -> None:
        ends = Ends(models[0])
        await (await ends.serve()).close()
        dial = Dial("127.0.0.1", ends.port, patience_s=0.05)
        async with WallDevice(models[1], dial) as device:
            record = await ask(device, settings_of(), request_of(0))
        assert record.refusal.startswith("no server was reached")

    play(run())


def test_a_device_that_vanishes_leaves_nothing_behind(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    target, draft = models

    async def run() -> None:
        ends = Ends(target)
        ends.pace = ForwardTime(5e-3, 0.0, 0.0, 0.0)
        server = await ends.serve()
        device = ends.device(draft)
        async with device:
            asked = asyncio.create_task(ask(device, settings_of(), request_of(0, max_new=500)))
            while device.front.state is None or len(device.front.state.answer.tokens) < 10:
                await asyncio.sleep(0)
            asked.cancel()
        while server.front.num_sessions or server.front.num_greeted:
            await asyncio.sleep(0)
        async with ends.device(draft) as other:
            record = await ask(other, settings_of(), request_of(1))
        assert len(record.tokens) == 24
        await server.close()

    play(run())


def test_a_device_without_the_token_is_refused(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    target, draft = models

    async def run() -> None:
        ends = Ends(target, token=b"a long secret")
        server = await ends.serve()
        for wrong in (b"", b"a long secre", b"another"):
            async with ends.device(draft, wrong) as device:
                record = await ask(device, settings_of(), request_of(0))
            assert record.refusal == "the token is wrong or missing"
            assert not record.tokens
        async with ends.device(draft) as device:
            assert len((await ask(device, settings_of(), request_of(0))).tokens) == 24
        assert server.front.counts["refused_tokens"] == 3
        await server.close()

    play(run())


def test_a_half_open_connection_is_replaced_by_its_own_device(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    async def run() -> None:
        ends = Ends(models[0])
        server = await ends.serve()
        hello = encode_control(Hello(1, b"the same device!"))
        opened = encode(
            settings_of(RuleCode.IDS).opening(request_of(0), VOCAB), Format(RuleCode.IDS, VOCAB, 4)
        )
        first, _ = await ends.stranger(hello + encode_control(Plan(2)) + opened)
        assert await transport.read_frame(first, 10**6)
        assert await transport.read_frame(first, 10**6)  # the first token
        assert server.front.num_sessions == 1
        second, _ = await ends.stranger(hello)
        assert decode_control(await transport.read_frame(second, 10**6)).vocab_size == VOCAB
        assert server.front.num_sessions == 0
        assert await transport.read_frame(first, 10**6) is None
        await server.close()

    play(run())


def test_silence_and_slow_readers_are_hung_up_on(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    async def run() -> None:
        ends = Ends(models[0], greeting_s=0.2, idle_s=0.3, max_backlog_bytes=50_000)
        server = await ends.serve()
        silent, _ = await ends.stranger()
        idle, _ = await ends.stranger(encode_control(Hello(1, b"a" * 16)))
        slow, writer = await ends.stranger(encode_control(Hello(1, b"b" * 16)))
        # At 8 bit/s nothing that the server sends gets away.
        writer.write(encode_control(Plan(0, downlink_bps=8.0)))
        form = Format(RuleCode.IDS, VOCAB, 4)
        stray = encode(settings_of(RuleCode.IDS).opening(request_of(0, max_new=10**6), VOCAB), form)
        writer.write(stray * 3_000)  # each one is refused
        assert await silent.read() == b""
        assert await transport.read_frame(idle, 10**6)
        assert await idle.read() == b""
        with contextlib.suppress(ConnectionError):
            await slow.read()
        assert server.front.num_greeted == 0
        await server.close()

    play(run())


def test_strangers_crowd_out_strangers_and_nobody_else(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    target, draft = models
    noise = random.Random(0)

    async def run() -> None:
        ends = Ends(target, max_strangers=16)
        ends.pace = ForwardTime(2e-3, 0.0, 0.0, 0.0)
        server = await ends.serve()
        async with ends.device(draft) as device:
            asked = asyncio.create_task(ask(device, settings_of(), request_of(0, max_new=60)))
            lines = []
            for index in range(200):
                line = await ends.stranger(noise.randbytes(50) if index % 2 else b"")
                lines.append(line)
            record = await asked
        assert len(record.tokens) == 60
        assert not record.refusal
        assert server.front.num_greeted <= 1
        for _, writer in lines:
            writer.close()
        await server.close()

    play(run())


def test_an_oversized_frame_ends_the_connection_before_it_is_read(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    async def run() -> None:
        ends = Ends(models[0], max_frame_bytes=1000)
        server = await ends.serve()
        reader, writer = await ends.stranger(encode_control(Hello(1, b"a" * 16)))
        writer.write(struct.pack("<I", 2**31))
        assert await transport.read_frame(reader, 10**6)
        assert await reader.read() == b""
        await server.close()

    play(run())


def test_a_draining_server_ends_what_is_open_and_takes_nothing_new(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    target, draft = models

    async def run() -> None:
        ends = Ends(target)
        ends.pace = ForwardTime(1e-3, 0.0, 0.0, 0.0)
        server = await ends.serve()
        async with ends.device(draft) as device, ends.device(draft) as other:
            await other.welcomed()
            asked = asyncio.create_task(ask(device, settings_of(), request_of(0, max_new=60)))
            while device.front.state is None or not device.front.state.answer.tokens:
                await asyncio.sleep(0)
            stopped = asyncio.create_task(server.drain())
            await asyncio.sleep(0)
            late = await ask(other, settings_of(), request_of(1))
            assert late.refusal == "the server is shutting down"
            record = await asked
            await stopped
        assert (len(record.tokens), record.refusal) == (60, "")

    play(run())


def test_a_broken_forward_ends_its_sessions_and_no_others(
    models: tuple[SequenceModel, SequenceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = models

    async def run() -> None:
        ends = Ends(target)
        server = await ends.serve()
        async with ends.device(draft) as device:
            monkeypatch.setattr(ModelVerifier, "forward", lambda *_: 1 / 0)
            record = await ask(device, settings_of(), request_of(0))
            assert record.refusal == "internal error"
            monkeypatch.undo()
            assert len((await ask(device, settings_of(), request_of(1))).tokens) == 24
        await server.close()

    logging.getLogger("uara.serve").addHandler(logging.NullHandler())
    play(run())


def test_logs_are_json_and_hold_no_tokens(models: tuple[SequenceModel, SequenceModel]) -> None:
    stream = io.StringIO()
    log_to(stream)

    async def run() -> None:
        ends = Ends(models[0], token=b"hidden")
        server = await ends.serve()
        async with ends.device(models[1]) as device:
            await ask(device, settings_of(), request_of(0))
        await server.close()

    play(run())
    logging.getLogger("uara.serve").handlers.clear()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines][:1] == ["listening"]
    assert lines[-1]["sessions"] == 1
    assert "hidden" not in stream.getvalue()
    known = {"time", "level", "event", "host", "port", "connection", "reason"}
    assert all(set(line) <= known or line["event"] == "stopped" for line in lines)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_needs_the_certificate_that_is_trusted(
    models: tuple[SequenceModel, SequenceModel], tmp_path: Path
) -> None:
    target, draft = models
    paths = []
    for name in ("own", "other"):
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-out", str(certificate), "-keyout", str(key)),
            ],
            check=True,
            capture_output=True,
        )
        paths.append((certificate, key))
    (own, key), (other, _) = paths

    async def run() -> None:
        ends = Ends(target)
        ends.context = transport.server_context(own, key)
        server = await ends.serve()
        for authority, works in ((own, True), (other, False), (None, False)):
            context = transport.device_context(authority)
            dial = Dial("127.0.0.1", ends.port, context=context)
            async with WallDevice(draft, dial, max_losses=0) as device:
                record = await ask(device, settings_of(), request_of(0))
            assert (len(record.tokens), not record.refusal) == ((24, True) if works else (0, False))
        await server.close()

    play(run())
    with pytest.raises(UserError, match="cannot be used"):
        transport.server_context(own, other)


class Clock:
    """A clock that moves only when somebody waits for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        self.now += 1e-5
        return self.now


def test_shaped_frames_leave_at_the_deadlines_of_the_link_model() -> None:
    clock, written = Clock(), []
    sender = ShapedSender(lambda data: written.append((clock.now, data)), 10, clock)

    async def run() -> None:
        sender.shape(8_000.0, 0.004)  # a byte takes a millisecond
        pump = asyncio.create_task(sender.run())
        begun = clock.now
        for index in range(5):
            sender.send(bytes([index]) * 10)
        while len(written) < 5:
            await asyncio.sleep(0)
        pump.cancel()
        for index, (when, data) in enumerate(written):
            # 20 bytes each with the overhead, then the delay; errors do not add up.
            assert data == bytes([index]) * 10
            assert 0 <= when - (begun + 0.020 * (index + 1) + 0.004) < 1e-3

    play(run())
    assert len(sender.residuals_s) == 5
    assert max(sender.residuals_s) < 1e-3


def test_a_link_without_rate_or_delay_writes_at_once() -> None:
    written: list[bytes] = []
    sender = ShapedSender(written.append)
    sender.send(b"now")
    assert written == [b"now"]
    sender.shape(math.inf, 1.0)
    sender.send(b"later")
    assert written == [b"now"]


def test_addresses_and_secrets(tmp_path: Path) -> None:
    assert transport.parse_address("127.0.0.1:70") == ("127.0.0.1", 70)
    assert transport.parse_address("[::1]:0") == ("::1", 0)
    for wrong in ("localhost", ":80", "host:", "host:99999", "host:x"):
        with pytest.raises(UserError, match="no HOST:PORT"):
            transport.parse_address(wrong)
    assert transport.is_loopback("127.0.0.1")
    assert transport.is_loopback("localhost")
    assert not transport.is_loopback("0.0.0.0")
    secret = tmp_path / "token"
    with pytest.raises(UserError, match="does not exist"):
        transport.read_token(secret, None)
    secret.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        transport.read_token(secret, None)
    secret.write_text("word\n")
    assert transport.read_token(secret, "other") == b"word"
    assert transport.read_token(None, " other ") == b"other"
    assert transport.read_token(None, None) == b""


def test_metrics_count_what_happens_on_loopback(
    models: tuple[SequenceModel, SequenceModel],
) -> None:
    pytest.importorskip("prometheus_client")
    from uara.decoding.server_metrics import ServerMetrics

    async def run() -> None:
        ends = Ends(models[0])
        server = await ends.serve(ServerMetrics)
        metrics = ends.metrics
        async with ends.device(models[1]) as device:
            await ask(device, settings_of(), request_of(0))
        port = metrics.listen(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        assert 'uara_events_total{event="sessions"} 1.0' in text
        assert "uara_forward_seconds_count" in text
        assert "uara_sessions 0.0" in text
        await server.close()

    play(run())
