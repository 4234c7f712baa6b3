"""Chat completions with the official client: whole, streamed, with and without steps."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest

ANSWERS = {"response", "response_followup", "response_fail", "system_bye"}
TOOLS = {"measurement", "classification", "explanation"}


@pytest.fixture(scope="module")
def client(service: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=service.tokens["alice"], max_retries=0, timeout=180
    )


def ask(client: openai.OpenAI, ecg_id: str | None, *said: str, **more: Any) -> Any:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    options = more.pop("ecg_agent", {}) | ({"ecg_id": ecg_id} if ecg_id else {})
    return client.chat.completions.create(
        model="ecg-agent", messages=messages, extra_body={"ecg_agent": options}, **more
    )


def test_models(client: openai.OpenAI, service: Any) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["ecg-agent", "ecg-agent-lead-I", "ecg-agent-lead-II"]
    model = client.models.retrieve("ecg-agent")
    assert model == listed[0]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    about = model.ecg_agent["agent"]
    assert about["ready"] is True
    assert about["uri"] == str(service.agent_folder)
    assert about["reason"] == "configured"


def test_whole_answer(client: openai.OpenAI, ecg_id: str) -> None:
    answer = ask(client, ecg_id, "What is the heart rate?")
    assert answer.object == "chat.completion"
    assert answer.model == "ecg-agent"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert "ecg_agent" not in answer.model_dump()
    assert "Thought:" not in answer.model_dump_json()


def test_streamed_answer_is_the_whole_one(client: openai.OpenAI, ecg_id: str) -> None:
    whole = ask(client, ecg_id, "What is the QRS duration?", ecg_agent={"include_steps": True})
    chunks = list(
        ask(
            client,
            ecg_id,
            "What is the QRS duration?",
            stream=True,
            stream_options={"include_usage": True},
            ecg_agent={"include_steps": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    finished = [c for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len(finished) == 1
    assert chunks[-1].usage.completion_tokens > 0
    report = chunks[-1].ecg_agent
    assert report["action"] in ANSWERS
    assert report["grounding"].keys() == {"repaired", "dropped"}
    assert [step["tool"] for step in report["steps"]] == [
        step["tool"] for step in whole.ecg_agent["steps"]
    ]
    assert len({c.id for c in chunks}) == 1
    assert "Thought:" not in json.dumps([c.model_dump() for c in chunks])


def test_steps_are_the_tools_own_outputs(client: openai.OpenAI, service: Any, ecg_id: str) -> None:
    """Whatever the random model calls, a step shows what the endpoint gives for the same ECG."""
    seen = set()
    for question in ("Findings?", "Please measure.", "Why?", "Heart rate?", "Is it abnormal?"):
        answer = ask(client, ecg_id, question, ecg_agent={"include_steps": True})
        for step in answer.ecg_agent["steps"]:
            assert step["tool"] in TOOLS
            assert step["action"] == f"call_{step['tool']}_tool"
            assert step["ms"] >= 0
            seen.add(step["tool"])
            if step["tool"] == "measurement":
                with service.client() as http:
                    measured = http.post(f"/v1/ecgs/{ecg_id}/measurement").json()
                rate = step["tool_output"]["heart_rate"]
                assert rate == f"{measured['heart_rate_bpm']:.2f}"
    assert seen


def test_a_dialogue_goes_on_with_its_steps(client: openai.OpenAI, ecg_id: str) -> None:
    first = ask(client, ecg_id, "Measure it.", ecg_agent={"include_steps": True})
    steps = first.ecg_agent["steps"]
    said = ("Measure it.", first.choices[0].message.content, "And is that normal?")
    with_steps = ask(client, ecg_id, *said, ecg_agent={"include_steps": True, "steps": steps})
    without = ask(client, ecg_id, *said, ecg_agent={"include_steps": True})
    assert with_steps.choices[0].message.content
    assert without.choices[0].message.content
    assert all(step["turn"] == 1 for step in with_steps.ecg_agent["steps"])


def test_without_an_ecg_tools_fail_and_the_turn_goes_on(client: openai.OpenAI) -> None:
    answer = ask(client, None, "What is the heart rate?", ecg_agent={"include_steps": True})
    assert answer.choices[0].message.content
    for step in answer.ecg_agent["steps"]:
        assert "no ECG" in json.dumps(step["tool_output"])


@pytest.mark.parametrize("leads", ["I", "II"])
def test_lead_configuration_reaches_the_tools(
    client: openai.OpenAI, ecg_id: str, leads: str
) -> None:
    answer = ask(client, ecg_id, "Hello", ecg_agent={"lead_configuration": leads})
    assert answer.choices[0].message.content


def expect(status: int, client: openai.OpenAI, body: dict[str, Any]) -> dict[str, Any]:
    full = {"model": "ecg-agent", "messages": [{"role": "user", "content": "x"}], **body}
    extra = {"ecg_agent": full.pop("ecg_agent", {})}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**full, extra_body=extra)
    assert caught.value.status_code == status
    assert caught.value.response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = caught.value.response.json()
    return problem


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: openai.OpenAI, stream: bool) -> None:
    problem = expect(404, client, {"model": "gpt-9", "stream": stream})
    assert "gpt-9" in problem["detail"]


def test_limits_of_a_dialogue(client: openai.OpenAI) -> None:
    many = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(13)]
    assert "13 messages" in expect(422, client, {"messages": many})["detail"]
    long = [{"role": "user", "content": "x" * 501}]
    assert "501 characters" in expect(422, client, {"messages": long})["detail"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": " "}],
        [{"role": "function", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
)
def test_faulty_messages(client: openai.OpenAI, messages: list[Any]) -> None:
    expect(422, client, {"messages": messages})


def test_faulty_options(client: openai.OpenAI, ecg_id: str) -> None:
    expect(422, client, {"ecg_agent": {"ecg": 1}})
    expect(422, client, {"ecg_agent": {"ecg_id": ecg_id, "steps": [{"action": "sing"}]}})
    expect(404, client, {"ecg_agent": {"ecg_id": "../../etc"}})
    expect(422, client, {"n": 2})


def test_text_parts_and_system_messages_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="ecg-agent",
        messages=[
            {"role": "system", "content": "Speak like a pirate."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        temperature=0.7,
        max_tokens=20,
    )
    assert answer.choices[0].message.content


def test_an_abandoned_stream_is_not_generated_on(
    service: Any, client: openai.OpenAI, ecg_id: str
) -> None:
    started = time.perf_counter()
    ask(client, ecg_id, "Measure it.")
    alone = time.perf_counter() - started
    body = {
        "model": "ecg-agent",
        "messages": [{"role": "user", "content": "Measure it."}],
        "stream": True,
        "ecg_agent": {"ecg_id": ecg_id},
    }
    abandoned = 12
    with service.client() as http:
        for _ in range(abandoned):
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
    started = time.perf_counter()
    ask(client, ecg_id, "Measure it.")
    assert time.perf_counter() - started < 0.5 * abandoned * alone
