"""The judge of greedy runs tells equality, near ties and real differences apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from uara.decoding.exactness import check_greedy_exact
from uara.decoding.records import RequestRecord
from uara.decoding.scenario import Request


def test_only_the_first_difference_is_judged_by_its_logit_gap(table_model: Any) -> None:
    model = table_model(4, 0)
    model.logits[...] = np.array([0.0, 1.0, 5.0, 2.0])  # after anything but what follows: token 2
    model.logits[1, 2] = np.array([0.0, 3.0, 1.0, 3.0 - 5e-5])  # a near tie of 1 and 3
    model.logits[2, 2] = np.array([0.0, 3.0, 1.0, 3.0 - 5e-4])
    own = [2, 1, 2, 1]  # what the target says after (0, 1)
    answers = {
        1: own,
        2: [2, 3, 0, 0],  # differs at the near tie; what follows does not matter
        3: [2, 1, 3, 1],  # 3 instead of 2, by a gap of 3
        4: [],
    }
    requests = [Request(sid, 0, 0.0, (0, 1), 2, 4) for sid in answers]
    records = [
        RequestRecord(
            sid=sid, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2, tokens=tokens
        )
        for sid, tokens in answers.items()
    ]
    check = check_greedy_exact(model, requests, records)
    assert (check.equal, check.near_ties, check.unexplained) == (2, 1, (3,))
    wide = [Request(5, 0, 0.0, (2, 2), 2, 1)]
    record = RequestRecord(
        sid=5, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2, tokens=[3]
    )
    assert check_greedy_exact(model, wide, [record]).unexplained == (5,)
