"""The report page: everything in it, nothing from outside, every text escaped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from experiments.config import load_experiment
from experiments.report.build import build_report
from experiments.report.gather import find_runs, mean_curve
from experiments.report.page import Part, Picture, Section, Table, render
from experiments.runs import load_run_config, train_experiment
from uara.errors import UserError
from uara.figures.svg import svg_text

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects ids, references and headings, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's identifier and references."""
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.references.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a tag that closes itself."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text.append(data)


def simple_figure(text: str = "text") -> Figure:
    figure = Figure(figsize=(2, 2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 0], marker="o")
    axes.set_title(text)
    return figure


def test_the_mean_curve_is_taken_where_all_seeds_have_points() -> None:
    first = (np.array([0.0, 10, 20]), np.array([0.0, 10, 20]))
    second = (np.array([5.0, 20, 40]), np.array([1.0, 4, 8]))
    curve = mean_curve([first, second])
    assert curve.steps.tolist() == [5, 10, 20]
    assert curve.mean.tolist() == [3, 6, 12]
    # two seeds, half a difference d apart: t(1) = 12.706, error d / 2
    assert curve.high[2] - curve.mean[2] == pytest.approx(12.706 * 8, rel=1e-3)


def test_a_single_seed_has_no_band() -> None:
    curve = mean_curve([(np.array([1.0, 2]), np.array([3.0, 4]))])
    assert curve.low.tolist() == curve.high.tolist() == curve.mean.tolist() == [3, 4]


def test_an_svg_is_the_same_each_time_and_keeps_its_identifiers_to_itself() -> None:
    one, again, other = (svg_text(simple_figure(), name) for name in ("a", "a", "b"))
    assert one == again
    ids, others = Page(one).ids, Page(other).ids
    assert ids
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(others)
    used = set(re.findall(r"url\(#([^)]+)\)", one)) | {
        reference[1:] for reference in Page(one).references
    }
    assert used
    assert used <= set(ids)
    assert "fill: #ffffff" in one  # the paper; colours are no identifiers


def test_every_text_is_escaped() -> None:
    evil = '<script>alert("1")</script>&amp;'
    part = Part(
        title=evil,
        table=Table([evil], [[evil]]),
        pictures=[Picture.of(simple_figure(), "one", evil)],
        summary=evil,
        code=evil,
    )
    page = Page(render(evil, [evil], [Section("a", evil, evil, [part])]))
    assert "script" not in page.tags
    # title twice, note, navigation, heading, sentence, part, column, cell, caption, summary, code
    assert "".join(page.text).count(evil) == 12


def test_text_inside_a_picture_cannot_leave_it() -> None:
    svg = svg_text(simple_figure("--><script>alert(1)</script><!--"), "one")
    assert "script" not in Page(svg).tags


@pytest.fixture
def runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the tiny experiment, and a copy that says it has another seed."""
    monkeypatch.setattr("experiments.runs.VALIDATION_EPISODES", 2)
    first = project / "runs" / "tiny" / "seed0"
    train_experiment(load_experiment(project / "experiment.yaml"), first)
    shutil.copytree(first, first.with_name("seed1"))
    rewrite(first.with_name("seed1"), "experiment", "seed", 1)
    return first.parent


def rewrite(run: Path, group: str, key: str, value: object) -> None:
    """Change one line of a run's config."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    content[group][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.slow
def test_the_page_of_two_seeds_holds_every_part(
    runs: Path, uara: Callable[..., tuple[int, str, str]]
) -> None:
    rewrite(runs / "seed1", "provenance", "command", "<b>train</b>")
    status, out, err = uara("report", runs, "--out", "page.html", "--episodes", "8")
    assert (status, err) == (0, "")
    assert "page.html" in out
    text = Path("page.html").read_text()
    page = Page(text)
    sections = set(re.findall(r'<section id="([^"]+)"', text))
    assert sections == {
        "task0-curves", "task0-scores", "task0-latency", "task0-maps", "configs",
    }  # fmt: skip
    assert len(page.ids) == len(set(page.ids))
    anchors = {r for r in page.references if r.startswith("#")}
    assert {f"#{section}" for section in sections} <= anchors
    assert all(r.startswith(("#", "data:")) for r in page.references)
    assert {r[1:] for r in anchors} <= set(page.ids)
    words = "".join(page.text)
    for name in ("tiny", "greedy_latency", "max_sinr", "<b>train</b>", "rollout_slots"):
        assert name in words
    assert "b" not in page.tags
    # 6 curves at most, 4 distributions, 4 maps and a decision map each of policy and greedy
    assert page.tags.count("svg") >= 4 + 2 * 5 + 3


def test_runs_are_found_by_experiment_and_refused_where_they_do_not_belong(runs: Path) -> None:
    groups = find_runs([runs])
    assert [run.config.seed for run in groups["tiny"]] == [0, 1]
    assert find_runs([runs / "seed1", runs / "seed0"]).keys() == groups.keys()
    assert load_run_config(runs / "seed0") == groups["tiny"][0].config
    with pytest.raises(UserError, match="holds no"):
        build_report([runs], runs / "page.html", decoded=[runs / "seed0"])
    assert not (runs / "page.html").exists()
    rewrite(runs / "seed1", "experiment", "num_networks", 3)
    with pytest.raises(UserError, match="differ in more than the seed"):
        find_runs([runs])


def test_a_folder_without_a_run_is_refused(
    project: Path, uara: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = uara("report", "nowhere")
    assert status == 2
    assert err.strip().count("\n") == 0
    assert "nowhere holds no run" in err
