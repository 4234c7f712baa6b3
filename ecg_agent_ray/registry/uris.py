"""From a model URI to the directory that holds the model.

models:/ecg-agent@champion    a version by alias       models:/ecg-agent/3    by number
builtin:                      the one shipped with the package
/path/to/directory            taken as it is
s3://bucket/directory         downloaded once, any URL that fsspec opens
"""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ecg_agent_ray.errors import InputError, ModelNotFoundError
from ecg_agent_ray.plugins.fetch import fetched
from ecg_agent_ray.registry.store import KINDS, find_version, kind_of, registry_client
from ecg_agent_ray.settings import load_settings

__all__ = ["pinned", "resolve"]

_MODELS_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def resolve(uri: str, *, kind: str | None = None) -> Path:
    """Directory of the model that ``uri`` names.

    ``kind`` (``agent`` or ``classifier``) is needed for ``builtin:`` and, if given, is checked for
    the others. A version whose artifacts are not on this machine is downloaded once into
    ``$ECG_AGENT_CACHE/models``.

    Raises
    ------
    ModelNotFoundError
        No such name, alias, version or path; the message lists what exists.
    InputError
        The URI has no known form, or names another kind of model.
    """
    if uri.startswith("builtin:"):
        return _shipped(uri.removeprefix("builtin:") or kind)
    if uri.startswith("models:"):
        return _registered(uri, kind)
    path = fetched(uri).expanduser()
    if not path.exists():
        raise ModelNotFoundError(
            f"no model at {path}", hint="give a directory, builtin: or models:/NAME@ALIAS"
        )
    return path.resolve()


def pinned(uri: str) -> str:
    """The same model with its version instead of an alias; other URIs unchanged."""
    match = _MODELS_URI.fullmatch(uri)
    if match is None or match["version"]:
        return uri
    return find_version(registry_client(), match["name"], match["alias"]).uri


def _shipped(kind: str | None) -> Path:
    if kind not in KINDS:
        raise InputError("builtin: is an agent or a classifier", hint="builtin:agent")
    path = Path(str(resources.files("ecg_agent_ray") / "_data" / kind))
    if not path.is_dir():
        raise ModelNotFoundError(f"this installation carries no {kind} ({path})")
    return path


def _registered(uri: str, kind: str | None) -> Path:
    match = _MODELS_URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{uri!r} is no model URI", hint="models:/NAME@ALIAS or models:/NAME/3")
    name = match["name"]
    found_kind = kind_of(name)
    if found_kind is None or (kind is not None and kind != found_kind):
        raise InputError(f"{uri} is no {kind or 'agent or classifier'}")
    client = registry_client()
    version = find_version(client, name, match["alias"] or match["version"])
    location = client.get_model_version_download_uri(name, str(version.version))
    url = urlsplit(location)
    if url.scheme in ("", "file"):
        return _inner(Path(unquote(url.path)), found_kind, uri)
    # an artifact location is never written twice, so it names the cached copy
    folder = re.sub(r"[^A-Za-z0-9.-]+", "-", location).strip("-")[-120:]
    cached = load_settings().cache_dir / "models" / folder
    if not cached.is_dir():
        _download(location, cached)
    return _inner(cached, found_kind, uri)


def _download(location: str, target: Path) -> None:
    """Download beside ``target`` and rename, so that a half-made copy is never used."""
    import mlflow

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        got = mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=partial)
        try:
            Path(got).rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                shutil.copytree(got, target)


def _inner(model: Path, kind: str, uri: str) -> Path:
    """The directory within an MLflow model, as :mod:`~ecg_agent_ray.registry.publish` wrote it."""
    folder = model / "artifacts" / kind
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{uri} holds no {kind} directory ({folder})",
            hint="its artifacts were removed, or it was not registered by this package",
        )
    return folder
