"""The Gantt picture of a plan: uploads, drafts and verification by batch, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from uara.control.plan.planner import Plan
from uara.control.plan.replay import Replay, Span
from uara.figures.png import write_png

# Okabe and Ito's colours, and hatches, so that batches are told apart without colour too.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo", "---")
LANES = {"uplink": "uplink", "draft": "small site\ndrafts", "verify": "macro site\nverifies"}
BAR_HEIGHT = 0.72
MOST_IN_LEGEND = 12
ROUNDS = 4  # that are drawn from the middle of a plan
SMALL_BAR = 0.15  # too low for a number
LABEL_SHARE = 0.03  # of the width that a bar must have to carry its batch's number


def draw_gantt(plan: Plan, seen: Replay, path: Path, *, limit_bytes: float) -> None:
    """Draw a plan's uploads and first round, rounds from its middle, and the memory over all of it.

    Args:
        plan: what is done.
        seen: its replay.
        path: PNG to write.
        limit_bytes: memory of the draft node.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.7, 1))
    first, middle = middle_rounds(plan)
    names = [f"uploads and round {first.start}", f"rounds {middle.start} to {middle.stop - 1}"]
    for column, (rounds, name) in enumerate(zip((first, middle), names, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        start_s, end_s = _window(plan, seen, rounds)
        _draw_spans(axes, seen, 0.0 if column == 0 else start_s, end_s)
        axes.set_xlabel(f"time (s): {name}")
    _draw_memory(figure.add_subplot(grid[1, :]), seen, plan, limit_bytes)
    handles = [
        Patch(
            **_style(m), label=f"batch {m + 1}: {len(batch.tasks)} tasks, l = {batch.draft_length}"
        )
        for m, batch in enumerate(plan.batches[:MOST_IN_LEGEND])
    ]
    figure.legend(handles=handles, ncols=4, loc="outside upper center", frameon=False, fontsize=9)
    write_png(figure, path)


def draw_execution(plan: Plan, seen: Replay, spans: Sequence[Span], path: Path) -> None:
    """Draw a plan and its execution above each other, both nodes over the whole time.

    Args:
        plan: what was planned.
        seen: its replay.
        spans: of the execution.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    ends = [max(span.end_s for span in both) for both in (seen.spans, spans)]
    rows = figure.subplots(2, 1, sharex=True)
    for axes, both, name, end_s in zip(
        rows, (seen.spans, spans), ("planned", "executed"), ends, strict=True
    ):
        for span in both:
            if span.node == "uplink":
                continue
            lane = list(LANES).index(span.node) - 1
            width_s = span.end_s - span.start_s
            colour = COLOURS[span.batch % len(COLOURS)]
            axes.barh(lane, width_s, BAR_HEIGHT, left=span.start_s, facecolor=colour,
                      edgecolor="white", lw=0.3)  # fmt: skip
        axes.axvline(end_s, color="#333333", linestyle="--", linewidth=1)
        axes.set_title(f"{name}: {end_s:.2f} s", loc="left", fontsize=10)
        axes.set_yticks(range(2), list(LANES.values())[1:])
        axes.set_ylim(1.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    rows[1].set_xlim(0, 1.02 * max(ends))
    rows[1].set_xlabel("time (s)")
    handles = [
        Patch(facecolor=COLOURS[m % len(COLOURS)], label=f"batch {m + 1}: {len(b.tasks)} tasks")
        for m, b in enumerate(plan.batches[:MOST_IN_LEGEND])
    ]
    figure.legend(handles=handles, ncols=6, loc="outside upper center", frameon=False, fontsize=9)
    write_png(figure, path)


def middle_rounds(plan: Plan) -> tuple[range, range]:
    """Choose the rounds that are drawn: the first, and some from the middle of the first wave."""
    last = min(batch.rounds for batch in plan.batches if batch.wave == 0)
    start = max(1, (last - ROUNDS) // 2 + 1)
    return range(1, 2), range(start, min(start + ROUNDS, last + 1))


def _window(plan: Plan, seen: Replay, rounds: range) -> tuple[float, float]:
    """Find when rounds of the first wave begin and end."""
    shown = [s for s in seen.spans if s.round in rounds and plan.batches[s.batch].wave == 0]
    return min(s.start_s for s in shown), max(s.end_s for s in shown)


def _style(batch: int) -> dict[str, Any]:
    return {
        "facecolor": COLOURS[batch % len(COLOURS)],
        "hatch": HATCHES[batch % len(HATCHES)],
        "edgecolor": "#333333",
        "lw": 0.4,
    }


def _draw_spans(axes: Axes, seen: Replay, start_s: float, end_s: float) -> None:
    """Draw a lane per node, with a bar per upload and stage."""
    batches = len(seen.completion_s)
    uploads = [span for span in seen.spans if span.node == "uplink"]
    shares = batches > 1 and all(span.start_s == 0 for span in uploads)
    for span in seen.spans:
        begin, end = max(span.start_s, start_s), min(span.end_s, end_s)
        if end <= begin:
            continue
        lane, height = float(list(LANES).index(span.node)), BAR_HEIGHT
        if span.node == "uplink" and shares:
            # Uploads that share the band lie above each other.
            height = BAR_HEIGHT / batches
            lane += (span.batch - (batches - 1) / 2) * height
        axes.barh(lane, end - begin, height, left=begin, **_style(span.batch))
        if height > SMALL_BAR and end - begin > LABEL_SHARE * (end_s - start_s):
            axes.text(
                (begin + end) / 2, lane, str(span.batch + 1), ha="center", va="center", fontsize=8,
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
            )  # fmt: skip
    axes.set_xlim(start_s, end_s)
    axes.set_ylim(len(LANES) - 0.5, -0.5)
    axes.set_yticks(range(len(LANES)), list(LANES.values()))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_memory(axes: Axes, seen: Replay, plan: Plan, limit_bytes: float) -> None:
    """Draw the memory that weights and caches take, against what is there."""
    times, held = np.array(seen.memory_bytes).T
    axes.step(times, held / 1e9, where="post", color="#0072B2")
    axes.fill_between(times, held / 1e9, step="post", color="#0072B2", alpha=0.15)
    axes.axhline(limit_bytes / 1e9, color="#D55E00", linestyle="--", linewidth=1)
    axes.annotate(
        "memory of the node", (plan.completion_s, limit_bytes / 1e9), xytext=(0, 3),
        textcoords="offset points", ha="right", fontsize=8, color="#D55E00",
    )  # fmt: skip
    axes.set_xlim(0, plan.completion_s)
    axes.set_ylim(0, 1.15 * max(limit_bytes, float(held.max())) / 1e9)
    axes.set_xlabel("time (s); whole plan")
    axes.set_ylabel("draft node (GB)")
    axes.spines[["top", "right"]].set_visible(False)
