"""How sub-commands print: JSON lines on stdout or tables; a bad file never stops the good ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ecg_agent_ray.errors import EcgAgentError

__all__ = ["console", "each_file", "emit", "error_object", "key_value_table", "stderr_progress"]

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


@contextmanager
def stderr_progress(
    what: str, *, every_s: float = 5.0, unit: str = "records"
) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes (done, total) and tells stderr the rate and the time left.

    On a terminal it is a bar; elsewhere a line every ``every_s`` seconds and at the end, so that a
    log shows it too. Records done before the first call do not count for the rate.
    """
    begin = last = time.monotonic()
    before: int | None = None
    terminal = Console(stderr=True, highlight=False)

    def report(done: int, total: int) -> None:
        nonlocal begin, last, before
        now = time.monotonic()
        if before is None:
            before, begin = done, now
        due = now - last >= (0.2 if terminal.is_terminal else every_s)
        if not due and done < total:
            return
        last = now
        rate = (done - before) / max(now - begin, 1e-9)
        text = f"{what}: {done} of {total}"
        if rate > 0:
            left = (total - done) / rate
            text += f", {rate:.1f} {unit}/s" + (f", {_duration(left)} left" if left else "")
        end = "\r" if terminal.is_terminal and done < total else "\n"
        terminal.print(f"{text:<78}", end=end, soft_wrap=True)

    yield report


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
