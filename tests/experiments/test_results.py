"""Tables over training seeds, by hand-made rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.evaluation import METRICS, EpisodeRows
from experiments.results import SIMPLE, TABLES, gap_closed, make_rows, pool_seeds, repeat
from experiments.results_markdown import fill_tables, markdown_table
from experiments.tables import write_csv
from uara.errors import UserError

WORLD = np.array([4, 5, 6, 4])


def rows(name: str, latency: list[float], *, capped: bool = False) -> EpisodeRows:
    metrics = {metric: np.full(4, 1.0) for metric in METRICS}
    metrics["e2e_latency_s"] = np.array(latency)
    return EpisodeRows(name, "network", WORLD, metrics, 1e-3, capped)


def rules() -> dict[str, EpisodeRows]:
    """Make rules at 10 (the simple ones; random 14) and 6 seconds."""
    every = {name: rows(name, [10.0, 11.0, 9.0, 10.0]) for name in SIMPLE}
    every["random"] = rows("random", [14.0, 15.0, 13.0, 14.0])
    return every | {"greedy_latency": rows("greedy_latency", [6.0, 7.0, 5.0, 6.0])}


def test_pooled_seeds_stand_one_after_the_other() -> None:
    pooled = pool_seeds([rows("a", [1, 2, 3, 4]), rows("b", [5, 6, 7, 8], capped=True)], "mappo")
    assert pooled.controller == "mappo"
    assert pooled.observes == "network"
    assert pooled.capped
    assert pooled.metrics["e2e_latency_s"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert pooled.world.tolist() == [4, 5, 6, 4, 4, 5, 6, 4]
    assert pooled.seed is not None
    assert pooled.seed.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_pooling_the_same_run_says_no_more_than_the_run() -> None:
    one = rows("a", [1.0, 4.0, 2.0, 3.0])
    once, five = one.interval("e2e_latency_s"), repeat(one, 5).interval("e2e_latency_s")
    assert (five.mean, five.low, five.high) == pytest.approx((once.mean, once.low, once.high))


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = pool_seeds([rows("a", [1, 2, 3, 1])] * 3, "mappo").interval("e2e_latency_s")
    apart = pool_seeds(
        [rows("a", [1.0 + d, 2.0 + d, 3.0 + d, 1.0 + d]) for d in (-2.0, 0.0, 2.0)], "mappo"
    ).interval("e2e_latency_s")
    assert apart.mean == pytest.approx(alike.mean)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


@pytest.mark.parametrize(("latency", "share"), [(10.0, 0.0), (8.0, 0.5), (6.0, 1.0), (5.0, 1.25)])
def test_the_gap_is_that_from_the_best_simple_rule_to_greedy(latency: float, share: float) -> None:
    assert gap_closed(rows("mappo", [latency] * 4), rules()) == pytest.approx(share)


def test_a_table_stands_best_first_and_pairs_each_policy_with_every_rule() -> None:
    better = rows("x", [5.0, 6.0, 4.0, 5.0])
    best = rows("y", [4.0, 5.0, 3.0, 4.0])
    table = make_rows(rules(), {"mappo": [better, best]})
    names = [row["controller"] for row in table]
    assert names[:2] == ["mappo", "greedy_latency"]
    assert sorted(names) == sorted([*rules(), "mappo"])
    mappo, greedy = table[:2]
    assert mappo["e2e_latency_s"]["mean"] == pytest.approx(4.5)
    assert mappo["e2e_minus_reference_s"]["mean"] == pytest.approx(-1.5)
    assert mappo["e2e_minus_random_s"]["mean"] == pytest.approx(-9.5)
    # both seeds are a constant away from greedy: only they spread, over one degree of freedom
    half = 12.706 * 0.5
    assert mappo["e2e_minus_reference_s"]["ci95"] == pytest.approx([-1.5 - half, -1.5 + half], 1e-3)
    assert (mappo["kind"], mappo["seeds"]) == ("policy", 2)
    assert mappo["gap_closed"] == pytest.approx(5.5 / 4)
    assert greedy["kind"] == "rule"
    assert greedy["e2e_minus_reference_s"]["ci95"] == [0, 0]


def test_csv_and_markdown_say_what_the_rows_say(tmp_path: Path) -> None:
    table = make_rows(rules(), {"mappo": [rows("x", [5.0, 6.0, 4.0, 5.0])]})
    path = tmp_path / "out" / "table.csv"
    write_csv(path, table, commit="abc")
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert [row["controller"] for row in read] == [row["controller"] for row in table]
    for written, row in zip(read, table, strict=True):
        assert float(written["e2e_latency_s"]) == pytest.approx(row["e2e_latency_s"]["mean"])
        assert float(written["e2e_latency_s_low"]) == pytest.approx(
            row["e2e_latency_s"]["ci95"][0], rel=1e-5
        )
        assert written["commit"] == "abc"
    lines = markdown_table(path).splitlines()
    assert lines[0].startswith("| controller | observes | E2E (s) | minus greedy (s) |")
    assert len(lines) == 2 + len(table)
    # means 5, 6, 4 of three worlds: 5 +- t(2) / sqrt(3) = 5 +- 2.484
    assert lines[2] == (
        "| mappo | network | 5.00 [2.52, 7.48] | -1.00 [-1.00, -1.00] | 1.00 | 1000 | 1.0 |"
    )
    assert "| +0.00 [+0.00, +0.00] |" in lines[3]


def test_tables_are_put_between_their_markers(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", make_rows(rules(), {"mappo": [rows("x", [5.0] * 4)]}))
    text = "before\n<!-- results:one -->\nold\n<!-- /results -->\nafter\n"
    filled = fill_tables(text, tmp_path)
    assert filled == (
        "before\n<!-- results:one -->\n"
        + markdown_table(tmp_path / "one.csv")
        + "<!-- /results -->\nafter\n"
    )
    assert fill_tables(filled, tmp_path) == filled
    with pytest.raises(UserError, match=r"two\.csv do not exist; make them with `uara results`"):
        fill_tables("<!-- results:two -->\n<!-- /results -->", tmp_path)


def test_a_csv_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lack the column 'controller'"):
        markdown_table(tmp_path / "other.csv")


def test_the_tables_name_experiments_that_exist() -> None:
    from experiments.results import CONFIGS

    for spec in TABLES:
        for name in spec.experiments:
            assert (CONFIGS / f"{name}.yaml").is_file()
