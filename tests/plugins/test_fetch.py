"""URLs become local copies: made once, anew when what is there changed, errors typed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

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


def test_workers_that_ask_at_once_fetch_once(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"one")
    fetches = []

    class Counted(LocalFileSystem):
        protocol = "counted"
        cachable = False

        def get_file(self, *args: Any, **kwargs: Any) -> None:
            fetches.append(args)
            time.sleep(0.2)
            super().get_file(*args, **kwargs)

    fsspec.register_implementation("counted", Counted, clobber=True)
    with ThreadPoolExecutor(6) as workers:
        copies = set(workers.map(fetched, [f"counted://{tmp_path}/weights.pt"] * 6))
    assert [copy.read_bytes() for copy in copies] == [b"one"]
    assert len(fetches) == 1


def test_copies_that_nobody_uses_go(tmp_path: Path) -> None:
    for name in ("old", "used", "new"):
        (tmp_path / name).write_bytes(name.encode())
    old, used = (fetched(f"file://{tmp_path / name}") for name in ("old", "used"))
    for copy in (old, used):
        os.utime(copy.parent, (0, 0))
    assert fetched(f"file://{tmp_path / 'used'}") == used
    fetched(f"file://{tmp_path / 'new'}")
    assert used.exists()
    assert not old.exists()


class _Store(BaseHTTPRequestHandler):
    body = b"one"

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/model.pt":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("ETag", sha256(self.body).hexdigest())
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_store() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_signed_link_is_followed_and_its_signature_told_nobody(
    http_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = f"?X-Amz-Signature={'5ec2e7' * 60}"
    copy = fetched(f"{http_store}/model.pt{signed}")
    assert (copy.name, copy.read_bytes()) == ("model.pt", b"one")
    monkeypatch.setattr(_Store, "body", b"another")
    assert fetched(f"{http_store}/model.pt{signed}").read_bytes() == b"another"
    with pytest.raises((InputError, ModelNotFoundError), match="gone") as caught:
        fetched(f"{http_store}/gone.pt{signed}")
    assert "5ec2e7" not in str(caught.value)


def test_errors_are_typed() -> None:
    with pytest.raises(ModelNotFoundError, match="nothing is at memory://bucket/absent"):
        fetched("memory://bucket/absent")
    with pytest.raises(InputError, match="nosuch"):
        fetched("nosuch://bucket/x")
