"""Data sets as .mat files and manifests, made from the shipped records and written ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.challenge import CLASSES
from ecg_agent_ray.classifier.dataset import read_recording, read_source
from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.prepare import split_by_patient
from ecg_agent_ray.pipelines.prepare_physionet import prepare_physionet2021
from ecg_agent_ray.pipelines.prepare_ptbxl import prepare_ptbxl
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.pretrain_config import PretrainConfig
from ecg_agent_ray.training.pretrain_data import SegmentPairs, find_pairs, read_cmsc_manifest


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def ptbxl(tmp_path: Path) -> Path:
    """A PTB-XL tree of the shipped records, one of which is broken."""
    root = tmp_path / "ptb-xl"
    folder = ecg.samples()[0].parent
    shutil.copytree(folder, root)
    table = rows(folder / "records.csv")
    with (root / "ptbxl_database.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_hr"])
        for index, row in enumerate(table):
            fold = {0: 9, 1: 10}.get(index, 1)
            file = row["filename"].removesuffix(".hea")
            writer.writerow([row["ecg_id"], row["patient_id"], row["scp_codes"], fold, file])
    broken = root / table[2]["filename"].removesuffix(".hea")
    broken.with_suffix(".dat").write_bytes(b"short")
    return root


def test_ptbxl_is_written_whole_with_its_statements(ptbxl: Path, tmp_path: Path) -> None:
    output, manifests = tmp_path / "mat", tmp_path / "manifests"
    done = prepare_ptbxl(ptbxl, output, manifests, workers=1)
    table = rows(ptbxl / "ptbxl_database.csv")
    assert done.records == {"train": len(table) - 3, "valid": 1, "test": 1}
    assert [name for name, _ in done.errors] == [f"HR{int(table[2]['ecg_id']):05d}"]
    assert len(rows(manifests / "errors.csv")) == 1

    name = f"HR{int(table[0]['ecg_id']):05d}.mat"
    assert (manifests / "valid.tsv").read_text() == f"{output.resolve()}\n{name}\t5000\n"
    values = loadmat(output / name)
    recording = ecg.read(ptbxl / table[0]["filename_hr"])
    assert np.array_equal(values["feats"], recording.signal)
    assert values["curr_sample_rate"].item() == 500
    assert values["patient_id"].item() == int(float(table[0]["patient_id"]))
    positive = {LABELS[i] for i in np.flatnonzero(values["label"])}
    assert values["label"].shape == (1, 71)
    assert all(f"'{code}'" in table[0]["scp_codes"] for code in positive)
    assert len(positive) == table[0]["scp_codes"].count(":")


def test_shards_hold_the_same_and_are_trained_on(ptbxl: Path, tmp_path: Path) -> None:
    output = tmp_path / "prepared"
    prepare_ptbxl(ptbxl, output, tmp_path / "m", formats=["parquet"], workers=1)
    assert not list(output.glob("*.mat"))
    assert not list((tmp_path / "m").glob("*.tsv"))
    prepared = {record.record_id: record for record in read_source("prepared", output)}
    published = read_source("ptbxl", ptbxl)
    assert len(prepared) == len(published) - 1  # one is broken
    for record in published:
        name = f"HR{int(record.record_id.removeprefix('ptbxl-')):05d}"
        if name not in prepared:
            continue
        row = prepared[name]
        assert (row.patient_id, row.positives) == (record.patient_id, record.positives)
        assert row.split == record.split
        assert np.array_equal(read_recording(row).signal, ecg.read(record.path).signal)
    assert [r.split for r in prepared.values()].count("test") == 1

    pairs = find_pairs(pretraining(output))
    assert len(pairs) == len(prepared) - 2
    source, _, _ = SegmentPairs(pairs, 2500).batch([0])
    whole = read_recording(prepared[pairs[0].record.record_id]).signal
    assert np.array_equal(source[1].numpy(), whole[:, 2500:])


def pretraining(folder: Path) -> PretrainConfig:
    data = f"data=[{{kind: prepared, path: {folder}}}]"
    return load_config(PretrainConfig, None, [data])


def test_training_reads_from_an_object_store(ptbxl: Path, tmp_path: Path) -> None:
    import fsspec

    prepare_ptbxl(ptbxl, tmp_path / "o", tmp_path / "m", formats=["parquet"], workers=1)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "o"), "/bucket/ptb-xl", recursive=True)
    (here, *_), (there, *_) = (
        read_source("prepared", place) for place in (tmp_path / "o", "memory://bucket/ptb-xl")
    )
    assert there.shard.startswith("memory://bucket/ptb-xl/shards/")
    assert np.array_equal(read_recording(there).signal, read_recording(here).signal)
    with pytest.raises(ConfigError, match="not there"):
        read_source("prepared", "memory://bucket/nothing")


def test_what_a_killed_job_left_is_written_again(
    ray_cluster: object, ptbxl: Path, tmp_path: Path
) -> None:
    """Two workers by Ray Data; then all but the first shard is as if never listed."""
    output = tmp_path / "prepared"
    first = prepare_ptbxl(ptbxl, output, tmp_path / "m", workers=2)
    shards = set((output / "shards").iterdir())
    assert len(shards) > 2
    state = output / "prepared.jsonl"
    header, *lines = state.read_text().splitlines(keepends=True)
    kept = json.loads(lines[0])["shard"]
    mine = [line for line in lines if json.loads(line)["shard"] == kept]
    state.write_text(header + "".join(mine) + lines[-1][:20])
    second = prepare_ptbxl(ptbxl, output, tmp_path / "m", workers=2)
    assert second.records == first.records
    listed = {
        json.loads(line)["shard"] for line in state.read_text().splitlines()[1:] if "}" in line
    }
    assert {f"shards/{path.name}" for path in (output / "shards").iterdir()} == listed - {None}
    table = rows(output / "manifest.csv")
    assert len({row["record_id"] for row in table}) == len(table) == first.files
    for record in read_source("prepared", output):
        assert read_recording(record).signal.shape == (12, 5000)


def test_command_line(ptbxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "prepare.yaml"
    config.write_text(f"dataset: ptbxl\nroot: {tmp_path / 'elsewhere'}\nworkers: 1\nseed: 7\n")
    common = ["data", "prepare", "ptbxl", "--config", str(config)]
    typed = ["--output", str(tmp_path / "o"), "--manifest-dir", str(tmp_path / "m")]
    assert run([*common, "split=patient", f"root={ptbxl}", "--format", "parquet", *typed]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sum(printed["records"].values()) == printed["files"]
    assert printed["n_errors"] == 1
    assert run([*common, *typed]) == 2  # the file's root is not there
    assert run(["data", "prepare", "ptbxl", "--root", str(ptbxl)]) == 2
    assert "output: Field required" in capsys.readouterr().err


def test_a_second_start_goes_on_where_the_first_ended(ptbxl: Path, tmp_path: Path) -> None:
    output, manifests = tmp_path / "mat", tmp_path / "manifests"
    first = prepare_ptbxl(ptbxl, output, manifests, workers=1)
    written = {file: file.stat().st_mtime_ns for file in output.glob("*.mat")}
    mended = ecg.samples()[0].parent / Path(rows(ptbxl / "ptbxl_database.csv")[2]["filename_hr"])
    shutil.copy(mended.with_suffix(".dat"), ptbxl / mended.with_suffix(".dat").name)
    second = prepare_ptbxl(ptbxl, output, manifests, workers=1)
    assert second.files == first.files + 1
    assert not second.errors
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    with pytest.raises(ConfigError, match="other options"):
        prepare_physionet2021(*physionet(tmp_path), output, manifests, workers=1)


def physionet(folder: Path) -> tuple[Path]:
    import wfdb

    root = folder / "challenge"
    signal = np.random.default_rng(0).normal(0, 0.3, (13000, 12))
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    for source, name, rate in [
        *(("georgia", f"E{n:05d}", 500) for n in range(1, 11)),
        ("ptb", "S0001", 1000),
        ("ningbo", "JS20000", 500),
        ("chapman_shaoxing", "JS00001", 250),
    ]:
        place = root / source / "g1"
        place.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            name,
            fs=rate,
            units=["mV"] * 12,
            sig_name=leads,
            p_signal=signal,
            fmt=["16"] * 12,
            comments=["Age: 60", "Dx: 59118001,426783006,999"],
            write_dir=str(place),
        )
    return (root,)


def test_physionet_is_cut_into_pairs_of_segments(ray_cluster: object, tmp_path: Path) -> None:
    output, manifests = tmp_path / "mat", tmp_path / "manifests"
    done = prepare_physionet2021(*physionet(tmp_path), output, manifests, workers=2)
    assert done.records == {"train": 9, "valid": 1, "test": 1}
    assert [name for name, _ in done.errors] == ["JS00001"]
    assert not list(output.glob("S0001*"))
    assert not list(output.glob("*.tmp"))
    # 26 s are five segments and two pairs
    assert len((manifests / "total" / "train.tsv").read_text().splitlines()) == 1 + 9 * 5
    pairs = read_cmsc_manifest(manifests / "cmsc" / "train.tsv")
    assert len(pairs) == 9 * 2
    held_out = {
        row["record_id"] for row in rows(manifests / "manifest.csv") if row["split"] != "train"
    }
    assert len(held_out) == 2
    assert not held_out & {pair.patient_id for pair in pairs}
    source, patients, _ = SegmentPairs(pairs, 2500).batch([0, 1])
    assert source.shape == (4, 12, 2500)
    assert len(set(patients.tolist())) == 1
    prepared = find_pairs(pretraining(output))
    assert len(prepared) == len(pairs)
    again, _, _ = SegmentPairs(prepared, 2500).batch([0, 1])
    assert np.array_equal(again.numpy(), source.numpy())
    label = loadmat(output / "JS20000_4.mat")["label"][0]
    assert {CLASSES[i] for i in np.flatnonzero(label)} == {"713427006|59118001", "426783006"}
    resampled = prepare_physionet2021(
        tmp_path / "challenge", tmp_path / "all", manifests, resample=True, workers=1
    )
    assert not resampled.errors
    assert len(list((tmp_path / "all").glob("JS00001_*.mat"))) == 10


def test_patients_are_drawn_once() -> None:
    patients = [str(n) for n in range(100)] * 2
    drawn = split_by_patient(patients, valid=0.05, test=0.15, seed=42)
    counts = {part: list(drawn.values()).count(part) for part in ("train", "valid", "test")}
    assert counts == {"train": 80, "valid": 5, "test": 15}
    assert drawn == split_by_patient(reversed(patients), valid=0.05, test=0.15, seed=42)
    with pytest.raises(ConfigError, match="nothing to train on"):
        split_by_patient(patients, valid=0.5, test=0.5, seed=1)


def test_a_folder_without_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no PTB-XL tree"):
        prepare_ptbxl(tmp_path, tmp_path / "o", tmp_path / "m")
    with pytest.raises(ConfigError, match="no record of the Challenge"):
        prepare_physionet2021(tmp_path, tmp_path / "o", tmp_path / "m")
