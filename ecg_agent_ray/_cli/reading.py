"""The options of every command that reads an ECG file, for what the file does not tell."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

__all__ = ["reads_ecg"]

_OPTIONS: dict[str, Any] = {
    "sampling_rate": Annotated[
        float | None, typer.Option(metavar="HZ", help="Of a file that does not tell its own.")
    ],
    "unit": Annotated[
        str | None,
        typer.Option(metavar="mV|uV|V|adc", help="Of a file's values where it does not tell."),
    ],
    "gain": Annotated[
        float | None, typer.Option(metavar="N", help="Converter's counts per mV, for unit adc.")
    ],
    "lead_names": Annotated[
        str | None,
        typer.Option(metavar="I,II,…", help="The file's channels, in its order."),
    ],
}


def reads_ecg(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets those that were given in its parameter ``reading``,
    as keywords of :func:`ecg_agent_ray.ecg.read`."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        given = {name: values.pop(name) for name in _OPTIONS}
        reading = {name: value for name, value in given.items() if value is not None}
        if "lead_names" in reading:
            reading["lead_names"] = [name.strip() for name in reading["lead_names"].split(",")]
        command(**values, reading=reading)

    hints = get_type_hints(command, include_extras=True)
    hints = {name: hint for name, hint in hints.items() if name != "reading"} | _OPTIONS
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "reading"
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in _OPTIONS.items()
    ]
    del wrapped.__wrapped__
    wrapped.__annotations__ = hints
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapped
