"""Annotations as beats: brackets belong to their peak, waves to their beat, leads combine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.evaluation.measurement_agreement import (
    MeasuredRecord,
    count_fiducials,
    interval_medians,
    match,
    measurement_metrics,
)
from ecg_agent_ray.evaluation.measurement_reference import combine_leads, find_records

RATE = 500
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
BEAT = "(p)(N)(t)"
OFFSETS = (-160, -130, -80, -40, 0, 50, 120, 180, 240)


def write_record(folder: Path, name: str, beats: list[tuple[int, str]], shift: int = 0) -> None:
    """A flat LUDB-like record whose beats carry these symbols; V6 is marked ``shift`` wider."""
    signal = np.zeros((5000, 12))
    wfdb.wrsamp(
        name,
        fs=RATE,
        units=["mV"] * 12,
        sig_name=list(LEADS),
        p_signal=signal,
        fmt=["16"] * 12,
        write_dir=str(folder),
    )
    places = dict(zip(range(9), OFFSETS, strict=True))
    for lead in LEADS:
        samples, symbols = [], []
        for peak, kept in beats:
            for index, symbol in enumerate(BEAT):
                if kept[index] == "-":
                    continue
                wider = shift if lead == "V6" else 0
                side = {"(": -wider, ")": wider}.get(symbol, 0)
                samples.append(peak + places[index] + side)
                symbols.append(symbol)
        wfdb.wrann(name, "marks", np.array(samples), symbols, fs=RATE, write_dir=str(folder))
        # the writer takes no digit in an extension
        (folder / f"{name}.marks").rename(folder / f"{name}.{lead.lower()}")


def test_intervals_of_marked_beats(tmp_path: Path) -> None:
    write_record(tmp_path, "1", [(500, BEAT), (1000, BEAT), (1400, BEAT)])
    (record,) = find_records("ludb", tmp_path)
    reference = record.reference("aVR")
    values = interval_medians(reference.points, reference.rr_before_ms, reference.rate)
    assert (values["p"], values["pr"], values["qrs"], values["qt"]) == (160, 240, 180, 560)
    assert values["hr"] == pytest.approx(60000 / 900)
    # each beat's QT by its own RR before: 1000 and 800 ms
    assert values["qtc"] == pytest.approx((560 + 560 / np.sqrt(0.8)) / 2)
    assert reference.has_p


def test_missing_brackets_and_waves_leave_gaps(tmp_path: Path) -> None:
    beats = [(500, "---" + "-N)" + "(t)"), (1000, "(p)(N)(t-"), (1500, "---(N)---")]
    write_record(tmp_path, "1", beats)
    reference = find_records("ludb", tmp_path)[0].reference("II")
    points = reference.points
    assert np.isnan(points["qrs_onset"]).tolist() == [True, False, False]
    assert points["qrs_offset"].tolist() == [550, 1050, 1550]
    assert np.isnan(points["t_offset"]).tolist() == [False, True, True]
    assert np.isnan(points["p_onset"]).tolist() == [True, False, True]


def test_a_p_wave_without_its_qrs_is_marked_but_of_no_beat(tmp_path: Path) -> None:
    write_record(tmp_path, "1", [(500, BEAT), (1000, "(p)------"), (1500, BEAT)])
    reference = find_records("ludb", tmp_path)[0].reference("II")
    assert len(reference) == 2
    assert len(reference.marks["p_peak"]) == 3
    assert reference.points["p_peak"].tolist() == [370, 1370]


def test_global_runs_from_the_earliest_onset_to_the_latest_offset(tmp_path: Path) -> None:
    write_record(tmp_path, "1", [(500, BEAT), (1000, BEAT)], shift=10)
    record = find_records("ludb", tmp_path)[0]
    reference = record.reference("global")
    values = interval_medians(reference.points, reference.rr_before_ms, reference.rate)
    assert values["qrs"] == 180 + 40
    assert reference.points["r_peak"].tolist() == [500, 1000]
    alone = combine_leads([record.reference("II")] * 3)
    assert alone.points["qrs_onset"].tolist() == [460, 960]


def test_matching_is_one_to_one_and_nearest_first() -> None:
    found = np.array([100.0, 140.0, 500.0])
    assert match(found, np.array([105.0, 130.0, 700.0]), 75).tolist() == [0, 1, -1]
    # one point for two marks goes to the nearer
    assert match(np.array([100.0]), np.array([60.0, 110.0]), 75).tolist() == [-1, 0]
    assert match(np.empty(0), np.array([1.0]), 75).tolist() == [-1]


def test_points_outside_the_marked_part_are_no_errors(tmp_path: Path) -> None:
    write_record(tmp_path, "1", [(1000, "---(N)(t)"), (1500, BEAT), (2000, "(p)(N)---")])
    reference = find_records("ludb", tmp_path)[0].reference("II")
    peaks = np.array([500.0, 1000, 1500, 2000, 2500])
    points = {name: peaks + offset for name, offset in zip(reference.points, OFFSETS, strict=True)}
    for name, counts in count_fiducials(points, reference).items():
        found = counts.to_dict()
        assert (found["sensitivity"], found["ppv"]) == (1.0, 1.0), name
        assert found["bias_ms"] == 0.0
    points["r_peak"] = np.append(points["r_peak"], 1750.0)
    points["r_peak"].sort()
    extra = {name: np.full(6, np.nan) for name in points} | {"r_peak": points["r_peak"]}
    assert count_fiducials(extra, reference)["r_peak"].to_dict()["ppv"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("database", "folder", "only"),
    [("ecgdb", ".", None), ("ludb", "absent", None), ("ludb", ".", None), ("qtdb", ".", None)],
)
def test_what_is_not_there_is_a_config_error(
    tmp_path: Path, database: str, folder: str, only: list[str] | None
) -> None:
    with pytest.raises(ConfigError):
        find_records(database, tmp_path / folder, only)  # type: ignore[arg-type]


def test_an_unknown_record_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, "7", [(500, BEAT)])
    with pytest.raises(ConfigError, match="99"):
        find_records("ludb", tmp_path, ["7", "99"])


def test_a_large_error_is_told_apart_by_its_note() -> None:
    notes = ("QT is doubtful: 394 ms by the network, 440 ms by the classical method",)
    common = ("1", "II", "ok", {"pr": 300.0, "qt": 600.0}, {"pr": 120.0, "qt": 394.0}, True, {})
    metrics = measurement_metrics([MeasuredRecord(*common, notes)])
    found = {item["interval"]: item["doubtful"] for item in metrics["largest_errors"]}
    assert found == {"qt": True, "pr": False}
    assert [item["interval"] for item in metrics["largest_errors"]] == ["qt", "pr"]
    assert metrics["large_errors_without_note"] == 1
    general = MeasuredRecord(*common, ("signal quality is doubtful: noise",))
    assert general.doubtful("pr")
    assert not MeasuredRecord(*common, ("no PR",)).doubtful()


def test_metrics_of_nothing_are_null() -> None:
    metrics = measurement_metrics([])
    assert metrics["mae_ms"] == dict.fromkeys(("pr", "qrs", "qt", "qtc"))
    assert metrics["iec_60601_2_25"]["qt"]["passed"] is None
