"""From the bytes a client sends to a recording.

Parsing is :func:`ecg_agent_ray.ecg.read`'s alone. What happens here is about trust: the client's
file names become harmless ones in a fresh private folder that is gone afterwards, no name inside a
file may lead out of that folder, and what was read must be within the service's limits.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import CorruptRecordingError, InputError, RecordingError
from ecg_agent_ray.serving.config import LimitsConfig

__all__ = ["read_upload", "safe_name"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(name: str) -> str:
    """A client's file name as one plain path component, at most 80 characters.

    Folders are cut off, every run of other characters than letters, digits, ``.``, ``_`` and ``-``
    becomes ``_``, and no name begins with a dot or a hyphen.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    cleaned = _UNSAFE.sub("_", last).lstrip(".-")
    stem, dot, suffix = cleaned.rpartition(".")
    shortened = f"{stem[: 79 - len(suffix)]}.{suffix}" if dot and len(suffix) < 16 else cleaned[:80]
    return shortened or "upload"


def read_upload(files: Sequence[tuple[str, bytes]], limits: LimitsConfig) -> Recording:
    """Parse one upload.

    Args:
        files: client's file name and content of each part.
        limits: bounds on what may come out.

    Raises:
        InputError: no file, names that clash, or several files that are no WFDB record.
        RecordingError: not an ECG, broken, or beyond the limits.
    """
    if not files:
        raise InputError("the upload holds no file", hint="send multipart parts named `files`")
    named = [(safe_name(name), content) for name, content in files]
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        raise InputError("two files of the upload have the same name")
    main = _main_file(names)
    if main.endswith(".hea"):
        _check_header(dict(named)[main], set(names))
    with tempfile.TemporaryDirectory(prefix="ecg-upload-") as folder:
        for name, content in named:
            (Path(folder) / name).write_bytes(content)
        recording = ecg.read(Path(folder) / main)
    _check_limits(recording, limits)
    return recording


def _main_file(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    headers = [name for name in names if name.endswith(".hea")]
    if len(headers) != 1:
        raise InputError(
            f"several files are one upload only for a WFDB record; got {', '.join(sorted(names))}",
            hint="send one .hea with its signal files, or one file of another format",
        )
    return headers[0]


def _check_header(header: bytes, present: set[str]) -> None:
    """Refuse a WFDB header whose signal files are anything but files of the same upload."""
    lines = [
        line
        for line in header.decode("utf-8", errors="replace").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    for line in lines[1:]:
        name = line.split()[0]
        if name == "~":
            continue
        if PurePosixPath(name).name != name or "\\" in name or name in {".", ".."}:
            raise CorruptRecordingError("the WFDB header names a signal file in another folder")
        if name not in present:
            raise CorruptRecordingError(
                f"the WFDB header names {safe_name(name)}, which is not in the upload",
                hint="send the .hea together with its signal files",
            )


def _check_limits(recording: Recording, limits: LimitsConfig) -> None:
    leads, samples = recording.signal.shape
    duration = samples / recording.sampling_rate
    found = (
        (duration, limits.duration_s, "seconds"),
        (leads, limits.leads, "leads"),
        (leads * samples, limits.samples, "samples"),
        (recording.sampling_rate, limits.sampling_rate_hz, "samples per second"),
    )
    for value, most, what in found:
        if value > most:
            raise RecordingError(f"the recording has {value:g} {what}; at most {most:g} are taken")
