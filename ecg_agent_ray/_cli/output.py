"""How sub-commands print: JSON lines on stdout or tables; a bad file never stops the good ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ecg_agent_ray.errors import EcgAgentError

__all__ = ["console", "each_file", "emit", "error_object", "key_value_table"]

console = Console(highlight=False)


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; NaN is no JSON, so it is refused."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def error_object(file: str, error: EcgAgentError) -> dict[str, Any]:
    """The line of a file that failed."""
    return {"file": file, "error": {"type": type(error).__name__, "message": str(error)}}


def each_file(
    files: Iterable[str],
    work: Callable[[str], Mapping[str, Any]],
    *,
    as_json: bool,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Run ``work`` on each file and print its result; end with exit code 2 if any file failed."""
    failed = False
    for file in files:
        try:
            result = work(file)
        except EcgAgentError as error:
            failed = True
            if as_json:
                emit(error_object(file, error))
            else:
                typer.echo(f"error: {file}: {error}", err=True)
            continue
        if as_json:
            emit(result)
        else:
            show(result)
    if failed:
        raise typer.Exit(2)


def key_value_table(title: str, rows: Mapping[str, Any]) -> Table:
    """A two-column table; missing values are a dash."""
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="cyan")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, "—" if value is None else str(value))
    return table
