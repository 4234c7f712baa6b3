"""Published data sets by name: a hub of this machine speaks the real client's protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.dialogue.hub import is_hub_name, lead_of_name

NAME = "gustmd0121/single-lead-II-ecg-mtd-dataset"
COMMIT = "a" * 40


def dialogues(n: int) -> list[Dialogue]:
    turns = [Turn.user("hello"), Turn.answer(Action.RESPONSE_FOLLOWUP, "A greeting.", "Hello!")]
    return [Dialogue(turns=turns, ecg_files=[f"HR{i:05}.mat"], metadata={}) for i in range(n)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """One data set with three dialogues to train on and two to test with; the rest is 404."""
    files: dict[str, bytes] = {"README.md": b"# a card"}
    for split, n in (("train", 3), ("test", 2)):
        path = write_dialogues(tmp_path / f"{split}.parquet", dialogues(n))
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    with _serving(files) as url:
        yield url


@contextlib.contextmanager
def _serving(files: Mapping[str, bytes]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(files: Mapping[str, bytes]) -> type[BaseHTTPRequestHandler]:
    about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            kind, content = "application/json", b""
            if path.startswith(f"/api/datasets/{NAME}/tree/"):
                content = json.dumps(tree).encode()
            elif path.startswith(f"/api/datasets/{NAME}"):
                content = json.dumps(about).encode()
            elif path.startswith(f"/datasets/{NAME}/resolve/"):
                kind = "application/octet-stream"
                content = files.get(path.split("/resolve/")[1].split("/", 1)[1], b"")
            self.send_response(200 if content else 404)
            if not content:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Hub


def stats(source: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """``data dialogues stats``, in a process of its own: the client reads its settings once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "ecg_agent_ray.cli", "data", "dialogues", "stats", source]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_data_set_is_read_by_name_and_by_split(hub: str, tmp_path: Path) -> None:
    done = stats(NAME, hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["n_dialogues"] == 3
    assert counted["lead_configurations"] == {"II": 3}
    assert json.loads(stats(f"{NAME}:test", hub, tmp_path / "home").stdout)["n_dialogues"] == 2
    wrong = stats(f"{NAME}:dev", hub, tmp_path / "home")
    assert wrong.returncode == 2
    assert "no split 'dev'" in wrong.stderr


def test_the_same_rows_are_read_from_a_file(hub: str, tmp_path: Path) -> None:
    by_name = json.loads(stats(f"{NAME}:test", hub, tmp_path / "home").stdout)
    for name in ("test.parquet", "test.jsonl"):
        path = write_dialogues(tmp_path / "single-lead-II" / name, dialogues(2))
        assert json.loads(stats(str(path), hub, tmp_path / "home").stdout) == by_name


def test_without_a_hub_one_line_says_what_to_do(hub: str, tmp_path: Path) -> None:
    away = stats(NAME, "http://127.0.0.1:9", tmp_path / "home")
    assert away.returncode == 2
    (line,) = away.stderr.strip().splitlines()
    assert "no hub can be reached" in line
    assert "Parquet or JSONL" in line
    unknown = stats("nobody/has-this", hub, tmp_path / "home")
    assert unknown.returncode == 2
    assert "no data set nobody/has-this" in unknown.stderr


def test_what_was_fetched_is_read_again_without_a_hub(hub: str, tmp_path: Path) -> None:
    assert stats(NAME, hub, tmp_path / "home").returncode == 0
    again = stats(NAME, "http://127.0.0.1:9", tmp_path / "home")
    assert json.loads(again.stdout)["n_dialogues"] == 3


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        (NAME, True),
        (f"{NAME}-gt:test", True),
        ("data/train.jsonl", False),
        ("tests/nothing-here", False),
        ("/data/set", False),
        ("a/b/c", False),
    ],
)
def test_paths_and_names_are_told_apart(source: str, meant: bool) -> None:
    assert is_hub_name(source) is meant


def test_a_published_name_tells_the_leads() -> None:
    assert lead_of_name("gustmd0121/12-lead-ecg-mtd-dataset-gt") == "12-lead"
    assert lead_of_name("gustmd0121/single-lead-I-ecg-mtd-dataset") == "I"
    assert lead_of_name("gustmd0121/single-lead-II-ecg-mtd-dataset-gt") == "II"
    assert lead_of_name("outputs/train.jsonl") is None
