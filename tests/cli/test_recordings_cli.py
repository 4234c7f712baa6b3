"""The verbs on files: JSON lines, tables, exit codes, one bad file among good ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.cli import run

SAMPLE = ecg.samples()[0]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_measure_json_is_the_functions_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", str(SAMPLE), "--json"]) == 0
    (printed,) = lines(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(tools.measure(ecg.read(SAMPLE)).to_dict()))


def test_every_spelling_of_a_wfdb_record_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    spellings = [SAMPLE, SAMPLE.with_suffix(".dat"), SAMPLE.with_suffix("")]
    assert run(["measure", *map(str, spellings), "--json"]) == 0
    printed = lines(capsys.readouterr().out)
    assert len(printed) == 3
    assert printed[0] == printed[1] == printed[2]
    assert printed[0]["record_id"] == SAMPLE.stem


def test_a_bad_file_has_its_own_line_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "note.txt"
    bad.write_text("this is no ECG")
    assert run(["info", str(bad), str(SAMPLE), "--json"]) == 2
    captured = capsys.readouterr()
    first, second = lines(captured.out)
    assert first["file"] == str(bad)
    assert set(first["error"]) == {"type", "message"}
    assert second["record_id"] == SAMPLE.stem
    assert list(second) == [
        "record_id",
        "format",
        "leads",
        "sampling_rate",
        "duration_s",
        "quality",
        "other_channels",
    ]


def test_without_json_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["measure", str(tmp_path / "absent.hea")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "absent.hea" in captured.err


def test_tables_name_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", str(SAMPLE)]) == 0
    assert run(["info", str(SAMPLE)]) == 0
    out = capsys.readouterr().out
    assert SAMPLE.stem in out
    assert "bpm" in out
    assert "500 Hz" in out


def test_classify_prints_the_functions_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classify", str(SAMPLE), "--threshold", "0.2", "--json"]) == 0
    (printed,) = lines(capsys.readouterr().out)
    expected = tools.classify(ecg.read(SAMPLE), threshold=0.2).to_dict()
    assert printed == json.loads(json.dumps(expected))
    assert run(["classify", str(SAMPLE)]) == 0
    assert "sinus rhythm" in capsys.readouterr().out
    assert run(["classify", str(SAMPLE), "--threshold", "2"]) == 2
    assert run(["classify", str(SAMPLE), "--model", "/nowhere"]) == 2


@pytest.mark.parametrize("verb", [("classify",), ("explain", "--label", "NORM")], ids=" ".join)
def test_what_was_done_to_a_recording_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    """Three seconds of two leads give a result, and what that means for it."""
    whole = ecg.read(SAMPLE)
    file = tmp_path / "short.csv"
    columns = enumerate(whole.signal[:2, :1500].T)
    rows = [f"{index / 500:.3f},{one:.4f},{two:.4f}" for index, (one, two) in columns]
    file.write_text("\n".join(["time,I,II", *rows]))
    assert run([verb[0], str(file), *verb[1:]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "only 3.0 s long" in out
    assert "leads absent and fed as zero: V1" in out


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_writes_what_its_name_says(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"ecg.{suffix}"
    assert run(["plot", str(SAMPLE), "--out", str(out), "--marks"]) == 0
    head = out.read_bytes()[:200]
    assert {"png": b"PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix] in head


def test_unknown_options_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", str(SAMPLE), "--nonsense"]) == 2
    assert run(["measure", str(SAMPLE), "--lead", "V99"]) == 2
    assert run(["measure", str(SAMPLE), "--method", "guess"]) == 2


def test_the_installed_program_keeps_stdout_for_json() -> None:
    program = Path(sys.executable).with_name("ecg-agent")
    done = subprocess.run(
        [program, "measure", str(SAMPLE), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["record_id"] == SAMPLE.stem


def test_measuring_imports_no_torch() -> None:
    code = (
        "import sys; from ecg_agent_ray.cli import run; "
        f"run(['measure', {str(SAMPLE)!r}, '--json']); "
        "sys.exit(bool({'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
