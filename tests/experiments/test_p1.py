"""The comparison on problem P1, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.config import PROJECT, kind_of, load_as
from experiments.p1 import Cell, P1Experiment, reductions
from experiments.p1_tables import evaluate_p1
from uara.control.p1.instances import draw_problem, gains_from_bank
from uara.control.p1.readings import P1Config
from uara.errors import UserError
from uara.radio.bank import ChannelBank

PAPER = PROJECT / "experiments" / "papers" / "uara-p1.yaml"
TINY = [
    "drops=2", "devices=[4]", "servers=[2]", "devices_fixed=4", "servers_fixed=2",
    "variant_devices=[4]", "variants={heavy: {payload: full}}",
    "associations=[random, max_sinr, max_compute, tma]", "allocators=[uniform, square_root]",
]  # fmt: skip


def test_the_file_of_the_paper_covers_its_ranges() -> None:
    assert kind_of(PAPER) == "uara-p1"
    config = load_as(P1Experiment, PAPER)
    assert (config.devices[0], config.devices[-1]) == (30, 180)
    assert (config.servers[0], config.servers[-1]) == (4, 20)
    assert len(config.settings) == 10  # the two sweeps meet at 90 devices, 8 servers


def test_a_comparison_writes_table_csv_and_figure(tmp_path: Path) -> None:
    csv, figure = tmp_path / "p1.csv", tmp_path / "p1.png"
    result = evaluate_p1(PAPER, TINY, csv=csv, figure=figure)
    assert len(result.tables()) == 3
    assert result.names[-1] == ("lower bound", "any")
    assert [v.name for v in result.variants] == ["as configured", "heavy"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    # 9 rows of the grid in one setting, as many averages, and 4 rows per reading.
    assert len(csv.read_text().splitlines()) == 1 + 9 + 9 + 8


def test_reductions_are_paired_by_drop() -> None:
    def cell(name: str, setting: tuple[int, int], *latency: float) -> Cell:
        return Cell(setting, name, "uniform", np.array(latency))

    cells = []
    for setting in ((4, 2), (8, 2)):
        cells += [cell(name, setting, 1.0, 2.0) for name in ("random", "max_sinr", "max_compute")]
    cells += [cell("tma", (4, 2), 0.9, 1.8), cell("tma", (8, 2), 0.7, 1.4)]
    found = reductions(cells, ("tma", "uniform"))
    assert found.mean.mean == pytest.approx(20)
    assert found.mean.low == pytest.approx(20)  # the same in every drop
    assert found.largest["random"] == pytest.approx(30)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("associations=[best]", "association 'best' is unknown"),
        ("associations=[tma]", "reductions need random, max_sinr, max_compute"),
        ("variants={odd: {payload: books}}", "variant 'odd': payload"),
        ("readings.paylod=ids", "'readings.paylod' is no option"),
    ],
)
def test_mistakes_are_told_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_as(P1Experiment, PAPER, [override])
    assert "\n" not in str(error.value)


def test_policies_and_controllers_are_refused() -> None:
    with pytest.raises(UserError, match="--policy and --controller are for tasks"):
        evaluate_p1(PAPER, TINY, controller=["random"])


def test_a_bank_of_a_setting_gives_its_gains() -> None:
    config = load_as(P1Experiment, PAPER, ["drops=2", "channel=bank"]).bank_config((5, 20))
    assert (config.num_worlds, config.num_slots, config.num_servers) == (2, 1, 20)
    shape = (2, 1, 5)
    bank = ChannelBank(
        gain_db=np.full((*shape, 20), -90, dtype=np.float16),
        position_m=np.zeros((*shape, 2), dtype=np.float32),
        velocity_m_s=np.zeros((*shape, 2), dtype=np.float32),
        is_los=np.ones((*shape, 20), dtype=np.bool_),
        site_position_m=np.zeros((20, 2), dtype=np.float32),
        config=config,
        sionna_version="none",
        build_s=0.0,
    )
    gain = gains_from_bank(bank)
    assert gain.shape == (2, 5, 20)
    assert float(gain[0, 0, 0]) == pytest.approx(1e-9)
    with pytest.raises(UserError, match=r"gain has shape \(2, 5, 20\)"):
        draw_problem(P1Config(), 2, 5, 8, torch.Generator(), gain)
