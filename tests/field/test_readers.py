"""Files of people who do this job: each gives the right recording, or words that say what to do."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import wfdb
from typer.testing import CliRunner

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.cli import app
from ecg_agent_ray.errors import RecordingError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "field"


@pytest.fixture
def case(tmp_path: Path) -> Any:
    """Unpack a folder of cases; gives the path of a file in it."""

    def unpacked(name: str) -> Path:
        folder, file = name.split("/")
        for packed in (FIXTURES / folder).glob("*.gz"):
            (tmp_path / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        return tmp_path / file

    return unpacked


def rate_of(recording: ecg.Recording, lead: str = "auto") -> float:
    rate = tools.measure(recording, lead=lead).heart_rate_bpm
    assert rate is not None
    return rate


MIT_100 = [
    ("csv_decimal_comma/quoted_decimal_comma.csv", ("II",)),
    ("csv_decimal_comma/semicolon_decimal_comma.csv", ("II", "V5")),
    ("csv_decimal_comma/tab_decimal_comma.txt", ("II",)),
    ("csv_microvolt_headers/uv2.csv", ("II",)),
    ("csv_microvolt_headers/uv3.csv", ("II",)),
    ("csv_microvolt_headers/uv4.csv", ("ECG",)),
    ("csv_microvolt_headers/uv8.csv", ("ECG",)),
    ("csv_time_forms/elapsed_ms.csv", ("II",)),
    ("csv_time_forms/time_ns_unix.csv", ("II",)),
    ("csv_utf16/utf16.csv", ("II", "V5")),
    ("wfdb_samples_per_frame/spf4", ("II",)),
    ("wfdb_samples_per_frame/frame1hz", ("II",)),
]


@pytest.mark.parametrize(("name", "leads"), MIT_100)
def test_record_100_in_many_forms(case: Any, name: str, leads: tuple[str, ...]) -> None:
    read = ecg.read(case(name))
    assert (read.leads, read.sampling_rate, read.n_samples) == (leads, 360.0, 10800)
    assert np.nanmax(read.signal) == pytest.approx(1.05, abs=0.001)
    assert rate_of(read) == pytest.approx(74, abs=1)


@pytest.mark.parametrize("file", ["apple_watch.csv", "apple_watch_comma.csv"])
def test_apple_watch(case: Any, file: str) -> None:
    read = ecg.read(case(f"csv_apple_watch/{file}"))
    assert (read.leads, read.sampling_rate) == (("I",), 512.414)
    assert read.signal[0, 0] == pytest.approx(-0.145)
    assert rate_of(read) == pytest.approx(74, abs=1)


def test_one_column_of_decimal_commas(case: Any) -> None:
    path = case("csv_decimal_comma/one_column_decimal_comma.csv")
    with pytest.raises(RecordingError, match="sampling rate"):
        ecg.read(path)
    read = ecg.read(path, sampling_rate=360, lead_names=["MLII"])
    assert read.leads == ("II",)
    assert read.signal.max() == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("csv_kaggle_mitbih/kaggle_mitbih.csv", {"sampling_rate": 360}),
        ("table_of_integers_taken_for_wfdb_header/plain.txt", {"sampling_rate": 360}),
        ("table_of_integers_taken_for_wfdb_header/opensignals.txt", {}),
    ],
)
def test_counts_are_no_millivolts(case: Any, name: str, given: dict[str, Any]) -> None:
    path = case(name)
    with pytest.raises(RecordingError, match="--gain"):
        ecg.read(path, **given)
    read = ecg.read(path, **given, gain=200)
    column = np.loadtxt(path, comments=("#", "'"), delimiter=None if "txt" in name else ",")[:, 1]
    middle = 512 if "opensignals" in name else 1024
    assert np.allclose(read.signal[0], (column - middle) / 200)
    assert len(read.other_channels) == 1
    assert read.notes


def test_kaggle_names_and_the_other_channels(case: Any) -> None:
    read = ecg.read(case("csv_kaggle_mitbih/kaggle_mitbih.csv"), sampling_rate=360, gain=200)
    assert read.leads == ("II", "V5")
    assert list(read.other_channels) == ["sample #"]


def test_pleth_and_respiration_are_no_leads(case: Any) -> None:
    path = case("csv_pleth_resp_columns/signals.csv")
    read = ecg.read(path)
    assert read.leads == ("V", "II")
    assert {"RESP", "PLETH"} <= set(read.other_channels)
    measured = tools.measure(read)
    assert measured.lead in ("II", "V")
    assert measured.heart_rate_bpm == pytest.approx(127, abs=2)
    assert measured.qrs_ms == pytest.approx(82, abs=6)
    told = json.loads(CliRunner().invoke(app, ["info", str(path), "--json"]).stdout)
    assert {"RESP", "PLETH"} <= set(told["other_channels"])
    assert set(told["quality"]) == {"V", "II"}


def test_respiration_in_millivolts_is_no_lead(case: Any) -> None:
    read = ecg.read(case("wfdb_resp_channel_in_mV/mon"))
    assert (read.leads, list(read.other_channels)) == (("MCL1",), ["RESP"])
    for lead in ("auto", "global"):
        assert rate_of(read, lead) == pytest.approx(122, abs=2)


def test_every_lead_of_the_dicom_cases(case: Any) -> None:
    path = case("dicom_scpecg_lead_I/le.dcm")
    whole = ecg.read(path)
    assert (whole.leads, whole.sampling_rate) == (ecg.STANDARD_LEADS, 1000.0)
    assert whole.lead("I")[:3] == pytest.approx([0.100, 0.081, 0.063], abs=6e-4)
    assert ecg.read(path.with_name("german_meanings.dcm")).leads == ecg.STANDARD_LEADS
    assert ecg.read(path.with_name("single_lead_I.dcm")).leads == ("I",)
    eight = ecg.read(path.with_name("eight_leads_scpecg.dcm"))
    assert eight.leads == ecg.STANDARD_LEADS
    assert np.allclose(eight.lead("aVF"), eight.lead("II") - eight.lead("I") / 2, atol=1e-5)
    for other in ("dicom_big_endian/big_endian.dcm", "dicom_no_preamble/no_preamble.dcm"):
        assert ecg.read(case(other)) == whole, other


def test_multiplex_groups_stand_where_they_began(case: Any) -> None:
    four = case("dicom_several_groups/four_groups_2500ms.dcm")
    read = ecg.read(four)
    assert (read.leads, read.duration_s) == (ecg.STANDARD_LEADS, 10.0)
    for group, lead in enumerate(("I", "aVR", "V1", "V4")):
        there = np.isfinite(read.lead(lead))
        assert there[group * 2500 : (group + 1) * 2500].all()
        assert there.sum() == 2500
    twelve = ecg.read(four.with_name("twelve_groups_one_lead.dcm"))
    assert twelve.leads == ecg.STANDARD_LEADS
    assert np.isfinite(twelve.signal).all()
    dataset = pydicom.dcmread(four)
    for item in dataset.WaveformSequence:
        del item.MultiplexGroupTimeOffset
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(RecordingError, match="Multiplex Group Time Offset"):
        ecg.read(buffer.getvalue())


def test_gaps_between_data_records(case: Any) -> None:
    read = ecg.read(case("edf_discontinuous/discont.edf"))
    assert read.duration_s == pytest.approx(472, abs=1)
    assert np.isfinite(read.signal).sum() == 12 * 720
    assert rate_of(read) == pytest.approx(75.4, abs=3)


def test_micro_sign_in_latin_1(case: Any) -> None:
    path = case("edf_micro_sign/plain.edf")
    plain = ecg.read(path)
    assert plain.leads == ("II",)
    data = path.read_bytes()
    for sign in (b"\xb5V", b"\xe6V", "µV".encode(), "μV".encode()):
        assert b"uV".ljust(8) in data
        spelled = data.replace(b"uV".ljust(8), sign.ljust(8))
        assert ecg.read(spelled) == plain, sign
    assert rate_of(plain) == pytest.approx(64.1, abs=0.5)


def test_one_noisy_lead_does_not_spoil_the_others(case: Any) -> None:
    read = ecg.read(case("one_noisy_lead_spoils_auto/leads"))
    found = tools.measure(read)
    assert found.lead == "III"
    assert found.heart_rate_bpm == pytest.approx(95.7, abs=1)
    assert found.qrs_ms == pytest.approx(87, abs=5)


def test_samples_per_frame_as_the_wfdb_library(case: Any) -> None:
    path = case("wfdb_samples_per_frame/spf4")
    reference = wfdb.rdrecord(str(path), smooth_frames=False).e_p_signal
    assert np.allclose(ecg.read(path).lead("II"), reference[0], atol=1e-6)


def test_every_command_takes_the_options(case: Any, tmp_path: Path) -> None:
    path = str(case("csv_kaggle_mitbih/kaggle_mitbih.csv"))
    options = ["--sampling-rate", "360", "--unit", "adc", "--gain", "200", "--lead-names", "II,V1"]
    run = CliRunner().invoke
    for command in (
        ["info", path, "--json"],
        ["measure", path, "--json"],
        ["plot", path, "--out", str(tmp_path / "x.png")],
        ["classify", path, "--leads", "II", "--json"],
        ["explain", path, "--label", "SR", "--leads", "II", "--json"],
    ):
        result = run(app, [*command, *options])
        assert result.exit_code == 0, (command, result.output)
    told = json.loads(run(app, ["info", path, "--json", *options]).stdout)
    assert told["leads"] == ["II", "V1"]
    for command in ("extract", "chat"):
        assert "--lead-names" in run(app, [command, "--help"]).output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gain": -1}, "positive"),
        ({"unit": "mmHg"}, "not known"),
        ({"unit": "adc"}, "need a gain"),
        ({"unit": "uV", "gain": 2}, "leave one"),
        ({"unit": "uV"}, "is in mV"),
        ({"gain": 1000}, "no gain"),
        ({"lead_names": ["I", "II"]}, "2 lead names for 12 channels"),
        ({"lead_names": "I,II"}, "list of names"),
    ],
)
def test_options_that_contradict_a_file_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordingError, match=message):
        ecg.read(ecg.samples()[0], **given)
