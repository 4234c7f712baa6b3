"""What extraction is made of, without Ray: options, files, state on disk, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ecg_agent_ray.errors import ConfigError, RefusedError, ToolError
from ecg_agent_ray.pipelines.extract_config import ExtractConfig, make_config
from ecg_agent_ray.pipelines.extract_files import find_recordings
from ecg_agent_ray.pipelines.extract_state import CurrentRecording, ExtractState
from ecg_agent_ray.pipelines.extract_tables import write_errors, write_tables
from ecg_agent_ray.shipped import shipped
from ecg_agent_ray.training.config import load_config

IDENTITY = {"tool": "measurements", "lead": "auto"}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_every_problem_of_the_options_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(tool="everything", ecg_dir=tmp_path, output_dir=tmp_path, workers=0, nons=1)
    text = " ".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "tool" in text
    assert "workers" in text
    assert "nons" in text


@pytest.mark.parametrize(
    "options",
    [
        {"tool": "measurements", "label": "AFIB"},
        {"tool": "measurements", "leads": "II"},
        {"tool": "classification", "lead": "II"},
        {"tool": "measurements", "lead": "global", "method": "paper"},
        {"tool": "explanation", "lead": "global"},
    ],
)
def test_an_option_of_another_tool_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        make_config(ecg_dir=tmp_path, output_dir=tmp_path, **options)


@pytest.mark.parametrize("tool", ["measurements", "classification", "explanation"])
def test_every_shipped_config_loads(tool: str) -> None:
    config = load_config(ExtractConfig, shipped(f"jobs/configs/extract_{tool}.yaml"))
    assert config.tool == tool


def test_the_job_tells_every_mistake_in_its_options() -> None:
    config, wrong = shipped("jobs/configs/extract_measurements.yaml"), ("metod=paper", "workers=0")
    done = subprocess.run(
        [sys.executable, shipped("jobs/extract_tool_outputs.py"), "--config", config, *wrong],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "metod: unknown key, did you mean 'method'?" in done.stderr
    assert "workers" in done.stderr
    assert done.stdout == ""


def test_recordings_are_found_once_and_lists_of_them_are_not(tmp_path: Path) -> None:
    write(
        tmp_path,
        records500__00000__00002_hr_DOT_hea="00002_hr 1 500 10",
        records500__00000__00002_hr_DOT_dat="",
        records500__00000__00001_hr_DOT_hea="",
        cinc__HR1_DOT_hea="",
        cinc__HR1_DOT_mat="",
        cinc__A1_DOT_mat="",
        ptbxl_database_DOT_csv="ecg_id,patient_id,scp_codes\n1,2,{}\n",
        scp_statements_DOT_csv=",description,diagnostic\nNDT,x,1.0\n",
        REFERENCE_DOT_csv="A00001,N\n",
        ecg_DOT_csv="time,I,II\n0,1,2\n",
        LICENSE_DOT_txt="free",
        out__measurements_DOT_csv="a",
        _DOT_hidden__x_DOT_npy="",
    )
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_recordings(tmp_path, without=tmp_path / "out") == [
        "cinc/A1.mat",
        "cinc/HR1.hea",
        "ecg.csv",
        "records500/00000/00001_hr.hea",
        "records500/00000/00002_hr.hea",
    ]


def test_a_folder_without_recordings_is_a_config_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError):
            find_recordings(folder)


def test_a_cut_off_line_is_not_done_and_failures_can_be_forgotten(tmp_path: Path) -> None:
    state = ExtractState(tmp_path, "measurements")
    with state.opened(IDENTITY, resume=True):
        (state.folder / "part-a.jsonl").write_text(
            json.dumps({"ecg_file_path": "1", "n": 1})
            + "\n"
            + json.dumps({"ecg_file_path": "2", "error": {"type": "E", "message": "m"}})
            + '\n{"ecg_file_path": "3", "n'
        )
        (state.folder / "part-b.jsonl").write_text('{"ecg_file_path": "4", "n": 4}\n')
        index = state.index()
        assert {name: place.failed for name, place in index.items()} == {
            "1": False,
            "2": True,
            "4": False,
        }
        assert [row["n"] for row in state.read([index["4"], index["1"]])] == [4, 1]
        state.prepare(index)
        assert set(state.index()) == {"1", "4"}
        assert [p.name for p in state.folder.glob("part-*")] == ["part-0.jsonl"]


def test_rows_of_other_options_or_versions_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ExtractState(tmp_path, "measurements")
    with state.opened(IDENTITY, resume=True):
        (state.folder / "part-a.jsonl").write_text('{"ecg_file_path": "1"}\n')
    with (
        pytest.raises(ConfigError, match=r"lead: was 'auto', now 'II'.*--no-resume"),
        state.opened(IDENTITY | {"lead": "II"}, resume=True),
    ):
        pass
    with state.opened(IDENTITY, resume=True):
        assert set(state.index()) == {"1"}
    with monkeypatch.context() as patch:
        patch.setattr("ecg_agent_ray.pipelines.extract_state.__version__", "99")
        with pytest.raises(ConfigError, match="package_version"), state.opened(IDENTITY, resume=1):
            pass
    with state.opened(IDENTITY | {"lead": "II"}, resume=False):
        assert state.index() == {}
    (state.folder / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot continue"), state.opened(IDENTITY, resume=True):
        pass


def test_two_extractions_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first, second = (ExtractState(tmp_path, "measurements") for _ in range(2))
    with (
        first.opened(IDENTITY, resume=True),
        pytest.raises(RefusedError, match="another extraction"),
        second.opened(IDENTITY, resume=True),
    ):
        pass
    with second.opened(IDENTITY, resume=True):
        pass


def test_a_recording_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    for worker in "ab":
        CurrentRecording(tmp_path, worker).begin("deadly.hea")  # and died
    third = CurrentRecording(tmp_path, "c")
    with pytest.raises(ToolError, match="died at it 2 times"):
        third.begin("deadly.hea")
    third.begin("other.hea")
    third.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current-a", "current-b"]


def test_errors_of_other_tools_stay(tmp_path: Path) -> None:
    row = {"ecg_file_path": "a,b.csv", "error": {"type": "E", "message": 'said "no"'}}
    write_errors("measurements", [row], tmp_path)
    write_errors("classification", [row], tmp_path)
    write_errors("measurements", [], tmp_path)
    table = pd.read_csv(tmp_path / "errors.csv")
    assert list(table.columns) == ["ecg_file_path", "error_type", "message", "tool"]
    assert table.to_dict("records") == [
        {
            "ecg_file_path": "a,b.csv",
            "error_type": "E",
            "message": 'said "no"',
            "tool": "classification",
        }
    ]


@pytest.mark.parametrize("tool", ["measurements", "classification", "explanation"])
def test_tables_without_rows_keep_their_columns(tmp_path: Path, tool: str) -> None:
    text, parquet = write_tables(tool, [], tmp_path)
    assert pd.read_csv(text).columns[0] == "ecg_file_path"
    assert len(pd.read_parquet(parquet)) == 0
