"""A table means the same however a program or a country writes it, or it is refused in words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.formats.numerals import numerals_of
from ecg_agent_ray.ecg.formats.table_times import seconds_of_texts, timing_of
from ecg_agent_ray.errors import RecordingError

MANY = settings(max_examples=150, deadline=None, derandomize=True)
N_ROWS = 400
START = dt.datetime(2024, 2, 29, 23, 59, 59)
SCALE = {"mV": 1.0, "uV": 1e3, "V": 1e-3}


def clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02d}:{seconds % 60:06.3f}"


TIMES: dict[str, tuple[str, str, Callable[[float], str]]] = {
    # name of the column, its unit, a time as text (with a decimal point)
    "seconds": ("Time", "s", lambda t: f"{t:.4f}"),
    "milliseconds": ("timestamp", "ms", lambda t: f"{t * 1e3:.1f}"),
    "nanoseconds": (
        "sensor timestamp",
        "ns",
        lambda t: f"{1_700_000_000_000_000_000 + round(t * 1e9)}",
    ),
    "unix": ("unix time", "s", lambda t: f"{1_700_000_000 + t:.4f}"),
    "elapsed": ("Elapsed time", "hh:mm:ss.mmm", clock),
    "iso": (
        "datetime",
        "",
        lambda t: (START + dt.timedelta(seconds=t)).isoformat(timespec="milliseconds"),
    ),
    "physionet": (
        "Time",
        "",
        lambda t: f"[{(START + dt.timedelta(seconds=t)):%H:%M:%S.%f}"[:-3] + " 29/02/2024]",
    ),
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1")


@dataclass(frozen=True)
class Style:
    delimiter: str
    decimal: str
    thousands: str
    time: str
    unit: str
    units_in: str
    encoding: str
    preamble: int
    gap: str
    newline: str


styles = st.builds(
    Style,
    delimiter=st.sampled_from([",", ";", "\t", "|", ", "]),
    decimal=st.sampled_from([".", ","]),
    thousands=st.sampled_from(["", "", "grouped"]),
    time=st.sampled_from([*TIMES, "none"]),
    unit=st.sampled_from(list(SCALE)),
    units_in=st.sampled_from(["brackets", "parentheses", "line", "word"]),
    encoding=st.sampled_from(ENCODINGS),
    preamble=st.integers(0, 3),
    gap=st.sampled_from(["", "", "NaN", "-"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)


def written(value: float, style: Style) -> str:
    text = f"{value:,.4f}" if style.thousands else f"{value:.4f}"
    if style.decimal == ",":
        text = text.replace(",", "_").replace(".", ",").replace("_", ".")
    quoted = style.decimal == "," or style.thousands
    return f'"{text}"' if style.delimiter.strip() == "," and quoted else text


def table(style: Style, names: list[str], values: np.ndarray, rate: float) -> bytes:
    """``values`` (columns, rows) in mV."""

    def head(name: str, unit: str) -> str:
        if not unit or style.units_in == "line":
            return name
        shape = {"brackets": "{} [{}]", "parentheses": "{} ({})", "word": "{} {}"}[style.units_in]
        return shape.format(name, unit)

    unit = style.unit
    columns = [(name, unit) for name in names]
    cells = [[written(v * SCALE[unit], style) for v in row] for row in values]
    if style.gap:
        cells[0][N_ROWS // 2] = style.gap
    if style.time != "none":
        name, time_unit, show = TIMES[style.time]
        columns.insert(
            0, (name, "" if style.units_in == "word" and ":" in time_unit else time_unit)
        )
        times = [show(i / rate) for i in range(values.shape[1])]
        if style.decimal == "," and ":" not in times[0]:
            quote = '"' if style.delimiter.strip() == "," and "." in times[0] else ""
            times = [quote + t.replace(".", ",") + quote for t in times]
        cells.insert(0, times)
    lines = [f"# exported by a program, part {i}" for i in range(style.preamble)]
    lines.append(style.delimiter.join(head(*column) for column in columns))
    if style.units_in == "line":
        lines.append(style.delimiter.join(unit for _, unit in columns))
    lines += [style.delimiter.join(row) for row in zip(*cells, strict=True)]
    return (style.newline.join(lines) + style.newline).encode(style.encoding)


def beats(rate: float, n_leads: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(N_ROWS) / rate
    rows = [np.sin(2 * np.pi * 1.3 * time + i) ** 21 * (1 + i / 3) for i in range(n_leads)]
    return np.round(np.array(rows) + rng.normal(0, 0.02, (n_leads, N_ROWS)), 3)


@MANY
@given(
    style=styles,
    names=st.lists(
        st.sampled_from(["II", "V1", "V5", "MLII", "ECG"]), min_size=1, max_size=3, unique=True
    ),
    rate=st.sampled_from([125.0, 250.0, 360.0, 500.0, 1000.0]),
    seed=st.integers(0, 999),
)
def test_a_table_means_the_same_in_every_form(
    style: Style, names: list[str], rate: float, seed: int
) -> None:
    # clocks of milliseconds cannot tell rates that no whole number of them fits; a V alone behind a
    # name, or in a line of units of one column, is a lead as well
    assume(not (style.unit == "V" and style.units_in in ("word", "line")))
    assume(not {"II", "MLII"} <= set(names))
    values = beats(rate, len(names), seed)
    data = table(style, names, values, rate)
    given_rate = {"sampling_rate": rate} if style.time == "none" else {}
    read = ecg.read(data, **given_rate)
    assert read.leads == tuple(dict.fromkeys(map(ecg.normalise_lead, names)))
    assert read.sampling_rate == rate
    expected = values.copy()
    if style.gap:
        expected[0, N_ROWS // 2] = np.nan
    assert np.allclose(read.signal, expected, atol=2e-4 / min(SCALE[style.unit], 1), equal_nan=True)


@pytest.mark.parametrize(
    "others", [["RESP", "PLETH"], ["ABP", "SpO2"], ["nSeq"], ["acc_x", "gyroZ"]]
)
def test_other_columns_are_told_and_never_leads(others: list[str]) -> None:
    values = beats(250, 1, 3)[0]
    rng = np.random.default_rng(1)
    columns = {name: np.cumsum(rng.normal(0, 1, N_ROWS)) for name in others}
    if "nSeq" in columns:
        columns["nSeq"] = np.arange(N_ROWS) % 16.0
    head = ",".join(["time_s", *others, "ecg"])
    rows = np.column_stack([np.arange(N_ROWS) / 250, *columns.values(), values])
    lines = [",".join(f"{v:.4f}" for v in row) for row in rows]
    read = ecg.read("\n".join([head, *lines]).encode())
    assert read.leads == ("ecg",) or read.leads == ("ECG",)
    assert set(others) <= set(read.other_channels)
    assert np.allclose(read.signal[0], values, atol=1e-4)


def test_rows_that_are_missing_are_gaps() -> None:
    values = beats(250, 1, 3)[0]
    kept = np.delete(np.arange(N_ROWS), np.s_[100:160])
    lines = ["time,II", *(f"{i / 250:.3f},{values[i]:.3f}" for i in kept)]
    read = ecg.read("\n".join(lines).encode())
    assert read.n_samples == N_ROWS
    assert np.isnan(read.signal[0, 100:160]).all()
    assert np.allclose(read.signal[0, kept], values[kept], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(f"{i % 7 + 1},{i % 5 + 3}12" for i in range(200)), "decimal marks"),
        ("a;b\n" + "\n".join(f"{i % 7 + 1},{i % 5 + 3}12;1" for i in range(200)), "thousands"),
        ("II\n" + "\n".join(str(i * i % 911) for i in range(2000)), "--gain"),
        ("II\n" + "\n".join(f"{i * i % 9 / 10}" for i in range(200)), "--sampling-rate"),
        (
            "time,rate\n" + "\n".join(f"{i / 100},{i % 9}" for i in range(200)),
            "no channel is an ECG",
        ),
        ("time,II\n" + "\n".join(f"{i},{i * i % 9}" for i in range(200)), "--sampling-rate"),
        (
            "time (s),t2 (ms),II\n"
            + "\n".join(f"{i / 100},{i * 5},0.{i * i % 9}" for i in range(200)),
            "steps at",
        ),
    ],
)
def test_what_cannot_be_read_surely_is_refused(text: str, message: str) -> None:
    given_rate = {"sampling_rate": 250} if message == "--gain" else {}
    with pytest.raises(RecordingError, match=message):
        ecg.read(text.encode(), **given_rate)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["0,145", "1,250"], [0.145, 1.25]),
        (["1.234,5", "0,5"], [1234.5, 0.5]),
        (["1,234.5", "0.5"], [1234.5, 0.5]),
        (["995", "1,011"], [995, 1011]),
        (["995", "1.011"], [995, 1011]),
        (["1.011", "1.012"], [1.011, 1.012]),
        (["1 234,5", "7,25"], [1234.5, 7.25]),
        (["1'234.5", "−0.5"], [1234.5, -0.5]),
        (["1,234,567", "999"], [1234567, 999]),
    ],
)
def test_decimal_marks_and_thousands(cells: list[str], values: list[float]) -> None:
    numerals = numerals_of([cells])
    assert [numerals.value(cell) for cell in cells] == values


@MANY
@given(
    rate=st.sampled_from([50.0, 128.0, 130.0, 250.0, 333.0, 360.0, 512.0, 1000.0]),
    decimals=st.integers(3, 6),
    start=st.floats(0, 86_000),
    seconds=st.integers(5, 30),
)
def test_rounded_times_give_the_rate(
    rate: float, decimals: int, start: float, seconds: int
) -> None:
    times = np.round(start + np.arange(round(rate * seconds)) / rate, decimals)
    timing = timing_of(times)
    assert timing is not None
    assert timing.rows is None
    assert timing.rate == pytest.approx(rate, rel=2 * 10.0**-decimals / seconds + 1e-5)


def test_clocks_that_pass_midnight_and_noon() -> None:
    assert np.diff(
        seconds_of_texts(["23:59:59.996", "00:00:00.000", "0:00:00.004"])
    ) == pytest.approx([0.004, 0.004])
    assert np.diff(
        seconds_of_texts(["11:59:59.9 AM", "12:00:00.0 PM", "1:00:00.0 PM"])
    ) == pytest.approx([0.1, 3600])
    assert seconds_of_texts(["01:02.5"])[0] == 62.5
