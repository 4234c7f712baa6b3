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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ecg_agent_ray import __version__
from ecg_agent_ray.errors import ConfigError, RefusedError

__all__ = ["ExtractState", "append_row", "write_atomically"]

_FORMAT = 1


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

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every finished recording's row by its ``ecg_file_path``; one that failed has ``error``.

        A recording that failed once and was done later counts as done.
        """
        found: dict[str, dict[str, Any]] = {}
        for part in sorted(self.folder.glob("part-*.jsonl")):
            with part.open(encoding="utf-8") as stream:
                for line in stream:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue  # cut off by a kill; the recording is done again
                    name = row["ecg_file_path"]
                    if "error" not in row or name not in found:
                        found[name] = row
        return found

    def forget_failures(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Put the finished rows into one file, without those that failed."""
        lines = [json.dumps(row) + "\n" for row in rows.values() if "error" not in row]
        old = sorted(self.folder.glob("part-*.jsonl"))
        write_atomically(self.folder / "part-0.jsonl", "".join(lines))
        for part in old:
            if part.name != "part-0.jsonl":
                part.unlink()


def append_row(stream: Any, row: Mapping[str, Any]) -> None:
    """Write a row so that it outlives this process."""
    stream.write(json.dumps(row) + "\n")
    stream.flush()


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
