"""Many phones on one server process: rounds per second, the server's own overhead, its memory.

A table stands for the language models, so that what is measured is the runtime. The server is a
process of its own; so is each group of phones. Every answer is compared with the target alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import time
import urllib.request
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from uara.decoding.contract import Contract
from uara.decoding.control import Plan
from uara.decoding.exactness import check_greedy_exact
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.nodes import KernelSettings
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.records import RequestRecord
from uara.decoding.rules import GREEDY
from uara.decoding.scenario import Request
from uara.decoding.server_front import ServerFront, ServerLimits
from uara.decoding.server_metrics import ServerMetrics
from uara.decoding.table_model import TableModel
from uara.decoding.wall_device import Dial, WallDevice
from uara.decoding.wall_server import WallServer
from uara.serving.machine import ForwardTime

VOCAB = 32
TOKEN = b"the token of this benchmark"
FORWARD_S = 5e-3
DRAFT_LENGTH = 4
ANSWER_TOKENS = 64
STRANGERS = 1000


def models() -> tuple[TableModel, TableModel]:
    """Make draft and target."""
    generator = np.random.default_rng(0)
    target = generator.normal(0, 1, (VOCAB,) * 3)
    return TableModel(target + generator.normal(0, 0.5, target.shape)), TableModel(target)


def settings() -> KernelSettings:
    """Make what both ends agree on: greedy, so that every answer can be checked."""
    return KernelSettings(
        slot_s=1.0,
        contract=Contract(RuleCode.IDS, GREEDY, 1, 1),
        session_seed=lambda sid: derive_seed("load", sid),
    )


def resident_bytes(process: int) -> int:
    """Read how much memory a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(pipe: Connection) -> None:
    """Serve until told to stop; tells its port and that of its metrics."""
    torch.set_num_threads(1)
    verifier = ModelVerifier(models()[1])
    limits = ServerLimits(greeting_s=2.0)
    front = ServerFront(verifier, VOCAB, 0, limits, TOKEN)
    metrics = ServerMetrics(front)
    server = WallServer(
        front,
        verifier,
        max_frame_bytes=limits.max_frame_bytes,
        max_backlog_bytes=limits.max_backlog_bytes,
        drain_s=5.0,
        pace=ForwardTime(FORWARD_S, 0.0, 0.0, 0.0),
        observe=metrics.observe,
    )

    async def run() -> None:
        port = await server.listen("127.0.0.1", 0)
        pipe.send((port, metrics.listen(0)))
        await asyncio.to_thread(pipe.recv)
        await server.drain()

    asyncio.run(run())


@dataclass(frozen=True)
class Load:
    """What a group of phones did."""

    requests: int
    rounds: int
    wrong: int
    refused: int


