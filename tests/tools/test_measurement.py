"""The measurement tool on real records: values, notes, leads, rates, and what has no value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import InputError, LeadError
from ecg_agent_ray.tools.measurement import Measurement, measure

KEYS = [
    "record_id",
    "lead",
    "status",
    "heart_rate_bpm",
    "rr_ms",
    "p_duration_ms",
    "pr_ms",
    "qrs_ms",
    "qt_ms",
    "qtc_bazett_ms",
    "qtc_fridericia_ms",
    "n_beats",
    "quality",
    "notes",
]
BEAT_KEYS = [
    "p_onset",
    "p_peak",
    "p_offset",
    "qrs_onset",
    "r_peak",
    "qrs_offset",
    "t_onset",
    "t_peak",
    "t_offset",
]


def recording_of(signal: np.ndarray, like: ecg.Recording) -> ecg.Recording:
    return ecg.Recording(signal=signal, sampling_rate=like.sampling_rate, leads=like.leads)


def test_the_dict_has_the_contract_keys_and_is_json() -> None:
    measured = measure(ecg.sample(139))
    assert list(measured.to_dict()) == KEYS
    assert measured.status == "ok"
    json.dumps(measured.to_dict(), allow_nan=False)
    with_beats = measure(ecg.sample(139), beats=True).to_dict()
    assert list(with_beats) == [*KEYS, "beats"]
    assert list(with_beats["beats"][0]) == BEAT_KEYS


def test_values_of_a_clean_record_stay_what_they_are() -> None:
    measured = measure(ecg.sample(139), "II")
    assert measured.heart_rate_bpm == pytest.approx(61.1, abs=0.1)
    assert measured.pr_ms == pytest.approx(152, abs=4)
    assert measured.qrs_ms == pytest.approx(88, abs=4)
    assert measured.qt_ms == pytest.approx(380, abs=4)
    assert measured.qtc_bazett_ms == pytest.approx(380, abs=6)
    assert measured.n_beats == 10
    assert measured.notes == []


@pytest.mark.parametrize(
    ("record", "bpm"),
    # counted by eye on the paper plot: beats in ten seconds, or six times the RR in large squares
    [(3, 64), (139, 61), (225, 59.5), (286, 54), (424, 72), (263, 107.5), (385, 70.5), (141, 88.5)],
)
def test_heart_rates(record: int, bpm: float) -> None:
    for lead in ("auto", "II", "global"):
        measured = measure(ecg.sample(record), lead)
        assert measured.heart_rate_bpm == pytest.approx(bpm, abs=1.5), lead


def test_known_conduction_findings_show_in_the_numbers() -> None:
    first_degree = measure(ecg.sample(141), "global")
    assert first_degree.pr_ms is not None
    assert first_degree.pr_ms > 200
    for record in (286, 424):  # complete left and right bundle branch block
        block = measure(ecg.sample(record), "global")
        assert block.qrs_ms is not None
        assert block.qrs_ms > 120
    narrow = measure(ecg.sample(3), "global")
    assert narrow.qrs_ms is not None
    assert narrow.qrs_ms < 110


def test_a_lead_whose_t_ends_far_behind_the_others_is_named(shared_data: Path) -> None:
    record = ecg.read(shared_data / "ludb" / "data" / "29.hea")
    together = measure(record, "global")
    assert together.qt_ms is not None
    assert together.qt_ms < 450
    assert any(n.startswith("QT is doubtful: in lead II T seems") for n in together.notes)
    by_itself = measure(record, "II")
    assert by_itself.qt_ms is not None
    assert by_itself.qt_ms > 500


@pytest.mark.parametrize("record", ["45", "104"])
def test_p_waves_that_the_leads_do_not_share_are_none(shared_data: Path, record: str) -> None:
    measured = measure(ecg.read(shared_data / "ludb" / "data" / f"{record}.hea"), "global")
    assert measured.pr_ms is None
    assert any(note.startswith("no PR") for note in measured.notes)


def test_global_intervals_are_no_shorter_than_most_leads_alone() -> None:
    record = ecg.sample(3)
    together = measure(record, "global")
    for interval in ("qrs_ms", "qt_ms"):
        alone = [getattr(measure(record, name), interval) for name in record.leads]
        assert getattr(together, interval) >= np.percentile(alone, 75)


def test_one_lead_is_measured_alike_alone_and_among_others() -> None:
    record = ecg.sample(3)
    among, alone = measure(record, "V6"), measure(record.select(["V6"]), "V6")
    assert among.n_beats == alone.n_beats
    assert among.qt_ms == pytest.approx(alone.qt_ms, abs=2)


def test_dialogue_form() -> None:
    measured = measure(ecg.sample(139), "II")
    form = measured.to_dialogue()
    assert form == {
        "heart_rate": f"{measured.heart_rate_bpm:.2f}",
        "pr_interval": f"{measured.pr_ms:.0f}",
        "qrs_duration": f"{measured.qrs_ms:.0f}",
        "qtc_interval": f"{measured.qtc_bazett_ms:.2f}",
    }
    nothing = measure(recording_of(np.zeros((12, 5000)), ecg.sample(139)))
    assert set(nothing.to_dialogue().values()) == {None}


def test_beats_are_in_order_and_agree_with_the_medians() -> None:
    record = ecg.sample(139)
    measured = measure(record, "II", beats=True)
    assert measured.beats is not None
    for beat in measured.beats:
        found = [
            beat[name]
            for name in (
                "p_onset",
                "p_peak",
                "p_offset",
                "qrs_onset",
                "qrs_offset",
                "t_peak",
                "t_offset",
            )
            if beat[name] is not None
        ]
        assert found == sorted(found), beat
        assert found[0] >= 0
        assert found[-1] < record.n_samples
    qrs = [(b["qrs_offset"] - b["qrs_onset"]) * 2 for b in measured.beats]  # type: ignore[operator]
    assert np.median(qrs) == pytest.approx(measured.qrs_ms, abs=2)
    peaks = np.array([b["r_peak"] for b in measured.beats], dtype=float)
    assert 60000 / np.median(np.diff(peaks) * 2) == pytest.approx(measured.heart_rate_bpm, abs=0.5)


@pytest.mark.parametrize("hz", [100, 250, 360, 1000, 2000])
def test_sampling_rates(hz: float) -> None:
    record = ecg.sample(139)
    reference, other = measure(record, "II"), measure(record.resample(hz), "II", beats=True)
    for name in ("heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms"):
        assert getattr(other, name) == pytest.approx(getattr(reference, name), abs=8), name
    assert other.beats is not None
    assert max(v for b in other.beats for v in b.values() if v is not None) < hz * 10


def test_qtc_takes_each_beats_own_preceding_interval() -> None:
    measured = measure(ecg.sample(163), "II", beats=True)
    assert measured.beats is not None
    peaks = np.array([b["r_peak"] for b in measured.beats], dtype=float) * 2
    qt = np.array(
        [
            np.nan
            if None in (b["t_offset"], b["qrs_onset"])
            else (b["t_offset"] - b["qrs_onset"]) * 2
            for b in measured.beats
        ],
        dtype=float,
    )
    rr_s = np.diff(peaks) / 1000
    assert np.ptp(rr_s) > 0.1, "the record has sinus arrhythmia, so the choice of RR matters"
    assert np.nanmedian(qt[1:] / np.sqrt(rr_s)) == pytest.approx(measured.qtc_bazett_ms, abs=3)
    assert np.nanmedian(qt[1:] / np.cbrt(rr_s)) == pytest.approx(measured.qtc_fridericia_ms, abs=3)


def slowed(record: ecg.Recording, factor: float) -> ecg.Recording:
    """The same beats further apart: baseline is put between T and the next P."""
    measured = measure(record, "II", beats=True)
    assert measured.beats is not None
    pieces, extra = [], round(record.sampling_rate * factor)
    ends = [b["t_offset"] for b in measured.beats if b["t_offset"] is not None]
    start = 0
    for end in ends:
        cut = end + round(0.06 * record.sampling_rate)
        pieces += [
            record.signal[:, start:cut],
            np.repeat(record.signal[:, cut : cut + 1], extra, 1),
        ]
        start = cut
    return recording_of(np.concatenate(pieces, axis=1), record)


def test_slow_heart_of_three_beats_in_ten_seconds() -> None:
    original = ecg.sample(163).select(["II"])
    reference = measure(original)
    measured = measure(slowed(original, 2.2).crop(0, 10))
    assert measured.n_beats in (3, 4)
    assert measured.heart_rate_bpm == pytest.approx(60 / (1.0 + 2.2), abs=1)
    assert measured.qt_ms == pytest.approx(reference.qt_ms, abs=25)
    assert measured.pr_ms == pytest.approx(reference.pr_ms, abs=20)


@pytest.mark.parametrize("stretch", [1.5, 1.8])
def test_a_long_qt_of_a_slow_heart_is_not_read_as_a_normal_one(stretch: float) -> None:
    for record in (3, 424):
        natural = ecg.sample(record)
        slow = ecg.Recording(
            signal=natural.signal,
            sampling_rate=natural.sampling_rate / stretch,
            leads=natural.leads,
        )
        for lead in ("II", "global"):
            expected = measure(natural, lead).qt_ms
            measured = measure(slow, lead)
            assert expected is not None
            assert measured.qt_ms is not None
            doubted = any(note.startswith("QT is doubtful") for note in measured.notes)
            assert measured.qt_ms == pytest.approx(expected * stretch, rel=0.1) or doubted


def test_no_p_wave_gives_no_pr_but_a_note() -> None:
    """The P waves of a record are flattened: nothing may be measured in their place."""
    record = ecg.sample(139).select(["II"])
    reference = measure(record, beats=True)
    assert reference.beats is not None
    signal = record.signal.copy()
    for beat in reference.beats:
        if beat["p_onset"] is not None and beat["qrs_onset"] is not None:
            first, last = beat["p_onset"] - 15, beat["qrs_onset"] - 2
            signal[0, first:last] = np.linspace(signal[0, first], signal[0, last], last - first)
    measured = measure(recording_of(signal, record))
    assert measured.pr_ms is None
    assert measured.p_duration_ms is None
    assert measured.status == "partial"
    assert any("no PR" in note for note in measured.notes)
    assert measured.qrs_ms is not None


def test_unusable_lead_is_said_to_be_so_and_auto_avoids_it() -> None:
    record = ecg.sample(139)
    signal = record.signal.copy()
    signal[record.leads.index("II")] = 0.0
    broken = recording_of(signal, record)
    asked = measure(broken, "II")
    assert asked.status == "failed"
    assert asked.lead == "II"
    assert asked.heart_rate_bpm is None
    assert "unusable" in asked.notes[0]
    assert measure(broken).lead != "II"
    assert measure(broken, "global").status == "ok"


def test_gaps_hide_no_long_interval() -> None:
    record = ecg.sample(139).select(["II"])
    signal = record.signal.copy()
    signal[0, 1000:2500] = np.nan
    measured = measure(recording_of(signal, record))
    assert measured.heart_rate_bpm == pytest.approx(61.1, abs=0.7)
    assert measured.quality["status"] == "doubtful"
    assert any("doubtful" in note for note in measured.notes)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 2.0, 3.0])
def test_short_recordings_never_break(seconds: float) -> None:
    for method in ("default", "neurokit", "paper"):
        measured = measure(ecg.sample(139).crop(0, seconds), "II", method)
        assert isinstance(measured, Measurement)
        assert measured.status in ("ok", "partial", "failed")
        if measured.heart_rate_bpm is None:
            assert measured.notes


def test_noise_is_not_measured() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, (12, 5000))
    for lead in ("auto", "II", "global"):
        measured = measure(recording_of(noise, ecg.sample(3)), lead)
        assert measured.status == "failed"
        assert measured.notes


def test_other_methods_measure_the_same_heart() -> None:
    record = ecg.sample(139)
    ours = measure(record, "II")
    for method in ("neurokit", "paper"):
        other = measure(record, "II", method, beats=True)
        assert list(other.to_dict())[: len(KEYS)] == KEYS
        assert other.heart_rate_bpm == pytest.approx(ours.heart_rate_bpm, abs=1)
        assert other.beats is not None
        assert len(other.beats) == other.n_beats


def test_the_papers_method_needs_seven_beats_and_keeps_its_ranges() -> None:
    few = measure(ecg.sample(286).crop(0, 5), "II", "paper")
    assert few.status == "failed"
    assert any("7" in note for note in few.notes)
    for path in ecg.samples():
        measured = measure(ecg.read(path), "II", "paper")
        assert measured.qrs_ms is None or 80 <= measured.qrs_ms <= 240
        assert measured.pr_ms is None or 80 <= measured.pr_ms <= 400


def test_wrong_requests() -> None:
    record = ecg.sample(3).select(["I"])
    with pytest.raises(LeadError, match="no lead V1"):
        measure(record, "V1")
    with pytest.raises(InputError, match="no measurement method"):
        measure(record, "I", "magic")
    with pytest.raises(InputError, match="one lead"):
        measure(record, "global", "paper")
