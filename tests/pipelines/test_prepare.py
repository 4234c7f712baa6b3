"""Data sets as .mat files and manifests, made from the shipped records and written ones."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.challenge import CLASSES
from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.prepare import split_by_patient
from ecg_agent_ray.pipelines.prepare_physionet import prepare_physionet2021
from ecg_agent_ray.pipelines.prepare_ptbxl import prepare_ptbxl
from ecg_agent_ray.training.pretrain_data import SegmentPairs, read_cmsc_manifest


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


def test_physionet_is_cut_into_pairs_of_segments(tmp_path: Path) -> None:
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
