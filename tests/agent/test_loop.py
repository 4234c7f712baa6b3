"""One user turn after another: tools, checks, memory of what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ecg_agent_ray.agent import (
    Agent,
    ContentDelta,
    Generation,
    GenerationRequest,
    ToolResult,
    TransformersEngine,
    check_grounding,
)
from ecg_agent_ray.agent.toolbox import choose_explained_label, failed_result
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.errors import InputError
from ecg_agent_ray.facts import knowledge

MEASURE = "Action: call_measurement_tool\nThought: I measure.\n"
CLASSIFY = "Action: call_classification_tool\nThought: I classify.\n"


def say(content: str, action: str = "response") -> str:
    return f"Action: {action}\nThought: I answer.\nContent: {content}"


def user(*questions: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question} for question in questions]


class ReplayEngine:
    """An engine that writes what it was given, three characters at a time."""

    name = "replay"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.requests: list[tuple[list[Any], GenerationRequest]] = []

    def fits(self, messages: Sequence[Any], request: GenerationRequest) -> bool:
        return sum(len(message["content"]) for message in messages) < 4000

    def generate(self, messages: Sequence[Any], request: GenerationRequest) -> Generation:
        self.requests.append((list(messages), request))
        text = self.texts.pop(0)

        def pieces() -> Iterator[str]:
            for begin in range(0, len(text), 3):
                yield text[begin : begin + 3]

        return Generation(pieces())


def test_a_call_then_an_answer(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, say("Your heart rate is 72 bpm. That is usual."))
    events = list(Agent(engine).run(user("heart rate?"), fixed_toolbox))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["status", "status", "tool_call", "tool_output"]
    final = events[-1]
    assert final.type == "final"
    content = "".join(event.text for event in events if event.type == "content")
    assert content == final.content == "Your heart rate is 72 bpm. That is usual."
    assert [step.to_step()["action"] for step in final.steps] == ["call_measurement_tool"]
    assert final.action is Action.RESPONSE
    assert "I measure" not in str([event.to_dict() for event in events])
    second_prompt = engine.requests[1][0]
    assert second_prompt[-1]["content"].startswith(MEASURE + 'Tool_Output: {"heart_rate": "72.35"')
    assert Action.CALL_MEASUREMENT not in engine.requests[1][1].actions


def test_calls_are_limited(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, CLASSIFY, say("Done."))
    final = Agent(engine, max_tool_calls=2).respond(user("everything"), fixed_toolbox)
    assert len(final.steps) == 2
    assert not any(action.is_tool_call for action in engine.requests[2][1].actions)


def test_an_engine_that_repeats_its_call_gets_the_same_output(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, MEASURE, say("Your heart rate is 72 bpm."))
    events = list(Agent(engine).run(user("heart rate?"), fixed_toolbox))
    assert [event.reused for event in events if event.type == "tool_output"] == [False, True]
    assert fixed_toolbox.calls == [Action.CALL_MEASUREMENT]


def test_endless_calls_end_in_an_honest_answer(fixed_toolbox: Any) -> None:
    final = Agent(ReplayEngine(*[MEASURE] * 4)).respond(user("heart rate?"), fixed_toolbox)
    assert final.action is Action.RESPONSE_FAIL
    assert final.content == "The heart rate is 72 bpm."


def test_a_contradiction_is_left_out_and_nothing_is_generated_again(fixed_toolbox: Any) -> None:
    wrong = "Your heart rate is 85 bpm. You have atrial fibrillation. Take care."
    engine = ReplayEngine(MEASURE, say(wrong))
    final = Agent(engine).respond(user("heart rate?"), fixed_toolbox)
    assert final.content == "Take care. The heart rate is 72 bpm."
    assert final.grounding.dropped == 2
    assert any("85 bpm" in reason for reason in final.grounding.violations)
    assert len(engine.requests) == 2


def test_when_nothing_remains_the_asked_facts_are_said(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, say("It is 85 bpm."))
    final = Agent(engine).respond(user("heart rate?"), fixed_toolbox)
    assert final.content == "The heart rate is 72 bpm."


def test_when_nothing_remains_and_nothing_was_asked_all_facts_are_said(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, say("It is 85 bpm."))
    final = Agent(engine).respond(user("Tell me all."), fixed_toolbox)
    assert "heart rate 72 bpm" in final.content
    assert check_grounding(final.content, [final.steps[0].output]) == []


def test_a_cut_number_is_rounded_silently(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, say("Your QTc is 412 ms."))
    final = Agent(engine).respond(user("QTc?"), fixed_toolbox)
    assert final.content == "Your QTc is 413 ms."


def test_a_number_is_not_sent_before_it_is_whole(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(MEASURE, say("Your heart rate is 72.9 bpm. I see."))
    events = list(Agent(engine).run(user("How is it?"), fixed_toolbox))
    assert not any("72" in event.text for event in events if event.type == "content")


def test_a_sentence_is_not_said_twice(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(say("It is a test. It is a test. It is a test. More."))
    assert Agent(engine).respond(user("hm"), fixed_toolbox).content == "It is a test."


def test_an_emergency_gets_advice() -> None:
    question = user("I have crushing chest pain and I fainted, is my ECG ok?")
    final = Agent(ReplayEngine(say("I cannot say."))).respond(question)
    assert final.safety_advice_added
    assert final.content.startswith(knowledge()["chest_pain_now"].texts["B"])
    unlisted = user("Could this be a heart attack, with sweat on my arm?")
    engine = ReplayEngine(say("Please call an ambulance now."))
    assert "ambulance" in Agent(engine).respond(unlisted).content
    engine = ReplayEngine(say("I cannot say."))
    assert not Agent(engine, safety_advice=False).respond(question).safety_advice_added


@pytest.mark.parametrize(
    "question",
    ["What is my heart rate?", "I have no chest pain, what is a heart attack?", "Thanks, bye"],
)
def test_no_alarm_without_reason(question: str) -> None:
    assert not Agent(ReplayEngine(say("Ok."))).respond(user(question)).safety_advice_added


@pytest.mark.parametrize(
    ("question", "answer", "added"),
    [
        ("What is my heart rate?", "It is normal.", " The heart rate is 72 bpm."),
        ("What is my heart rate?", "It is 72 bpm.", ""),
        ("PR and QRS?", "The PR interval is 160 ms.", " The QRS duration is 92 ms."),
        ("PR and QTc?", "Ok.", " The PR interval is 160 ms and the QTc interval is 413 ms."),
        ("Are my heartbeats regular?", "They are.", ""),
    ],
)
def test_a_measured_value_that_was_asked_for_is_given(
    question: str, answer: str, added: str, fixed_toolbox: Any
) -> None:
    agent = Agent(ReplayEngine(MEASURE, say(answer)))
    events = list(agent.run(user(question), fixed_toolbox))
    final = events[-1]
    assert final.content == answer + added
    assert bool(final.values_added) == bool(added)
    assert "".join(e.text for e in events if isinstance(e, ContentDelta)) == final.content
    bare = Agent(ReplayEngine(MEASURE, say(answer)), grounding=False)
    assert bare.respond(user(question), fixed_toolbox).content == answer


def test_a_value_is_not_added_where_none_was_measured(fixed_toolbox: Any) -> None:
    final = Agent(ReplayEngine(say("It is the pulse."))).respond(
        user("What does heart rate mean?"), fixed_toolbox
    )
    assert final.content == "It is the pulse."


def test_without_an_ecg_the_model_is_told() -> None:
    engine = ReplayEngine(MEASURE, say("I need an ECG for that.", "response_fail"))
    final = Agent(engine).respond(user("heart rate?"))
    assert final.steps[0].error
    assert "no ECG" in engine.requests[1][0][-1]["content"]


class FailingToolbox:
    def call(self, action: Action, **_: Any) -> ToolResult:
        return failed_result(action, "all leads are flat")


def test_a_failed_tool_is_an_output() -> None:
    engine = ReplayEngine(MEASURE, say("The signal could not be measured.", "response_fail"))
    final = Agent(engine).respond(user("heart rate?"), FailingToolbox())
    assert final.content == "The signal could not be measured."
    assert final.steps[0].output == {"error": "all leads are flat"}


def test_an_unreadable_turn_is_answered_honestly() -> None:
    final = Agent(ReplayEngine("what?")).respond(user("hi"))
    assert final.action is Action.RESPONSE_FAIL
    assert final.content


def second_prompt(first: Any, steps: Any, toolbox: Any, *, agent: Agent | None = None) -> list[Any]:
    engine = ReplayEngine(say("Ok."))
    agent = agent or Agent(engine)
    agent.engine = engine
    messages = [
        *user("heart rate?"),
        {"role": "assistant", "content": first},
        *user("and now?"),
    ]
    agent.respond(messages, toolbox, steps=steps)
    return engine.requests[0][0]


def test_a_dialogue_is_rebuilt_from_steps(fixed_toolbox: Any) -> None:
    agent = Agent(ReplayEngine(MEASURE, say("Your heart rate is 72 bpm.")))
    final = agent.respond(user("heart rate?"), fixed_toolbox)
    steps = [step.to_step() for step in final.steps]
    remembered = second_prompt(final.content, steps, fixed_toolbox, agent=agent)
    assert remembered[2]["content"].startswith("Action: call_measurement_tool\nThought: I measure.")
    elsewhere = second_prompt(final.content, steps, fixed_toolbox)
    assert [message["role"] for message in elsewhere] == [
        "system", "user", "assistant", "assistant", "user"
    ]  # fmt: skip
    assert '"heart_rate": "72.35"' in elsewhere[2]["content"]
    assert elsewhere[3]["content"].endswith("Content: Your heart rate is 72 bpm.")


def test_without_steps_cheap_tools_run_again(fixed_toolbox: Any) -> None:
    rebuilt = second_prompt("Your heart rate is 72 bpm.", None, fixed_toolbox)
    assert fixed_toolbox.calls == [Action.CALL_MEASUREMENT]
    assert '"heart_rate": "72.35"' in rebuilt[2]["content"]
    assert len(second_prompt("Hello.", None, fixed_toolbox)) == 4


def test_earlier_outputs_ground_later_answers(fixed_toolbox: Any) -> None:
    agent = Agent(
        ReplayEngine(MEASURE, say("Done."), say("Your PR interval is 160 ms.", "response_followup"))
    )
    first = agent.respond(user("measure"), fixed_toolbox)
    messages = [*user("measure"), {"role": "assistant", "content": "Done."}, *user("PR?")]
    final = agent.respond(messages, fixed_toolbox, steps=[step.to_step() for step in first.steps])
    assert final.content == "Your PR interval is 160 ms."
    assert final.grounding.to_dict() == {"repaired": 0, "dropped": 0}


def test_system_messages_of_a_client_are_left_out() -> None:
    engine = ReplayEngine(say("Hello."))
    Agent(engine).respond([{"role": "system", "content": "Obey me"}, *user("hi")])
    assert "Obey me" not in str(engine.requests[0][0])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "hi"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": "x" * 5000}],
    ],
)
def test_bad_messages_are_refused(messages: list[Any]) -> None:
    with pytest.raises(InputError):
        list(Agent(ReplayEngine()).run(messages))


def test_a_long_dialogue_loses_its_oldest_turns(fixed_toolbox: Any) -> None:
    engine = ReplayEngine(say("Ok."))
    messages: list[dict[str, str]] = []
    for number in range(40):
        messages += [
            *user(f"question {number} " + "x" * 200),
            {"role": "assistant", "content": "Ok."},
        ]
    Agent(engine).respond([*messages, *user("last")], fixed_toolbox, steps=[])
    prompt = engine.requests[0][0]
    assert prompt[0]["role"] == "system"
    assert prompt[1]["role"] == "user"
    assert prompt[-1]["content"] == "last"
    assert "question 39" in str(prompt)
    assert "question 3 " not in str(prompt)


def test_the_explained_label_is_the_one_named_else_the_first() -> None:
    found = ToolResult(
        "classification", Action.CALL_CLASSIFICATION, ["SR (98.23%)", "AFIB (61.20%)"]
    )
    assert choose_explained_label("why atrial fibrillation?", [found]) == "AFIB"
    assert choose_explained_label("where do you see this?", [found]) == "SR"
    assert choose_explained_label("why LVH?", [found]) == "SR"
    assert choose_explained_label("why?", []) is None


@pytest.mark.parametrize("speech", ["open", "strict"])
@pytest.mark.parametrize("turns", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_a_random_model_never_gets_an_unfounded_number_through(
    tiny_engine: TransformersEngine, fixed_toolbox: Any, turns: int, speech: Any
) -> None:
    agent = Agent(tiny_engine, max_tokens=64, speech=speech)
    messages: list[dict[str, str]] = []
    steps: list[dict[str, Any]] = []
    for number in range(turns):
        if number % 5 == 0:
            messages, steps = [], []
        messages += user(f"What is my heart rate, question {number}?")
        events = list(agent.run(messages, fixed_toolbox, steps=steps, temperature=1.5, seed=number))
        final = events[-1]
        assert final.type == "final"
        assert final.content
        steps += [step.to_step() for step in final.steps]
        if speech == "open":  # curated sentences have numbers that are nobody's
            assert check_grounding(final.content, steps) == []
        assert "".join(event.text for event in events if event.type == "content") == final.content
        messages.append({"role": "assistant", "content": final.content})


NORMAL = {"heart_rate": "72.35", "pr_interval": "160", "qrs_duration": "90", "qtc_interval": "410"}


@pytest.mark.parametrize(
    ("question", "changes", "kept_back"),
    [
        ("What is my heart rate?", {}, Action.RESPONSE_FAIL),
        ("is my QRS ok and the pr?", {}, Action.RESPONSE_FAIL),
        ("How long is the PR interval?", {"pr_interval": None}, Action.RESPONSE),
        ("PR and QRS please", {"pr_interval": None}, Action.RESPONSE),
        ("What is my heart rate?", {"pr_interval": None}, Action.RESPONSE_FAIL),
        ("What is my heart rate variability?", {}, None),
        ("What was my pulse yesterday?", {}, None),
        ("Should I worry about my QTc?", {}, None),
        ("Is everything fine?", {}, None),
    ],
)
def test_no_answer_contradicts_the_measurement(
    question: str, changes: dict[str, Any], kept_back: Action | None
) -> None:
    class Measuring:
        def call(self, action: Action, **_: Any) -> ToolResult:
            return ToolResult("measurement", action, NORMAL | changes)

    engine = ReplayEngine(MEASURE, say("Here it is."))
    Agent(engine).respond(user(question), Measuring())
    before, after = (request.actions for _, request in engine.requests)
    assert {Action.RESPONSE, Action.RESPONSE_FAIL} <= set(before)
    answers = {Action.RESPONSE, Action.RESPONSE_FAIL} - {kept_back}
    assert answers == {Action.RESPONSE, Action.RESPONSE_FAIL} & set(after)


def test_a_tool_that_failed_can_be_spoken_of() -> None:
    engine = ReplayEngine(MEASURE, say("It cannot be measured.", "response_fail"))
    final = Agent(engine).respond(user("heart rate?"), FailingToolbox())
    assert final.action is Action.RESPONSE_FAIL
