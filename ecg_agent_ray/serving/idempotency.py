"""Uploads that may be sent twice: the header ``Idempotency-Key``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException

from ecg_agent_ray.errors import EcgAgentError, ServiceError
from ecg_agent_ray.serving.access import Services
from ecg_agent_ray.serving.problems import PROBLEM_MEDIA_TYPE, PROBLEM_SCHEMA
from ecg_agent_ray.serving.store import EcgMeta

__all__ = ["IN_PROGRESS", "upload_once"]

IN_PROGRESS: dict[str, Any] = {
    "description": "An upload with this Idempotency-Key is being worked on; see Retry-After.",
    "content": {PROBLEM_MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}},
}


async def upload_once(
    services: Services, owner: str, key: str, files: Sequence[tuple[str, bytes]]
) -> tuple[EcgMeta, bool]:
    """The ECG of an upload, and whether an earlier request made it.

    Raises:
        InputError: the key was used for other files.
        HTTPException: 409 while another request with the key is under way.
    """
    store, patience = services.store, services.config.timeouts.upload_s
    claim = await services.stored(store.claim, owner, key, _digest(files), patience)
    if claim.state == "pending":
        raise HTTPException(
            409, "an upload with this idempotency key is under way", headers={"Retry-After": "1"}
        )
    if claim.state == "done":
        meta = await services.stored(store.meta, claim.ecg_id)
        if meta is not None:
            return meta, True
    try:
        return await services.backend.add_ecg(files, owner, claim.ecg_id), False
    except EcgAgentError as error:
        # a refused upload is refused again; one that may still be written keeps its claim
        if not isinstance(error, ServiceError):
            await services.stored(store.give_up, owner, key)
        raise


def _digest(files: Sequence[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in files:
        for part in (name.encode(errors="replace"), content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
