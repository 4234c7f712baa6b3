"""The private store of uploaded ECGs, on any fsspec file system.

An upload is parsed once and kept as its signal and a small description. The uploaded files
themselves are not kept: their headers may hold names and dates of birth, and nothing here needs
them. One ECG is one folder named by an unguessable id.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import InputError

__all__ = ["Claim", "EcgMeta", "EcgStore", "new_id"]

_ID = re.compile(r"ecg_[0-9a-f]{32}")
_META = "meta.json"
_SIGNAL = "signal.npy"
_CLAIMS = "claims"


def new_id() -> str:
    """An id that cannot be guessed."""
    return f"ecg_{secrets.token_hex(16)}"


class Claim(BaseModel):
    """An idempotency key in use.

    ``state`` is ``ours`` for who shall do the upload, ``done`` when it was done before, ``pending``
    while another request does it. ``claimed_at`` in seconds since the epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ecg_id: str
    digest: str
    claimed_at: float
    state: Literal["ours", "done", "pending"] = "ours"


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

    def add(
        self,
        recording: Recording,
        quality: dict[str, dict[str, Any]],
        owner: str,
        ecg_id: str | None = None,
    ) -> EcgMeta:
        """Keep a recording; its description is written last, so a half-written ECG is no ECG.

        ``ecg_id`` is one of :meth:`claim`, None makes a new one.
        """
        meta = EcgMeta(
            id=ecg_id or new_id(),
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
            Path(folder).mkdir(mode=0o700, exist_ok=True)
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

    def claim(self, owner: str, key: str, digest: str, patience_s: float) -> Claim:
        """Take the idempotency key ``key`` of ``owner`` for an upload with ``digest``.

        The first to come has the new id to itself; who comes later with the same key and digest
        gets that id back, and whether its upload is done. A claim that is neither done nor given
        up after ``patience_s`` seconds, because its replica died, is taken over with its id.

        Raises:
            InputError: the key was used for another upload.
        """
        path = self._claim_path(owner, key)
        claim = Claim(ecg_id=new_id(), digest=digest, claimed_at=time.time())
        try:
            self._create(path, claim.model_dump_json().encode())
        except FileExistsError:
            pass
        else:
            return claim
        try:
            known = Claim.model_validate_json(self._fs.cat_file(path))
        except (FileNotFoundError, ValidationError):
            # being written, or given up, at this very moment
            return claim.model_copy(update={"state": "pending"})
        if known.digest != digest:
            raise InputError(
                "this idempotency key was used for another upload", hint="use a new key"
            )
        if self.meta(known.ecg_id) is not None:
            return known.model_copy(update={"state": "done"})
        if time.time() - known.claimed_at < patience_s:
            return known.model_copy(update={"state": "pending"})
        claim = known.model_copy(update={"claimed_at": time.time()})
        self._fs.pipe_file(path, claim.model_dump_json().encode())
        return claim

    def give_up(self, owner: str, key: str) -> None:
        """Free the key of an upload that was refused."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._claim_path(owner, key))

    def _claim_path(self, owner: str, key: str) -> str:
        name = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
        return f"{self._root}/{_CLAIMS}/{name}.json"

    def expire(self, older_than_s: float) -> int:
        """Delete what was uploaded more than ``older_than_s`` seconds ago; returns how many.

        Signals without a description, left by a replica that died within an upload, and claims of
        idempotency keys go with them.
        """
        deadline = time.time() - older_than_s
        expired = 0
        for path in self._listed(self._root):
            ecg_id = path.rstrip("/").rsplit("/", 1)[-1]
            if not _ID.fullmatch(ecg_id):
                continue
            meta = self.meta(ecg_id)
            since = meta.created_at if meta else self._written_at(f"{path}/{_SIGNAL}")
            if since is not None and since < deadline:
                self.delete(ecg_id)
                expired += meta is not None
        for path in self._listed(f"{self._root}/{_CLAIMS}"):
            if (since := self._written_at(path)) is not None and since < deadline:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
        return expired

    def _listed(self, folder: str) -> list[str]:
        # object stores remember listings, and other replicas write meanwhile
        self._fs.invalidate_cache()
        try:
            return list(self._fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []

    def _written_at(self, path: str) -> float | None:
        try:
            return float(self._fs.modified(path).timestamp())
        except FileNotFoundError:
            return None

    def _create(self, path: str, content: bytes) -> None:
        """Write a file that must not exist; raises FileExistsError for all but one writer."""
        if not self._is_local:
            self._fs.pipe_file(path, content, mode="create")
            return
        Path(path).parent.mkdir(mode=0o700, exist_ok=True)
        # linked into place, so that who comes second reads all of it
        with tempfile.NamedTemporaryFile(dir=self._root, prefix=".claim-") as scratch:
            scratch.write(content)
            scratch.flush()
            os.link(scratch.name, path)

    def _folder(self, ecg_id: str) -> str:
        return f"{self._root}/{ecg_id}"


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
