"""Judges over real HTTP, two models compared, the report, MLflow's scorers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.errors import ConfigError, InputError
from ecg_agent_ray.evaluation import (
    Extras,
    agent_scorers,
    compare,
    genai_rows,
    score,
    score_predictions,
)
from ecg_agent_ray.evaluation.judges import Judge, judge_predictions

MEASURED = {
    "heart_rate": "72.35",
    "pr_interval": "160",
    "qrs_duration": "92",
    "qtc_interval": "412.55",
}
ASK = {"role": "user", "content": "What is my heart rate?"}
CALL = {
    "role": "assistant",
    "action": "call_measurement_tool",
    "thought": "t",
    "tool_output": MEASURED,
}


def say(content: str) -> dict[str, Any]:
    return {"role": "assistant", "action": "response", "thought": "t", "content": content}


GOOD = [ASK, CALL, say("Your heart rate is 72 bpm.")]
WRONG = [ASK, CALL, say("Your heart rate is 95 bpm.")]
SILENT = [ASK]


def record(number: int, generated: list[dict[str, Any]], agent: str = "one") -> dict[str, Any]:
    return {
        "sample_id": number,
        "ecg_file": "HR00056.mat",
        "ground_truth_dialogue": GOOD,
        "generated_dialogue": generated,
        "summary": {"history": "without_gt", "agent": agent, "cefr_level": "A"},
    }


class Endpoint:
    """A chat-completions server; ``reply`` makes the message's text of a request's body."""

    def __init__(self, reply: Callable[[dict[str, Any]], str]) -> None:
        self.bodies: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append(body)
                message = {"role": "assistant", "content": reply(body)}
                answer = json.dumps(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 0,
                        "model": body["model"],
                        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"openai:http://127.0.0.1:{self.server.server_address[1]}/v1#judge"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Callable[[Callable[[dict[str, Any]], str]], Endpoint]]:
    opened: list[Endpoint] = []

    def start(reply: Callable[[dict[str, Any]], str]) -> Endpoint:
        opened.append(Endpoint(reply))
        return opened[-1]

    yield start
    for item in opened:
        item.server.shutdown()
        item.server.server_close()


def strict(body: dict[str, Any]) -> str:
    """Accurate only where the answer has the tool's number."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    rating = 5 if "is 72 bpm" in body["messages"][1]["content"].split('"answer"')[-1] else 2
    return json.dumps({key: "why" if key == "reason" else rating for key in properties})


def test_a_judge_is_blind_and_asked_once(endpoint: Callable[..., Endpoint], tmp_path: Path) -> None:
    server = endpoint(strict)
    records = [record(0, GOOD, "agent-secret-name"), record(1, WRONG), record(2, SILENT)]
    judged = judge_predictions(records, [Judge(server.uri, tmp_path / "cache.jsonl")])
    measured = judged["answers"]["after_measurement"]
    assert (measured["n"], measured["missing"]) == (3, 1)
    assert measured["accuracy"] == pytest.approx((5 + 2 + 1) / 3)
    assert judged["answers"]["direct"]["n"] == 0
    assert judged["dialogues"]["missing"] == 1
    assert {body["temperature"] for body in server.bodies} == {0}
    assert "agent-secret-name" not in json.dumps(server.bodies)
    asked = len(server.bodies)
    again = judge_predictions(records, [Judge(server.uri, tmp_path / "cache.jsonl")])
    assert again == judged
    assert len(server.bodies) == asked


def test_failures_and_disagreements_are_counted(
    endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    generous = endpoint(lambda body: strict(body).replace("2", "5"))
    broken = endpoint(lambda _: '{"accuracy": 9}')
    judges = [
        Judge(item.uri, tmp_path / f"{number}.jsonl")
        for number, item in enumerate((endpoint(strict), generous, broken))
    ]
    judged = judge_predictions([record(0, WRONG)], judges)
    assert judged["answers"]["all"]["accuracy"] == pytest.approx(3.5)
    assert [row["failures"] for row in judged["judges"]] == [0, 0, 2]
    assert judged["disagreements"] == {"rated": 2, "disagreed": 2}


@pytest.mark.parametrize("uri", ["gpt", "openai:localhost#x", "openai:http://localhost:1/v1"])
def test_a_judge_is_an_endpoint(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openai:http"):
        Judge(uri, tmp_path / "cache.jsonl")


def test_comparison_tells_a_difference_from_none() -> None:
    good = [record(number, GOOD) for number in range(20)]
    bad = [record(number, WRONG, "two") for number in range(20)]
    found = compare(good, bad, resamples=300)["faithfulness"]
    assert found["difference"] == 1.0
    assert found["interval"] == [1.0, 1.0]
    assert found["p_value"] < 0.01
    mixed = [*good[:10], *bad[10:]]
    swapped = [*bad[:10], *good[10:]]
    found = compare(mixed, swapped, resamples=300)["faithfulness"]
    assert found["difference"] == 0.0
    assert found["p_value"] == 1.0
    assert compare(good, bad, resamples=10)["next_action_accuracy"]["difference"] == 0.0


def test_comparison_needs_the_same_dialogues() -> None:
    with pytest.raises(InputError, match="same dialogues"):
        compare([record(0, GOOD)], [record(1, GOOD)])
    other = record(0, GOOD) | {"ground_truth_dialogue": [{**ASK, "content": "Hi"}, GOOD[2]]}
    with pytest.raises(InputError, match="another dialogue"):
        compare([record(0, GOOD)], [other])


def test_report_shows_the_worst_first_and_escapes(tmp_path: Path) -> None:
    nasty = [ASK, CALL, say("<script>alert(1)</script> Your heart rate is 95 bpm.")]
    lines = [json.dumps(record(0, GOOD)), json.dumps(record(1, nasty))]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    extras = Extras(baseline=tmp_path / "predictions.jsonl")
    metrics = score_predictions(tmp_path / "predictions.jsonl", tmp_path / "out", extras=extras)
    assert metrics["faithfulness"] == 0.5
    assert metrics["compared"]["faithfulness"]["difference"] == 0.0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Dialogue 1: 2 errors in 2 turns" in page
    assert "Dialogue 0" not in page
    assert "<script>" not in page
    assert "95 bpm" in page
    assert "72.35" in page


def test_scorers_give_mlflow_the_same_numbers(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from ecg_agent_ray.plugins.tracking import configure

    monkeypatch.setenv("MLFLOW_GENAI_EVAL_ENABLE_SCORER_TRACING", "false")
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    configure(f"sqlite:///{database}", artifact_root=tmp_path / "artifacts", experiment="judged")
    records = [record(0, GOOD), record(1, WRONG), record(2, SILENT)]
    result = mlflow.genai.evaluate(data=genai_rows(records), scorers=agent_scorers())
    shown = {key.split("/")[0]: value for key, value in result.metrics.items()}
    metrics = score(records)
    assert shown["faithfulness"] == pytest.approx(metrics["faithfulness"])
    assert shown["next_action_accuracy"] == pytest.approx(metrics["next_action_accuracy"])
    assert shown["asked_value_stated"] == pytest.approx(0.5)
