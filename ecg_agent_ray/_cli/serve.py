"""``serve`` and ``tokens``: the service in the foreground, and who may use it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table

from ecg_agent_ray._cli.output import console, emit
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]

TokensFile = Annotated[
    Path | None, typer.Option("--file", help="Tokens file; left out: ECG_AGENT_API_TOKENS.")
]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    group = typer.Typer(help="Bearer tokens of the service.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    app.add_typer(group, name="tokens")


def serve(
    config: Annotated[
        str, typer.Option(help="A shipped configuration's name, or a file in Serve's schema.")
    ] = "local",
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
) -> None:
    """Serve the agent here, in the foreground, until interrupted."""
    from ecg_agent_ray.serving import load_service_config, running_service

    given = {"host": host, "port": port}
    chosen = load_service_config(config).model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    asked_to_stop = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked_to_stop.is_set():
            return
        asked_to_stop.set()
        # breaks out of whatever is being waited for, so that all is shut down on the way
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        console.print("starting …")
        with running_service(chosen) as url:
            console.print(f"ecg-agent serves at {url} (Ctrl-C ends it)")
            asked_to_stop.wait()
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def create(
    name: Annotated[str, typer.Argument(help="Whose token it is; it owns what it uploads.")],
    scopes: Annotated[str, typer.Option(help="Comma-separated: read, chat, admin.")] = "read,chat",
    file: TokensFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make a token and show it, this once."""
    from ecg_agent_ray.serving import TokenFile

    path = _tokens_path(file)
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    token = TokenFile(path).create(name, wanted)
    if as_json:
        emit({"name": name, "scopes": wanted, "token": token, "file": str(path)})
    else:
        typer.echo(token)


def list_tokens(
    file: TokensFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show names and scopes; the tokens themselves are nowhere."""
    from ecg_agent_ray.serving import TokenFile

    callers = TokenFile(_tokens_path(file)).callers()
    if as_json:
        for caller in callers:
            emit({"name": caller.name, "scopes": sorted(caller.scopes)})
        return
    table = Table("name", "scopes")
    for caller in callers:
        table.add_row(caller.name, ", ".join(sorted(caller.scopes)))
    console.print(table)


def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.")], file: TokensFile = None
) -> None:
    """Remove a token; a running service refuses it from then on."""
    from ecg_agent_ray.serving import TokenFile

    TokenFile(_tokens_path(file)).revoke(name)
    console.print(f"revoked {name}")


def _tokens_path(given: Path | None) -> Path:
    from ecg_agent_ray.settings import load_settings

    path = given or load_settings().api_tokens
    if path is None:
        raise ConfigError(
            "there is no tokens file", hint="give --file, or set ECG_AGENT_API_TOKENS"
        )
    return path
