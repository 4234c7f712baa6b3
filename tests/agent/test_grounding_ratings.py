"""A right number on the wrong side of its usual range is a contradiction, too."""

from __future__ import annotations

import pytest

from ecg_agent_ray.agent import check_grounding

MEASURED = [
    {
        "heart_rate": "61.73",
        "pr_interval": "212",
        "qrs_duration": "76",
        "qtc_interval": "423.98",
    }
]


@pytest.mark.parametrize(
    "answer",
    [
        "Measured heart rate: 62 bpm, over the usual range (60 to 100 bpm).",
        "The heart rate is 62 bpm, lower than the usual 60 to 100 bpm.",
        "Your PR interval is 212 ms, below the normal range.",
        "The PR interval is 0.212 s, shorter than usual.",
    ],
)
def test_a_wrong_rating_is_found(answer: str) -> None:
    (violation,) = check_grounding(answer, MEASURED)
    assert "usual is" in violation.reason


@pytest.mark.parametrize(
    "answer",
    [
        "Your heart rate is 62 bpm, within the usual range of 60 to 100 bpm.",
        "Your PR interval is 212 ms, above the usual range (120 to 200 ms).",
        "The QRS duration is 76 ms, which is normal (below 120 ms).",
        "Heart rate 62 bpm and PR interval 212 ms; the PR interval is over the usual range.",
        "In general, a rate over the usual 100 bpm is called tachycardia.",
    ],
)
def test_right_ratings_and_general_talk_pass(answer: str) -> None:
    assert check_grounding(answer, MEASURED) == []
