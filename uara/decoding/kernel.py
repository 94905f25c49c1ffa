"""A run under a virtual clock: real tokens, real frames, modelled times.

Shape legend: M devices, E servers. A heap of events drives the machines of all devices and servers.
Models run when their job starts; its result becomes an event after the time that the hardware's
profile gives. Frames are encoded, travel by their bytes over links whose rates a plan sets slot by
slot, and are decoded at the other end. Nothing depends on the host's speed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from uara.decoding import device as dev
from uara.decoding import server as srv
from uara.decoding.batcher import Forward
from uara.decoding.drafter import Drafter
from uara.decoding.evolve import evolve
from uara.decoding.kv import SequenceModel
from uara.decoding.local_device import LocalState
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.nodes import (
    DeviceNode,
    KernelSettings,
    Parcel,
    Scatter,
    ServerNode,
    StalledRunError,
)
from uara.decoding.parallel_device import ParallelDeviceState
from uara.decoding.parallel_session import ParallelSession
from uara.decoding.protocol import Draft, Format, Frame, Open, Token, Verdict, decode, encode
from uara.decoding.randomness import Draws
from uara.decoding.records import Recorder, RequestRecord, Work
from uara.decoding.scenario import (
    DeviceProfile,
    ForeignArrival,
    Request,
    ServerProfile,
    SlotPlan,
)
from uara.decoding.shadow import Shadow
from uara.serving.modes import MODES

__all__ = ["DeviceNode", "KernelSettings", "Planner", "ServerNode", "VirtualKernel"]

_MODE_NAMES = tuple(MODES)


class Planner(Protocol):
    """Decides at every slot boundary from what the running system shows."""

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Return the plan of the slot that begins now."""


