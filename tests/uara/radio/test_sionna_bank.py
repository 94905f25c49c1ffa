"""The Sionna builder: reproducible worlds and tracks that hang together, with either fading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sionna.phy import config as sionna_config

from uara.errors import UserError
from uara.radio.bank import BankConfig
from uara.radio.sionna_bank import build_bank, build_world, chunk_gain
from uara.radio.topology import Chunk

TINY = BankConfig(
    num_devices=3,
    num_servers=2,
    num_slots=6,
    train=1,
    tuning=0,
    validation=0,
    evaluation=1,
    seed=5,
)
both = pytest.mark.parametrize("fading", ["cir", "large_scale"])


def tiny(**changes):
    return BankConfig(**(TINY.model_dump() | changes))


def decibels(config, key=(0, 0)):
    return build_world(config, key).gain_db.astype(float)


@both
def test_equal_configs_give_equal_banks_and_other_seeds_others(fading):
    calls = []
    config = tiny(fading=fading)
    bank = build_bank(config, workers=1, progress=lambda done, total: calls.append((done, total)))
    again = build_bank(config, workers=1)
    other = build_bank(tiny(fading=fading, seed=6), workers=1)
    np.testing.assert_array_equal(bank.gain_db, again.gain_db)
    np.testing.assert_array_equal(bank.position_m, again.position_m)
    assert (bank.gain_db != other.gain_db).mean() > 0.9
    assert (bank.gain_db[0] != bank.gain_db[1]).mean() > 0.9
    assert np.isfinite(bank.gain_db).all()
    assert calls == [(1, 2), (2, 2)]


@both
def test_a_world_does_not_depend_on_how_many_are_built(fading):
    few = build_bank(tiny(fading=fading), workers=1)
    many = build_bank(tiny(fading=fading, train=2, evaluation=2), workers=1)
    for split in ("train", "evaluation"):
        first = few.gain_db[few.worlds(split)[0]]
        np.testing.assert_array_equal(first, many.gain_db[many.worlds(split)[0]])


@pytest.mark.slow
def test_a_world_does_not_depend_on_the_number_of_workers():
    alone, shared = (build_bank(TINY, workers=n) for n in (1, 2))
    np.testing.assert_allclose(alone.gain_db.astype(float), shared.gain_db.astype(float), atol=0.13)
    np.testing.assert_array_equal(alone.is_los, shared.is_los)


@pytest.mark.slow
def test_the_largest_network_fits_and_is_whole():
    """180 devices and 20 servers: sixty chunks of the builder."""
    world = build_world(
        BankConfig(num_devices=180, num_servers=20, num_slots=32, fading="large_scale"), (0, 0)
    )
    assert world.gain_db.shape == world.is_los.shape == (32, 180, 20)
    assert np.isfinite(world.gain_db).all()
    assert -130 < np.median(world.gain_db.astype(float).max(-1)) < -60


@both
def test_gains_along_a_track_change_far_less_than_independent_draws(fading):
    config = BankConfig(num_devices=4, num_servers=2, num_slots=24, fading=fading)
    time_s = 0.5 * np.arange(24)
    site = np.array([[-150.0, 0.0], [150.0, 0.0]])
    velocity = np.tile([0.0, 1.0], (24, 4, 1))
    position = np.stack([np.full((24, 4), 30.0), np.tile(time_s[:, None], (1, 4))], -1)
    chunk = Chunk(position, velocity, np.zeros(4, bool), np.zeros((4, 2)))
    draws = []
    for seed in (1, 2):
        sionna_config.seed = seed
        gain, _ = chunk_gain(config, site, chunk, torch.Generator().manual_seed(seed))
        draws.append(10 * np.log10(gain))  # (T, D, E)
    step = np.abs(np.diff(draws[0], axis=0)).mean()
    redraw = np.abs(draws[0] - draws[1]).mean()
    assert step < 0.5 * redraw
    assert step > 0.1


@both
def test_indoor_devices_have_no_line_of_sight_and_lose_more(fading):
    outdoor, indoor = (
        build_world(tiny(fading=fading, num_devices=12, indoor_share=share), (0, 0))
        for share in (0.0, 1.0)
    )
    assert not indoor.is_los.any()
    assert indoor.gain_db.astype(float).mean() < outdoor.gain_db.astype(float).mean() - 8


def test_a_car_costs_9_db_throughout():
    """Clause 7.4.3.2: normal, 9 dB with a standard deviation of 5 dB; one car per device."""
    config = {"fading": "large_scale", "num_devices": 60, "num_slots": 2}
    on_foot, in_car = (decibels(tiny(**config, car_share=share)) for share in (0.0, 1.0))
    loss_db = on_foot - in_car  # (T, M, E), each rounded to an eighth
    np.testing.assert_allclose(
        loss_db, np.broadcast_to(loss_db[:1, :, :1], loss_db.shape), atol=0.3
    )
    assert loss_db.mean() == pytest.approx(9, abs=4 * 5 / 60**0.5)
    assert loss_db[0, :, 0].std() == pytest.approx(5, rel=0.3)


def test_who_is_indoors_sits_in_no_car():
    indoor = {"fading": "large_scale", "indoor_share": 1.0}
    np.testing.assert_array_equal(decibels(tiny(**indoor, car_share=1.0)), decibels(tiny(**indoor)))


def test_hot_spots_gather_devices():
    config = tiny(fading="large_scale", num_devices=30, num_slots=1, drop="clustered",
                  num_clusters=1, cluster_radius_m=25.0)  # fmt: skip
    place = build_world(config, (0, 0)).position_m[0]
    assert np.hypot(*(place[:, None] - place).T).max() <= 50
    assert np.hypot(*(place[:, None] - place).T).max() > 25


@pytest.mark.parametrize("scenario", ["uma", "rma"])
def test_macro_devices_keep_35_m_from_sites(scenario):
    config = BankConfig(scenario=scenario, fading="large_scale", num_devices=20, num_slots=8)
    bank = build_bank(config.model_copy(update={"train": 1, "tuning": 0, "validation": 0,
                                                "evaluation": 0}), workers=1)  # fmt: skip
    gap = bank.position_m[:, :, :, None] - bank.site_position_m
    assert np.hypot(gap[..., 0], gap[..., 1]).min() >= 35


def test_no_worker_at_all_endless_tracks_and_no_sionna_are_refused(monkeypatch):
    with pytest.raises(UserError, match="workers is 0"):
        build_bank(TINY, workers=0)
    with pytest.raises(UserError, match="num_slots is 90000: 2 servers allow") as caught:
        build_bank(tiny(num_slots=90_000), workers=1)
    assert "\n" not in str(caught.value)

    def missing(name):
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UserError, match="needs Sionna"):
        build_bank(TINY, workers=1)
