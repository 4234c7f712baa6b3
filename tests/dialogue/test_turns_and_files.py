"""Rendering and parsing are inverse; rows survive files; faults are all reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecg_agent_ray.dialogue import (
    Action,
    Dialogue,
    Turn,
    clean_report,
    dialogue_messages,
    load_dialogues,
    parse_turn,
    read_dialogues,
    render_turn,
    stats,
    system_prompt,
    validate,
    write_dialogues,
)
from ecg_agent_ray.errors import ConfigError, DialogueError

FIELD_WORDS = st.sampled_from(
    ["Action: response", "Thought: x", "Content: y", "Tool_Output: []", "\n", " ", "[1]", '"q"']
)
TEXT = st.lists(st.text(max_size=20) | FIELD_WORDS, max_size=6).map("".join) | st.text()
SPEAKING = st.sampled_from([action for action in Action if not action.is_tool_call])
CALLING = st.sampled_from([action for action in Action if action.is_tool_call])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def round_trips(turn: Turn) -> None:
    try:
        text = render_turn(turn)
    except DialogueError:
        thought = "\n" + (turn.thought or "")
        assert "\nContent:" in thought or "\nTool_Output:" in thought
        return
    again = parse_turn(text)
    assert again == turn
    assert again.is_pending == turn.is_pending
    assert render_turn(again) == text


@settings(deadline=None)
@given(SPEAKING, TEXT, TEXT)
def test_an_answer_is_read_back_as_it_was(action: Action, thought: str, content: str) -> None:
    round_trips(Turn.answer(action, thought, content))


@settings(deadline=None)
@given(CALLING, TEXT, JSON)
def test_a_tool_call_is_read_back_as_it_was(action: Action, thought: str, output: Any) -> None:
    round_trips(Turn.call(action, thought, output))


@settings(deadline=None)
@given(CALLING, TEXT)
def test_a_pending_call_is_read_back_as_it_was(action: Action, thought: str) -> None:
    round_trips(Turn(role="assistant", action=action, thought=thought))


def test_the_form_is_the_papers() -> None:
    turn = Turn.call(Action.CALL_CLASSIFICATION, "Rhythm asked for.", ["SR (98.23%)"])
    assert render_turn(turn) == (
        'Action: call_classification_tool\nThought: Rhythm asked for.\nTool_Output: ["SR (98.23%)"]'
    )
    line = "AFIB (97.12%) | time=3.072-3.328s, freq=11.7-13.7Hz"
    explained = Turn.call(Action.CALL_EXPLANATION, "Where?", line)
    assert render_turn(explained).endswith(f"\nTool_Output: {line}")


def test_python_literals_are_read_as_the_paper_prints_them() -> None:
    head = "Action: call_measurement_tool\nThought: t\nTool_Output: "
    assert parse_turn(head + "{'heart_rate': '72.35', 'pr_interval': None}").tool_output == {
        "heart_rate": "72.35",
        "pr_interval": None,
    }
    head = "Action: call_classification_tool\nThought: t\nTool_Output: "
    assert parse_turn(head + "['SR (98.23%)', 'NORM (86.88%)']").tool_output == [
        "SR (98.23%)",
        "NORM (86.88%)",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        "Action: dance\nThought: t\nContent: c",
        "Action: response\nThought: t",
        "Action: response\nThought: t\nTool_Output: []",
        "Action: call_measurement_tool\nThought: t\nContent: c",
        "Thought: t\nContent: c",
    ],
)
def test_text_that_is_no_turn_is_refused(text: str) -> None:
    with pytest.raises(DialogueError):
        parse_turn(text)


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(DialogueError, match="user turn"):
        render_turn(Turn.user("hi"))
    with pytest.raises(DialogueError, match="JSON"):
        render_turn(Turn.call(Action.CALL_MEASUREMENT, "t", {"heart_rate": float("nan")}))
    with pytest.raises(DialogueError, match="key"):
        render_turn(Turn.call(Action.CALL_MEASUREMENT, "t", {1: 2}))
    with pytest.raises(DialogueError, match="Content"):
        render_turn(Turn.answer(Action.RESPONSE, "a\nContent: b", "c"))


def row(**changes: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "What's my heart rate?", "action": "ask", "mood": 3},
        {
            "role": "assistant",
            "action": "call_measurement_tool",
            "thought": "Needs measuring.",
            "tool_output": {
                "heart_rate": "72.35",
                "pr_interval": None,
                "qrs_duration": "92",
                "qtc_interval": "412.55",
            },
        },
        {
            "role": "assistant",
            "action": "response",
            "thought": "It is 72.",
            "content": "Your heart rate is 72 bpm.",
            "extra": {"a": [1, None]},
        },
    ]
    base = {
        "dialogue": json.dumps(turns),
        "ecg_files": json.dumps(["HR00056.mat"]),
        "metadata": json.dumps({"ecg_id": 56, "cefr_level": "B", "more": 1}),
        "source_category": "Heart Rate Concerns",
        "batch": "x1",
    }
    return {**base, **changes}


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet", "sub/d.json"])
def test_rows_survive_a_file_with_their_unknown_keys(tmp_path: Path, name: str) -> None:
    first = Dialogue.from_row(row())
    path = write_dialogues(tmp_path / name, [first, Dialogue.from_row(row(batch="x2"))])
    again = read_dialogues(path)
    assert again[0] == first
    assert again[0].to_row() == first.to_row()
    written = again[0].to_row()
    assert json.loads(written["dialogue"]) == json.loads(row()["dialogue"])
    assert json.loads(written["metadata"]) == {
        "ecg_id": 56,
        "cefr_level": "B",
        "more": 1,
        "lead_configuration": "12-lead",
    }
    assert written["batch"] == "x1"
    assert again[0].record_id == "HR00056"


def test_lead_and_level_are_read_from_the_row_too() -> None:
    given_row = row(metadata="{}", lead_configuration="II", cefr_level="C")
    dialogue = Dialogue.from_row(given_row)
    assert (dialogue.lead_configuration, dialogue.cefr_level) == ("II", "C")
    assert Dialogue.from_row(row(), lead_configuration="I").lead_configuration == "I"


def test_decoded_fields_are_read() -> None:
    plain = {key: json.loads(value) for key, value in row().items() if value[:1] in "[{"}
    assert Dialogue.from_row(row(**plain)) == Dialogue.from_row(row())


def test_malformed_rows_are_counted_and_named(tmp_path: Path) -> None:
    bad_turn = json.dumps([{"role": "user", "content": "x"}, {"role": "assistant", "action": "x"}])
    lines = [json.dumps(row()), "{oops", json.dumps(row(dialogue=bad_turn)), "[]"]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = load_dialogues(path)
    assert len(loaded.dialogues) == 1
    assert loaded.n_rows == 4
    assert [problem.row for problem in loaded.problems] == [1, 2, 3]
    assert "turn 1" in loaded.problems[1].message
    assert len(read_dialogues(path)) == 1
    with pytest.raises(DialogueError, match="3 of 4"):
        read_dialogues(path, strict=True)


@pytest.mark.parametrize("name", ["none.jsonl", "d.csv"])
def test_unusable_paths_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.csv").write_text("a")
    with pytest.raises(DialogueError):
        read_dialogues(tmp_path / name)


def test_messages_never_show_the_users_action() -> None:
    messages = dialogue_messages(Dialogue.from_row(row()), system="S")
    assert [message["role"] for message in messages] == ["system", "user", *["assistant"] * 2]
    assert messages[1] == {"role": "user", "content": "What's my heart rate?"}
    assert parse_turn(messages[3]["content"]).assistant_action is Action.RESPONSE


def test_a_good_dialogue_has_no_problems() -> None:
    assert validate([Dialogue.from_row(row())]) == []


def test_all_problems_are_listed() -> None:
    bye = Turn.answer(Action.SYSTEM_BYE, "", "Bye")
    odd_call = Turn.call(Action.CALL_MEASUREMENT, "As per the instructions I call.", {"hr": 1})
    dialogue = Dialogue(
        turns=[bye, Turn.user(" "), odd_call, Turn.user("x"), Turn.user("y")],
        metadata={"lead_configuration": "V9", "action_sequence_prompted": ["response"]},
    )
    codes = {(problem.code, problem.turn) for problem in validate([dialogue])}
    assert codes == {
        ("lead_configuration", None),
        ("ecg_files", None),
        ("action_sequence", None),
        ("order", 0),
        ("empty", 0),
        ("empty", 1),
        ("leaked_instruction", 2),
        ("tool_output", 2),
        ("order", 3),
        ("order", 4),
    }


def test_leaked_instructions_are_found_and_ordinary_thoughts_are_not() -> None:
    def with_thought(thought: str) -> Dialogue:
        answer = Turn.answer(Action.RESPONSE_FOLLOWUP, thought, "c")
        return Dialogue(turns=[Turn.user("x"), answer])

    leaks = [
        "I cannot call a tool in this sequence.",
        "The system is designed to indicate a failure at this point.",
        "No tool calls are allowed here.",
    ]
    fine = ["The user asks for the heart rate.", "The next step is to look at the rhythm."]
    found = clean_report([with_thought(thought) for thought in leaks + fine])
    assert [problem.dialogue for problem in found] == [0, 1, 2]


def test_stats_count() -> None:
    counted = stats([Dialogue.from_row(row())]).to_dict()
    assert counted["actions"] == {"call_measurement_tool": 1, "response": 1}
    assert counted["n_user_turns"] == 1
    assert counted["cefr_levels"] == {"B": 1}


def test_the_system_prompt_names_all_actions_and_the_leads() -> None:
    prompt = system_prompt("II", level="A2")
    assert all(action in prompt for action in Action)
    assert "lead II" in prompt
    assert system_prompt("12-lead") != system_prompt("I")
    with pytest.raises(ConfigError):
        system_prompt("V1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        system_prompt("I", level="Z")
