"""Prepared records, classifiers and checkpoints straight from S3 (moto's server)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ecg_agent_ray
from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import load_checkpoint, load_classifier
from ecg_agent_ray.classifier.dataset import read_recording, read_source
from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ModelNotFoundError
from ecg_agent_ray.pipelines.prepare import write_manifest, write_segments
from ecg_agent_ray.pipelines.prepare_shards import Record
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.pretrain_config import PretrainConfig
from ecg_agent_ray.training.pretrain_data import SegmentPairs, find_pairs

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "fairseq_signals"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """(file system, URL) of a new bucket; the environment is all that leads there."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ECG_AGENT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    # moto's buckets are the process's
    name = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    files.mkdir(name)
    yield files, f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def prepared(bucket: Any, tmp_path: Path) -> str:
    """URL of the shipped records as ``data prepare`` writes them, moved to the bucket."""
    files, url = bucket
    published = read_source("manifest", ecg.samples()[0].parent)
    records = [
        Record(
            record.record_id,
            str(record.path),
            record.patient_id,
            "ptbxl",
            "valid" if index < 2 else "train",
            tuple(sorted(record.positives)),
        )
        for index, record in enumerate(published)
    ]
    local = tmp_path / "local"
    done = write_segments(records, local, classes=LABELS, formats=["parquet"], workers=1)
    write_manifest(records, done, local, LABELS, output=local, segmented=False)
    files.put(f"{local}/", f"{url}/prepared/", recursive=True)
    shutil.rmtree(local)
    return f"{url}/prepared"


def test_prepared_records_are_read(prepared: str, tmp_path: Path) -> None:
    records = read_source("prepared", prepared)
    published = {
        record.record_id: record for record in read_source("manifest", ecg.samples()[0].parent)
    }
    assert len(records) == len(published)
    for record in records[::5]:
        there = published[record.record_id]
        assert record.positives == there.positives
        assert np.array_equal(read_recording(record).signal, read_recording(there).signal)
    shards = list((tmp_path / "cache").rglob("*.parquet"))
    assert len(shards) == len({record.shard for record in records[::5]})

    data = f"data=[{{kind: prepared, path: '{prepared}'}}]"
    pairs = find_pairs(load_config(PretrainConfig, None, [data]))
    assert len(pairs) == len([record for record in records if record.split == "train"])
    source, _, _ = SegmentPairs(pairs, 2500).batch([0])
    assert source.shape == (2, 12, 2500)


def test_checkpoints_and_classifiers_are_loaded(bucket: Any, capsys: Any) -> None:
    files, url = bucket
    files.put(str(FIXTURES / "finetuned_26.pt"), f"{url}/checkpoint_best.pt")
    local = load_checkpoint(FIXTURES / "finetuned_26.pt")
    remote = load_checkpoint(f"{url}/checkpoint_best.pt").state_dict()
    assert all(torch.equal(value, remote[key]) for key, value in local.state_dict().items())

    shipped = Path(ecg_agent_ray.__file__).parent / "_data" / "classifier"
    files.put(f"{shipped}/", f"{url}/classifier/", recursive=True)
    classifier = load_classifier(f"{url}/classifier")
    assert classifier.uri == f"{url}/classifier"
    file = str(ecg.samples()[3])
    expected = tools.classify(ecg.read(file)).to_dict()
    assert run(["classify", file, "--model", f"{url}/classifier", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == expected["labels"]
    assert run(["classify", file, "--model", f"{url}/absent.pt", "--json"]) == 2
    assert f"nothing is at {url}/absent.pt" in capsys.readouterr().err
    with pytest.raises(ModelNotFoundError):
        load_checkpoint(f"{url}/absent.pt")


@pytest.mark.slow
def test_a_job_trains_from_the_bucket(bucket: Any, prepared: str, tmp_path: Path) -> None:
    """Records and the checkpoint to start with; two workers, which the environment reaches."""
    files, url = bucket
    files.put(str(FIXTURES / "finetuned_26.pt"), f"{url}/checkpoint_best.pt")
    command = [
        *(sys.executable, "-m", "ecg_agent_ray.cli", "train", "classifier", "--json"),
        f"data=[{{kind: prepared, path: '{prepared}'}}]",
        f"init={url}/checkpoint_best.pt",
        "labels=challenge2021",
        "validation.official=true",
        "min_positives=1",
        "epochs=1",
        "batch_size=4",
        f"output={tmp_path / 'out'}",
    ]
    env = {**os.environ, "ECG_AGENT_HOME": str(tmp_path / "home")}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert load_classifier(result["path"]).network.architecture == "ecg_transformer"
