"""``chat``: a dialogue about one ECG in the terminal, with a local agent or a running service."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from ecg_agent_ray._cli.output import console, emit
from ecg_agent_ray._cli.reading import reads_ecg
from ecg_agent_ray._cli.recordings import load_classifier_uri
from ecg_agent_ray.errors import ConfigError, ServiceError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command()(reads_ecg(chat))


def chat(
    ecg: Annotated[Path, typer.Option("--ecg", help="The ECG file to talk about.")],
    url: Annotated[str | None, typer.Option(help="A running service; left out: here.")] = None,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, an agent folder, builtin: or openai:URL#MODEL.")
    ] = "builtin:",
    leads: Annotated[str | None, typer.Option(help="Lead configuration: 12-lead, I or II.")] = None,
    script: Annotated[
        Path | None, typer.Option(help="File with one user turn a line, instead of the keyboard.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn.")] = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Talk with the agent about an ECG; an empty line or Ctrl-D ends."""
    lines = _script_lines(script) if script is not None else _typed_lines(as_json=as_json)
    if url is not None:
        partner: _Remote | _Local = _Remote(url, ecg, leads, reading)
    else:
        partner = _Local(model, ecg, leads, reading)
    with contextlib.closing(partner):
        for line in lines:
            _turn(partner, line, as_json=as_json, echo=script is not None)


class _Partner(Protocol):
    def ask(self, text: str) -> Iterator[Mapping[str, Any]]:
        """Events of type ``tool_output``, ``content`` and, last, ``final``."""
        ...


def _turn(partner: _Partner, line: str, *, as_json: bool, echo: bool) -> None:
    if echo and not as_json:
        console.print(f"[bold]you[/]    {line}")
    final: Mapping[str, Any] = {}
    started = False
    for event in partner.ask(line):
        if event["type"] == "final":
            final = event
        elif as_json:
            continue
        elif event["type"] == "tool_output":
            output = json.dumps(event["tool_output"], ensure_ascii=False)
            console.print(f"[dim]       {event['tool']} ({event['ms']:.0f} ms): {output}[/]")
        elif event["type"] == "content":
            console.print(
                event["text"] if started else f"[bold green]agent[/]  {event['text']}", end=""
            )
            started = True
    if as_json:
        emit({"user": line, **{k: v for k, v in final.items() if k != "type"}})
    else:
        console.print()


def _script_lines(script: Path) -> list[str]:
    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the script {script}: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _typed_lines(*, as_json: bool) -> Iterator[str]:
    while True:
        try:
            line = input("" if as_json else "you    ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


class _Local:
    """The agent in this process."""

    def __init__(
        self, model: str, file: Path, leads: str | None, reading: Mapping[str, Any]
    ) -> None:
        from ecg_agent_ray import ecg
        from ecg_agent_ray.agent import LocalToolbox, load_agent

        recording = ecg.read(file, **reading)
        if model.startswith("models:/"):
            from ecg_agent_ray.registry import resolve

            model = str(resolve(model))
        self._agent = load_agent(model, lead_configuration=leads)
        classifier = load_classifier_uri(self._agent.classifier or "builtin:")
        self._toolbox = LocalToolbox(recording, classifier, self._agent.lead_configuration)
        self._messages: list[dict[str, str]] = []
        self._steps: list[dict[str, Any]] = []

    def ask(self, text: str) -> Iterator[Mapping[str, Any]]:
        self._messages.append({"role": "user", "content": text})
        for event in self._agent.run(self._messages, self._toolbox, steps=self._steps):
            shown = event.to_dict()
            if shown["type"] == "final":
                self._messages.append({"role": "assistant", "content": shown["content"]})
                self._steps += shown["steps"]
            yield shown

    def close(self) -> None:
        """Nothing is held that the process's end does not free."""


class _Remote:
    """A running service, over its HTTP API."""

    def __init__(self, url: str, file: Path, leads: str | None, reading: Mapping[str, Any]) -> None:
        import os

        import httpx

        token = os.environ.get("ECG_AGENT_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, timeout=180, headers=headers)
        files = [("files", part) for part in _upload(file, reading)]
        self._ecg_id = self._json("POST", "/v1/ecgs", files=files)["id"]
        self._leads = leads
        self._messages: list[dict[str, str]] = []
        self._steps: list[dict[str, Any]] = []

    def ask(self, text: str) -> Iterator[Mapping[str, Any]]:
        self._messages.append({"role": "user", "content": text})
        options = {"ecg_id": self._ecg_id, "include_steps": True, "steps": self._steps}
        if self._leads is not None:
            options["lead_configuration"] = self._leads
        body = {"model": "ecg-agent", "messages": self._messages, "ecg_agent": options}
        reply = self._json("POST", "/v1/chat/completions", json=body)
        told, content = reply["ecg_agent"], reply["choices"][0]["message"]["content"]
        self._messages.append({"role": "assistant", "content": content})
        self._steps += told["steps"]
        for step in told["steps"]:
            yield {"type": "tool_output", **step}
        yield {"type": "content", "text": content}
        yield {"type": "final", "content": content, **told}

    def close(self) -> None:
        self._http.close()

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        import httpx

        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(f"no service answers at {self._http.base_url}: {error}") from error
        if answer.is_error:
            raise ServiceError(
                f"{method} {path} answered {answer.status_code}: {answer.text[:300]}"
            )
        return dict(answer.json())


def _upload(file: Path, reading: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """Names and contents; a file that does not tell all is read here and sent as what it means."""
    if not reading:
        return [(path.name, path.read_bytes()) for path in _with_signal(file)]
    import io

    import numpy as np

    from ecg_agent_ray import ecg

    recording = ecg.read(file, **reading)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, ecg=recording.signal, fs=recording.sampling_rate, leads=recording.leads
    )
    return [(f"{recording.record_id}.npz", buffer.getvalue())]


def _with_signal(file: Path) -> list[Path]:
    """A WFDB record is two files; any other is one. A bare stem means its header."""
    header = file if file.suffix == ".hea" else file.with_name(f"{file.name}.hea")
    if file.suffix in (".dat", ".mat") and file.with_suffix(".hea").is_file():
        header = file.with_suffix(".hea")
    if header.is_file():
        return [header, *(p for s in (".dat", ".mat") if (p := header.with_suffix(s)).is_file())]
    if not file.is_file():
        raise ConfigError(f"no ECG file at {file}")
    return [file]
