"""One promotion at a time, with nothing but MLflow's registry.

Setting an alias is a plain overwrite, so two promotions could both believe to have won. Creating a
registered model is atomic, since its name is the primary key: whoever creates
``NAME.promotion-lock`` holds the lock. A lock that outlives its holder is renamed to a name made of
its holder's id. That too is atomic and happens once for each holder, because the new name stays
taken; so of two processes that find the same dead lock, only one clears it, and neither can clear
the lock that came after it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

from ecg_agent_ray.errors import ChampionChangedError, RefusedError
from ecg_agent_ray.registry.store import LOCK_SUFFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["EXPIRES_AFTER_S", "promotion_lock"]

EXPIRES_AFTER_S = 120.0
"""Seconds without renewal after which a lock's holder is taken for dead."""

_TOMBSTONES_KEPT_S = 3600.0
_PAUSE_S = 0.1


@contextlib.contextmanager
def promotion_lock(
    client: MlflowClient,
    name: str,
    *,
    wait_s: float = 60.0,
    worth_waiting: Callable[[], None] | None = None,
) -> Iterator[Callable[[], None]]:
    """Hold the lock of registered model ``name``; yields a check that it is still held.

    ``worth_waiting`` is called before each try and raises when there is no point in going on.

    Raises
    ------
    RefusedError
        Others held it for ``wait_s``.
    """
    lock = f"{name}{LOCK_SUFFIX}"
    owner = uuid4().hex
    deadline = time.monotonic() + wait_s
    while True:
        if worth_waiting is not None:
            worth_waiting()
        if _create(client, lock, owner):
            break
        _bury_if_dead(client, lock)
        if time.monotonic() > deadline:
            raise RefusedError(
                f"another promotion of {name} is under way",
                hint=f"try again; a dead one is given up after {EXPIRES_AFTER_S:.0f} s",
            )
        time.sleep(_PAUSE_S)

    with _renewed(client, lock, owner) as renewed_at:

        def still_ours() -> None:
            # by this process's own clock too: the store may not have heard yet that we are late
            late = time.monotonic() - renewed_at[0] > EXPIRES_AFTER_S / 2
            if late or _owner(client, lock)[0] != owner:
                raise ChampionChangedError(
                    f"champion changed: the promotion of {name} took too long and lost its lock",
                    hint="try again",
                )

        yield still_ours


@contextlib.contextmanager
def _renewed(client: MlflowClient, lock: str, owner: str) -> Iterator[list[float]]:
    """Renew the lock in the background and delete it at the end; yields the last renewal's time."""
    renewed_at = [time.monotonic()]
    done = threading.Event()

    def renew() -> None:
        while not done.wait(EXPIRES_AFTER_S / 8):
            with contextlib.suppress(Exception):  # the store's trouble; still_ours() will notice
                begun = time.monotonic()
                if _owner(client, lock)[0] == owner:
                    client.set_registered_model_tag(lock, "created", str(time.time()))
                    renewed_at[0] = begun

    heart = threading.Thread(target=renew, name=f"renew {lock}", daemon=True)
    heart.start()
    try:
        yield renewed_at
    finally:
        done.set()
        heart.join()
        if _owner(client, lock)[0] == owner:
            _delete(client, lock)


def _create(client: MlflowClient, lock: str, owner: str) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {"owner": owner, "created": str(time.time())}
    try:
        client.create_registered_model(lock, tags=tags, description="A promotion is under way.")
    except MlflowException as error:
        # "does not exist": it was there at the insert and gone when MLflow looked at it
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _owner(client: MlflowClient, lock: str) -> tuple[str | None, float]:
    """Holder's id and the time it was created; (None, 0) if nobody holds it."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(lock).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None, 0.0
    return tags.get("owner"), float(tags.get("created", 0))


def _bury_if_dead(client: MlflowClient, lock: str) -> None:
    from mlflow.exceptions import MlflowException

    owner, created = _owner(client, lock)
    if owner is None or time.time() - created < EXPIRES_AFTER_S:
        return
    with contextlib.suppress(MlflowException):  # another process buried it first
        client.rename_registered_model(lock, f"{lock}.{owner}")
    _remove_old_tombstones(client, lock)


def _remove_old_tombstones(client: MlflowClient, lock: str) -> None:
    for model in client.search_registered_models(f"name LIKE '{lock}.%'"):
        if time.time() - float(model.tags.get("created", 0)) > (
            EXPIRES_AFTER_S + _TOMBSTONES_KEPT_S
        ):
            _delete(client, model.name)


def _delete(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        client.delete_registered_model(name)
