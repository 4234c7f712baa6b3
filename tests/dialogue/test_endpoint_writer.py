"""Dialogues written by a model behind a real HTTP server that errs in every way we know of."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.cli import run
from ecg_agent_ray.dialogue import Dialogue, read_dialogues, validate
from ecg_agent_ray.dialogue.synthesis import RecordFacts, synthesize
from ecg_agent_ray.dialogue.synthesis.endpoint import EndpointWriter, Limits, rewrite
from ecg_agent_ray.errors import ConfigError, DialogueError, ServiceError

pytest.importorskip("openai")

FACTS = RecordFacts(
    record_id="HR00001",
    ecg_file="HR00001.mat",
    lead_configuration="12-lead",
    measurement={
        "heart_rate": "72.35",
        "pr_interval": "160",
        "qrs_duration": None,
        "qtc_interval": "412.55",
    },
    classification=["SR (98.23%)", "NORM (86.88%)"],
    explanation={"SR": "SR (98.23%) | time=3.072-3.072s, freq=11.7-11.7Hz"},
)
OUTLINES = synthesize([FACTS], n=8, seed=5)

Reply = Callable[[int, list[dict[str, Any]]], Any]


def obedient(plan: str) -> list[dict[str, str]]:
    """What a model that follows the plan writes."""
    turns: list[dict[str, str]] = []
    for line in re.split(r"\n(?=\d+\. )", plan.partition("Plan:\n")[2]):
        kind, _, meaning = line.partition(". ")[2].partition(", meaning: ")
        if kind == "user":
            turns.append({"content": f"Well, {meaning}"})
        elif "thought only" in kind:
            turns.append({"thought": "The person needs what this tool finds."})
        else:
            turns.append({"thought": "This answers the person.", "content": f"So: {meaning}"})
    return turns


class Endpoint:
    """``reply(number of the request, messages)`` gives a status or the turns to send."""

    def __init__(self) -> None:
        self.reply: Reply = lambda _, messages: obedient(messages[1]["content"])
        self.requests: list[list[dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.url = ""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body["messages"])
                answer = state.reply(len(state.requests), body["messages"])
            if isinstance(answer, int):
                self.send_response(answer)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            text = answer if isinstance(answer, str) else json.dumps({"turns": answer})
            content = json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": text},
                        }
                    ],
                    "usage": {
                        "prompt_tokens": 1000,
                        "completion_tokens": 500,
                        "total_tokens": 1500,
                    },
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"openai:http://127.0.0.1:{server.server_port}/v1#writer-1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def write(endpoint: Endpoint, path: Path, **limits: Any) -> Any:
    return rewrite(OUTLINES, EndpointWriter(endpoint.url, Limits(**limits)), path)


def by_outline(path: Path) -> dict[int, Dialogue]:
    found = {item.metadata["outline"]: item for item in read_dialogues(path)}
    assert len(found) == len(read_dialogues(path))
    return found


def test_words_are_the_models_and_facts_the_tools(endpoint: Endpoint, tmp_path: Path) -> None:
    report = write(endpoint, tmp_path / "train.jsonl")
    assert (report.written, report.rejected, report.left) == (8, 0, 0)
    written = by_outline(tmp_path / "train.jsonl")
    assert validate(list(written.values())) == []
    for number, outline in enumerate(OUTLINES):
        assert written[number].actions == outline.actions
        assert list(written[number].tool_outputs()) == list(outline.tool_outputs())
        assert written[number].turns[0].content == f"Well, {outline.turns[0].content}"
        assert written[number].metadata["writer"] == "writer-1"
        assert "template_ids" not in written[number].metadata
    assert report.input_tokens == 8000 and report.output_tokens == 4000


def test_refusals_and_outages_are_waited_out(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda number, messages: (
        429 if number == 1 else 503 if number in (2, 5) else obedient(messages[1]["content"])
    )
    report = write(endpoint, tmp_path / "train.jsonl")
    assert report.written == 8 and len(endpoint.requests) == 11


def test_faults_are_named_in_the_next_try_and_rejected_in_the_end(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    def reply(number: int, messages: list[dict[str, Any]]) -> Any:
        turns = obedient(messages[1]["content"])
        if number == 1:
            return "no JSON"
        if number == 2:
            return turns[:-1]
        if number == 3:
            turns[1]["thought"] = "The instructions say to follow the action sequence."
            return turns
        if number == 5:
            turns[-1]["content"] = "Your heart rate is 180 bpm."
        return turns

    endpoint.reply = reply
    report = write(endpoint, tmp_path / "train.jsonl", in_flight=1)
    assert (report.written, report.rejected) == (7, 1)
    assert 0 not in by_outline(tmp_path / "train.jsonl")
    last_words = [messages[-1]["content"] for messages in endpoint.requests[:6]]
    assert "JSON" in last_words[1]
    assert "turns, the plan" in last_words[2]
    assert "180 bpm" in last_words[5]


def test_a_stopped_run_goes_on_without_asking_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    endpoint.reply = lambda number, messages: (
        obedient(messages[1]["content"]) if number <= 3 else 400
    )
    with pytest.raises(ServiceError, match="does not write"):
        write(endpoint, path, in_flight=1)
    assert len(by_outline(path)) == 3
    with path.open("a") as stream:
        stream.write('{"dialogue": "[{half a li')
    ledger = tmp_path / "train.jsonl.ledger"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join(lines[:-1]) + "\n")  # killed between the two files
    endpoint.reply = lambda _, messages: obedient(messages[1]["content"])
    report = write(endpoint, path)
    assert (report.written, report.left, report.requests) == (8, 0, 8)
    assert len(by_outline(path)) == 8
    assert len(endpoint.requests) == 4 + 5
    again = write(endpoint, path)
    assert again.to_dict() == report.to_dict() and len(endpoint.requests) == 9


def test_files_of_other_outlines_are_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    write(endpoint, tmp_path / "train.jsonl")
    other = synthesize([FACTS], n=8, seed=6)
    with pytest.raises(DialogueError, match="another seed"):
        rewrite(other, EndpointWriter(endpoint.url), tmp_path / "train.jsonl")


def test_cost_ends_a_run_and_a_higher_limit_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    prices = {"input_price": 2.0, "output_price": 8.0, "in_flight": 1}  # 0.006 a request
    report = write(endpoint, tmp_path / "train.jsonl", max_cost=0.015, **prices)
    assert (report.written, report.left) == (3, 5)
    assert report.cost == pytest.approx(0.018)
    assert "cost" in str(report.stopped)
    report = write(endpoint, tmp_path / "train.jsonl", max_cost=1.0, **prices)
    assert (report.written, report.left, report.stopped) == (8, 0, None)
    assert report.cost == pytest.approx(0.048)
    with pytest.raises(ConfigError, match="prices"):
        Limits(max_cost=1.0)


def test_requests_are_spaced(endpoint: Endpoint) -> None:
    writer = EndpointWriter(endpoint.url, Limits(requests_per_minute=1200))
    start = time.monotonic()
    for _ in range(5):
        writer.ask([{"role": "user", "content": "Plan:\n1. user, meaning: Hi"}] * 2)
    # no sooner than the rate allows; a busy machine only makes it later
    assert time.monotonic() - start >= 4 * 0.05


def test_the_command_writes_all_splits_with_an_endpoint(
    endpoint: Endpoint, tmp_path: Path, ray_cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "dialogues", "synthesize", "--n", "20", "--explain", "0", "--json"]
    command += ["--output", str(tmp_path), "--writer", endpoint.url]
    assert run(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["writing"]["train"]["written"] == 18
    for split in ("train", "validation", "test"):
        assert {item.metadata["split"] for item in read_dialogues(result["files"][split])} == {
            split
        }
    asked = len(endpoint.requests)
    assert run(command) == 0
    assert len(endpoint.requests) == asked
    assert run([*command[:-1], "elsewhere"]) == 2
