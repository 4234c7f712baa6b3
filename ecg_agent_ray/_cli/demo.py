"""``demo``: the whole way, shown as it goes."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table

from ecg_agent_ray._cli.output import console

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.json, plots and models.")] = Path(
        "demo-output"
    ),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the service up until Ctrl-C.")
    ] = False,
) -> None:
    """Measure, fine-tune, gate, promote, serve and talk: on real ECGs, on this machine."""
    from ecg_agent_ray.training.deepspeed_setup import check_compiler

    check_compiler()
    from ecg_agent_ray.pipelines.demo import run_demo
    from ecg_agent_ray.serving import load_service_config, running_service

    config = load_service_config("local")
    # a demo next to a service of the user's takes a free port instead of failing
    config = config.model_copy(update={"port": 0})
    show = _Show()
    report = run_demo(output, show, lambda: running_service(config), keep=_hold if keep else None)
    _summary(report, output)


def _hold(url: str) -> None:
    console.print(f"\nThe service stays up at [bold]{url}[/]. Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


class _Show:
    """Reports the stages with a running clock, and what came out of them."""

    def __init__(self) -> None:
        self._number = 0

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self._number += 1
        start = time.perf_counter()
        line = f"[bold cyan]{self._number}[/] {title}"
        if console.is_terminal:
            with console.status(line):
                yield
        else:
            console.print(f"{line} …")
            yield
        console.print(f"{line} [green]✓[/] [dim]{time.perf_counter() - start:.0f} s[/]")

    def measured(self, rows: list[dict[str, Any]], plot: Path) -> None:
        table = Table(box=None, padding=(0, 2))
        for name in ("record", "lead", "HR bpm", "PR ms", "QRS ms", "QTc ms"):
            table.add_column(name, justify="left" if name in ("record", "lead") else "right")
        for row in rows:
            values = (row[k] for k in ("heart_rate_bpm", "pr_ms", "qrs_ms", "qtc_bazett_ms"))
            numbers = ("—" if value is None else f"{value:.0f}" for value in values)
            table.add_row(row["record_id"], row["lead"], *numbers)
        console.print(table)
        console.print(f"  ECG paper: {plot}")

    def registered(self, model: Any) -> None:
        console.print(f"  {model.name} version {model.version} is champion (run {model.run_id})")
        for rule in model.gate["results"]:
            mark = "[green]✓[/]" if rule["passed"] else "[red]✗[/]"
            value = "—" if rule["value"] is None else f"{rule['value']:.3g}"
            console.print(
                f"    gate {mark} {rule['metric']} {value}, required {rule['requirement']}"
            )

    def serving(self, url: str) -> None:
        console.print(f"  serving at {url}")

    def heard(self, answer: Any) -> None:
        console.print(f"  [bold]user[/]   {answer.user}")
        for step in answer.steps:
            console.print(f"  [dim]{step['action']} → {step['tool_output']}[/]")
        console.print(
            f"  [bold green]agent[/]  {answer.assistant} [dim]({answer.action}, "
            f"{answer.seconds:.1f} s)[/]"
        )


def _summary(report: Any, output: Path) -> None:
    programs = Path(sys.executable).parent
    models = ", ".join(f"{name} v{model['version']}" for name, model in report.models.items())
    lines = [
        f"models     {models}",
        f"runs       {', '.join(report.runs.values())}",
        f"took       {sum(report.timings.values()):.0f} s",
        f"report     {output / 'report.json'}",
        "",
        "look again",
        f"  {programs / 'mlflow'} ui --backend-store-uri {shlex.quote(report.tracking_uri)}",
        f"  {programs / 'ecg-agent'} serve",
    ]
    console.print(Rule())
    console.print(Panel("\n".join(lines), title="done", title_align="left", expand=False))
