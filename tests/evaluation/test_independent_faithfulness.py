"""The judge that shares nothing with the guard."""

from __future__ import annotations

import pytest

from ecg_agent_ray.agent import shown
from ecg_agent_ray.evaluation.independent import unfaithful_sentences

OUTPUTS = [
    ["SR (91.00%)", "CLBBB (88.00%)"],
    {"heart_rate": "62.4", "pr_interval": None, "qrs_duration": "149", "qtc_interval": "486"},
]


@pytest.mark.parametrize(
    "said",
    [
        "Your heart rate is 162 bpm.",
        "Your QTc is 486 ms, which is within the usual range.",
        "The QRS is 149 ms. It is shorter than usual.",
        "Atrial fibrillation (88%) is reported.",
        "Sinus rhythm is not among the findings.",
        "The PR interval is within the usual range.",
    ],
)
def test_false_sentences_are_found(said: str) -> None:
    assert unfaithful_sentences(said, OUTPUTS)


@pytest.mark.parametrize(
    "content",
    [
        "Your heart rate is {heart_rate}, which is {heart_rate.rating}.",
        "The QTc is {qtc_interval}. It is {qtc_interval.rating}.",
        "{check.AFIB}. {check.BBB}. {pr_interval.missing}.",
        "The classifier lists {findings}. {summary}.",
        "Is it under 500? The QTc is {qtc_interval.margin}. {know.coffee}.",
    ],
)
def test_what_the_program_fills_in_passes(content: str) -> None:
    assert unfaithful_sentences(shown(content, OUTPUTS), OUTPUTS) == []
