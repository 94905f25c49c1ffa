"""The timeline's phases by hand, and a picture that is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from uara.decoding.records import RequestRecord, RoundRecord
from uara.errors import UserError
from uara.figures.png import write_png
from uara.figures.timeline import draw_timeline, request_spans

RECORD = RequestRecord(
    sid=1, device=0, task=0, arrival_s=0.2, prompt_tokens=9, text_tokens=3, start_s=0.5,
    upload_end_s=1.0, first_token_s=1.6, end_s=2.4, finish_s=2.4, tokens=[1, 2, 3, 4],
)  # fmt: skip
ROUNDS = [
    RoundRecord(
        sid=1, device=0, server=2, work="verify", draft_length=3, accepted=1, draft_start_s=1.6,
        draft_end_s=1.9, uplink_end_s=2.0, verify_start_s=2.1, verify_end_s=2.3,
        downlink_end_s=2.4,
    ),
    RoundRecord(
        sid=1, device=0, server=2, work="prefill", draft_start_s=1.2, draft_end_s=1.2,
        uplink_end_s=1.2, verify_start_s=1.2, verify_end_s=1.5, downlink_end_s=1.6,
    ),
]  # fmt: skip


def test_a_request_is_cut_into_phases_without_gaps() -> None:
    spans = request_spans(RECORD, ROUNDS)
    assert [name for name, _, _ in spans] == [
        "prompt upload", "prefill", "downlink", "draft", "uplink", "queue", "verify", "downlink",
    ]  # fmt: skip
    assert [end for _, _, end in spans[:-1]] == [start for _, start, _ in spans[1:]]
    assert (spans[0][1], spans[-1][2]) == (RECORD.start_s, RECORD.end_s)


def test_the_wasted_share_is_drawn_at_the_drafts_end(tmp_path: Path) -> None:
    figure = draw_timeline([RECORD], ROUNDS, title="one request")
    boxes = [patch.get_bbox() for patch in figure.axes[0].patches]
    wasted = [box for box in boxes if box.height < 0.2]
    assert len(wasted) == 1
    assert (wasted[0].x0, wasted[0].x1) == pytest.approx((1.7, 1.9))
    path = tmp_path / "timeline.png"
    write_png(figure, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["timeline.png"]


def test_an_interval_without_rounds_is_refused() -> None:
    with pytest.raises(UserError, match="no round lies between 5"):
        draw_timeline([RECORD], ROUNDS, start_s=5.0, end_s=6.0)
