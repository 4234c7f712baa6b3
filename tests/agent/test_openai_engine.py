"""A real HTTP server that speaks the chat-completions stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ecg_agent_ray.agent import Agent, GenerationRequest, OpenAIEngine, ToolResult
from ecg_agent_ray.agent.events import StatusEvent
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.errors import ConfigError, ServiceError

MEASURE = "Action: call_measurement_tool\nThought: I measure."
SAY = "Action: response\nThought: I answer.\nContent: Your heart rate is 72 bpm."
USER = [{"role": "user", "content": "heart rate?"}]


class Endpoint:
    def __init__(self) -> None:
        self.texts: list[str | list[str] | tuple[str, list[str]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            state.bodies.append(json.loads(self.rfile.read(length)))
            state.headers.append(dict(self.headers))
            if not state.texts:
                self.send_error(429, "too many requests")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            said = state.texts.pop(0)
            text, calls = said if isinstance(said, tuple) else (said, said)
            for word in text.split(" ") if isinstance(text, str) else ():
                self._send({"choices": [{"delta": {"content": word + " "}}]})
            for index, name in enumerate(calls if isinstance(calls, list) else ()):
                call = {"index": index, "id": f"c{index}", "type": "function"}
                for function in ({"name": name, "arguments": ""}, {"arguments": "{}"}):
                    delta = {"tool_calls": [call | {"function": function}]}
                    self._send({"choices": [{"delta": delta}]})
            self._send({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._send({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_turn_over_http(
    endpoint: Endpoint, fixed_toolbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.texts = [MEASURE, SAY]
    agent = Agent(OpenAIEngine(endpoint.url, "m"))
    final = agent.respond(USER, fixed_toolbox)
    assert final.content == "Your heart rate is 72 bpm."
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (22, 14)
    assert endpoint.bodies[0]["stop"] == ["\nTool_Output:"]
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"
    assert "structured_outputs" not in endpoint.bodies[0]


def test_without_a_grammar_a_contradiction_is_dropped(
    endpoint: Endpoint, fixed_toolbox: Any
) -> None:
    endpoint.texts = [MEASURE, SAY.replace("72", "85")]
    final = Agent(OpenAIEngine(endpoint.url, "m")).respond(USER, fixed_toolbox)
    assert "85" not in final.content
    assert len(endpoint.bodies) == 2


def test_the_grammar_for_servers_that_take_one(endpoint: Endpoint) -> None:
    endpoint.texts = [SAY]
    engine = OpenAIEngine(endpoint.url, "m", grammar="vllm")
    engine.generate(USER, GenerationRequest(slots=("heart_rate",))).text()
    grammar = endpoint.bodies[0]["structured_outputs"]["grammar"]
    assert '"{heart_rate}"' in grammar
    assert '"{pr_interval}"' not in grammar


def test_a_refusal_is_a_service_error(endpoint: Endpoint) -> None:
    with pytest.raises(ServiceError, match="429"):
        OpenAIEngine(endpoint.url, "m").generate(USER, GenerationRequest()).text()


def test_nobody_there() -> None:
    with pytest.raises(ServiceError, match="did not answer"):
        OpenAIEngine("http://127.0.0.1:9/v1", "m").generate(USER, GenerationRequest()).text()


def test_a_source_without_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="MODEL"):
        OpenAIEngine("http://127.0.0.1:9/v1", "")


class MeetingToolbox:
    """Tools that answer only once both have been called."""

    key = "meeting"

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)

    def call(self, action: Action, *, question: str, previous: Any) -> ToolResult:
        self.barrier.wait()
        output = {"heart_rate": "72.35"} if action is Action.CALL_MEASUREMENT else ["SR (98.23%)"]
        return ToolResult(TOOL_OF_ACTION[action], action, output)


@pytest.mark.parametrize(
    "asked",
    [
        ["call_classification_tool", "call_measurement_tool", "call_a_taxi"],
        "Action: call_classification_tool\nThought: Both.\n"
        "Action: call_measurement_tool\nThought: Both.",
    ],
)
def test_tools_asked_for_at_once_run_at_once(endpoint: Endpoint, asked: str | list[str]) -> None:
    endpoint.texts = [asked, SAY]
    agent = Agent(OpenAIEngine(endpoint.url, "m", offer_tools=True))
    final = agent.respond(USER, MeetingToolbox())
    assert [step.tool for step in final.steps] == ["classification", "measurement"]
    assert final.content == "Your heart rate is 72 bpm."
    offered = {tool["function"]["name"] for tool in endpoint.bodies[0]["tools"]}
    assert {"call_classification_tool", "call_measurement_tool"} <= offered
    said = [message["content"] for message in endpoint.bodies[1]["messages"]]
    assert [text for text in said if "Tool_Output: [" in text]
    assert [text for text in said if "72.35" in text]


def test_a_call_behind_an_answer_is_not_shown(endpoint: Endpoint, fixed_toolbox: Any) -> None:
    endpoint.texts = [(SAY, ["call_measurement_tool"])]
    agent = Agent(OpenAIEngine(endpoint.url, "m", offer_tools=True), grounding=False)
    final = agent.respond(USER, fixed_toolbox)
    assert final.content == "Your heart rate is 72 bpm."
    assert not final.steps


def test_the_page_is_told_of_a_call_at_once(endpoint: Endpoint, fixed_toolbox: Any) -> None:
    endpoint.texts = [["call_measurement_tool"], SAY]
    agent = Agent(OpenAIEngine(endpoint.url, "m", offer_tools=True))
    stages = [e.status for e in agent.run(USER, fixed_toolbox) if isinstance(e, StatusEvent)]
    assert stages[:2] == ["thinking", "calling_tool"]


def test_no_more_tools_at_once_than_allowed(endpoint: Endpoint, fixed_toolbox: Any) -> None:
    endpoint.texts = [["call_classification_tool", "call_measurement_tool"], SAY]
    agent = Agent(OpenAIEngine(endpoint.url, "m"), max_tool_calls=1)
    assert [step.tool for step in agent.respond(USER, fixed_toolbox).steps] == ["classification"]
