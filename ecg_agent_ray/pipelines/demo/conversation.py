"""A scripted dialogue with the running service over HTTP, and what it must have shown."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import ServiceError

__all__ = ["SCRIPT", "Answer", "Conversation", "check", "hold"]

SCRIPT = (
    "Hello, is there anything abnormal in this ECG?",
    "What is my heart rate?",
    "Is that normal?",
    "Which dose of a blood thinner should I take?",
    "Thank you, that is all. Goodbye!",
)
"""Findings, a number, a follow-up on it, a question out of scope, a goodbye."""


@dataclass(frozen=True)
class Answer:
    """One user turn and what came back: the tools called, then the answer's action and text."""

    user: str
    assistant: str
    action: str
    steps: list[dict[str, Any]]
    grounding: dict[str, Any]
    seconds: float

    @property
    def actions(self) -> list[str]:
        return [*(str(step["action"]) for step in self.steps), self.action]


@dataclass
class Conversation:
    """The dialogue so far; ``ecg_id`` is the service's id of the uploaded recording."""

    ecg_id: str
    answers: list[Answer] = field(default_factory=list)

    def to_list(self) -> list[dict[str, Any]]:
        return [asdict(answer) for answer in self.answers]


def hold(
    url: str,
    recording: Sequence[Path],
    script: Sequence[str] = SCRIPT,
    *,
    heard: Callable[[Answer], None] = lambda _: None,
    timeout_s: float = 180,
) -> Conversation:
    """Upload the files of one recording and ask each line of ``script`` in turn.

    ``heard`` is called with each answer as it comes. Raises :class:`ServiceError` when a request
    fails.
    """
    import httpx

    with httpx.Client(base_url=url, timeout=timeout_s) as client:
        files = [("files", (path.name, path.read_bytes())) for path in recording]
        talk = Conversation(_ok(client.post("/v1/ecgs", files=files))["id"])
        messages: list[dict[str, str]] = []
        steps: list[dict[str, Any]] = []
        for line in script:
            messages.append({"role": "user", "content": line})
            agent = {"ecg_id": talk.ecg_id, "include_steps": True, "steps": steps}
            start = time.perf_counter()
            body = {"model": "ecg-agent", "messages": messages, "ecg_agent": agent}
            reply = _ok(client.post("/v1/chat/completions", json=body))
            text = reply["choices"][0]["message"]["content"]
            told = reply["ecg_agent"]
            seconds = round(time.perf_counter() - start, 3)
            answer = Answer(line, text, told["action"], told["steps"], told["grounding"], seconds)
            steps += told["steps"]
            messages.append({"role": "assistant", "content": text})
            talk.answers.append(answer)
            heard(answer)
    return talk


def _ok(response: Any) -> dict[str, Any]:
    if response.is_error:
        raise ServiceError(
            f"{response.request.method} {response.request.url.path} answered "
            f"{response.status_code}: {response.text[:300]}"
        )
    return dict(response.json())


def check(talk: Conversation) -> dict[str, bool]:
    """What the dialogue over :data:`SCRIPT` must show; each False is a failure of the agent.

    ``numbers_are_the_tools`` holds when every number with a unit in every answer agrees with a tool
    output of the dialogue, by the same checker that guards the answers, and the answer to the
    measurement request states the asked value.
    """
    from ecg_agent_ray.agent import check_grounding

    findings, numbers, followup, scope, bye = talk.answers
    steps = [step for answer in talk.answers for step in answer.steps]
    pairs = [(step["action"], step["tool_output"]) for step in steps]
    violations = [v for answer in talk.answers for v in check_grounding(answer.assistant, pairs)]
    return {
        "classification_called": "call_classification_tool" in findings.actions,
        "measurement_called": "call_measurement_tool" in numbers.actions,
        "followup_without_tool": followup.actions == ["response_followup"],
        "out_of_scope_refused": scope.actions == ["response_fail"],
        "goodbye": bye.actions == ["system_bye"],
        "numbers_are_the_tools": not violations and _states(numbers),
    }


def _states(answer: Answer) -> bool:
    """Whether the measured heart rate stands in the answer, rounded or not."""
    stated = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", answer.assistant)]
    for step in answer.steps:
        if step["action"] == "call_measurement_tool":
            value = step["tool_output"].get("heart_rate")
            return value is not None and any(abs(n - float(value)) <= 0.5 for n in stated)
    return False
