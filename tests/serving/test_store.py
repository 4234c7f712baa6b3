"""The ECG store on every file system it is meant for: a folder, memory, S3 (moto's server)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import InputError
from ecg_agent_ray.serving.store import EcgStore


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "ecgs")
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}/ecgs"
    else:
        import s3fs

        # what a container is given, and nothing else
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}/ecgs"
        s3fs.S3FileSystem.clear_instance_cache()


def test_keep_read_delete(url: str) -> None:
    store = EcgStore(url)
    quality = {"I": {"status": "usable", "reason": ""}}
    meta = store.add(ecg.sample(3), quality, "a")
    other = EcgStore(url)
    assert other.meta(meta.id) == meta
    assert other.recording(meta.id) == ecg.sample(3)
    store.delete(meta.id)
    store.delete(meta.id)
    assert other.meta(meta.id) is None
    assert other.recording(meta.id) is None


def test_expiry_takes_what_is_old_and_what_was_left_half_done(url: str) -> None:
    store, other = EcgStore(url), EcgStore(url)
    assert store.expire(1) == 0
    kept = store.add(ecg.sample(3), {}, "a")
    half = store.add(ecg.sample(3), {}, "a")
    other._fs.rm_file(f"{other._root}/{half.id}/meta.json")
    other.claim("a", "key", "digest", 60)
    assert store.expire(3600) == 0
    assert store.recording(kept.id) is not None
    time.sleep(1.1)  # S3 tells times in seconds
    assert store.expire(0.01) == 1
    assert list(store._fs.find(store._root)) == []


def test_one_of_many_claims_an_idempotency_key(url: str) -> None:
    store = EcgStore(url)
    first = store.claim("a", "key", "digest", 60)
    assert first.state == "ours"
    assert store.claim("a", "key", "digest", 60).state == "pending"
    assert store.claim("b", "key", "digest", 60).ecg_id != first.ecg_id
    with pytest.raises(InputError, match="another upload"):
        store.claim("a", "key", "other", 60)
    # its replica died: whoever comes after the patience goes on with the same id
    late = store.claim("a", "key", "digest", 0.0)
    assert (late.state, late.ecg_id) == ("ours", first.ecg_id)
    store.add(ecg.sample(3), {}, "a", first.ecg_id)
    assert store.claim("a", "key", "digest", 60).state == "done"
    store.give_up("a", "key")
    assert store.claim("a", "key", "digest", 60).ecg_id != first.ecg_id


def test_claims_at_once_in_a_folder(tmp_path: Path) -> None:
    stores = [EcgStore(str(tmp_path / "ecgs")) for _ in range(16)]
    for number in range(10):
        with ThreadPoolExecutor(16) as pool:
            claims = list(pool.map(lambda s, n=number: s.claim("a", f"k{n}", "d", 60), stores))
        assert sum(claim.state == "ours" for claim in claims) == 1


@pytest.mark.parametrize("ecg_id", ["..", "../x", "ecg_" + "Z" * 32, ""])
def test_no_id_leads_elsewhere(tmp_path: Path, ecg_id: str) -> None:
    store = EcgStore(str(tmp_path / "ecgs"))
    assert store.meta(ecg_id) is None
    assert store.recording(ecg_id) is None
    store.delete(ecg_id)
