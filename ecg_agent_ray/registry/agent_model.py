"""A registered agent as MLflow loads it: a ``ResponsesAgent``.

    model = mlflow.pyfunc.load_model("models:/ecg-agent@champion")
    model.predict({
        "input": [{"role": "user", "content": "What is the heart rate?"}],
        "custom_inputs": {"ecg": "/data/00001.hea"},
    })

``custom_inputs``: ``ecg`` (a file), ``lead_configuration`` (default: the model's). Output items are
the steps of the turn: ``function_call`` and ``function_call_output`` for each tool, then the
message. Traces have one AGENT span with a TOOL span for each call. Thoughts are in none of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import mlflow
from mlflow.entities import SpanType
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

if TYPE_CHECKING:
    from ecg_agent_ray.agent import Agent, Toolbox, ToolResult
    from ecg_agent_ray.dialogue import Action

__all__ = ["INPUT_EXAMPLE", "NO_ECG", "AgentModel"]

INPUT_EXAMPLE = {"input": [{"role": "user", "content": "What is the heart rate?"}]}
"""Without an ECG, since MLflow runs the example while it saves the model, on any machine."""

NO_ECG = "I need an ECG to answer: pass the path of a recording as custom_inputs.ecg."

_ITEM_DONE = "response.output_item.done"


class AgentModel(ResponsesAgent):
    """The agent of a registered version; the language model is loaded at the first request."""

    def load_context(self, context: Any) -> None:
        self._directory = Path(context.artifacts["agent"])
        self._agent: Agent | None = None
        self._lock = threading.Lock()

    def predict(  # type: ignore[override]
        self, request: ResponsesAgentRequest
    ) -> ResponsesAgentResponse:
        """The whole turn at once."""
        events = list(self._events(request))
        return ResponsesAgentResponse(
            output=[event["item"] for event in events if event["type"] == _ITEM_DONE],
            custom_outputs=events[-1].get("custom_outputs"),
        )

    def predict_stream(  # type: ignore[override]
        self, request: ResponsesAgentRequest
    ) -> Generator[ResponsesAgentStreamEvent, None, None]:
        """Items as they are done, the answer's text as deltas."""
        for event in self._events(request):
            yield ResponsesAgentStreamEvent(**event)

    def _events(self, request: ResponsesAgentRequest) -> Iterator[dict[str, Any]]:
        inputs = request.custom_inputs or {}
        if inputs.get("ecg"):
            yield from self._turn(_messages(request), str(inputs["ecg"]), inputs)
        else:
            yield _done(self.create_text_output_item(NO_ECG, _new_id("msg")))

    def _turn(
        self, messages: list[dict[str, Any]], file: str, inputs: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        from ecg_agent_ray import ecg
        from ecg_agent_ray.agent import LocalToolbox

        agent = self._loaded()
        leads = inputs.get("lead_configuration", agent.lead_configuration)
        toolbox = _TracedToolbox(LocalToolbox(ecg.read(file), self._classifier, leads))
        message_id = _new_id("msg")
        for event in agent.run(messages, toolbox):
            match event.type:
                case "content":
                    yield self.create_text_delta(event.text, message_id)
                case "tool_output":
                    yield from self._tool_items(event.result)
                case "final":
                    yield _done(
                        self.create_text_output_item(event.content, message_id),
                        custom_outputs={
                            "action": str(event.action),
                            "grounding": event.grounding.to_dict(),
                        },
                    )

    def _tool_items(self, result: ToolResult) -> Iterator[dict[str, Any]]:
        call_id = _new_id("call")
        arguments = json.dumps({"action": str(result.action)})
        yield _done(self.create_function_call_item(_new_id("fc"), call_id, result.tool, arguments))
        yield _done(self.create_function_call_output_item(call_id, json.dumps(result.output)))

    def _loaded(self) -> Agent:
        with self._lock:
            if self._agent is None:
                from ecg_agent_ray.agent import load_agent
                from ecg_agent_ray.classifier import load_classifier
                from ecg_agent_ray.registry.uris import resolve

                about = json.loads((self._directory / "ecg_agent.json").read_text("utf-8"))
                uri = about.get("classifier") or "builtin:"
                self._classifier = load_classifier(resolve(uri, kind="classifier"))
                self._agent = load_agent(self._directory)
            return self._agent


class _TracedToolbox:
    """A toolbox whose calls are TOOL spans of the request's trace."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        with mlflow.start_span(name=str(action), span_type=SpanType.TOOL) as span:
            span.set_inputs({"question": question})
            result = self._toolbox.call(action, question=question, previous=previous)
            span.set_outputs(result.to_step())
            return result


def _done(item: dict[str, Any], custom_outputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": _ITEM_DONE, "item": item, "custom_outputs": custom_outputs}


def _messages(request: ResponsesAgentRequest) -> list[dict[str, Any]]:
    """User and assistant messages in OpenAI's chat form; earlier tool items are recomputed."""
    messages = []
    for item in (entry.model_dump() for entry in request.input):
        if item["type"] != "message":
            continue
        content = item["content"]
        if not isinstance(content, str):
            content = "".join(str(part.get("text", "")) for part in content)
        messages.append({"role": item["role"], "content": content})
    return messages


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex[:16]}"
