"""Which models the service uses, and why: a choice is always said, never silent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ecg_agent_ray.errors import ModelNotFoundError
from ecg_agent_ray.settings import load_settings

__all__ = ["AUTO", "BUILTIN", "ChosenModel", "Kind", "choose_model"]

Kind = Literal["agent", "classifier"]
AUTO = "auto"
BUILTIN = "builtin:"
_ALIASED = re.compile(r"models:/+(?P<name>[^/@]+)@(?P<alias>[^/@]+)")


@dataclass(frozen=True)
class ChosenModel:
    """What is to be loaded: ``uri`` as configured or found, ``version`` with its alias resolved.

    ``evaluation`` holds the metrics logged with the version.
    """

    uri: str
    version: str
    reason: str
    evaluation: Mapping[str, float] = field(default_factory=dict)

    def fetch(self, kind: Kind) -> str:
        """What the loader is given: a folder, downloaded first where need be, or the URI itself.

        Raises:
            ModelNotFoundError: it has gone, or names another kind of model.
        """
        from ecg_agent_ray import registry

        if self.version.startswith(("openai:", "base:")):
            return self.version
        return str(registry.resolve(self.version, kind=kind))


def choose_model(
    uri: str, kind: Kind, leads: str = "12-lead", alias: str | None = None
) -> ChosenModel:
    """Find the version behind ``uri`` without loading it.

    ``auto`` is the registered champion, else the shipped model. The configurations ``I`` and ``II``
    have registered models of their own beside that of 12 leads; ``alias`` asks for another alias
    than the configured one, such as ``challenger``.

    Raises:
        ModelNotFoundError: there is no such version; for ``leads`` other than ``12-lead`` or with
            ``alias`` also where ``uri`` is no alias that another version could stand beside.
    """
    from ecg_agent_ray.registry import model_name

    aside = leads != "12-lead" or alias is not None
    match = _ALIASED.fullmatch(uri)
    if uri != AUTO and (match is None or (aside and match["name"] != model_name(kind))):
        if aside:
            raise ModelNotFoundError(f"{uri} has no variants")
        return ChosenModel(uri, uri, "configured")
    name = match["name"] if match and not aside else model_name(kind, leads)
    wanted = alias or (match["alias"] if match else "champion")
    try:
        return _registered(name, wanted, "configured" if match else "the registered champion")
    except ModelNotFoundError as error:
        if uri != AUTO or aside:
            raise
        return ChosenModel(BUILTIN, BUILTIN, f"no champion: {error.message}")


def _registered(name: str, alias: str, reason: str) -> ChosenModel:
    _check_registry()
    from ecg_agent_ray.registry.store import find_version, registry_client

    found = find_version(registry_client(), name, alias)
    return ChosenModel(f"models:/{name}@{alias}", found.uri, reason, found.metrics)


def _check_registry() -> None:
    # asking a SQLite store that does not exist would create it, and import MLflow for seconds
    uri = load_settings().mlflow_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ModelNotFoundError("no registry here yet")
