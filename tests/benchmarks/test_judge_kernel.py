"""The virtual kernel against the event judge: one setting of a kind quickly, the others at leisure.

Of `psd` only devices with servers of their own are one setting: where a server is shared, the
kernel's reads a correction together with what waits at the end of a pass, the judge's when the
device's next step begins.
"""

from __future__ import annotations

import pytest

from benchmarks.judge_kernel import BOUND, CASES, Case, compare, show

ONE_SETTING = [case for case in CASES if case.mode != "psd" or case.devices == 1]


def test_kernel_and_judge_agree() -> None:
    case = Case("sd", devices=8, servers=3, seed=1)
    row = compare(case, rounds=100)
    assert abs(row.error) < BOUND
    assert len(row.device_errors) == case.devices
    assert show([row]).row_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_SETTING, ids=str)
def test_kernel_and_judge_agree_in_every_mode(case: Case) -> None:
    assert abs(compare(case, rounds=1200 if case.devices == 1 else 150).error) < BOUND
