"""Records of frames, forwards and drafted tokens, each against what the others say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from uara.decoding import parallel_device
from uara.decoding.device import Drafted
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.protocol import RuleCode
from uara.decoding.records import Records
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.verifier import Contract
from uara.serving.machine import ForwardTime

MODES = ("sd", "psd", "async")


def played(
    mode: str, table_model: Any, planner: Any, level: Records = "all", **more: Any
) -> VirtualKernel:
    settings = KernelSettings(
        0.4, Contract(RuleCode.ID_PROB, Sampling(), 3, 2), lambda sid: sid, mode=mode, window=2,
        records=level, **more,
    )  # fmt: skip
    kernel = VirtualKernel(
        table_model(6, 1),
        table_model(6, 0),
        [DeviceProfile(0.02), DeviceProfile(0.03)],
        [ServerProfile(ForwardTime(0.03, 0.002, 0.001, 0.0), 9999, 0.03)] * 2,
        [Request(sid, sid % 2, 0.1 * sid, (0, 1), 30, 25) for sid in range(6)],
        planner,
        settings,
    )
    kernel.run()
    return kernel


@pytest.mark.parametrize("mode", MODES)
def test_frames_add_up_to_the_bytes_of_the_requests_and_the_time_of_the_links(
    mode: str, table_model: Any, random_plans: Any
) -> None:
    kernel = played(mode, table_model, random_plans(num_servers=2, max_draft_length=4))
    frames = kernel.recorder.frames
    for record in kernel.recorder.requests.values():
        own = [frame for frame in frames if frame.sid == record.sid]
        assert sum(f.size for f in own if f.is_up) == record.uplink_bytes
        assert sum(f.size for f in own if not f.is_up) == record.downlink_bytes
    for index, node in enumerate(kernel.devices):
        for is_up, link in ((True, node.uplink), (False, node.downlink)):
            own = [f for f in frames if f.device == index and f.is_up is is_up]
            served = [frame for frame in own if frame.finish_s > 0]
            # One after the other, each as soon as it is there and the link is free.
            free_s = 0.0
            for frame in served:
                assert frame.start_s == pytest.approx(max(frame.enqueue_s, free_s))
                assert frame.start_s < frame.finish_s <= frame.deliver_s
                assert (frame.backlog_bits > 0) == (frame.start_s > frame.enqueue_s + 1e-12)
                free_s = frame.finish_s
            assert sum(f.finish_s - f.start_s for f in served) == pytest.approx(link.busy_s)
    stale = sum(f.fate == "stale" for f in frames)
    assert (stale > 0) == (mode == "async"), "behind a barrier no draft is of a dead epoch"


@pytest.mark.parametrize("mode", MODES)
def test_forwards_and_idle_times_fill_a_servers_clock(
    mode: str, table_model: Any, random_plans: Any
) -> None:
    kernel = played(mode, table_model, random_plans(num_servers=2, max_draft_length=4))
    for index, node in enumerate(kernel.servers):
        own = [forward for forward in kernel.recorder.forwards if forward.server == index]
        busy_s = sum(forward.end_s - forward.start_s for forward in own)
        assert busy_s == pytest.approx(node.busy_s)
        idle_s = sum(forward.idle_before_s for forward in own)
        assert idle_s + busy_s == pytest.approx(own[-1].end_s)
        assert all(b.start_s >= a.end_s for a, b in pairwise(own))
        for forward in own:
            nominal_s = node.profile.forward(
                float(forward.rows), float(forward.new_tokens), float(forward.context_tokens)
            )
            assert forward.end_s - forward.start_s == pytest.approx(nominal_s)


@pytest.mark.parametrize("mode", MODES)
def test_every_drafted_token_is_accepted_or_wasted_by_one_cause(
    mode: str, table_model: Any, random_plans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead: list[Drafted] = []
    step = parallel_device.step_parallel_device

    def counted(state: Any, event: Any) -> Any:
        after, effects = step(state, event)
        if isinstance(event, Drafted) and (event.sid, event.epoch) != (state.sid, state.epoch):
            dead.append(event)
        return after, effects

    monkeypatch.setattr("uara.decoding.nodes.step_parallel_device", counted)
    kernel = played(mode, table_model, random_plans(num_servers=2, max_draft_length=4))
    recorder = kernel.recorder
    for record in recorder.requests.values():
        rounds = [r for r in recorder.rounds if r.sid == record.sid and r.draft_length]
        assert record.accepted == sum(r.accepted for r in rounds)
        assert record.rejected == sum(r.accepted < r.draft_length for r in rounds)
        assert record.rolled_back == sum(max(r.draft_length - r.accepted - 1, 0) for r in rounds)
        causes = record.rejected + record.rolled_back + record.late
        assert record.drafted == record.accepted + causes
        assert record.late >= 0
    late = sum(record.late for record in recorder.requests.values())
    assert (len(dead) > 0) == (mode == "async"), "others wait before they draft on"
    assert (late == 0) if mode == "sd" else (late >= len(dead))


def test_less_is_kept_on_demand_and_nothing_else_changes(
    table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    levels: tuple[Records, ...] = ("none", "rounds", "all")
    none, rounds, whole = (played("async", table_model, plans, level) for level in levels)
    assert none.recorder.requests == rounds.recorder.requests == whole.recorder.requests
    assert (none.recorder.rounds, rounds.recorder.frames, rounds.recorder.forwards) == ([], [], [])
    assert rounds.recorder.rounds == whole.recorder.rounds
    assert len(whole.recorder.frames) > len(whole.recorder.rounds) > 50
