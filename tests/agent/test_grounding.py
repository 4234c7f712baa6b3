"""A table of sentences: which say something of this ECG that the tools do not bear out."""

from __future__ import annotations

import pytest

from ecg_agent_ray.agent.grounding import (
    Evidence,
    check_grounding,
    correct_rounding,
    faithful_sentences,
)

MEASURED = {
    "heart_rate": "72.35",
    "pr_interval": "160",
    "qrs_duration": "92",
    "qtc_interval": "412.55",
}
FOUND = ["SR (98.23%)", "LVH (75.10%)", "1AVB (61.00%)"]
EXPLAINED = "AFIB (97.12%) | time=3.072-3.072s, freq=11.7-11.7Hz"
OUTPUTS = [MEASURED, FOUND]

BORNE_OUT = [
    "Your heart rate is 72.35 bpm.",
    "Your heart rate is 72 bpm.",
    "Your heart rate is 72.4 beats per minute.",
    "Your heart is beating about 72 times, that is 72 bpm.",
    "The PR interval is 160 ms.",
    "The PR interval is 0.16 s.",
    "The PR interval is 0.16 seconds, which is 160 milliseconds.",
    "The QTc is 413 ms.",
    "The QTc is 412.55 ms, below the usual limit of 450 ms.",
    "QTc: 412.6 ms; QRS: 92 ms; PR: 160 ms.",
    "The PR, QRS and QTc are 160, 92 and 413 ms, respectively.",
    "A 92 ms QRS duration is normal.",
    "Your QRS duration of 92 ms is below 120 ms.",
    "Your PR interval is 160 ms, which is within the normal range of 120 to 200 ms.",
    "Normal is 60-100 bpm.",
    "A normal heart rate is between 60 and 100 bpm.",
    "The usual range for the PR interval is 120 to 200 ms.",
    "A QRS below 120 ms is considered normal.",
    "In athletes the heart rate can be as low as 40 bpm.",
    "If the QTc is above 500 ms, a doctor should look at it.",
    "Anything over 100 bpm is called tachycardia.",
    "Your ECG shows sinus rhythm with a probability of 98.23%.",
    "The findings are sinus rhythm (98%) and left ventricular hypertrophy (75.1%).",
    "Your ECG shows LVH.",
    "There is no sign of AFIB.",
    "No, atrial fibrillation was not detected.",
    "Your ECG shows sinus rhythm, not atrial fibrillation.",
    "I see sinus rhythm without atrial flutter.",
    "Atrial fibrillation is an irregular rhythm that starts in the upper chambers.",
    "Atrial fibrillation can cause a stroke.",
    "AFIB stands for atrial fibrillation.",
    "Would you like to know whether you have atrial fibrillation?",
    "The tool looks for rhythms such as atrial fibrillation or atrial flutter.",
    "First-degree AV block means the signal takes longer than usual.",
    "About 2% of people have atrial fibrillation.",
    "I cannot be 100% certain.",
    "The average heart rate of a healthy adult is about 75 bpm.",
    "I report what the classifier gives more than 50%.",
    "For the QTc interval, up to 450 ms, in women 460 ms, is regarded as normal.",
    "Your QTc interval is 413 ms, within the usual range (up to 450 ms, in women 460 ms).",
    "In short: atrial flutter is a fast rhythm of the upper chambers.",
    "Atrial flutter is not among the findings, which are sinus rhythm (98%) and LVH (75%).",
    "This is a 10-second recording.",
    "On ECG paper one small square is 40 ms.",
    "Please call 911 or 112 at once.",
    "I used all 12 leads, and lead II was the clearest.",
    "Goodbye, and take care!",
    "In general, the PR interval is below 200 ms.",
    "Generally, the QTc is below 460 ms.",
    "In general, the heart rate is 60 to 100 bpm.",
    "In general, a heart rate below 60 bpm is called slow.",
    "In general, the heart rate is considered slow below 60 bpm.",
    "In general, the heart rate is above 70 bpm.",
    "In general, the QTc is prolonged above 450 ms.",
    "Generally, the PR interval is prolonged above 200 ms.",
    "In general, the QRS is wide above 120 ms.",
    "Generally, the heart rate rises above 100 bpm during exercise.",
    "In general, the heart rate slows below 60 bpm during sleep.",
    "Generally, the heart rate of an athlete is 50 bpm.",
    "",
]

CONTRADICTED = [
    "Your heart rate is 85 bpm.",
    "Your heart rate is 85 beats per minute, which is normal.",
    "Your heart rate of 85 bpm is normal.",
    "The heart rate is 85.",
    "It is 85 bpm.",
    "The PR interval is 92 ms.",
    "The PR interval is 0.20 s.",
    "The PR interval is 160 s.",
    "The QTc is 430 ms.",
    "The QTc is 412.9 ms.",
    "Your QRS is above 120 ms.",
    "Your heart rate is between 80 and 90 bpm.",
    "Your ECG shows atrial fibrillation.",
    "Your ECG shows AFIB (97%).",
    "No, your ECG shows atrial fibrillation.",
    "Atrial fibrillation was detected.",
    "There is no atrial flutter, but there is atrial fibrillation.",
    "The findings are sinus rhythm (88%).",
    "Your T wave is 0.3 mV high.",
    "Atrial fibrillation (97.12%).",
    "The RR interval is 829 ms.",
    "The P-wave duration is 92 ms.",
    "The findings are a normal ECG (93%).",
    "The findings are sinus rhythm (75%) and LVH (98%).",
    "95 ms is normal.",
    "I can tell from the findings: the heart rate is normal (120 bpm).",
    "The heart rate is usual at 85 bpm.",
    "In general, the heart rate is below 60 bpm.",
    "Generally, your heart rate is 85 bpm.",
    "In general, the PR interval is above 200 ms.",
    "Overall, the QTc is below 400 ms.",
    "In general, your heart rate is clearly below 60 bpm.",
]


@pytest.mark.parametrize("answer", BORNE_OUT)
def test_borne_out(answer: str) -> None:
    assert check_grounding(answer, OUTPUTS) == []


@pytest.mark.parametrize("answer", CONTRADICTED)
def test_contradicted(answer: str) -> None:
    assert check_grounding(answer, OUTPUTS)


@pytest.mark.parametrize(
    "answer", ["Your heart rate is 72 bpm.", "Your ECG shows sinus rhythm.", "QTc is 412 ms."]
)
def test_without_tool_outputs_every_claim_fails(answer: str) -> None:
    assert check_grounding(answer, [])


def test_a_number_of_the_users_may_be_rated() -> None:
    question = "Is 95 ms normal for the QRS?"
    assert not check_grounding("95 ms is normal.", OUTPUTS, question=question)
    assert check_grounding("Your QRS is 95 ms.", OUTPUTS, question=question)
    assert check_grounding("96 ms is normal.", OUTPUTS, question=question)


def test_missing_value_may_not_be_given() -> None:
    outputs = [{**MEASURED, "pr_interval": None}]
    assert check_grounding("The PR interval is 160 ms.", outputs)
    assert not check_grounding("The PR interval could not be measured.", outputs)


def test_explanation_places() -> None:
    assert not check_grounding("The strongest sign lies at 3.1 s, around 11.7 Hz.", [EXPLAINED])
    assert check_grounding("The strongest sign lies at 4.2 s.", [EXPLAINED])
    assert not check_grounding("The classifier sees atrial fibrillation there.", [EXPLAINED])


def test_measured_value_justifies_its_name() -> None:
    slow = [{"heart_rate": "48.00"}]
    assert not check_grounding("Your heart rate is 48 bpm, which is called bradycardia.", slow)
    assert not check_grounding("You have bradycardia.", slow)
    assert check_grounding("You have bradycardia.", [MEASURED])


@pytest.mark.parametrize(
    "outputs",
    [
        ['{"heart_rate": "72.35"}'],
        [{"action": "call_measurement_tool", "tool_output": {"heart_rate": "72.35"}}],
        [("call_measurement_tool", {"heart_rate": "72.35"})],
        [{"heart_rate_bpm": 72.35}],
    ],
)
def test_forms_of_outputs(outputs: list[object]) -> None:
    assert not check_grounding("Your heart rate is 72 bpm.", outputs)
    assert check_grounding("Your heart rate is 70 bpm.", outputs)


def test_cut_numbers_are_tolerated_and_corrected() -> None:
    outputs = [{"heart_rate": "72.85", "qtc_interval": "412.55", "pr_interval": "168"}]
    answer = "Your heart rate is 72 bpm, QTc 412.5 ms, PR 0.16 s."
    assert check_grounding(answer, outputs) == []
    assert (
        correct_rounding(answer, outputs) == "Your heart rate is 73 bpm, QTc 412.5 ms, PR 0.17 s."
    )


def test_only_faithful_sentences_stay() -> None:
    answer = "Your heart rate is 72 bpm. You have atrial fibrillation. Take care."
    kept, violations = faithful_sentences(answer, OUTPUTS)
    assert kept == "Your heart rate is 72 bpm. Take care."
    assert [violation.claim for violation in violations] == ["AFIB"]


def test_numerals_are_the_given_and_the_rounded() -> None:
    assert Evidence.collect(OUTPUTS).numerals()[:2] == ("72.35", "160")
    assert "72" in Evidence.collect(OUTPUTS).numerals()
