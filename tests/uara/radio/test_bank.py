"""The channel bank as a file: what is saved comes back, and what does not fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from uara.errors import UserError
from uara.radio.bank import BankConfig, ChannelBank, bank_path, build_or_load

CONFIG = BankConfig(
    num_devices=4, num_servers=2, num_slots=5, train=3, tuning=1, validation=0, evaluation=2
)


@pytest.fixture
def bank():
    rng = np.random.default_rng(1)
    slots = (6, 5, 4)
    return ChannelBank(
        gain_db=rng.uniform(-140, -60, (*slots, 2)).astype(np.float16),
        position_m=rng.normal(size=(*slots, 2)).astype(np.float32),
        velocity_m_s=rng.normal(size=(*slots, 2)).astype(np.float32),
        is_los=rng.random((*slots, 2)) < 0.5,
        site_position_m=np.array([[-150, 0], [150, 0]], np.float32),
        config=CONFIG,
        sionna_version="2.2.0",
        build_s=1.5,
    )


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = dict(file)
    metadata = json.loads(str(arrays["metadata"])) | changes
    arrays["metadata"] = np.array(json.dumps(metadata))
    np.savez(path, **arrays)


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_bank_comes_back_as_it_was(bank, tmp_path):
    path = tmp_path / "folder" / "bank.npz"
    bank.save(path)
    back = ChannelBank.load(path)
    for name in ("gain_db", "position_m", "velocity_m_s", "is_los", "site_position_m"):
        np.testing.assert_array_equal(getattr(back, name), getattr(bank, name))
    assert (back.config, back.sionna_version, back.build_s) == (CONFIG, "2.2.0", 1.5)
    assert [p.name for p in path.parent.iterdir()] == ["bank.npz"]


def test_gain_is_linear_and_within_half_a_step_of_float16(bank):
    assert bank.gain().dtype == np.float32
    np.testing.assert_allclose(10 * np.log10(bank.gain()), bank.gain_db.astype(float), atol=1e-4)
    exact = np.array([-137.06])
    assert abs(float(exact.astype(np.float16)[0]) - exact[0]) <= 0.0625


@pytest.mark.parametrize("world", [-1, 6])
def test_a_world_that_is_not_there_is_refused(bank, world):
    assert refusal(lambda: bank.check_has(world)) == f"world is {world}: the bank has worlds 0 to 5"
    bank.check_has(0)
    bank.check_has(5)


def test_splits_share_the_worlds_out(bank):
    assert bank.worlds("train").tolist() == [0, 1, 2]
    assert bank.worlds("tuning").tolist() == [3]
    assert bank.worlds("validation").tolist() == []
    assert bank.worlds("evaluation").tolist() == [4, 5]
    assert bank.metadata["splits"]["evaluation"] == [4, 5]
    assert "train, tuning" in refusal(lambda: bank.worlds("test"))


# Another value of each field that is no number.
OTHERS = {
    "scenario": "uma",
    "fading": "large_scale",
    "drop": "clustered",
    "wall_loss": "high",
    "indoor_depth": "track",
    "backend": "tensorflow",
    "scene": "etoile",
}


def test_every_field_changes_the_hash():
    traced = CONFIG.model_copy(update={"backend": "rt", "scene": "munich"})
    hashes = {traced.config_hash()}
    for name in BankConfig.model_fields:
        value = OTHERS.get(name) or getattr(traced, name) + 1
        hashes.add(traced.model_copy(update={name: value}).config_hash())
    assert len(hashes) == 1 + len(BankConfig.model_fields)


def test_fields_that_came_later_left_the_first_names_alone():
    """The hash of the default bank, computed before scenarios and ways of fading were options."""
    assert BankConfig().config_hash() == "d4d555584e3cbf2b"
    spelt = BankConfig(scenario="umi", fading="cir", drop="uniform", car_share=0.0)
    assert spelt.config_hash() == "d4d555584e3cbf2b"
    assert "scenario" not in BankConfig().model_dump()
    assert BankConfig(scenario="uma").model_dump()["scenario"] == "uma"


def test_what_is_dumped_comes_back():
    for config in (BankConfig(), BankConfig(scenario="rma", fading="large_scale", car_share=0.0)):
        assert BankConfig.model_validate_json(config.model_dump_json()) == config


def test_macro_scenarios_bring_their_own_sites_unless_told():
    """TR 38.901 Table 7.8-1 (UMa) and Table 7.2-3 (RMa)."""
    uma, rma = BankConfig(scenario="uma"), BankConfig(scenario="rma")
    assert (uma.site_height_m, uma.inter_site_distance_m, uma.car_share) == (25, 500, 0)
    assert (rma.site_height_m, rma.inter_site_distance_m, rma.car_share) == (35, 1732, 1)
    told = BankConfig(scenario="rma", site_height_m=20, speed_max_m_s=5, car_share=0)
    assert (told.site_height_m, told.speed_max_m_s, told.car_share) == (20, 5, 0)


def test_world_keys_do_not_depend_on_the_other_splits():
    keys = CONFIG.model_copy(update={"train": 7}).world_keys()
    assert keys[7:] == CONFIG.world_keys()[3:]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"speed_min_m_s": 9}, "speed_min_m_s is 9.* but speed_max_m_s is 8"),
        ({"speed_min_m_s": -1}, "speed_min_m_s\n.*greater than or equal to 0"),
        ({"indoor_share": 1.2}, "indoor_share\n.*less than or equal to 1"),
        ({"device_height_m": 12}, "below the sites"),
        ({"scenario": "rma", "device_height_m": 15}, "device_height_m is 15.*between 1 and 10"),
        ({"scenario": "rma", "site_height_m": 8}, "site_height_m is 8.*between 10 and 150"),
        ({"scenario": "rma", "carrier_hz": 60e9}, "carrier_hz is 6.*rma .rural macro."),
        ({"scenario": "rma", "wall_loss": "high"}, "rma knows low only"),
        ({"device_height_m": 1.2}, "device_height_m is 1.2 but umi .* between 1.5 and 22.5"),
        ({"scenario": "uma", "inter_site_distance_m": 80}, "at least 200"),
        ({"scenario": "hills"}, "'umi', 'uma' or 'rma'"),
        ({"train": 0, "tuning": 0, "validation": 0, "evaluation": 0}, "no worlds"),
    ],
)
def test_an_impossible_config_is_refused(fields, words):
    with pytest.raises(ValidationError, match=words) as caught:
        BankConfig(**fields)
    (mistake,) = caught.value.errors()
    assert "\n" not in mistake["msg"]


@pytest.mark.parametrize("content", [b"", b"no bank at all", None])
def test_a_damaged_file_is_refused_in_one_line(bank, tmp_path, content):
    path = tmp_path / "bank.npz"
    bank.save(path)
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    assert "rebuild it" in refusal(lambda: ChannelBank.load(path))


def test_a_flipped_byte_is_noticed(bank, tmp_path):
    path = tmp_path / "bank.npz"
    bank.save(path)
    content = bytearray(path.read_bytes())
    content[content.index(bank.gain_db.tobytes()) + 7] ^= 255
    path.write_bytes(content)
    assert "damaged" in refusal(lambda: ChannelBank.load(path))


def test_a_missing_file_another_version_and_foreign_shapes_are_refused(bank, tmp_path):
    path = tmp_path / "bank.npz"
    assert "no channel bank" in refusal(lambda: ChannelBank.load(path))
    bank.save(path)
    rewrite(path, format_version=99)
    assert "version 99" in refusal(lambda: ChannelBank.load(path))
    bank.save(path)
    rewrite(path, config=CONFIG.model_copy(update={"num_slots": 6}).model_dump())
    assert "gain_db is float16(6, 5, 4, 2) instead" in refusal(lambda: ChannelBank.load(path))


def test_a_bank_of_another_config_is_refused_by_field(bank):
    bank.check_fits(CONFIG)
    other = CONFIG.model_copy(update={"slot_s": 0.25, "seed": 3})
    text = refusal(lambda: bank.check_fits(other))
    assert "slot_s 0.5 (asked: 0.25)" in text
    assert "seed 0 (asked: 3)" in text
    assert "num_slots" not in text
    larger = CONFIG.model_copy(update={"num_devices": 180, "scenario": "uma"})
    text = refusal(lambda: bank.check_fits(larger))
    assert "num_devices 4 (asked: 180), scenario umi (asked: uma)" in text


def test_build_or_load_builds_once_and_again_when_forced(bank, tmp_path, monkeypatch):
    built = []

    def build(config, *, progress, workers):
        built.append(workers)
        return bank

    monkeypatch.setattr("uara.radio.sionna_bank.build_bank", build)
    for force in (False, False, True):
        got = build_or_load(CONFIG, tmp_path, workers=3, force=force)
        np.testing.assert_array_equal(got.gain_db, bank.gain_db)
    assert built == [3, 3]
    assert bank_path(CONFIG, tmp_path).name == f"{CONFIG.config_hash()}.npz"


def test_a_bank_under_a_foreign_name_is_not_taken(bank, tmp_path):
    other = CONFIG.model_copy(update={"seed": 9})
    bank.save(bank_path(other, tmp_path))
    assert "seed 0 (asked: 9)" in refusal(lambda: build_or_load(other, tmp_path))


def test_loading_needs_neither_torch_nor_sionna():
    program = "import sys, uara.radio.bank; sys.exit(bool({'torch', 'sionna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("backend", "option"),
    [("rt", {"fading": "large_scale"}), ("tensorflow", {"drop": "clustered"})],
)
def test_options_of_the_first_backend_are_refused_by_the_others(backend, option):
    with pytest.raises(ValueError, match="does not know it: leave it out"):
        BankConfig(backend=backend, **option)
