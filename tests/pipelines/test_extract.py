"""Extraction with Ray: tables, one bad file, killed and continued, interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError, ModelNotFoundError
from ecg_agent_ray.evaluation.tool_sources import CsvTools
from ecg_agent_ray.pipelines.extract import extract
from ecg_agent_ray.pipelines.extract_config import make_config

PROGRAM = Path(sys.executable).with_name("ecg-agent")
PAPER = ["ecg_file_path", "PR_Interval_ms", "QTc_ms", "QRS_Duration_ms", "Heart_Rate"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three shipped records in a PTB-XL-like tree, and a file that is none."""
    folder = tmp_path / "tree" / "records500" / "00000"
    folder.mkdir(parents=True)
    for header in ecg.samples()[:3]:
        for path in (header, header.with_suffix(".dat")):
            shutil.copy(path, folder)
    (tmp_path / "tree" / "broken.csv").write_text("this is no ECG\n")
    (tmp_path / "tree" / "ptbxl_database.csv").write_text("ecg_id,scp_codes\n1,{}\n")
    return tmp_path / "tree"


def run_tool(tool: str, tree: Path, **options: Any) -> dict[str, Any]:
    output = options.pop("output_dir", tree.parent / "out")
    return extract(make_config(tool=tool, ecg_dir=tree, output_dir=output, workers=1, **options))


def test_measurements(tree: Path, ray_cluster: Any) -> None:
    seen: list[tuple[int, int]] = []
    config = make_config(
        tool="measurements", ecg_dir=tree, output_dir=tree.parent / "out", batch_size=1
    )
    summary = extract(config, progress=lambda done, total: seen.append((done, total)))
    assert (summary["n_files"], summary["n_extracted"], summary["n_errors"]) == (4, 3, 1)
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    table = pd.read_csv(tree.parent / "out" / "measurements.csv")
    assert list(table.columns)[:5] == PAPER
    headers = sorted(tree.rglob("*.hea"))
    names = [header.relative_to(tree).as_posix() for header in headers]
    assert table["ecg_file_path"].tolist() == names
    rich = pd.read_parquet(tree.parent / "out" / "measurements.parquet")
    for header, row, full in zip(
        headers, table.to_dict("records"), rich.to_dict("records"), strict=True
    ):
        expected = tools.measure(ecg.read(header)).to_dict()
        for column, key in {"QTc_ms": "qtc_bazett_ms", "Heart_Rate": "heart_rate_bpm"}.items():
            value = float("nan") if expected[key] is None else expected[key]
            assert row[column] == pytest.approx(value, nan_ok=True)
        assert full["quality"]["status"] == expected["quality"]["status"]
        assert list(full["notes"]) == expected["notes"]
    errors = pd.read_csv(tree.parent / "out" / "errors.csv")
    assert errors["ecg_file_path"].tolist() == ["broken.csv"]
    assert errors["error_type"].tolist() == ["UnsupportedFormatError"]
    # again: only what failed is tried again, and a mended file is taken up
    shutil.copy(ecg.samples()[0], tree / "broken.hea")
    again = run_tool("measurements", tree)
    assert (again["n_resumed"], again["n_errors"]) == (3, 2)
    with pytest.raises(ConfigError, match="lead: was 'auto', now 'I'"):
        run_tool("measurements", tree, lead="I")
    assert run_tool("measurements", tree, lead="I", resume=False)["n_resumed"] == 0


