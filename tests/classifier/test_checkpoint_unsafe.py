"""A checkpoint that would run code is refused by type, and nothing of it runs."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecg_agent_ray.classifier import load_checkpoint
from ecg_agent_ray.classifier.checkpoint import read_checkpoint
from ecg_agent_ray.errors import CheckpointError, ModelNotFoundError, UnsafeCheckpointError


class Malicious:
    """Unpickling it runs a shell command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("place", ["cfg", "model", "extra_state"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    trace = tmp_path / "ran"
    state: dict[str, Any] = {"cfg": {}, "model": {}, "extra_state": {}}
    state[place] = {"x": Malicious(trace)}
    path = tmp_path / "bad.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match="would run") as caught:
        load_checkpoint(path)
    assert "system" in str(caught.value)
    assert not trace.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps({"x": Malicious(trace)}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not trace.exists()


def test_classes_outside_the_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"args": argparse.Namespace(layers=12), "model": {}}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"argparse\.Namespace"):
        load_checkpoint(path)


def test_numpy_scores_are_read_and_the_list_is_scoped(tmp_path: Path) -> None:
    path = tmp_path / "scores.pt"
    torch.save({"best": np.float64(0.5), "n": np.int64(3), "y": np.arange(3.0)}, path)
    before = set(torch.serialization.get_safe_globals())
    state = read_checkpoint(path)
    assert state["best"] == 0.5
    assert state["y"].tolist() == [0.0, 1.0, 2.0]
    # torch keeps a set, whose order changes from process to process
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_checkpoint(tmp_path / "absent.pt")
    text = tmp_path / "text.pt"
    text.write_text("hello")
    with pytest.raises(CheckpointError):
        load_checkpoint(text)
    cut = tmp_path / "cut.pt"
    torch.save({"model": {"a": torch.zeros(10_000)}}, cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(CheckpointError):
        load_checkpoint(cut)
    for name, state in {
        "tensor": torch.zeros(3),
        "empty": {},
        "other": {"model": {"fc.weight": torch.zeros(3, 3)}, "cfg": {"model": {}}},
    }.items():
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / f"{name}.pt")
