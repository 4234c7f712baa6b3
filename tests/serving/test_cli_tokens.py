"""`ecg-agent tokens` and what `serve` refuses, through the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecg_agent_ray.cli import run
from ecg_agent_ray.serving import TokenFile


def test_create_list_revoke(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens"
    monkeypatch.setenv("ECG_AGENT_API_TOKENS", str(path))
    assert run(["tokens", "create", "ward-3", "--scopes", "read,chat", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    caller = TokenFile(path).find(made["token"])
    assert caller is not None
    assert caller.name == "ward-3"
    assert run(["tokens", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "ward-3", "scopes": ["chat", "read"]}
    assert run(["tokens", "revoke", "ward-3"]) == 0
    assert TokenFile(path).find(made["token"]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokens", "create", "a"],
        ["tokens", "revoke", "nobody", "--file", "tokens"],
        ["serve", "--config", "nosuch"],
        ["serve", "--host", "0.0.0.0"],
    ],
)
def test_bad_input_is_exit_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
