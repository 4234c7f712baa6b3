"""The private store of uploaded ECGs, on any fsspec file system.

An upload is parsed once and kept as its signal and a small description. The uploaded files
themselves are not kept: their headers may hold names and dates of birth, and nothing here needs
them. One ECG is one folder named by an unguessable id.
"""

from __future__ import annotations

import io
import re
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ecg_agent_ray.ecg import Recording

__all__ = ["EcgMeta", "EcgStore"]

_ID = re.compile(r"ecg_[0-9a-f]{32}")
_META = "meta.json"
_SIGNAL = "signal.npy"


class EcgMeta(BaseModel):
    """What is known of a stored ECG without reading its signal.

    ``owner`` is the name of the token that uploaded it, ``created_at`` seconds since the epoch,
    ``sampling_rate`` in Hz, ``quality`` per lead as ``{"status", "reason"}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    owner: str
    created_at: float
    record_id: str
    format: str
    leads: tuple[str, ...]
    sampling_rate: float
    samples: int
    quality: dict[str, dict[str, Any]]

    @property
    def duration_s(self) -> float:
        return self.samples / self.sampling_rate

    def public(self) -> dict[str, Any]:
        """The API's body: everything but the owner."""
        return {
            "id": self.id,
            "record_id": self.record_id,
            "format": self.format,
            "leads": list(self.leads),
            "sampling_rate": self.sampling_rate,
            "duration_s": round(self.duration_s, 6),
            "quality": self.quality,
        }


class EcgStore:
    """Signals and descriptions under one URL.

    Args:
        url: an fsspec URL or a plain path. A local folder is created readable by its user alone.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self._fs, root = url_to_fs(url)
        self._root = root.rstrip("/")
        self._is_local = "file" in _protocols(self._fs)
        if self._is_local:
            Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, recording: Recording, quality: dict[str, dict[str, Any]], owner: str) -> EcgMeta:
        """Keep a recording; its description is written last, so a half-written ECG is no ECG."""
        meta = EcgMeta(
            id=f"ecg_{secrets.token_hex(16)}",
            owner=owner,
            created_at=time.time(),
            record_id=recording.record_id,
            format=recording.format,
            leads=tuple(recording.leads),
            sampling_rate=float(recording.sampling_rate),
            samples=int(recording.signal.shape[1]),
            quality=quality,
        )
        signal = io.BytesIO()
        np.save(signal, recording.signal, allow_pickle=False)
        folder = self._folder(meta.id)
        if self._is_local:
            Path(folder).mkdir(mode=0o700)
        self._fs.pipe_file(f"{folder}/{_SIGNAL}", signal.getvalue())
        self._fs.pipe_file(f"{folder}/{_META}", meta.model_dump_json().encode())
        return meta

    def meta(self, ecg_id: str) -> EcgMeta | None:
        """The description, or None where there is no such ECG."""
        if not _ID.fullmatch(ecg_id):
            return None
        try:
            return EcgMeta.model_validate_json(self._fs.cat_file(f"{self._folder(ecg_id)}/{_META}"))
        except FileNotFoundError:
            return None

    def recording(self, ecg_id: str) -> Recording | None:
        """The recording as it was read from the upload, or None where there is no such ECG."""
        meta = self.meta(ecg_id)
        if meta is None:
            return None
        try:
            stored = self._fs.cat_file(f"{self._folder(ecg_id)}/{_SIGNAL}")
        except FileNotFoundError:
            return None
        return Recording(
            signal=np.load(io.BytesIO(stored), allow_pickle=False),
            sampling_rate=meta.sampling_rate,
            leads=meta.leads,
            record_id=meta.record_id,
            format=meta.format,
        )

    def delete(self, ecg_id: str) -> None:
        """Remove an ECG; one that is gone already is no error."""
        if not _ID.fullmatch(ecg_id):
            return
        folder = self._folder(ecg_id)
        # the description goes first: from then on nobody finds the rest
        for name in (_META, _SIGNAL):
            try:
                self._fs.rm_file(f"{folder}/{name}")
            except FileNotFoundError:
                continue
        if self._is_local and Path(folder).is_dir():
            Path(folder).rmdir()

    def expire(self, older_than_s: float) -> int:
        """Delete what was uploaded more than ``older_than_s`` seconds ago; returns how many."""
        deadline = time.time() - older_than_s
        expired = 0
        for path in self._fs.ls(self._root, detail=False):
            ecg_id = path.rstrip("/").rsplit("/", 1)[-1]
            meta = self.meta(ecg_id)
            if meta is not None and meta.created_at < deadline:
                self.delete(ecg_id)
                expired += 1
        return expired

    def _folder(self, ecg_id: str) -> str:
        return f"{self._root}/{ecg_id}"


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
