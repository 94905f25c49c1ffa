"""One phone of a run on the wall clock, as a process: a job comes in on stdin, records go out.

The first line in is the job; `ready` goes out once all servers have welcomed this device; the next
line in is the time at which the run begins, on the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import torch

from uara.decoding.contract import Contract
from uara.decoding.control import WIRE_MODES, Plan
from uara.decoding.kv import TransformerModel
from uara.decoding.models import load_model, load_tokenizer, tokenizer_hash
from uara.decoding.nodes import KernelSettings
from uara.decoding.protocol import RuleCode
from uara.decoding.records import RequestRecord
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request
from uara.decoding.transport import until
from uara.decoding.wall_device import Dial, Uplink, WallDevice


class SlotOfDevice(msgspec.Struct, frozen=True, array_like=True):
    """What a device is to do in one slot."""

    server: int
    draft_length: int
    uplink_bps: float
    downlink_bps: float


class DeviceJob(msgspec.Struct, frozen=True, kw_only=True):
    """All that a phone needs for a run.

    Attributes:
        draft: folder of the draft model.
        addresses: (host, port) of each server.
        rtt_s: to each server.
        contract: fields of `Contract`, the rule as its code and the sampling as its fields.
        requests: in the order of their arrival; their `device` is this one.
        seeds: of their sessions.
        slots: plans; the last one stays.
        slot_s: their length.
        mode: of all requests.
        window: of `async`.
        overhead_bytes: priced with every frame.
        draft_time_s: per drafted token; 0: as fast as this machine is.
        read_token_s: per prompt token read.
    """

    draft: str
    addresses: list[tuple[str, int]]
    rtt_s: list[float]
    rule: int
    sampling: tuple[float, int, float]
    top_k: int
    tail_draws: int
    probability_bits: int
    is_lossy: bool
    requests: list[Request]
    seeds: list[int]
    slots: list[SlotOfDevice]
    slot_s: float
    mode: str
    window: int
    overhead_bytes: int
    draft_time_s: float
    read_token_s: float

    @property
    def contract(self) -> Contract:
        """What both ends agree on."""
        return Contract(
            RuleCode(self.rule),
            Sampling(*self.sampling),
            self.top_k,
            self.tail_draws,
            self.probability_bits,
            self.is_lossy,
        )


class DeviceReport(msgspec.Struct, kw_only=True):
    """What a phone tells after a run; times count from its beginning."""

    requests: list[RequestRecord]
    residuals_s: list[float]
    late_drafts: int
    resumptions: int


@dataclass
class _Phone:
    job: DeviceJob
    ends: list[WallDevice]
    settings: KernelSettings
    vocab_size: int
    begin_s: float

    def plan(self, slot: SlotOfDevice) -> Plan:
        return Plan(
            slot.draft_length,
            WIRE_MODES.index(self.job.mode),
            self.job.window,
            slot.downlink_bps,
            self.job.rtt_s[slot.server] / 2,
        )

    async def play(self) -> list[RequestRecord]:
        """Begin requests at slot boundaries, as the virtual clock does, and follow the plans."""
        waiting, found = list(zip(self.job.requests, self.job.seeds, strict=True)), []
        running: asyncio.Task[RequestRecord] | None = None
        index, number = 0, 0
        while waiting or running is not None:
            boundary = self.begin_s + number * self.job.slot_s
            if running is not None:
                await asyncio.wait([running], timeout=max(0.0, boundary - time.monotonic() - 2e-3))
            await until(boundary)
            slot = self.job.slots[min(number, len(self.job.slots) - 1)]
            if running is not None and running.done():
                found.append(running.result())
                running = None
            if running is None:
                index = slot.server  # a request stays with its first server
            end = self.ends[index]
            end.shape(slot.uplink_bps, self.job.rtt_s[index] / 2)
            if running is not None:
                end.replan(self.plan(slot))
            elif waiting and self.begin_s + waiting[0][0].arrival_s <= boundary:
                request, _ = waiting.pop(0)
                running = asyncio.create_task(self.ask(end, request, self.plan(slot)))
                await asyncio.sleep(0)
            number += 1
        return found

    async def ask(self, end: WallDevice, request: Request, plan: Plan) -> RequestRecord:
        record = RequestRecord(
            sid=request.sid,
            device=request.device,
            task=request.task,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            text_tokens=len(request.text),
        )
        opening = self.settings.opening(request, self.vocab_size)
        await end.request(
            opening, plan, self.job.contract, record, attached_bits=request.attachment_bits
        )
        for name in ("start_s", "first_token_s", "end_s", "finish_s"):
            setattr(record, name, getattr(record, name) - self.begin_s)
        return record


async def _run(job: DeviceJob) -> DeviceReport:
    tokenizer = load_tokenizer(job.draft)
    size = len(tokenizer)
    model = TransformerModel(load_model(job.draft), size)
    seeds = {request.sid: seed for request, seed in zip(job.requests, job.seeds, strict=True)}
    settings = KernelSettings(
        slot_s=job.slot_s,
        contract=job.contract,
        session_seed=seeds.__getitem__,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    pace = DeviceProfile(job.draft_time_s, job.read_token_s) if job.draft_time_s else None
    uplink = Uplink(overhead_bytes=job.overhead_bytes)
    ends = [
        WallDevice(model, Dial(host, port), pace=pace, uplink=uplink)
        for host, port in job.addresses
    ]
    async with AsyncExitStack() as stack:
        for end in ends:
            await stack.enter_async_context(end)
            await end.welcomed()
        print("ready", flush=True)
        begin = await asyncio.to_thread(sys.stdin.readline)
        phone = _Phone(job, ends, settings, size, float(begin))
        records = await phone.play()
    return DeviceReport(
        requests=records,
        residuals_s=[residual for end in ends for residual in end.residuals_s],
        late_drafts=sum(end.late_drafts for end in ends),
        resumptions=sum(end.front.resumptions for end in ends),
    )


def main() -> None:
    """Read a job, play it, write the report."""
    torch.set_num_threads(1)
    job = msgspec.json.decode(sys.stdin.readline().encode(), type=DeviceJob)
    report = asyncio.run(_run(job))
    print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
