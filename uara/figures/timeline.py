"""A round timeline: per device, when it drafts, sends, waits, is verified and hears the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from uara.decoding.records import RequestRecord, RoundRecord
from uara.errors import UserError

# Okabe and Ito's colours, told apart by colour-blind readers.
PHASES: dict[str, str] = {
    "prompt upload": "#999999",
    "prefill": "#CC79A7",
    "draft": "#E69F00",
    "uplink": "#56B4E9",
    "queue": "#F0E442",
    "verify": "#009E73",
    "server decode": "#0072B2",
    "downlink": "#D55E00",
}
WASTE_COLOUR = "#B2182B"
BAR_HEIGHT = 0.56
WASTE_HEIGHT = 0.12

Span = tuple[str, float, float]


def request_spans(record: RequestRecord, rounds: Sequence[RoundRecord]) -> list[Span]:
    """Cut a request's life into phases (name, start, end), seconds, without empty ones.

    Args:
        record: the request.
        rounds: its rounds.
    """
    spans: list[Span] = []
    for entry in sorted(rounds, key=lambda r: r.verify_start_s):
        if entry.work == "verify":
            spans += [
                ("draft", entry.draft_start_s, entry.draft_end_s),
                ("uplink", entry.draft_end_s, entry.uplink_end_s),
                ("queue", entry.uplink_end_s, entry.verify_start_s),
                ("verify", entry.verify_start_s, entry.verify_end_s),
            ]
        elif entry.work == "decode":
            spans.append(("server decode", entry.verify_start_s, entry.verify_end_s))
        else:
            spans.append(("prompt upload", record.start_s, record.upload_end_s))
            spans.append(("prefill", record.upload_end_s, entry.verify_end_s))
        spans.append(("downlink", entry.verify_end_s, entry.downlink_end_s))
    return [span for span in spans if span[2] > span[1]]


def draw_timeline(
    requests: Sequence[RequestRecord],
    rounds: Sequence[RoundRecord],
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    title: str = "",
) -> Figure:
    """Draw the rounds of a run, one lane per device.

    A red bar under a draft is the share of it that was thrown away; servers are named where a
    request begins or changes its server.

    Args:
        requests: records of the run.
        rounds: records of the run.
        start_s: left edge.
        end_s: right edge; the end of the last round by default.
        title: over the picture.

    Raises:
        UserError: if there is nothing to draw in that interval.
    """
    last = max((r.downlink_end_s for r in rounds), default=0.0) if end_s is None else end_s
    if not any(r.downlink_end_s > start_s and r.draft_start_s < last for r in rounds):
        raise UserError(
            f"no round lies between {start_s} s and {last} s; give an interval of the run"
        )
    num_devices = 1 + max(record.device for record in requests)
    figure = Figure(figsize=(11, 1.4 + 0.45 * num_devices), layout="constrained")
    axes = figure.add_subplot()
    _shade_lives(axes, requests, last)
    for record in requests:
        own = [entry for entry in rounds if entry.sid == record.sid]
        for name, begin, end in request_spans(record, own):
            axes.barh(record.device, end - begin, BAR_HEIGHT, left=begin, color=PHASES[name], lw=0)
        for entry in own:
            _mark_waste(axes, entry)
        _mark_servers(axes, record, own)
    axes.set_xlim(start_s, last)
    axes.set_ylim(num_devices - 0.4, -0.7)
    axes.set_yticks(range(num_devices), [f"device {i}" for i in range(num_devices)])
    axes.set_xlabel("virtual time (s)")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in PHASES.items()]
    handles.append(Patch(color=WASTE_COLOUR, label="wasted draft"))
    axes.legend(
        handles=handles, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False
    )
    if title:
        figure.suptitle(title)
    return figure


def _shade_lives(axes: Axes, requests: Sequence[RequestRecord], last: float) -> None:
    """Show when a device has a request: a pale band from arrival to end."""
    for record in requests:
        end = min(record.finish_s, last)
        axes.barh(
            record.device, end - record.arrival_s, 0.9, left=record.arrival_s, color="#EEEEEE", lw=0
        )


def _mark_waste(axes: Axes, entry: RoundRecord) -> None:
    """Draw the share of a draft that was thrown away under the draft's end."""
    if not entry.wasted:
        return
    width = (entry.draft_end_s - entry.draft_start_s) * entry.wasted / entry.draft_length
    axes.barh(
        entry.device + BAR_HEIGHT / 2 + WASTE_HEIGHT / 2,
        width,
        WASTE_HEIGHT,
        left=entry.draft_end_s - width,
        color=WASTE_COLOUR,
        lw=0,
    )


def _mark_servers(axes: Axes, record: RequestRecord, rounds: Sequence[RoundRecord]) -> None:
    """Name the server over a request's first round and over the first round after a handover."""
    before = -1
    for entry in sorted(rounds, key=lambda r: r.verify_start_s):
        if entry.server != before:
            axes.text(
                record.start_s if before < 0 else entry.verify_start_s,
                entry.device - BAR_HEIGHT / 2,
                f"server {entry.server}",
                va="bottom",
                fontsize=7,
                color="#222222",
                clip_on=True,
            )
        before = entry.server
