"""Who counts how much, and who is left out: pure functions of the reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diloco.merge import Contribution, Reports, judge, make_report
from diloco.settings import Settings


def reports(*members: dict[str, Any]) -> Reports:
    rows = []
    for index, given in enumerate(members):
        contribution = Contribution(
            **{"tokens": 100, "samples": 10, "steps": 5, "norm": 1, **given}
        )
        rows.append(make_report(f"m{index}", contribution, 0, ""))
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("tokens", (1.0, 0.5)),
        ("samples", (0.25, 1.0)),
        ("steps", (1.0, 0.2)),
        ("equal", (1.0, 1.0)),
        # 200^2 / 10 and 100^2 / 2
        ("tokens_by_rate", (0.8, 1.0)),
    ],
)
def test_weights_by_rule(rule: str, wanted: tuple[float, float]) -> None:
    told = reports(
        {"tokens": 200, "samples": 5, "steps": 10}, {"tokens": 100, "samples": 20, "steps": 2}
    )
    verdict = judge(told, Settings(weights=rule))
    assert verdict.weights == pytest.approx(wanted)
    assert verdict.total == pytest.approx(sum(wanted))
    assert verdict.excluded == {}


def test_steps_count_where_nobody_counted_tokens() -> None:
    told = reports({"tokens": 0, "steps": 4}, {"tokens": 0, "steps": 8})
    assert judge(told, Settings()).weights == (0.5, 1.0)


def test_a_newcomer_without_steps_weighs_nothing_and_is_not_blamed() -> None:
    told = reports({}, {"tokens": 0, "samples": 0, "steps": 0, "norm": 0})
    for rule in ("tokens", "equal"):
        verdict = judge(told, Settings(weights=rule))
        assert verdict.weights == (1.0, 0.0)
        assert verdict.excluded == {}


def test_what_is_not_finite_is_left_out_and_named() -> None:
    told = reports({}, {"norm": math.nan, "bad": 3}, {"norm": math.inf, "bad": 1}, {})
    verdict = judge(told, Settings())
    assert verdict.weights == (1.0, 0.0, 0.0, 1.0)
    assert verdict.excluded == {
        "m1": "3 elements are NaN or infinite",
        "m2": "1 elements are NaN or infinite",
    }
    nobody = judge(reports({"norm": math.nan, "bad": 3}), Settings())
    assert nobody.total == 0


def test_an_outlier_is_left_out_of_three_but_not_of_two() -> None:
    verdict = judge(reports({}, {"norm": 1.5}, {"norm": 20.0}), Settings())
    assert verdict.weights == (1.0, 1.0, 0.0)
    assert "13.3 times the median" in verdict.excluded["m2"]
    assert judge(reports({}, {"norm": 1.5}, {"norm": 14.0}), Settings()).excluded == {}
    assert judge(reports({}, {"norm": 1000.0}), Settings()).excluded == {}


def test_larger_contributions_are_clipped_to_the_median_norm() -> None:
    told = reports({"norm": 1.0}, {"norm": 2.0}, {"norm": 8.0})
    assert judge(told, Settings(clip_to_median=True)).scales == (1.0, 1.0, 0.25)
    assert judge(told, Settings()).scales == (1.0, 1.0, 1.0)
