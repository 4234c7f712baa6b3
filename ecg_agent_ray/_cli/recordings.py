"""``info``, ``measure``, ``classify``, ``explain``, ``plot``: the tools on files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ecg_agent_ray._cli.output import console, each_file, emit, key_value_table
from ecg_agent_ray._cli.reading import reads_ecg
from ecg_agent_ray.errors import ConfigError

if TYPE_CHECKING:
    from ecg_agent_ray.ecg import Recording

__all__ = ["register"]

Files = Annotated[list[str], typer.Argument(metavar="FILE…", help="ECG files of any known format.")]
OneFile = Annotated[str, typer.Argument(metavar="FILE", help="An ECG file of any known format.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Leads = Annotated[str, typer.Option(help="Lead configuration: 12-lead, I or II.")]
ModelURI = Annotated[
    str, typer.Option(help="models:/NAME@ALIAS, a checkpoint or classifier folder, or builtin:")
]

_INTERVALS = {
    "heart_rate_bpm": ("Heart rate", "bpm"),
    "rr_ms": ("RR", "ms"),
    "p_duration_ms": ("P duration", "ms"),
    "pr_ms": ("PR", "ms"),
    "qrs_ms": ("QRS", "ms"),
    "qt_ms": ("QT", "ms"),
    "qtc_bazett_ms": ("QTc (Bazett)", "ms"),
    "qtc_fridericia_ms": ("QTc (Fridericia)", "ms"),
}


def register(app: typer.Typer) -> None:
    app.command()(reads_ecg(info))
    app.command()(reads_ecg(measure))
    app.command()(reads_ecg(classify))
    app.command()(reads_ecg(explain))
    app.command()(reads_ecg(plot))


def info(files: Files, as_json: AsJson = False, *, reading: Mapping[str, Any]) -> None:
    """Say what is in each file: format, leads, rate, length, quality of every lead."""
    from ecg_agent_ray import ecg

    def work(file: str) -> dict[str, Any]:
        recording = ecg.read(file, **reading)
        quality = ecg.assess_quality(recording)
        found: dict[str, Any] = {
            "record_id": recording.record_id,
            "format": recording.format,
            "leads": list(recording.leads),
            "sampling_rate": recording.sampling_rate,
            "duration_s": round(recording.duration_s, 6),
            "quality": {
                lead: {"status": q.status, "reason": q.reason} for lead, q in quality.items()
            },
            "other_channels": list(recording.other_channels),
        }
        notes = _reader_notes(recording)
        return found | ({"notes": notes} if notes else {})

    each_file(files, work, as_json=as_json, show=_show_info)


def _reader_notes(recording: Recording) -> list[str]:
    """Why channels are no leads, and what the reader took for granted."""
    others = [f"{name} is no lead: {why}" for name, why in recording.other_channels.items()]
    return [*others, *recording.notes]


def _show_info(result: Mapping[str, Any]) -> None:
    rows = {
        "format": result["format"],
        "leads": " ".join(result["leads"]),
        "sampling rate": f"{result['sampling_rate']:g} Hz",
        "duration": f"{result['duration_s']:g} s",
    }
    for lead, quality in result["quality"].items():
        if quality["status"] != "usable":
            rows[f"quality {lead}"] = f"{quality['status']}: {quality['reason']}"
    if result["other_channels"]:
        rows["other channels"] = ", ".join(result["other_channels"])
    console.print(key_value_table(result["record_id"], rows))
    _show_notes(result)


def measure(
    files: Files,
    lead: Annotated[
        str, typer.Option(help="A lead's name, auto (best usable) or global.")
    ] = "auto",
    method: Annotated[str, typer.Option(help="default, paper or neurokit.")] = "default",
    beats: Annotated[bool, typer.Option("--beats", help="Add every beat's fiducials.")] = False,
    as_json: AsJson = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Measure heart rate, PR, QRS, QT and QTc."""
    from ecg_agent_ray import ecg, tools

    def work(file: str) -> dict[str, Any]:
        return tools.measure(
            ecg.read(file, **reading), lead=lead, method=method, beats=beats
        ).to_dict()

    each_file(files, work, as_json=as_json, show=_show_measurement)


