"""What a user reads of a strict agent's text: nothing but filled facts, entries, and courtesy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecg_agent_ray.agent import shown, urgent
from ecg_agent_ray.facts import FactSheet, fill, knowledge, named_numbers, offered, slotify
from ecg_agent_ray.facts.allowlist import PARTS, words_of

OUTPUTS = [
    ["SR (91.00%)", "CLBBB (88.00%)"],
    {"heart_rate": "62.4", "pr_interval": None, "qrs_duration": "149", "qtc_interval": "486"},
]


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (
            "Your heart rate is {heart_rate}, which is {heart_rate.rating}.",
            "Your heart rate is 62 bpm, which is within the usual range.",
        ),
        ("{heart_rate} for your pulse.", "62 bpm for your pulse."),
        ("Heart rate and QRS: {heart_rate} and {qrs_duration}.",
         "Heart rate and QRS: 62 bpm and 149 ms."),
        ("{pr_interval.missing}.", "The PR interval could not be measured in this recording."),
        ("The QTc is {qtc_interval}. It is {qtc_interval.vs:450}.",
         "The QTc is 486 ms. It is above 450 ms."),
        ("The QTc is {qtc_interval.margin}.",
         "The QTc is 36 ms above the upper limit of 450 ms for men."),
        ("The usual range is {heart_rate.usual}.", "The usual range is 60 to 100 bpm."),
        ("The rhythm is {finding.SR}.", "The rhythm is sinus rhythm (91%)."),
        ("{check.AFIB}.", "Atrial fibrillation was not reported."),
        ("{check.BBB}.", "Complete left bundle branch block (88%) is reported."),
        ("I'm sorry to hear that. Take care!", "I'm sorry to hear that. Take care!"),
        ("Would you like to see the findings?", "Would you like to see the findings?"),
    ],
)  # fmt: skip
def test_the_three_kinds_are_shown(content: str, read: str) -> None:
    assert shown(content, OUTPUTS) == read


@pytest.mark.parametrize(
    "content",
    [
        "Your PR is {heart_rate}.",
        "You do not have {finding.CLBBB.name}.",
        "You have {finding.AFIB.meaning}.",
        "Your ECG shows {finding.AFIB.meaning}.",
        "{finding.AFIB}.",
        "{pr_interval}.",
        "Your heart rate is {heart_rate.usual}.",
        "The rhythm is {finding.CLBBB}.",
        "Only {finding.SR} was found, nothing else.",
        "Luckily it is {qtc_interval.rating}.",
        "It is {pr_interval.rating}.",
        "Your QTc of 486 ms is normal.",
        "Everything is normal.",
        "That is fine.",
        "There is no sign of atrial fibrillation.",
        "You can go home.",
        "Don't worry.",
        "It could be worse.",
        "Take two tablets.",
        "Your heart is healthy.",
        "Deine Herzfrequenz ist normal.",
        "62",
        "{made.up}",
    ],
)
def test_nothing_else_is(content: str) -> None:
    assert shown(content, OUTPUTS) == ""


def test_a_bad_clause_leaves_the_good_one() -> None:
    content = "The QRS is {qrs_duration}, so you are healthy."
    assert shown(content, OUTPUTS) == "The QRS is 149 ms."
    content = "The QRS is {qrs_duration}; but it is {heart_rate.rating}."
    assert shown(content, OUTPUTS) == "The QRS is 149 ms."


def test_a_rating_belongs_to_what_was_named_last() -> None:
    assert shown("The QRS is {qrs_duration}. It is {heart_rate.rating}.", OUTPUTS) == (
        "The QRS is 149 ms."
    )
    assert shown("It is {qtc_interval.rating}.", OUTPUTS, question="Is my QTc too long?") == (
        "It is longer than usual."
    )


def test_sex_chooses_the_limit_of_the_qtc() -> None:
    outputs = [{"heart_rate": 70, "pr_interval": 160, "qrs_duration": 90, "qtc_interval": 455}]
    content = "The QTc is {qtc_interval.rating}."
    assert "above the limit for men" in shown(content, outputs)
    assert shown(content, outputs, beside={"sex": "female"}) == "The QTc is within the usual range."
    assert shown(content, outputs, beside={"sex": "male"}) == "The QTc is longer than usual."


def test_what_the_classifier_cannot_assess_is_said() -> None:
    outputs = [["SR (91.00%)"], OUTPUTS[1]]
    beside = {"positive": ["SR"], "not_assessed": ["CLBBB", "ILBBB", "CRBBB", "IRBBB"]}
    read = shown("{summary}", outputs, beside=beside)
    assert "cannot assess 4 of the 71 findings" in read
    assert "bundle branch blocks" in read
    assert "the QRS duration is 149 ms, longer than usual" in read
    assert "no label explains it" in read
    assert shown("{check.BBB}.", outputs, beside=beside) == (
        "This classifier cannot assess bundle branch blocks."
    )


def test_more_than_the_dialogues_form_comes_from_beside() -> None:
    beside = {"heart_rate_bpm": 62.4, "qt_ms": 478.2, "axis_deg": {"qrs": -41}, "lead": "global"}
    assert shown("The raw QT is {qt_interval}.", OUTPUTS) == ""
    assert shown("The raw QT is {qt_interval}.", OUTPUTS, beside=[beside]) == (
        "The raw QT is 478 ms."
    )
    assert shown("The axis is {axis}, {axis.rating}.", OUTPUTS, beside=beside) == (
        "The axis is -41°, turned further to the left than usual."
    )


def test_a_label_and_a_value_that_do_not_agree() -> None:
    outputs = [["CLBBB (88.00%)"], {**OUTPUTS[1], "qrs_duration": "98"}]
    assert "do not agree" in shown("{conflict}.", outputs)
    assert shown("{conflict}.", OUTPUTS) == ""


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([{"heart_rate": 38, "qrs_duration": 90}], "below 40 bpm"),
        ([{"heart_rate": 150, "qrs_duration": 90}], "above 130 bpm"),
        ([{"heart_rate": 150, "qrs_duration": 150}], "emergency number now"),
        ([{"qtc_interval": 500}], "500 ms or more"),
        ([["3AVB (80.00%)"]], "complete AV block"),
        ([["IMI (60.00%)"]], "infarction"),
    ],
)
def test_dangerous_facts_come_first(outputs: list[object], words: str) -> None:
    assert words in urgent(outputs)


def test_usual_facts_are_not_urgent() -> None:
    assert urgent([["SR (91.00%)", "PVC (70.00%)"], {"heart_rate": 62, "qtc_interval": 440}]) == ""


def test_entries_are_complete_and_have_sources() -> None:
    from ecg_agent_ray.facts import sources

    entries = knowledge()
    assert len(entries) >= 500
    assert {"not_in_knowledge", "off_topic"} <= entries.keys()
    for entry in entries.values():
        assert entry.title
        assert entry.questions
        assert entry.sources
        assert set(entry.sources) <= sources().keys()
        assert all(len(entry.texts[level]) > 20 for level in ("A", "B", "C"))


def test_the_allow_list_neither_denies_nor_judges() -> None:
    words = set(words_of(*PARTS))
    for kind in (
        "no not never none nothing without cannot don't isn't",  # denies
        "normal abnormal good bad fine well healthy high low long short fast slow",  # judges
        "more-than less only just but although because so therefore",  # compares and reasons
        "doctor heart pill chest pain danger safe harmless",  # medical and reassuring
    ):
        assert not words & set(kind.split())
    assert not any(char.isdigit() for word in words for char in word)


def test_numbers_a_user_names() -> None:
    assert named_numbers(["is it under 200? my watch says 71.5, V5 and 2 coffees"]) == (
        "200",
        "71.5",
    )


values = st.integers(30, 300)


@given(values, values, st.integers(60, 220), st.integers(300, 600))
def test_slotified_text_is_filled_to_the_same_text(hr: int, pr: int, qrs: int, qtc: int) -> None:
    outputs = [
        ["SR (91.00%)", "CLBBB (88.00%)"],
        {"heart_rate": hr, "pr_interval": pr, "qrs_duration": qrs, "qtc_interval": qtc},
    ]
    sheet = FactSheet.read(outputs)
    content = (
        "Your heart rate is {heart_rate}. The PR interval is {pr_interval}, {pr_interval.rating}. "
        "The QRS is {qrs_duration}. The classifier lists {findings}. {check.AFIB}."
    )
    text = shown(content, outputs)
    again = slotify(text, sheet)
    assert "{heart_rate}" in again
    assert "{findings}" in again
    assert shown(again, outputs) == text


@given(st.sampled_from(offered(FactSheet.read(OUTPUTS), entries=("coffee",))))
def test_every_offered_slot_has_a_text(slot: str) -> None:
    assert fill(slot, FactSheet.read(OUTPUTS))


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    shown(text, OUTPUTS)
    shown(text, OUTPUTS, speech="open")
