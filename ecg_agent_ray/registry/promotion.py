"""Moving ``champion``: through a gate, one at a time, with who, when and why on record."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ecg_agent_ray.errors import (
    ChampionChangedError,
    ConfigError,
    GateNotMetError,
    ModelNotFoundError,
    RefusedError,
)
from ecg_agent_ray.registry.gates import Gate, GateReport, load_gate
from ecg_agent_ray.registry.lock import promotion_lock
from ecg_agent_ray.registry.store import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS_CHAMPION,
    ModelVersion,
    aliased_version,
    find_version,
    kind_of,
    registry_client,
)
from ecg_agent_ray.settings import load_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Promotion", "audit_path", "promote", "read_audit", "rollback"]


@dataclass(frozen=True)
class Promotion:
    """What was done: ``version`` is champion of ``name`` now, ``previous`` was before (or None)."""

    event: str
    name: str
    version: int
    previous: int | None
    actor: str
    at: str
    reason: str | None = None
    forced: bool = False
    report: GateReport | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in self.__dict__.items() if key != "report"}
        return {**values, "gate": self.report.to_dict() if self.report else None}


def promote(
    name: str,
    version: int | str,
    *,
    gate: Gate | str | Path | None = None,
    metrics: Mapping[str, float] | None = None,
    expect_champion: int | str | None = None,
    force: bool = False,
    reason: str | None = None,
    actor: str | None = None,
) -> Promotion:
    """Make a version champion if the gate lets it pass.

    Parameters
    ----------
    name, version
        The registered model; a version's number or alias.
    gate
        A :class:`Gate`, a gate file, or the name of a shipped one; default: the kind's own gate.
    metrics
        The evaluation to judge; default: what was logged with the version.
    expect_champion
        Refuse unless this version is champion now; 0 or ``"none"`` expects that there is none.
    force, reason
        Promote although the gate is not met. ``reason`` is then required. The gate is still checked
        and its result recorded. ``force`` does not override ``expect_champion``.
    actor
        Who does it; default user@host.

    Raises
    ------
    GateNotMetError
        With what failed and by how much; ``error.report`` is the table.
    ChampionChangedError
        Somebody else promoted first.
    ModelNotFoundError
        No such model, version or gate.
    ConfigError
        ``force`` without a reason, or a gate file that is none.
    """
    if force and not (reason or "").strip():
        raise ConfigError("a forced promotion needs a reason", hint="give --reason")
    if not isinstance(gate, Gate):
        gate = load_gate(gate if gate is not None else _default_gate(name))
    client = registry_client()
    find_version(client, name, version)  # a wrong name is said before anything is locked

    def as_expected() -> None:
        _check_expected(name, expect_champion, aliased_version(client, name, CHAMPION))

    with promotion_lock(client, name, worth_waiting=as_expected) as still_ours:
        candidate = find_version(client, name, version)
        champion = aliased_version(client, name, CHAMPION)
        _check_expected(name, expect_champion, champion)
        report = _judge(client, gate, candidate, champion, metrics)
        outcome = Promotion(
            event="promoted",
            name=name,
            version=candidate.version,
            previous=champion,
            actor=actor or _whoami(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
            forced=force and not report.passed,
            report=report,
        )
        _tag_gate_result(client, outcome)
        if not report.passed and not force:
            _audit(client, replace(outcome, event="refused"))
            raise GateNotMetError(
                f"{candidate.uri} does not pass gate {gate.name!r}: {report.failures()}",
                report=report.to_dict(),
            )
        _move(client, outcome, still_ours, drop_challenger=True)
        return outcome


def rollback(
    name: str,
    *,
    reason: str | None = None,
    actor: str | None = None,
    expect_champion: int | str | None = None,
) -> Promotion:
    """Make ``previous-champion`` champion again; the two change places, so it can be undone.

    Raises
    ------
    RefusedError
        There is no previous champion.
    ChampionChangedError
        The champion is not ``expect_champion``.
    """
    client = registry_client()
    with promotion_lock(client, name) as still_ours:
        champion = aliased_version(client, name, CHAMPION)
        previous = aliased_version(client, name, PREVIOUS_CHAMPION)
        _check_expected(name, expect_champion, champion)
        if previous is None:
            raise RefusedError(f"{name} has no {PREVIOUS_CHAMPION} to go back to")
        outcome = Promotion(
            event="rolled back",
            name=name,
            version=previous,
            previous=champion,
            actor=actor or _whoami(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
        )
        _move(client, outcome, still_ours, drop_challenger=False)
        return outcome


def audit_path() -> Path:
    """The append-only log of this working directory: one JSON object a line."""
    return load_settings().home.resolve() / "audit" / "promotions.jsonl"


def _default_gate(name: str) -> str:
    kind = kind_of(name)
    if kind is None:
        raise ModelNotFoundError(f"{name} has no gate of its own", hint="give a gate file")
    return kind


def _check_expected(name: str, expected: int | str | None, champion: int | None) -> None:
    if expected is None:
        return
    text = str(expected).lower()
    if not text.isdigit() and text != "none":
        raise ConfigError(f"{expected!r} is no version number", hint="give a number, or none")
    wanted = None if text in ("0", "none") else int(text)
    if wanted != champion:
        raise ChampionChangedError(
            f"champion changed: {name} has {_spoken(champion)}, expected was {_spoken(wanted)}",
            hint="look at the new champion and decide again",
        )


def _spoken(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


def _judge(
    client: MlflowClient,
    gate: Gate,
    candidate: ModelVersion,
    champion: int | None,
    metrics: Mapping[str, float] | None,
) -> GateReport:
    values = candidate.metrics if metrics is None else metrics
    if champion is None or champion == candidate.version:
        return gate.check(values)
    current = find_version(client, candidate.name, champion)
    digests = [v.tags.get("evaluation_data_digest") for v in (candidate, current)]
    # where one is unknown nothing can be said, and nothing is held against the candidate
    return gate.check(
        values, current.metrics, same_data=None in digests or digests[0] == digests[1]
    )


def _tag_gate_result(client: MlflowClient, outcome: Promotion) -> None:
    report = outcome.report
    assert report is not None
    result = "passed" if report.passed else f"failed: {report.failures()}"
    version = str(outcome.version)
    client.set_model_version_tag(outcome.name, version, "gate", report.gate)
    client.set_model_version_tag(outcome.name, version, "gate_result", result)


def _move(
    client: MlflowClient,
    outcome: Promotion,
    still_ours: Callable[[], None],
    *,
    drop_challenger: bool,
) -> None:
    name, version = outcome.name, str(outcome.version)
    # before the aliases move, so that no champion is without a record
    for key, value in {
        "promoted_by": outcome.actor,
        "promoted_at": outcome.at,
        "promotion": "forced" if outcome.forced else outcome.event,
        "promotion_reason": outcome.reason or "",
    }.items():
        client.set_model_version_tag(name, version, key, value)
    _audit(client, outcome)
    if outcome.previous is not None and outcome.previous != outcome.version:
        client.set_registered_model_alias(name, PREVIOUS_CHAMPION, str(outcome.previous))
    try:
        still_ours()
    except ChampionChangedError:
        _audit(client, replace(outcome, event="abandoned"))
        raise
    # nothing may come between that check and this call
    client.set_registered_model_alias(name, CHAMPION, version)
    if drop_challenger and aliased_version(client, name, CHALLENGER) == outcome.version:
        client.delete_registered_model_alias(name, CHALLENGER)


def _audit(client: MlflowClient, outcome: Promotion) -> None:
    """Append to the local file and, for who has another machine, to the model's own tags."""
    entry = json.dumps(outcome.to_dict(), ensure_ascii=False)
    path = audit_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(entry + "\n")
    key = f"audit.{time.time_ns() // 1_000_000}-{uuid4().hex[:6]}"
    client.set_registered_model_tag(outcome.name, key, entry)


def _whoami() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"unknown@{socket.gethostname()}"


def read_audit(name: str | None = None) -> Iterator[dict[str, Any]]:
    """Entries of the local audit log, oldest first."""
    path = audit_path()
    if not path.exists():
        return
    with path.open(encoding="utf-8") as log:
        for line in log:
            entry = json.loads(line)
            if name is None or entry["name"] == name:
                yield entry
