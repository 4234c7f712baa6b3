"""The registry's words (names, aliases, tags) and how a version is read from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import InputError, LeadError, ModelNotFoundError
from ecg_agent_ray.settings import load_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "EVALUATION_TAG",
    "KINDS",
    "LOCK_SUFFIX",
    "PREVIOUS_CHAMPION",
    "ModelVersion",
    "aliased_version",
    "every",
    "find_version",
    "kind_of",
    "model_name",
    "registered_names",
    "registry_client",
]

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"

KINDS = {"agent": "ecg-agent", "classifier": "ecg-classifier"}
"""Kind of model -> the registered model of its 12-lead variant."""

EVALUATION_TAG = "evaluation"
"""JSON object of the version's metrics, which gates read."""

LOCK_SUFFIX = ".promotion-lock"

_LEADS = ("12-lead", "I", "II")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model, as the command line shows it.

    ``metrics`` is the evaluation that gates read; ``tags`` holds all tags but that one.
    """

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    created_at: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "uri": self.uri,
            "aliases": list(self.aliases),
            "run_id": self.run_id,
            "created_at": self.created_at,
            "metrics": self.metrics,
            "tags": self.tags,
        }


def model_name(kind: str, lead_configuration: str = "12-lead") -> str:
    """``ecg-agent``, ``ecg-agent-lead-I``, …; ``kind`` is ``agent`` or ``classifier``."""
    if kind not in KINDS:
        raise InputError(f"no kind of model {kind!r}", hint="it is agent or classifier")
    if lead_configuration not in _LEADS:
        raise LeadError(f"no lead configuration {lead_configuration!r}: {', '.join(_LEADS)}")
    base = KINDS[kind]
    return base if lead_configuration == "12-lead" else f"{base}-lead-{lead_configuration}"


def kind_of(name: str) -> str | None:
    """The kind behind a registered model's name, or None where it is not one of ours."""
    for kind, base in KINDS.items():
        if re.fullmatch(rf"{re.escape(base)}(-lead-(I|II))?", name):
            return kind
    return None


def registry_client(*, create: bool = False) -> MlflowClient:
    """Client of the active store: what MLflow was told, else the settings' default.

    A SQLite file that does not exist is not made just to find it empty, unless ``create``.

    Raises
    ------
    ModelNotFoundError
        Nothing was ever registered here.
    ConfigError, ServiceError
        The store cannot be used, or does not answer.
    """
    import mlflow

    from ecg_agent_ray.plugins.stores import check_store, store_errors

    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(load_settings().mlflow_uri)
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not create:
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            raise ModelNotFoundError(
                f"no model registry at {path}",
                hint="run `ecg-agent demo`, or point MLFLOW_TRACKING_URI at yours",
            )
    check_store(uri)
    with store_errors(uri):
        return mlflow.MlflowClient(tracking_uri=uri)


def registered_names(client: MlflowClient) -> list[str]:
    """Names of our registered models that exist."""
    found = every(client.search_registered_models, "name LIKE 'ecg-%'")
    return sorted(model.name for model in found if kind_of(model.name))


def every(search: Callable[..., Any], condition: str) -> Iterator[Any]:
    """All that a search of MLflow's client finds, which it gives in pages."""
    page = search(condition)
    while True:
        yield from page
        if not page.token:
            return
        page = search(condition, page_token=page.token)


def aliased_version(client: MlflowClient, name: str, alias: str) -> int | None:
    """Number of the version that ``alias`` points to, or None."""
    version = _aliases(client, name).get(alias)
    return int(version) if version is not None else None


def find_version(client: MlflowClient, name: str, wanted: str | int) -> ModelVersion:
    """The version by number or alias.

    Raises
    ------
    ModelNotFoundError
        There is none; the message lists what exists.
    """
    from mlflow.exceptions import MlflowException

    aliases = _aliases(client, name)
    number = str(wanted) if str(wanted).isdigit() else aliases.get(str(wanted))
    try:
        if number is None:
            raise ModelNotFoundError(
                f"{name} has no alias {wanted!r}", hint=_what_exists(client, name, aliases)
            )
        found = client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ModelNotFoundError(
            f"{name} has no version {number}", hint=_what_exists(client, name, aliases)
        ) from error
    tags = dict(found.tags)
    evaluation = json.loads(tags.pop(EVALUATION_TAG, "{}"))
    return ModelVersion(
        name=name,
        version=int(found.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if str(v) == str(found.version))),
        run_id=found.run_id or None,
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(),
        metrics={key: float(value) for key, value in evaluation.items()},
        tags=tags,
    )


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = ", ".join(registered_names(client)) or "none"
        raise ModelNotFoundError(
            f"no registered model {name!r}", hint=f"registered are: {names}"
        ) from error


def _what_exists(client: MlflowClient, name: str, aliases: dict[str, str]) -> str:
    found = every(client.search_model_versions, f"name='{name}'")
    versions = sorted(int(version.version) for version in found)
    numbers = ", ".join(map(str, versions)) or "none"
    named = ", ".join(f"{a}={v}" for a, v in sorted(aliases.items())) or "none"
    return f"versions: {numbers}; aliases: {named}"
