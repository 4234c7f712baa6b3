"""Models that a replica holds and that follow their alias in the registry.

A new version is fetched, loaded and tried beside the one in use, and takes its place only when it
works: requests never wait for it, and one that began with the old version ends with it. A version
that fails is said in the readiness answer and tried again after growing pauses, until the alias
moves on.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from ecg_agent_ray.errors import ModelNotFoundError, ServiceError
from ecg_agent_ray.serving.config import ModelsConfig
from ecg_agent_ray.serving.models import BUILTIN, ChosenModel, Kind, choose_model

__all__ = ["Arm", "FollowedModel", "Loaded", "ModelSet"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
Arm = Literal["champion", "challenger"]


@dataclass(frozen=True)
class Loaded(Generic[_T]):
    """A model in use; ``about`` is what the readiness answer says of it."""

    part: _T
    chosen: ChosenModel
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Rejected:
    """A version that did not load or failed its trial."""

    version: str
    problem: str
    pause_s: float
    next_at: float


class FollowedModel(Generic[_T]):
    """One model, or the reason why there is none.

    A replica whose model cannot be loaded stays up and says so, because Serve would otherwise hold
    back the whole application for one missing part.

    Args:
        name: of the part, for messages.
        choose: which version it should be now; raises :class:`ModelNotFoundError` for none.
        load: loads and tries a version; returns the part and what is said about it.
    """

    retry_s = 30.0
    longest_pause_s = 3600.0

    def __init__(
        self,
        name: str,
        choose: Callable[[], ChosenModel],
        load: Callable[[ChosenModel], tuple[_T, dict[str, Any]]],
    ) -> None:
        self._name = name
        self._choose = choose
        self._load = load
        self._lock = threading.Lock()
        self._loaded: Loaded[_T] | None = None
        self._rejected: _Rejected | None = None
        self._problem: str | None = None
        self._tried_at = float("-inf")

    @property
    def current(self) -> Loaded[_T] | None:
        return self._loaded

    def get(self) -> Loaded[_T]:
        """The model in use.

        Raises:
            ServiceError: there is none; loading is tried again at most every ``retry_s`` seconds.
        """
        if (loaded := self._loaded) is not None:
            return loaded
        if time.monotonic() - self._tried_at > self.retry_s:
            self.refresh(retry=True)
        if (loaded := self._loaded) is None:
            raise ServiceError(f"{self._name} is not available: {self._problem}")
        return loaded

    def refresh(self, *, retry: bool = False) -> None:
        """Take the version that should be in use, if it is another one and works; never raises.

        ``retry`` also tries a version whose pause is not over yet.
        """
        with self._lock:
            self._tried_at = time.monotonic()
            try:
                chosen = self._choose()
            except ModelNotFoundError as error:
                self._problem = error.message
                return
            except Exception as error:  # the registry's client raises whatever it likes
                self._problem = f"the registry cannot be asked: {type(error).__name__}"
                _log.warning("%s: the registry cannot be asked", self._name, exc_info=True)
                return
            if self._stays(chosen) or (self._pauses(chosen) and not retry):
                return
            self._take(chosen)

    def _stays(self, chosen: ChosenModel) -> bool:
        if self._loaded is None:
            return False
        in_use = self._loaded.chosen.version
        # a registry whose champion was removed does not make a service forget it
        stays = chosen.version == in_use or chosen.version == BUILTIN
        if stays:
            self._rejected, self._problem = None, None
        return stays

    def _pauses(self, chosen: ChosenModel) -> bool:
        known = self._rejected
        return (
            known is not None
            and known.version == chosen.version
            and time.monotonic() < known.next_at
        )

    def _take(self, chosen: ChosenModel) -> None:
        started = time.monotonic()
        try:
            part, about = self._load(chosen)
        except Exception as error:  # model libraries raise whatever they like
            self._reject(chosen, str(error) or type(error).__name__)
            return
        about = {
            "uri": chosen.uri,
            "version": chosen.version,
            "reason": chosen.reason,
            "evaluation": dict(chosen.evaluation),
            "loaded_at": time.time(),
            "load_s": round(time.monotonic() - started, 2),
            **about,
        }
        before = self._loaded.chosen.version if self._loaded else None
        self._loaded = Loaded(part, chosen, about)
        self._rejected, self._problem = None, None
        _log.info("%s is %s now, before %s", self._name, chosen.version, before)

    def _reject(self, chosen: ChosenModel, problem: str) -> None:
        known = self._rejected
        again = known is not None and known.version == chosen.version
        pause = min(known.pause_s * 2, self.longest_pause_s) if known and again else self.retry_s
        self._rejected = _Rejected(chosen.version, problem, pause, time.monotonic() + pause)
        self._problem = problem
        in_use = self._loaded.chosen.version if self._loaded else "nothing"
        _log.exception("%s cannot be %s and stays %s", self._name, chosen.version, in_use)

    def status(self) -> dict[str, Any]:
        """``ready``, ``problem`` and what is in use; ``rejected`` names a version that failed."""
        loaded, rejected = self._loaded, self._rejected
        body: dict[str, Any] = {"ready": loaded is not None, "problem": self._problem}
        if loaded is not None:
            body |= loaded.about
        if rejected is not None:
            body["rejected"] = {"version": rejected.version, "problem": rejected.problem}
        return body


class ModelSet(Generic[_T]):
    """The models of one kind: the main one, those of single leads, and their challengers.

    Args:
        kind: ``agent`` or ``classifier``.
        uri: of the main model.
        load: see :class:`FollowedModel`; it gets the lead configuration, too.
        models: how often to look, and the challenger's share.
    """

    def __init__(
        self,
        kind: Kind,
        uri: str,
        load: Callable[[ChosenModel, str], tuple[_T, dict[str, Any]]],
        models: ModelsConfig,
    ) -> None:
        self._share = models.canary_share
        self._sets: dict[tuple[str, Arm], FollowedModel[_T]] = {}
        arms: list[Arm] = ["champion", "challenger"] if self._share else ["champion"]
        for leads in ("12-lead", "I", "II"):
            for arm in arms:
                self._sets[leads, arm] = self._followed(kind, uri, load, leads, arm)
        self._main = self._sets["12-lead", "champion"]
        for followed in self._sets.values():
            followed.refresh()
        if models.follow_s is not None:
            threading.Thread(
                target=self._follow, args=(models.follow_s,), name=f"follow-{kind}", daemon=True
            ).start()

    @staticmethod
    def _followed(
        kind: Kind,
        uri: str,
        load: Callable[[ChosenModel, str], tuple[_T, dict[str, Any]]],
        leads: str,
        arm: Arm,
    ) -> FollowedModel[_T]:
        alias = None if arm == "champion" else arm
        name = f"the {kind}" if leads == "12-lead" else f"the {kind} of lead {leads}"
        return FollowedModel(
            name if arm == "champion" else f"{name} ({arm})",
            lambda: choose_model(uri, kind, leads, alias),
            lambda chosen: load(chosen, leads),
        )

    def _follow(self, period_s: float) -> None:
        while True:
            time.sleep(period_s)
            for followed in self._sets.values():
                followed.refresh()

    def pick(self, leads: str, key: str = "") -> tuple[Loaded[_T], Arm]:
        """The model for a lead configuration.

        ``key``, an ECG's id, decides who is the challenger's: always the same for the same ECG.

        Raises:
            ServiceError: there is no model.
        """
        own = self._sets[leads, "champion"].current
        champion = own or self._main.get()
        # without a model of its own a single lead is the main model's, and so is its challenger
        rival = self._sets.get((leads if own else "12-lead", "challenger"))
        challenger = rival.current if rival is not None else None
        if (
            challenger is not None
            and challenger.chosen.version != champion.chosen.version
            and key
            and _position(key) < self._share
        ):
            return challenger, "challenger"
        return champion, "champion"

    def champion(self, leads: str) -> Loaded[_T]:
        """The model in use for a lead configuration; raises :class:`ServiceError` for none."""
        return self._sets[leads, "champion"].current or self._main.get()

    def status(self) -> dict[str, Any]:
        """The main model's, with ``variants`` and ``challengers`` where there are any."""
        body = self._main.status()
        for name, wanted in (("variants", "champion"), ("challengers", "challenger")):
            shown = {}
            for (leads, arm), followed in self._sets.items():
                if arm != wanted or followed is self._main:
                    continue
                status = followed.status()
                if status["ready"] or "rejected" in status:
                    shown[leads] = status
            if shown:
                body[name] = shown
        return body


def _position(key: str) -> float:
    """A number in [0, 1) that is the same for the same key on every replica."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
