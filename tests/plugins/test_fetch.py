"""URLs become local copies: made once, anew when what is there changed, errors typed."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from ecg_agent_ray.errors import InputError, ModelNotFoundError
from ecg_agent_ray.plugins.fetch import fetched, is_url


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ECG_AGENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_path_is_itself(tmp_path: Path) -> None:
    assert fetched(tmp_path) == tmp_path
    assert fetched("absent/file") == Path("absent/file")
    assert not is_url(tmp_path)


def test_a_file_is_copied_once_and_again_when_it_changed(tmp_path: Path) -> None:
    source = tmp_path / "weights.pt"
    source.write_bytes(b"one")
    url = f"file://{source}"
    copy = fetched(url)
    assert (copy.name, copy.read_bytes()) == ("weights.pt", b"one")
    assert fetched(url) == copy
    source.write_bytes(b"another")
    assert fetched(url).read_bytes() == b"another"
    assert copy.read_bytes() == b"one"


def test_a_folder_keeps_its_names(cache: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/model/config.json", b"{}")
    files.pipe("/bucket/model/plots/a.png", b"x")
    copy = fetched("memory://bucket/model/")
    assert copy.name == "model"
    assert (copy / "config.json").read_text() == "{}"
    assert (copy / "plots" / "a.png").read_bytes() == b"x"
    assert [path for path in cache.rglob("*") if path.name.startswith("tmp")] == []


def test_errors_are_typed() -> None:
    with pytest.raises(ModelNotFoundError, match="nothing is at memory://bucket/absent"):
        fetched("memory://bucket/absent")
    with pytest.raises(InputError, match="nosuch"):
        fetched("nosuch://bucket/x")