class VirtualKernel:
    """Runs requests to their ends; see the module's docstring."""

    def __init__(
        self,
        draft: SequenceModel,
        target: SequenceModel,
        devices: Sequence[DeviceProfile],
        servers: Sequence[ServerProfile],
        requests: Sequence[Request],
        planner: Planner,
        settings: KernelSettings,
        foreign: Sequence[ForeignArrival] = (),
    ) -> None:
        """Set a run up; `run` plays it."""
        self.settings = settings
        self.planner = planner
        self.draft_model = draft
        self.devices = [DeviceNode(profile) for profile in devices]
        self.servers = [
            ServerNode(
                profile,
                ModelVerifier(target, settings.shadows),
                settings.server_state(index, profile, target.vocab_size),
            )
            for index, profile in enumerate(servers)
        ]
        self.recorder = Recorder(settings.records)
        self.owner: dict[int, int] = {}
        self.plan: SlotPlan | None = None
        self.plans: list[SlotPlan] = []
        self.now = 0.0
        self.slot = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._draws: dict[int, Draws] = {}
        self._scatter = Scatter(settings.jitter)
        self._closed: set[int] = set()
        self._last_commit_s = 0.0
        form = settings.contract
        self._format = Format(form.rule, target.vocab_size, form.top_k, form.probability_bits)
        self._unfinished = len(requests)
        last_arrival_s = max((request.arrival_s for request in requests), default=0.0)
        self._last_slot = math.ceil(last_arrival_s / settings.slot_s) + settings.drain_slots
        for request in requests:
            self._at(request.arrival_s, partial(self._arrive, request))
        for load in foreign:
            event = srv.ForeignLoad(load.rows, load.prefill_tokens)
            self._at(load.time_s, partial(self._step_server, load.server, event))
        self._at(0.0, self._begin_slot)

    def run(self) -> Recorder:
        """Play events until all requests are finished or the cap is reached; return the records."""
        while self._unfinished and self.slot <= self._last_slot:
            assert self._events, "requests are unfinished but nothing will happen"
            self.now, _, action = heapq.heappop(self._events)
            action()
        for node in self.devices:
            self._count_draws(node)
        self.recorder.cap(self.now)
        return self.recorder

    def _at(self, time_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, action))

    # Requests and slots

    def _arrive(self, request: Request) -> None:
        self.devices[request.device].waiting.append(request)
        self.recorder.requests[request.sid] = RequestRecord(
            sid=request.sid,
            device=request.device,
            task=request.task,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            text_tokens=len(request.text),
        )

    def _begin_slot(self) -> None:
        """Admit requests, ask for a plan, and apply it."""
        self._check_progress()
        starting = []
        for index, node in enumerate(self.devices):
            if node.request is None and node.waiting:
                node.request = node.waiting.popleft()
                starting.append(index)
        plan = self.planner.plan(self.now, self)
        self.plan = plan
        self.plans.append(plan)
        for index, node in enumerate(self.devices):
            draft_length = int(plan.draft_length[index])
            for link, rate in (
                (node.uplink, plan.uplink_bps[index]),
                (node.downlink, plan.downlink_bps[index]),
            ):
                link.set_rate(float(rate), self.now)
            self._announce(index, is_up=True)
            self._announce(index, is_up=False)
            if node.request is not None:
                self._step_device(index, dev.Replan(draft_length))
                self._replan_server(node.request.sid, index)
        for index in starting:
            self._start(index)
        self.slot += 1
        self._at(self.slot * self.settings.slot_s, self._begin_slot)

    def _check_progress(self) -> None:
        limit_s = self.settings.watchdog_s
        alive = [node.state.sid for node in self.devices if node.request is not None]
        if not alive:
            self._last_commit_s = self.now
        if limit_s is not None and self.now - self._last_commit_s > limit_s:
            raise StalledRunError(
                f"requests {alive} are alive at {self.now:.3f} s, but nothing was committed since "
                f"{self._last_commit_s:.3f} s"
            )

    def _mode(self, index: int) -> str:
        assert self.plan is not None, "a mode needs a plan"
        plan = self.plan
        return self.settings.mode if plan.mode is None else _MODE_NAMES[int(plan.mode[index])]

    def _replan_server(self, sid: int, device: int) -> None:
        owner = self.owner.get(sid)
        if owner is None or self.plan is None:
            return
        event = srv.Replan(sid, int(self.plan.server[device]), int(self.plan.draft_length[device]))
        self._step_server(owner, event)

    def _start(self, index: int) -> None:
        node, contract = self.devices[index], self.settings.contract
        request = node.request
        assert request is not None, "a start needs a request"
        assert self.plan is not None, "a start needs a plan"
        self.recorder.requests[request.sid].start_s = self.now
        seed = self.settings.session_seed(request.sid)
        node.drafter = Drafter(self.draft_model, contract, self.settings.draws(seed))
        if self.settings.shadows:
            node.shadow = Shadow(self.draft_model, contract, request.text, Draws(seed))
        unread = request.prompt_tokens - len(request.text)
        node.unread_tokens = unread
        draft_length = int(self.plan.draft_length[index])
        node.state = self.settings.first_state(self._mode(index))
        is_local = isinstance(node.state, LocalState)
        if is_local:
            self.recorder.requests[request.sid].upload_end_s = self.now
        if (draft_length or is_local) and len(request.text) > 1:
            read = node.drafter.read(request.text) + unread
            node.unread_tokens = 0
            node.busy_until_s = self.now + read * node.profile.read_token_s
        opening = self.settings.opening(request, self._format.vocab_size)
        self._step_device(index, dev.Start(opening, draft_length))

    # Devices

    def _step_device(self, index: int, event: dev.DeviceEvent) -> None:
        node = self.devices[index]
        sid = node.state.sid
        before = node.state.answer
        effects = node.step(event)
        answer = node.state.answer
        if answer is not before and node.request is not None and node.state.sid == sid >= 0:
            self._commit(sid, answer.tokens)
        for effect in effects:
            match effect:
                case dev.DraftToken():
                    self._draft(index, effect)
                case dev.SendUp():
                    self._send_up(index, effect.frame, is_cut=effect.is_cut)
                case dev.Resolve():
                    self._resolve(index, effect)
                case dev.Judged():
                    self.recorder.settle_round(
                        sid, effect.base, effect.accepted, effect.drafted, self.now
                    )
                case dev.Corrected():
                    node.correct(effect)
                    self.recorder.settle_branches(sid, effect)
                case dev.Finish():
                    self._finish(index, effect)

    def _commit(self, sid: int, tokens: tuple[int, ...]) -> None:
        if len(tokens) > len(self.recorder.requests[sid].tokens):
            self._last_commit_s = self.now
            self.recorder.commit(sid, tokens, self.now)

    def _draft(self, index: int, effect: dev.DraftToken) -> None:
        node = self.devices[index]
        event, nominal_s = node.draft(effect)
        start = max(self.now, node.busy_until_s)
        duration = self._scatter.draft(nominal_s)
        node.work(start, duration, reads=nominal_s > 2 * node.profile.draft_time_s)
        self.recorder.requests[event.sid].drafted += 1
        state = node.state
        if not isinstance(state, LocalState) and not state.block:
            position = state.position
            if isinstance(state, ParallelDeviceState):
                position = state.block_start
            self.recorder.round(state.sid, position).draft_start_s = start
        if effect.branches:
            self.recorder.grow_branches(state.sid, effect.branches)
        self._at(start + duration, partial(self._drafted, index, event))

    def _drafted(self, index: int, event: dev.Drafted) -> None:
        # The last step of a request may end when the next one has begun.
        if event.sid == self.devices[index].state.sid:
            self._step_device(index, evolve(event, now_s=self.now))

    def _resolve(self, index: int, effect: dev.Resolve) -> None:
        node = self.devices[index]
        assert node.drafter is not None, "a resolution needs a request"
        result = node.drafter.resolve(
            effect.top, effect.tails, effect.drawn, effect.position, effect.epoch
        )
        event = dev.Resolved(result.token, result.drawn)
        self._at(self.now, partial(self._step_device, index, event))

    def _finish(self, index: int, effect: dev.Finish) -> None:
        node = self.devices[index]
        request = node.request
        assert request is not None, "only a request can finish"
        self._commit(request.sid, effect.tokens)
        record = self.recorder.requests[request.sid]
        record.refusal, record.finish_s = effect.refusal, self.now
        self._count_draws(node)
        node.request, node.drafter = None, None
        self._unfinished -= 1

    def _count_draws(self, node: DeviceNode) -> None:
        """Note how many random choices both ends have made for a device's request."""
        if node.request is None or node.drafter is None:
            return
        sid = node.request.sid
        ends = [node.drafter.draws, *([self._draws[sid]] if sid in self._draws else [])]
        self.recorder.requests[sid].draws = sum(end.ledger.count for end in ends)

    # Frames

    def _send_up(self, index: int, frame: Frame, *, is_cut: bool) -> None:
        node, data = self.devices[index], encode(frame, self._format)
        size = len(data) + self.settings.frame_overhead_bytes
        bits = 8.0 * size
        if isinstance(frame, Open) and node.request is not None:
            bits += node.request.attachment_bits
            size += math.ceil(node.request.attachment_bits / 8)
            self.recorder.requests[frame.sid].prompt_bytes = size
        if isinstance(frame, Draft) and frame.tokens:
            record = self.recorder.round(frame.sid, frame.base)
            record.draft_end_s, record.uplink_bytes = self.now, size
            record.draft_length, record.is_cut = len(frame.tokens), is_cut
            self.recorder.requests[frame.sid].cut_blocks += is_cut
            bits += self.settings.priced_row_bits * len(frame.tokens)
        self.recorder.requests[frame.sid].uplink_bytes += size
        kept = self.recorder.send(frame, size, node.uplink, self.now, is_up=True)
        if node.uplink.push(Parcel(frame.sid, data, kept), bits, self.now):
            self._announce(index, is_up=True)

    def _send_down(self, server: int, frame: Frame) -> None:
        request, data = self.recorder.requests[frame.sid], encode(frame, self._format)
        size = len(data) + self.settings.frame_overhead_bytes
        request.downlink_bytes += size
        if isinstance(frame, Token | Verdict):
            position = frame.position if isinstance(frame, Token) else frame.base
            self.recorder.round(frame.sid, position).downlink_bytes = size
        downlink = self.devices[request.device].downlink
        kept = self.recorder.send(frame, size, downlink, self.now, is_up=False)
        if downlink.push(Parcel(frame.sid, data, kept), 8.0 * size, self.now):
            self._announce(request.device, is_up=False)

    def _announce(self, index: int, *, is_up: bool) -> None:
        """Schedule the next finish of a link of a device."""
        link = self.devices[index].link(is_up)
        finish = link.next_finish()
        if finish < math.inf:
            self._at(finish, partial(self._served, index, is_up, link.version))

    def _one_way_s(self, device: int, sid: int) -> float:
        assert self.plan is not None, "frames travel under a plan"
        server = self.owner[sid] if sid in self.owner else int(self.plan.server[device])
        way_s = self._scatter.path(self.servers[server].profile.rtt_s / 2)
        return self.devices[device].times.travel(way_s)

    def _served(self, index: int, is_up: bool, version: int) -> None:
        """Let the head of a link go on its way, unless its finish was announced anew."""
        link = self.devices[index].link(is_up)
        if version != link.version:
            return
        began_s, parcel = link.began_s, link.pop(self.now)
        arrival = link.deliver(self.now + self._one_way_s(index, parcel.sid))
        if parcel.record is not None:
            parcel.record.serve(began_s, self.now, arrival)
        arrive = self._arrive_up if is_up else self._arrive_down
        self._at(arrival, partial(arrive, index, parcel))
        self._announce(index, is_up=is_up)

    def _arrive_up(self, index: int, parcel: Parcel) -> None:
        assert self.plan is not None, "frames travel under a plan"
        frame = decode(parcel.data, self._format)
        if frame.sid in self._closed:
            if parcel.record is not None:
                parcel.record.fate = "closed"
            return
        event = srv.Received(frame)
        if isinstance(frame, Open):
            self.owner[frame.sid] = int(self.plan.server[index])
            self.recorder.requests[frame.sid].upload_end_s = self.now
            overlap = self.devices[index].overlap
            event = srv.Received(frame, int(self.plan.draft_length[index]), overlap)
        elif isinstance(frame, Draft) and frame.tokens:
            self.recorder.round(frame.sid, frame.base).uplink_end_s = self.now
        server = self.servers[self.owner[frame.sid]]
        before = server.dropped(frame.sid)
        self._step_server(self.owner[frame.sid], event)
        if parcel.record is not None:
            parcel.record.end(before, server.dropped(frame.sid))

    def _arrive_down(self, index: int, parcel: Parcel) -> None:
        frame = decode(parcel.data, self._format)
        if isinstance(frame, Verdict):
            # A parallel device says itself what a verdict has judged.
            if self.devices[index].overlap is None:
                self.recorder.close_round(frame.sid, frame.base, frame.accepted, self.now)
        elif isinstance(frame, Token):
            node = self.devices[index]
            if node.shadow is not None and frame.probability is not None:
                node.shadow.compare(node.state.answer.tokens, frame.token, frame.probability)
                node.draft_s += node.profile.draft_time_s
            self.recorder.close_round(frame.sid, frame.position, 0, self.now)
        node, epoch = self.devices[index], getattr(frame, "epoch", -1)
        before = node.dropped
        is_stale = -1 < epoch < node.epoch
        self._step_device(index, dev.Received(frame, self.now))
        if parcel.record is not None:
            drops = node.dropped - before
            parcel.record.end((0, 0), (drops * is_stale, drops * (not is_stale)))

    # Servers

    def _step_server(self, index: int, event: srv.ServerEvent) -> None:
        node = self.servers[index]
        node.state, effects = srv.step_server(node.state, event, self.now)
        for effect in effects:
            match effect:
                case srv.SendDown():
                    self._send_down(index, effect.frame)
                case srv.StartForward():
                    self._forward(index, effect.forward)
                case srv.DrawTails():
                    need = effect.request
                    tails = node.verifier.more_tails(
                        need.sid, need.position, need.drawn, need.epoch
                    )
                    done = srv.TailsDrawn(need, tails)
                    self._at(self.now, partial(self._step_server, index, done))
                case srv.JudgeByKeptRow():
                    self._judge(index, effect)
                case srv.OpenCache():
                    # One ledger follows the session from server to server.
                    draws = self._draws.setdefault(effect.sid, self.settings.draws(effect.seed))
                    node.verifier.open(effect.sid, effect.contract, draws)
                case srv.CloseCache():
                    node.verifier.close(effect.sid)
                    self._closed.add(effect.sid)
                case srv.Migrate():
                    sid = effect.session.sid
                    self._closed.discard(sid)
                    self.owner[sid] = effect.server
                    self.recorder.requests[sid].handovers += 1
                    self._at(self.now, partial(self._hand_over, effect))

    def _hand_over(self, migration: srv.Migrate) -> None:
        sid = migration.session.sid
        self._step_server(self.owner[sid], srv.Arrived(migration.session))
        self._replan_server(sid, self.recorder.requests[sid].device)

    def _forward(self, index: int, forward: Forward) -> None:
        node = self.servers[index]
        works = (*forward.works, *forward.readings)
        outcomes = tuple(node.verifier.forward(works) if works else ())[: len(forward.works)]
        for sid, waited_s in forward.admitted:
            self.recorder.requests[sid].memory_wait_s += waited_s
        if self.settings.contract.is_lossy:
            for work, outcome in zip(forward.works, outcomes, strict=True):
                if outcome is not None and outcome.accepted < len(work.tokens):
                    self._measure_loss(node, work.sid, len(work.context) + outcome.accepted)
        duration = self._scatter.forward(
            node.profile.forward(
                float(forward.rows), float(forward.new_tokens), float(forward.context_tokens)
            )
        )
        end = self.now + duration
        node.busy_s += duration
        self.recorder.forward(forward, index, end, node.idle_since_s)
        node.idle_since_s = end
        for work in forward.works:
            if not work.draw:
                continue
            session, position = node.state.sessions[work.sid], len(work.context)
            kind: Work = "verify"
            if not work.tokens:
                is_first = position == self.recorder.requests[work.sid].text_tokens
                kind = "prefill" if is_first else "decode"
            elif isinstance(session, ParallelSession):
                position = session.acknowledged
            self.recorder.verify(work.sid, position, index, self.now, end, kind)
        self._at(end, partial(self._step_server, index, srv.ForwardDone(outcomes)))

    def _judge(self, index: int, effect: srv.JudgeByKeptRow) -> None:
        """Let a kept row speak, which takes no time."""
        node = self.servers[index]
        outcome = node.verifier.judge(
            effect.sid, effect.position, effect.tokens, effect.rows, effect.epoch
        )
        if self.settings.contract.is_lossy and outcome.accepted < len(effect.tokens):
            self._measure_loss(node, effect.sid, effect.position)
        session = node.state.sessions[effect.sid]
        assert isinstance(session, ParallelSession), "only parallel sessions keep rows"
        position = session.acknowledged if effect.tokens else effect.position
        kind: Work = "verify" if effect.tokens else "decode"
        self.recorder.verify(effect.sid, position, index, self.now, self.now, kind)
        self._step_server(index, srv.KeptRowJudged(effect.sid, outcome))

    def _measure_loss(self, node: ServerNode, sid: int, position: int) -> None:
        """Note what a cut residual loses, which takes both ends' rows and so neither end knows."""
        request = self.recorder.requests[sid]
        drafter = self.devices[request.device].drafter
        assert drafter is not None, "a draft has a drafter"
        share = node.verifier.lost_residual(sid, drafter.law_at(position))
        request.lost_residuals.append(share)
