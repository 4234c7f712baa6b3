"""Synthetic dialogues: valid, true to the tool outputs, varied, and split without leaks."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.dialogue import (
    Action,
    Dialogue,
    clean_report,
    parse_turn,
    render_turn,
    validate,
)
from ecg_agent_ray.dialogue.synthesis import (
    SEQUENCES,
    SPLITS,
    TOPICS,
    RecordFacts,
    Split,
    bank_size,
    check_answer,
    diversity,
    load_pools,
    overlap,
    synthesize,
    vary,
)
from ecg_agent_ray.dialogue.synthesis.phrases import PhraseBank
from ecg_agent_ray.errors import ConfigError, DialogueError
from ecg_agent_ray.facts.quantities import QUANTITIES, rounded
from ecg_agent_ray.facts.statements import STATEMENTS, find_statements

KEYS = ("heart_rate", "pr_interval", "qrs_duration", "qtc_interval")


def record(
    number: int,
    lead: str,
    values: tuple[str | None, ...],
    classes: list[str],
    explanation: dict[str, str] | None = None,
) -> RecordFacts:
    return RecordFacts(
        record_id=f"HR{number:05d}",
        ecg_file=f"HR{number:05d}.mat",
        lead_configuration=lead,  # type: ignore[arg-type]
        measurement=dict(zip(KEYS, values, strict=True)),
        classification=classes,
        explanation=explanation,
    )


SINUS = "SR (98.23%) | time=3.072-3.072s, freq=11.7-11.7Hz"
FIBRILLATION = "AFIB (97.12%) | time=3.072-3.328s, freq=11.7-13.7Hz"
RECORDS = [
    record(1, "12-lead", ("72.35", "160", "92", "412.55"), ["SR (98.23%)", "NORM (86.88%)"],
           {"SR": SINUS}),
    record(2, "12-lead", ("110.50", None, "88", "470.10"), ["AFIB (97.12%)", "STD_ (63.56%)"],
           {"AFIB": FIBRILLATION}),
    record(3, "I", ("53.96", "222", "143", "516.77"), ["SBRAD (91.00%)", "CLBBB (88.5%)"]),
    record(4, "II", ("80.00", "126", "105", None), []),
    record(5, "12-lead", ("67.00", "210", "95", "430.20"),
           ["SR (90.10%)", "LVH (77.77%)", "IMI (66.00%)", "NT_ (55.10%)", "LAO/LAE (51.00%)"],
           {"SR": "SR (90.10%) | explanation unavailable"}),
    record(6, "II", (None, None, None, None), ["XYZ (60.00%)"]),
]  # fmt: skip


@cache
def written(split: Split = "train", n: int = 420) -> list[Dialogue]:
    return synthesize(RECORDS, n=n, seed=3, split=split)


@pytest.mark.parametrize("split", SPLITS)
def test_every_dialogue_is_valid_and_its_thoughts_are_clean(split: Split) -> None:
    dialogues = written(split)
    assert validate(dialogues) == []
    assert clean_report(dialogues) == []


def test_the_same_seed_gives_the_same_dialogues() -> None:
    assert synthesize(RECORDS, n=20, seed=3) == written()[:20]
    assert synthesize(RECORDS, n=20, seed=4) != written()[:20]


def test_all_is_covered() -> None:
    dialogues = written()
    actions = Counter(action for dialogue in dialogues for action in dialogue.actions)
    assert min(actions[action] for action in Action) > 50
    assert {dialogue.source_category for dialogue in dialogues} == set(TOPICS.values())
    combined = Counter((dialogue.source_category, dialogue.cefr_level) for dialogue in dialogues)
    assert len(combined) == 21
    assert min(combined.values()) >= 20
    assert {dialogue.lead_configuration for dialogue in dialogues} == {"12-lead", "I", "II"}
    assert len(set(SEQUENCES)) >= 20
    assert len({tuple(dialogue.actions) for dialogue in dialogues}) >= 100


def test_an_action_follows_from_what_is_known_already() -> None:
    """Each tool runs at most once, and a response comes right after a tool, nowhere else."""
    for dialogue in written():
        calls = [action for action in dialogue.actions if action.is_tool_call]
        assert calls.count(Action.CALL_MEASUREMENT) <= 1
        assert calls.count(Action.CALL_CLASSIFICATION) <= 1
        for before, turn in zip(dialogue.turns, dialogue.turns[1:], strict=False):
            if turn.role == "assistant" and turn.assistant_action is Action.RESPONSE:
                assert before.is_tool_call
            if before.is_tool_call and not turn.is_tool_call:
                assert turn.assistant_action in (Action.RESPONSE, Action.RESPONSE_FAIL)


def test_null_values_are_refused_and_never_stated() -> None:
    only_nulls = [RECORDS[5]]
    dialogues = synthesize(only_nulls, n=60, seed=1)
    measuring = [item for item in dialogues if Action.CALL_MEASUREMENT in item.actions]
    assert measuring
    for dialogue in measuring:
        for text in (turn.content or "" for turn in dialogue.turns if turn.role == "assistant"):
            for key in ("heart rate is", "PR interval is", "QRS duration is"):
                assert f"your {key}" not in text.lower()


def test_the_splits_share_no_template() -> None:
    assert overlap(written("train"), written("validation")).templates == 0
    assert overlap(written("train"), written("test")).templates == 0
    assert overlap(written("validation"), written("test")).templates == 0
    assert overlap(written("train"), written("test")).utterances < 0.08
    for name, templates in load_pools().items():
        if "." not in name:
            continue
        parts = [PhraseBank(split).templates(name) for split in SPLITS]
        assert sum(map(len, parts)) == len(templates)
        assert all(parts)


def test_no_two_templates_have_the_same_text() -> None:
    pools = {name: items for name, items in load_pools().items() if "." in name}
    texts = Counter(item.text.lower() for items in pools.values() for item in items)
    assert [text for text, count in texts.items() if count > 1] == []


def test_the_wording_is_varied() -> None:
    measured = diversity(written())
    assert measured.n_distinct / measured.n_utterances > 0.75
    assert measured.distinct_2 > 0.25
    many = diversity(synthesize(RECORDS, n=1000, seed=9))
    assert many.n_distinct > 3000
    assert bank_size()["user"] > 1200


def test_turns_render_and_rows_survive() -> None:
    for dialogue in written()[:100]:
        assert Dialogue.from_row(json.loads(json.dumps(dialogue.to_row()))) == dialogue
        for turn in dialogue.turns:
            if turn.role == "assistant":
                assert parse_turn(render_turn(turn)) == turn


def test_texts_are_short() -> None:
    turns = [turn for dialogue in written() for turn in dialogue.turns if turn.role == "assistant"]
    answers = sorted(len((turn.content or "").split()) for turn in turns if turn.content)
    assert answers[len(answers) // 2] <= 25
    assert answers[-1] <= 75
    assert max(len((turn.thought or "").split()) for turn in turns) <= 30
    for turn in turns:
        assert "{" not in (turn.thought or "") + (turn.content or "")


MEASURED = [(Action.CALL_MEASUREMENT, dict(RECORDS[0].measurement))]
CLASSIFIED = [(Action.CALL_CLASSIFICATION, ["SR (98.23%)", "NORM (86.88%)"])]
EXPLAINED = [*CLASSIFIED, (Action.CALL_EXPLANATION, SINUS)]


@pytest.mark.parametrize(
    ("answer", "outputs"),
    [
        ("Your heart rate is 73 bpm.", MEASURED),
        ("The PR interval is 92 ms.", MEASURED),
        ("The QRS duration is 160 ms, which is fine.", MEASURED),
        ("Values: heart rate 72 bpm, PR interval 413 ms.", MEASURED),
        ("It shows sinus rhythm (89%).", CLASSIFIED),
        ("It shows atrial fibrillation.", CLASSIFIED),
        ("Your heart rate is 72 bpm.", CLASSIFIED),
        ("It was seen at 3.5 s.", EXPLAINED),
        ("It was seen near 14 Hz.", EXPLAINED),
    ],
)
def test_a_wrong_fact_is_caught(answer: str, outputs: list[tuple[Action, object]]) -> None:
    with pytest.raises(DialogueError):
        check_answer(answer, outputs)


@pytest.mark.parametrize(
    ("answer", "outputs"),
    [
        ("Your heart rate is 72 bpm, usual is 60 to 100 bpm.", MEASURED),
        ("PR interval 160 ms, QRS duration 92 ms and QTc interval 413 ms.", MEASURED),
        ("It shows sinus rhythm (98%) and a normal ECG (87%).", CLASSIFIED),
        ("The strongest evidence lies at 3.1 s, near 12 Hz (98%).", EXPLAINED),
    ],
)
def test_a_right_fact_passes(answer: str, outputs: list[tuple[Action, object]]) -> None:
    check_answer(answer, outputs)


def test_halves_are_rounded_up_and_ranges_include_their_limits() -> None:
    assert (rounded("110.50"), rounded("72.49"), rounded("516.77")) == (111, 72, 517)
    assert QUANTITIES["heart_rate"].rate(60) == QUANTITIES["pr_interval"].rate(200) == "normal"
    assert QUANTITIES["qrs_duration"].rate(120) == QUANTITIES["qtc_interval"].rate(451) == "high"


def test_statements_are_found_by_code_name_and_alias() -> None:
    assert len(STATEMENTS) == 71
    text = "AFib (97%) with complete left bundle branch block, PRC(S), LAO/LAE; keep the pace"
    assert find_statements(text) == ["AFIB", "CLBBB", "PRC(S)", "LAO/LAE"]


def test_nothing_to_write_about_is_refused() -> None:
    with pytest.raises(ConfigError, match="12-lead"):
        synthesize([RECORDS[2]], n=1, seed=0, lead_configurations=["12-lead"])
    with pytest.raises(ConfigError, match="split"):
        synthesize(RECORDS, n=1, seed=0, split="dev")  # type: ignore[arg-type]


def test_made_up_outputs_cover_every_code_and_are_marked() -> None:
    varied = vary(RECORDS[:4], n=400, seed=1)
    assert {item.code for facts in varied for item in facts.findings} == set(STATEMENTS)
    assert {facts.lead_configuration for facts in varied} == {"12-lead", "I", "II"}
    dialogues = synthesize(varied, n=200, seed=1)
    assert validate(dialogues) == []
    assert all(dialogue.metadata["made_up_outputs"] for dialogue in dialogues)
    assert not any("made_up_outputs" in dialogue.metadata for dialogue in written())
    with pytest.raises(ConfigError):
        vary([], n=1, seed=0)


def test_real_tool_outputs_can_be_written_about() -> None:
    recording = ecg.sample(sorted(Path(path).stem for path in ecg.samples())[0])
    facts = RecordFacts(
        record_id=recording.record_id,
        ecg_file=f"{recording.record_id}.hea",
        lead_configuration="12-lead",
        measurement=tools.measure(recording).to_dialogue(),
        classification=["SR (98.23%)"],
    )
    dialogues = synthesize([facts], n=40, seed=1)
    assert validate(dialogues) == []
    stated = facts.shown("heart_rate")
    assert any(stated in (turn.content or "") for item in dialogues for turn in item.turns)
