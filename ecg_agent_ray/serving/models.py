"""Which models the service loads, and why: a choice is always said, never silent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ecg_agent_ray.errors import ModelNotFoundError, ServiceError
from ecg_agent_ray.settings import load_settings

__all__ = ["AGENT_NAME", "ChosenModel", "LoadedPart", "choose_model"]

AGENT_NAME = "ecg-agent"
BUILTIN = "builtin:"
AUTO = "auto"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class ChosenModel:
    """A model's URI, what its loader is given, and why it was taken."""

    uri: str
    source: str
    reason: str


def choose_model(uri: str, kind: str) -> ChosenModel:
    """Find the model behind ``uri``; ``auto`` is the registered champion, else the shipped one.

    ``kind`` is ``agent`` or ``classifier``.

    Raises:
        ModelNotFoundError: an explicit URI names no model.
    """
    from ecg_agent_ray import registry

    if uri.startswith(("openai:", "base:")):
        return ChosenModel(uri, uri, "configured")
    if uri != AUTO:
        return ChosenModel(uri, str(registry.resolve(uri, kind=kind)), "configured")
    champion = f"models:/ecg-{kind}@champion"
    if _has_registry():
        try:
            path = registry.resolve(champion, kind=kind)
            return ChosenModel(champion, str(path), "the registered champion")
        except ModelNotFoundError as error:
            reason = f"no champion: {error.message}"
    else:
        reason = "no registry here yet"
    return ChosenModel(BUILTIN, str(registry.resolve(BUILTIN, kind=kind)), reason)


def _has_registry() -> bool:
    # asking a SQLite store that does not exist would create it, and import MLflow for seconds
    uri = load_settings().mlflow_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


class LoadedPart(Generic[_T]):
    """A model that a replica holds, or the reason why it does not.

    A replica whose model cannot be loaded stays up and says so, because Serve would otherwise hold
    back the whole application for one missing part. Loading is tried again, at most every
    ``retry_s`` seconds, when somebody asks for the part.

    Args:
        name: of the part, for messages.
        load: returns the part and what is said about it in the readiness answer.
    """

    retry_s = 30.0

    def __init__(self, name: str, load: Callable[[], tuple[_T, dict[str, Any]]]) -> None:
        self._name = name
        self._load = load
        self._lock = threading.Lock()
        self._part: _T | None = None
        self._about: dict[str, Any] = {}
        self._problem: str | None = None
        self._tried_at = 0.0
        self._try()

    def get(self) -> _T:
        """The part; raises :class:`ServiceError` while there is none."""
        with self._lock:
            if self._part is None and time.monotonic() - self._tried_at > self.retry_s:
                self._try()
            if self._part is None:
                raise ServiceError(f"{self._name} is not available: {self._problem}")
            return self._part

    def status(self) -> dict[str, Any]:
        return {
            "ready": self._part is not None,
            "problem": self._problem,
            **self._about,
        }

    def _try(self) -> None:
        started = time.monotonic()
        self._tried_at = started
        try:
            self._part, self._about = self._load()
        except Exception as error:  # model libraries raise whatever they like
            self._problem = str(error) or type(error).__name__
            _log.exception("cannot load %s", self._name)
            return
        self._problem = None
        self._about |= {"loaded_at": time.time(), "load_s": round(time.monotonic() - started, 2)}
        _log.info("loaded %s: %s", self._name, self._about)
