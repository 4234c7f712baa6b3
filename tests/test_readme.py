"""The README's commands exist, with the options it gives them; what they do is tested elsewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

README = Path(__file__).parent.parent / "README.md"


def commands(program: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("line", commands("ecg-agent"))
def test_ecg_agent_understands(line: str) -> None:
    from ecg_agent_ray.cli import app

    command, context, rest = typer.main.get_command(app), None, shlex.split(line)[1:]
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name, rest, parent=context)
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command is not None, name
    # an unknown option or a missing argument raises
    assert command.make_context(command.name, list(rest), parent=context)


def test_there_are_commands_of_every_kind() -> None:
    assert len(commands("ecg-agent")) >= 15
    assert commands("make") == ["make demo", "make test"]


@pytest.mark.parametrize("line", commands("mlflow deployments"))
def test_mlflow_understands(line: str) -> None:
    from mlflow.deployments.cli import commands as group

    verb, *rest = shlex.split(line)[2:]
    assert group.commands[verb].make_context(verb, rest)