def phones(pipe: Connection, port: int, first: int, count: int, rate: float) -> None:
    """Let phones ask one request after the other until told to stop.

    Args:
        pipe: to the benchmark.
        port: of the server.
        first: number of the first phone.
        count: of phones.
        rate: rounds per second that a phone aims at.
    """
    torch.set_num_threads(1)
    (draft, target), own = models(), settings()
    stop, asked, records = asyncio.Event(), [], []

    async def phone(number: int) -> None:
        async with WallDevice(draft, Dial("127.0.0.1", port, TOKEN)) as device:
            for turn in range(10**6):
                if stop.is_set():
                    return
                sid = number * 10**4 + turn
                text = (sid % VOCAB, sid // VOCAB % VOCAB)
                request = Request(sid, 0, 0.0, text, 2, ANSWER_TOKENS)
                begun = time.monotonic()
                record = RequestRecord(
                    sid=sid, device=number, task=0, arrival_s=begun, prompt_tokens=2, text_tokens=2
                )
                await device.request(
                    own.opening(request, VOCAB), Plan(DRAFT_LENGTH), own.contract, record
                )
                asked.append(request)
                records.append(record)
                rest_s = record.verifications / rate - (time.monotonic() - begun)
                if rest_s > 0:
                    await asyncio.sleep(rest_s)

    async def run() -> None:
        work = [asyncio.create_task(phone(first + index)) for index in range(count)]
        await asyncio.to_thread(pipe.recv)
        stop.set()
        await asyncio.gather(*work)

    asyncio.run(run())
    check = check_greedy_exact(target, asked, records)
    refused = sum(bool(record.refusal) for record in records)
    rounds = sum(record.verifications for record in records)
    pipe.send(Load(len(records), rounds, len(check.unexplained), refused))


def strangers(port: int, count: int) -> int:
    """Open connections that send noise or nothing; return how many there were."""
    noise, lines = random.Random(0), []
    for index in range(count):
        line = socket.create_connection(("127.0.0.1", port), 5.0)
        if index % 2:
            line.sendall(noise.randbytes(noise.randrange(1, 200)))
        lines.append(line)
        if len(lines) > 500:
            lines.pop(0).close()
    for line in lines:
        line.close()
    return count


async def uninvited(port: int) -> str:
    """Ask without the token; return what the server says."""
    own = settings()
    async with WallDevice(models()[0], Dial("127.0.0.1", port, b"a guess")) as device:
        record = RequestRecord(
            sid=1, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2
        )
        opening = own.opening(Request(1, 0, 0.0, (1, 2), 2, 4), VOCAB)
        await device.request(opening, Plan(DRAFT_LENGTH), own.contract, record)
    return record.refusal


class Readings:
    """The metrics of a server, as text on loopback."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def read(self) -> dict[str, float]:
        """Read all numbers by their names and labels."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(self._url, timeout=10).read().decode()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in rows}


def share_above(before: dict[str, float], after: dict[str, float], name: str, limit: str) -> float:
    """Compute the share of durations above a limit, between two readings of a histogram."""
    count = f"uara_{name}_seconds_count"
    below = f'uara_{name}_seconds_bucket{{le="{limit}"}}'
    total = after[count] - before[count]
    return 1.0 - (after[below] - before[below]) / total if total else 0.0


def measure(seconds: float, num_phones: int, groups: int, rate: float) -> dict[str, object]:
    """Load a server for two spans of time, with strangers in the second one.

    Args:
        seconds: of both together.
        num_phones: in all.
        groups: processes that they are spread over.
        rate: rounds per second that all aim at.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port, metrics_port = ours.recv()
    metrics, pipes, processes = Readings(metrics_port), [], []
    for index in range(groups):
        own, other = context.Pipe()
        each = num_phones // groups
        args = (other, port, index * each, each, rate / num_phones)
        processes.append(context.Process(target=phones, args=args, daemon=True))
        processes[-1].start()
        pipes.append(own)
    while metrics.read().get("uara_connections", 0.0) < num_phones:
        time.sleep(0.2)
    assert server.pid is not None, "the server has begun"
    memory, readings, spans = [], [metrics.read()], [time.monotonic()]
    refusal, thrown = "", 0
    for half in range(2):
        samples = []
        end = time.monotonic() + seconds / 2
        if half:
            refusal = asyncio.run(uninvited(port))
            thrown = strangers(port, STRANGERS)
        while time.monotonic() < end:
            samples.append(resident_bytes(server.pid))
            time.sleep(0.5)
        memory.append(float(np.mean(samples)) if samples else float(resident_bytes(server.pid)))
        readings.append(metrics.read())
        spans.append(time.monotonic())
    for pipe in pipes:
        pipe.send("stop")
    loads: list[Load] = [pipe.recv() for pipe in pipes]
    ours.send("stop")
    server.join(20)
    rounds = 'uara_events_total{event="rounds"}'
    return {
        "phones": num_phones,
        "seconds": spans[-1] - spans[0],
        "rounds_per_s": [
            (after[rounds] - before[rounds]) / (end - begun)
            for before, after, begun, end in zip(
                readings, readings[1:], spans, spans[1:], strict=False
            )
        ],
        "requests": sum(load.requests for load in loads),
        "wrong_answers": sum(load.wrong for load in loads),
        "refused_requests": sum(load.refused for load in loads),
        "resident_mb": [value / 1e6 for value in memory],
        "memory_growth_percent": 100 * (memory[1] / memory[0] - 1),
        "share_above_5_ms": {
            name: share_above(readings[0], readings[-1], name, "0.005")
            for name in ("take", "settle", "take_busy", "settle_busy")
        },
        "without_token": refusal,
        "strangers": thrown,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--phones", type=int, default=64)
    parser.add_argument("--groups", type=int, default=2, help="processes of phones")
    parser.add_argument("--rate", type=float, default=330.0, help="rounds per second in all")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.seconds, asked.phones, asked.groups, asked.rate), indent=1))


if __name__ == "__main__":
    main()