def test_classification_and_explanation(tree: Path, ray_cluster: Any) -> None:
    from ecg_agent_ray.dialogue import Action

    out = tree.parent / "out"
    run_tool("classification", tree, leads="II")
    table = pd.read_csv(out / "classification.csv")
    assert list(table.columns) == ["ecg_file_path", "top_classes"]
    first = tools.classify(ecg.read(ecg.samples()[0]), leads="II")
    assert table["top_classes"][0] == first.top_classes()
    rich = pd.read_parquet(out / "classification.parquet")
    assert rich["labels"][0] == dict(first.labels)
    run_tool("explanation", tree, leads="II", label="SR")
    explained = pd.read_parquet(out / "explanation.parquet")
    expected = tools.explain(ecg.read(ecg.samples()[0]), "SR", leads="II")
    assert explained["text"][0] == expected.text
    assert len(explained["regions"][0]) == len(expected.regions)
    errors = pd.read_csv(out / "errors.csv")
    assert errors["tool"].tolist() == ["classification", "explanation"]
    # what was written is what the agent's evaluation reads
    source = CsvTools([out / "classification.csv", out / "explanation.csv"])
    assert set(source._rows) == {Action.CALL_CLASSIFICATION, Action.CALL_EXPLANATION}


def test_bad_input_is_one_error_before_anything_runs(tree: Path) -> None:
    with pytest.raises(ConfigError, match="does not assess 'XYZ'"):
        run_tool("explanation", tree, label="XYZ")
    with pytest.raises(ModelNotFoundError):
        run_tool("classification", tree, model=str(tree / "absent"))


def test_command_line_exit_codes(
    tree: Path, ray_cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--tool", "measurements", "--output-dir", str(tree.parent / "cli")]
    assert run([*command, "--ecg-dir", str(tree), "--json", "--strict"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert json.loads(line)["errors"][0]["file"] == "broken.csv"
    assert "4 of 4" in captured.err
    assert run([*command, "--ecg-dir", str(tree / "absent")]) == 2
    assert run([*command, "--ecg-dir", str(tree), "--label", "SR"]) == 2


def many(tmp_path: Path) -> Path:
    """Two hundred recordings, links to the shipped ones."""
    tree = tmp_path / "many"
    tree.mkdir()
    for number in range(200):
        header = ecg.samples()[number % 12]
        (tree / f"{number:03}.dat").symlink_to(header.with_suffix(".dat"))
        text = header.read_text().replace(header.stem, f"{number:03}")
        (tree / f"{number:03}.hea").write_text(text)
    return tree


def start(tree: Path, output: Path) -> subprocess.Popen[str]:
    """Extraction in a session of its own, as it comes to have written some rows."""
    command = [PROGRAM, "extract", "--tool", "measurements", "--ecg-dir", tree, "--json"]
    driver = subprocess.Popen(
        [*command, "--output-dir", output, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(rows(output)) < 20 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.05)
    assert driver.poll() is None, driver.communicate()
    return driver


def rows(output: Path) -> list[str]:
    parts = (output / ".extract" / "measurements").glob("part-*.jsonl")
    return [line for part in parts for line in part.read_text().splitlines(keepends=True)]


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


@pytest.mark.slow
def test_a_killed_extraction_goes_on(tmp_path: Path) -> None:
    tree, output = many(tmp_path), tmp_path / "out"
    driver = start(tree, output)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # Ray's own processes end when init has taken them over, which a test's process may do instead
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert gone(family, 20)
    kept = {json.loads(line)["ecg_file_path"] for line in rows(output) if line.endswith("\n")}
    assert 20 <= len(kept) < 200
    command = [PROGRAM, "extract", "--tool", "measurements", "--ecg-dir", tree, "--json"]
    finished = subprocess.run(
        [*command, "--output-dir", output],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    assert (summary["n_resumed"], summary["n_extracted"]) == (len(kept), 200)
    # nothing that was done is done again
    assert len(rows(output)) == 200
    table = pd.read_csv(output / "measurements.csv")
    assert table["ecg_file_path"].tolist() == [f"{number:03}.hea" for number in range(200)]


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_interrupt_ends_with_130_and_leaves_no_process(tmp_path: Path, whole_group: bool) -> None:
    tree, output = many(tmp_path), tmp_path / "out"
    driver = start(tree, output)
    family = psutil.Process(driver.pid).children(recursive=True)
    before = len(rows(output))
    if whole_group:  # as a terminal sends it
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=60)
    assert driver.returncode == 130, told
    assert gone(family, 10)
    assert before <= len(rows(output)) < 200
