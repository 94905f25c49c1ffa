"""Compiled requests: those of torch, from the same episode keys."""

from __future__ import annotations

import torch

from uara.world.arrivals import BurstConfig
from uara.world.native_requests import NativeRequests, knows_requests
from uara.world.requests import RequestConfig, draw_requests
from uara.world.tasks import DEFAULT_TASKS

MEAN = torch.tensor([0.3, 0.6, 0.75, 0.97])
STD = torch.tensor([0.05, 0.2, 0.1, 0.3])


def test_requests_are_those_of_torch() -> None:
    config = RequestConfig(arrivals_per_s=0.2, acceptance_spread=0.8)
    episode = torch.tensor([0, 7, 2**62 - 1, 123456789])
    theirs = draw_requests(episode, 9, 30.0, config, MEAN, STD).tensors()
    native_requests = NativeRequests.of(config, 9, 30.0, MEAN, STD)
    assert native_requests is not None
    ours = native_requests(episode).tensors()
    arrives = torch.isfinite(theirs["arrival_s"])
    assert ours.keys() == theirs.keys()
    assert torch.equal(torch.isfinite(ours["arrival_s"]), arrives)
    assert 100 < arrives.sum() < arrives.numel() / 2
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype
        torch.testing.assert_close(
            ours[name][arrives], values[arrives], rtol=1e-6, atol=0.0, msg=name
        )
    assert set(theirs["task"][arrives].tolist()) == set(range(len(DEFAULT_TASKS)))


def test_places_after_the_last_request_are_empty() -> None:
    native_requests = NativeRequests.of(RequestConfig(), 3, 30.0, MEAN, STD)
    assert native_requests is not None
    table = native_requests(torch.arange(5)).tensors()
    empty = torch.isinf(table.pop("arrival_s"))
    assert empty[..., -1].all()
    assert all((values[empty] == 0).all() for values in table.values())


def test_requests_with_more_are_left_to_torch() -> None:
    bursty = RequestConfig(bursts=BurstConfig())
    assert NativeRequests.of(bursty, 3, 30.0, MEAN, STD) is None
    assert knows_requests(RequestConfig())
    assert not knows_requests(bursty)
    assert not knows_requests(RequestConfig(acceptance_drift=0.1))
    assert not knows_requests(RequestConfig(output_drift=0.1))
