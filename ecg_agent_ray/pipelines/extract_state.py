"""What an extraction keeps in its output folder, so that a killed one can be continued.

``OUTPUT/.extract/TOOL/manifest.json`` says with which options and package version the rows were
made, ``part-*.jsonl`` hold one finished recording a line, each file written by one worker process.
A line is written when its recording is done, so that a kill loses what was in the making and
nothing else; a last line cut off by the kill is not counted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from ecg_agent_ray import __version__
from ecg_agent_ray.errors import ConfigError, RefusedError, ToolError

__all__ = ["CurrentRecording", "ExtractState", "Place", "append_row", "write_atomically"]

_FORMAT = 1


class Place(NamedTuple):
    """A row in one of the part files, and whether it tells of a failure."""

    part: Path
    offset: int
    failed: bool


class ExtractState:
    """The state of one tool's extraction into ``output``."""

    def __init__(self, output: Path, tool: str) -> None:
        self.folder = (output / ".extract" / tool).resolve()
        self._manifest = self.folder / "manifest.json"

    @contextmanager
    def opened(self, identity: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Take the folder for this process and check, or begin, the manifest.

        Raises
        ------
        ConfigError
            The rows here were made with other options or by another version of the package.
        RefusedError
            Another process is writing here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder.with_suffix(".lock")))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RefusedError(
                f"another extraction is writing to {self.folder.parent.parent}"
            ) from error
        try:
            if not resume:
                shutil.rmtree(self.folder)
                self.folder.mkdir()
            self._check(identity)
            yield
        finally:
            lock.release()

    def _check(self, identity: Mapping[str, Any]) -> None:
        text = json.dumps(dict(identity), sort_keys=True)
        wanted = {
            "format": _FORMAT,
            "package_version": __version__,
            "options": dict(identity),
            "options_digest": hashlib.sha256(text.encode()).hexdigest(),
        }
        try:
            kept = json.loads(self._manifest.read_text(encoding="utf-8"))
            before = {"package_version": kept["package_version"], **kept["options"]}
        except FileNotFoundError:
            write_atomically(self._manifest, json.dumps(wanted, indent=1) + "\n")
            return
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"cannot continue from {self._manifest}: {error!r}",
                hint="start anew with --no-resume",
            ) from error
        now = {"package_version": __version__, **identity}
        if kept.get("options_digest") != wanted["options_digest"] or before != now:
            raise ConfigError(
                f"{self.folder.parent.parent} holds rows made with other options",
                problems=tuple(
                    f"{name}: was {before.get(name)!r}, now {now.get(name)!r}"
                    for name in sorted(before | now)
                    if before.get(name) != now.get(name)
                ),
                hint="take another output folder, or start anew with --no-resume",
            )

    def index(self) -> dict[str, Place]:
        """Where every finished recording's row is, by its ``ecg_file_path``.

        A recording that failed once and was done at another time counts as done.
        """
        found: dict[str, Place] = {}
        for part in sorted(self.folder.glob("part-*.jsonl")):
            offset = 0
            with part.open("rb") as stream:
                for line in stream:
                    place = Place(part, offset, False)
                    offset += len(line)
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue  # cut off by a kill; the recording is done again
                    name = row["ecg_file_path"]
                    if "error" not in row or name not in found:
                        found[name] = place._replace(failed="error" in row)
        return found

    @staticmethod
    def read(places: Iterable[Place]) -> Iterator[dict[str, Any]]:
        """The rows at these places, one at a time: a large table never is in memory as a whole."""
        with ExitStack() as stack:
            streams: dict[Path, BinaryIO] = {}
            for place in places:
                if place.part not in streams:
                    streams[place.part] = stack.enter_context(place.part.open("rb"))
                streams[place.part].seek(place.offset)
                yield json.loads(streams[place.part].readline())

    def prepare(self, index: Mapping[str, Place]) -> None:
        """Begin a run: forget failures, so that they are tried again, and what died before."""
        kept = self.folder / "part-0.jsonl"
        partial = kept.with_name(".part-0.partial")
        old = sorted(self.folder.glob("part-*.jsonl"))
        with partial.open("w", encoding="utf-8") as stream:
            for row in self.read(place for place in index.values() if not place.failed):
                stream.write(json.dumps(row) + "\n")
        partial.replace(kept)
        for path in [*old, *self.folder.glob("current-*")]:
            if path != kept:
                path.unlink()


class CurrentRecording:
    """Says on disk which recording a worker is at, so that one that kills its worker is found out.

    A worker that dies leaves its note behind; Ray starts another, which gets the same batch again.
    """

    _ENOUGH = 2

    def __init__(self, folder: Path, worker: str) -> None:
        self._own = folder / f"current-{worker}"
        left = [path.read_text(encoding="utf-8") for path in folder.glob("current-*")]
        self._deadly = {name for name in left if left.count(name) >= self._ENOUGH}

    def begin(self, name: str) -> None:
        """Raises :class:`ToolError` for a recording at which two workers have died."""
        if name in self._deadly:
            raise ToolError(f"the worker process died at it {self._ENOUGH} times (out of memory?)")
        self._own.write_text(name, encoding="utf-8")

    def end(self) -> None:
        self._own.unlink(missing_ok=True)


def append_row(stream: Any, row: Mapping[str, Any]) -> None:
    """Write a row so that it outlives this process."""
    stream.write(json.dumps(row) + "\n")
    stream.flush()


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
