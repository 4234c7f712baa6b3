"""A right number on the wrong side of its usual range is a contradiction, too."""

from __future__ import annotations

import pytest

from ecg_agent_ray.agent import check_grounding
from ecg_agent_ray.agent.gate import AnswerGate

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
        "62 bpm is a little low.",
        "Your heart rate of 62 bpm is slightly high.",
        "Your heart rate is a bit slow at 62 bpm.",
        "At 62 bpm, your heart rate is fine. Your PR interval is 212 ms, which is normal.",
        "Your PR interval (212 ms) is within the normal range.",
        "Your QTc interval is 424 ms. That is a little long.",
        "Your heart rate is 61.73 bpm. This is on the low side.",
        "The QRS duration is 0.076 s, prolonged.",
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
        "62 bpm is not low.",
        "Your heart rate is 62 bpm, which is at the low end of normal.",
        "Your heart rate is 62 bpm. That is within the usual range.",
        "Your PR interval is 212 ms, which is slightly long.",
        "Your PR interval is 212 ms, the rest is normal.",
        "Your heart rate is 62 bpm. In athletes that can be lower.",
        "Your heart rate is 62 bpm. A rate below 60 bpm would be slow.",
        "A heart rate of 62 bpm is low if you are a newborn.",
    ],
)
def test_right_ratings_and_general_talk_pass(answer: str) -> None:
    assert check_grounding(answer, MEASURED) == []


def test_between_the_limits_of_men_and_women_both_pass() -> None:
    measured = [{"qtc_interval": "455"}]
    assert check_grounding("Your QTc is 455 ms, which is normal.", measured) == []
    assert check_grounding("Your QTc is 455 ms, which is slightly prolonged.", measured) == []


def test_the_gate_sees_the_sentence_before() -> None:
    gate = AnswerGate(MEASURED)
    assert gate.feed("Your heart rate is 62 bpm. That is a little low. ") == (
        "Your heart rate is 62 bpm."
    )
    assert gate.dropped == 1


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("Outside the usual range: the heart rate is below the usual range.", True),
        ("Your heart rate is faster than usual.", True),
        ("The PR interval is above the usual range.", False),
        ("The QTc lies over the usual range.", False),
        ("A heart rate below the usual range is called bradycardia.", False),
        ("When the heart rate is below the usual range, it is called bradycardia.", False),
        ("The heart rate is not below the usual range.", False),
    ],
)
def test_a_rating_of_a_quantity_named_without_its_value(said: str, wrong: bool) -> None:
    outputs = [{"heart_rate": "64", "pr_interval": "220", "qrs_duration": "92"}]
    assert bool(check_grounding(said, outputs)) is wrong
