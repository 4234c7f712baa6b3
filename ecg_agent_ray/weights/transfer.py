"""What the sources have in common: how they fail, and bytes copied up to a bound."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import IO

__all__ = ["CHUNK", "SourceFailed", "copy_bounded", "installed_file"]

CHUNK = 1 << 20
"""Bytes read at a time."""


class SourceFailed(Exception):  # noqa: N818 - it is no error: the next source is asked
    """Why a source gave nothing usable, in words; caught where the next one is tried."""


def installed_file(distribution: str, member: str) -> Path | None:
    """A file of an installed distribution, found without importing it."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(member)))
    return path if path.is_file() else None


def copy_bounded(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Append ``source`` to ``target``, which may not grow past ``size`` bytes."""
    while block := source.read(CHUNK):
        if target.tell() + len(block) > size:
            raise SourceFailed(f"gave more than the {size} bytes it should")
        target.write(block)