def _show_measurement(result: Mapping[str, Any]) -> None:
    rows = {
        title: None if result[key] is None else f"{result[key]:.0f} {unit}"
        for key, (title, unit) in _INTERVALS.items()
    }
    title = f"{result['record_id']}, lead {result['lead']}, {result['n_beats']} beats"
    console.print(key_value_table(title, rows))
    _show_notes(result)


def _show_notes(result: Mapping[str, Any]) -> None:
    """What was done to the recording, and what that means for the result."""
    for note in result.get("notes", ()):
        console.print(f"  note: {note}", style="yellow")


def classify(
    files: Files,
    model: ModelURI = "builtin:",
    threshold: Annotated[str, typer.Option(help="A probability, or model: its own.")] = "0.5",
    leads: Leads = "12-lead",
    labels: Annotated[
        Path | None,
        typer.Option(help="The names of a checkpoint's outputs, one a line, when it has none."),
    ] = None,
    as_json: AsJson = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Give the probability of each SCP-ECG statement."""
    from ecg_agent_ray import ecg, tools

    classifier = load_classifier_uri(model, labels)
    cut: float | Literal["model"] = "model" if threshold == "model" else _probability(threshold)

    def work(file: str) -> dict[str, Any]:
        recording = ecg.read(file, **reading)
        return tools.classify(recording, model=classifier, threshold=cut, leads=leads).to_dict()

    each_file(files, work, as_json=as_json, show=_show_classification)


def load_classifier_uri(uri: str, labels: Path | None = None) -> Any:
    """A classifier by registry URI, path or ``builtin:``; ``labels`` names its outputs."""
    from ecg_agent_ray.classifier import load_classifier, read_labels

    source: str | Path = uri
    if uri.startswith("models:/"):
        from ecg_agent_ray.registry import resolve

        source = resolve(uri)
    return load_classifier(source, labels=None if labels is None else read_labels(labels))


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"--threshold {text!r} is neither a number from 0 to 1 nor 'model'")
    return value


def _show_classification(result: Mapping[str, Any]) -> None:
    from ecg_agent_ray.facts.statements import statement_name

    table = Table(
        title=f"{result['record_id']}, {result['lead_configuration']}, model {result['model']}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("statement", style="cyan")
    table.add_column("meaning")
    table.add_column("probability", justify="right")
    for code in result["positive"]:
        table.add_row(code, statement_name(code), f"{result['labels'][code]:.1%}")
    console.print(table)
    if result["not_assessed"]:
        console.print(f"  not assessed by this model: {len(result['not_assessed'])} statements")
    _show_notes(result)


def explain(
    file: OneFile,
    label: Annotated[str, typer.Option(help="The statement to explain, such as AFIB.")],
    model: ModelURI = "builtin:",
    leads: Leads = "12-lead",
    png: Annotated[Path | None, typer.Option(help="Plot with the regions marked.")] = None,
    as_json: AsJson = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Say which part of the signal speaks for a statement."""
    from ecg_agent_ray import ecg, tools

    recording = ecg.read(file, **reading)
    result = tools.explain(recording, label, model=load_classifier_uri(model), leads=leads)
    found = result.to_dict()
    if png is not None:
        ecg.plot(recording, png, regions=found["regions"])
    if as_json:
        emit(found)
    else:
        console.print(found["text"])
        _show_notes(found)


def plot(
    file: OneFile,
    out: Annotated[Path, typer.Option(help="File to write: .png, .svg or .pdf.")],
    marks: Annotated[bool, typer.Option("--marks", help="Draw the measured fiducials.")] = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Draw the recording on standard ECG paper."""
    from ecg_agent_ray import ecg, tools

    recording = ecg.read(file, **reading)
    beats = tools.measure(recording, beats=True).to_dict()["beats"] if marks else None
    ecg.plot(recording, out, marks=beats)
    console.print(f"wrote {out}")
