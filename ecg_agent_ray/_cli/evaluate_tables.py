"""What the sub-commands of ``evaluate`` print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ecg_agent_ray._cli.output import console

__all__ = ["show_agent", "show_classifier", "show_explanation", "show_measurement"]


def show_agent(metrics: dict[str, Any], output: Path) -> None:
    table = Table(title=f"{metrics['n_dialogues']} dialogues, {metrics['n_turns']} turns")
    table.add_column("metric", style="cyan")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name in (
        "next_action_accuracy",
        "tool_precision",
        "tool_recall",
        "faithfulness",
        "asked_value_stated",
    ):
        value, interval = metrics[name], metrics["intervals"].get(name)
        table.add_row(
            name,
            "—" if value is None else f"{value:.3f}",
            "—" if not interval else f"{interval[0]:.3f} to {interval[1]:.3f}",
        )
    console.print(table)
    if compared := metrics.get("compared"):
        against = Table(title="against the baseline, on the same dialogues")
        for name in ("metric", "difference", "95 % interval", "p"):
            against.add_column(name, justify="left" if name == "metric" else "right")
        for name, row in compared.items():
            if row["difference"] is not None:
                low, high = row["interval"]
                against.add_row(
                    name,
                    f"{row['difference']:+.3f}",
                    f"{low:+.3f} to {high:+.3f}",
                    f"{row['p_value']:.3f}",
                )
        console.print(against)
    console.print(f"wrote {output / 'metrics.json'} and {output / 'report.html'}")


def show_measurement(metrics: dict[str, Any], output: Path) -> None:
    table = Table(
        title=f"{metrics['database'].upper()}, {metrics['n_records']} records, "
        f"lead {metrics['lead']}, method {metrics['method']}"
    )
    for name in ("interval", "n", "missing", "MAE, ms", "bias, ms", "SD, ms", "IEC", "within"):
        table.add_column(name, justify="left" if name == "interval" else "right", no_wrap=True)
    limits = {"pr": "pq", "qrs": "qrs", "qt": "qt"}
    for name, title in {"pr": "PR", "qrs": "QRS", "qt": "QT", "qtc": "QTc"}.items():
        iec = metrics["iec_60601_2_25"].get(limits.get(name, ""))
        table.add_row(
            title,
            str(metrics["n"][name]),
            _text(metrics["missing"][name], "{:.1%}"),
            *(_text(metrics[key][name]) for key in ("mae_ms", "bias_ms", "sd_ms")),
            "" if iec is None else f"{iec['limit_bias_ms']:g} / {iec['limit_sd_ms']:g}",
            "" if iec is None else {True: "yes", False: "no", None: "—"}[iec["passed"]],
        )
    console.print(table)
    fiducials = Table(title=f"fiducials within 150 ms, {metrics['beats']['marked']} marked beats")
    for name in ("fiducial", "sensitivity", "PPV", "bias, ms", "SD, ms"):
        fiducials.add_column(name, justify="left" if name == "fiducial" else "right")
    for name, found in metrics["fiducials"].items():
        shares = (_text(found[key], "{:.1%}") for key in ("sensitivity", "ppv"))
        fiducials.add_row(name, *shares, *(_text(found[key]) for key in ("bias_ms", "sd_ms")))
    console.print(fiducials)
    heart_rate, false_p = metrics["heart_rate"], metrics["false_p"]
    console.print(
        f"heart rate: MAE {_text(heart_rate['mae_bpm'], '{:.2f}')} bpm; "
        f"PR given for {len(false_p['records'])} of {false_p['n_without_p']} records without P; "
        f"{len(metrics['largest_errors'])} intervals off by more than 100 ms, "
        f"{metrics['large_errors_without_note']} of them not called doubtful"
    )
    _show_failed(metrics["failed"])
    console.print(f"wrote {output / 'metrics.json'}, records.csv and plots/bland_altman.png")


def _text(value: Any, form: str = "{:.1f}") -> str:
    return "—" if value is None else form.format(value)


def show_classifier(metrics: dict[str, Any], output: Path) -> None:
    every = {metrics["lead_configuration"]: metrics, **metrics["configurations"]}
    table = Table(
        title=f"{metrics['model']} on {metrics['n_records']} {metrics['data_kind']} records"
    )
    table.add_column("leads", no_wrap=True)
    for name in ("macro AUROC", "micro AUROC", "macro AUPRC", "ECE"):
        table.add_column(name, justify="right")
    for leads, values in every.items():
        intervals = values.get("intervals", {})
        table.add_row(
            leads,
            *(
                _with_interval(values[name], intervals.get(name))
                for name in ("macro_auroc", "micro_auroc", "macro_auprc", "ece")
            ),
        )
    console.print(table)
    labels = Table(title=f"by label, {metrics['lead_configuration']}")
    labels.add_column("label", no_wrap=True)
    for name in ("positives", "AUROC", "AUPRC", "threshold", "sens.", "PPV", "F1"):
        labels.add_column(name, justify="right")
    for code, values in metrics["per_label"].items():
        interval = metrics.get("intervals", {}).get(f"auroc/{code}")
        chosen = metrics["thresholds"].get(code, {})
        labels.add_row(
            code,
            f"{values['positives']} of {values['n']}",
            _with_interval(values["auroc"], interval),
            _with_interval(values["auprc"], None),
            _text(chosen.get("threshold"), "{:.2f}"),
            *(_text(chosen.get(name), "{:.2f}") for name in ("sensitivity", "ppv", "f1")),
        )
    console.print(labels)
    for leads, values in every.items():
        if challenge := values.get("challenge"):
            console.print(
                f"PhysioNet/CinC Challenge 2021 score, {leads}: "
                f"{_with_interval(challenge['score'], challenge['interval'])} on "
                f"{challenge['n_records']} records, {challenge['classes_assessed']} of 26 classes "
                f"assessed, thresholds: {challenge['thresholds']}"
            )
    _show_failed(metrics["failed"])
    console.print(f"wrote {output / 'metrics.json'} and plots of reliability and AUROC")


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    text = _text(value, "{:.3f}")
    return f"{text} ({interval[0]:.3f}–{interval[1]:.3f})" if interval else text


def show_explanation(metrics: dict[str, Any], output: Path) -> None:
    table = Table(
        title=f"{metrics['model']}, {metrics['lead_configuration']}, {metrics['n_records']} records"
    )
    for name in ("test", "highlighted", "random", "difference (95 % interval)", "better"):
        table.add_column(name, justify="left" if name == "test" else "right")
    for name in ("deletion", "insertion"):
        values = metrics[name]
        table.add_row(
            name,
            _text(values["highlighted"], "{:.3f}"),
            _text(values["random"], "{:.3f}"),
            _with_interval(values["difference"], values["interval"]),
            _text(values["better"], "{:.0%}"),
        )
    console.print(table)
    if (found := metrics["faithfulness"])["n_records"]:
        cells = Table(title="fall of probability after the top k spectrogram cells")
        cells.add_column("ranking", no_wrap=True)
        for name in (*(f"k = {k}" for k in found["k"]), "tool's lead (95 % interval)"):
            cells.add_column(name, justify="right")
        for name in ("tool", "integrated_gradients", "magnitude", "random"):
            against = found["against"].get(name)
            lead = (
                ""
                if against is None
                else _with_interval(against["difference"], against["interval"])
            )
            values = (_text(value, "{:.3f}") for value in found[name])
            cells.add_row(name.replace("_", " "), *values, lead)
        console.print(cells)
    _show_failed(metrics["failed"])
    console.print(f"wrote {output / 'metrics.json'}")


def _show_failed(failed: list[dict[str, Any]]) -> None:
    for failure in failed:
        line = f"failed: {failure['record_id']}: {failure['error']}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
