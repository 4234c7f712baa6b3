"""``models …`` through Typer on a real SQLite registry, with the exit codes of the error tree."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from ecg_agent_ray import cli
from ecg_agent_ray._cli import models
from ecg_agent_ray.errors import ChampionChangedError, GateNotMetError
from ecg_agent_ray.registry import attach_evaluation
from ecg_agent_ray.registry.store import registry_client


def run(*arguments: str) -> Result:
    app = typer.Typer()
    models.register(app)
    app.command("other")(lambda: None)  # with one command alone Typer drops its name
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.fixture
def gate(tmp_path: Path, store: str) -> str:
    """Two versions, of which only the first passes the gate."""
    client = registry_client(create=True)
    client.create_registered_model("ecg-agent")
    for accuracy in (0.9, 0.4):
        made = client.create_model_version("ecg-agent", source="file:///nowhere")
        attach_evaluation("ecg-agent", int(made.version), {"next_action_accuracy": accuracy})
    path = tmp_path / "gate.yaml"
    path.write_text("rules: [{metric: next_action_accuracy, threshold: 0.8}]\n")
    return str(path)


def test_every_verb(gate: str) -> None:
    done = run("promote", "ecg-agent", "--version", "1", "--gate", gate, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["version"] == 1

    refused = run("promote", "ecg-agent", "--version", "2", "--gate", gate, "--json")
    assert isinstance(refused.exception, GateNotMetError)
    assert refused.exception.exit_code == 3
    (row,) = json.loads(refused.stdout)["gate"]["results"]
    assert row["missed_by"] == pytest.approx(0.4)
    assert "misses by" in run("promote", "ecg-agent", "--version", "2", "--gate", gate).stdout

    changed = run(
        "promote", "ecg-agent", "--version", "2", "--gate", gate, "--expect-champion", "2"
    )
    assert isinstance(changed.exception, ChampionChangedError)
    assert "champion changed" in str(changed.exception)

    options = ("--gate", gate, "--force", "--reason", "test")
    assert "forced" in run("promote", "ecg-agent", "--version", "2", *options).stdout
    assert json.loads(run("rollback", "ecg-agent", "--json").stdout)["version"] == 1
    listed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [(v["version"], v["aliases"]) for v in listed] == [
        (2, ["previous-champion"]),
        (1, ["champion"]),
    ]
    assert json.loads(run("show", "ecg-agent", "--json").stdout)["version"] == 1
    assert "promoted_by" in run("show", "ecg-agent").stdout
    assert "ecg-agent" in run("list").stdout


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("mlruns", 2, "is a folder"),
        ("http://127.0.0.1:{port}", 1, "server at http://127.0.0.1:{port} does not answer"),
        ("postgresql://me:secret@127.0.0.1:{port}/x", 1, "postgresql://me:***@127.0.0.1"),
        ("nonsense://here", 2, "cannot use the store nonsense://here"),
        ("sqlite:///{folder}/broken.db", 2, "file is not a database"),
    ],
)
def test_a_store_that_cannot_be_used_is_named(
    uri: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.db").write_text("no database " * 100)
    with socket.socket() as probe:  # bound, and nobody listens
        probe.bind(("127.0.0.1", 0))
        places = {"port": probe.getsockname()[1], "folder": tmp_path}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(**places))
        assert cli.run(["models", "list"]) == code
    error = capsys.readouterr().err
    assert said.format(**places) in error
    assert "secret" not in error


def test_what_mlflow_refuses_is_one_line(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "it's"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: MLflow: ")
