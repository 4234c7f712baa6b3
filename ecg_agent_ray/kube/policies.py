"""Rules of our own, above what any schema asks: one function a rule, listed in :data:`RULES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["PLACEHOLDER_DIGEST", "RULES", "containers", "pod_specs", "profile_of"]

PLACEHOLDER_DIGEST = "sha256:" + 64 * "0"

Rule = Callable[[dict[str, Any], str | None], Iterator[str]]


def pod_specs(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod specification in an object, however deep, with its path."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield path, node
        for key, value in node.items():
            yield from pod_specs(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from pod_specs(value, f"{path}.{number}")


def containers(thing: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every container as (list it is in, path, container)."""
    for path, pod in pod_specs(thing):
        for group in ("initContainers", "containers"):
            for number, container in enumerate(pod.get(group) or []):
                if isinstance(container, dict):
                    yield group, f"{path}.{group}.{number}", container


def profile_of(objects: list[dict[str, Any]]) -> str | None:
    """``kind``, ``staging`` or ``production``, from the label that the overlays set."""
    for thing in objects:
        labels = (thing.get("metadata") or {}).get("labels") or {}
        if profile := labels.get("ecg-agent/profile"):
            return str(profile)
    return None


def _resources(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    for _, path, container in containers(thing):
        for kind in ("requests", "limits"):
            given = (container.get("resources") or {}).get(kind) or {}
            for resource in ("cpu", "memory"):
                if resource not in given:
                    yield f"{path}.resources.{kind}: no {resource}"


def _security(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    for path, pod in pod_specs(thing):
        context = pod.get("securityContext") or {}
        if context.get("runAsNonRoot") is not True:
            yield f"{path}.securityContext.runAsNonRoot: must be true"
        if (context.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            yield f"{path}.securityContext.seccompProfile: must be RuntimeDefault"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{path}.{field}: shares the host's"
        for number, volume in enumerate(pod.get("volumes") or []):
            if "hostPath" in volume:
                yield f"{path}.volumes.{number}: hostPath gives the host's files"
    for _, path, container in containers(thing):
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            yield f"{path}.securityContext.privileged: must not be"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{path}.securityContext.allowPrivilegeEscalation: must be false"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{path}.securityContext.readOnlyRootFilesystem: must be true"
        if "ALL" not in ((context.get("capabilities") or {}).get("drop") or []):
            yield f"{path}.securityContext.capabilities.drop: must name ALL"


def _probes(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    # Ray containers get KubeRay's own probes, which know of the token; jobs end by themselves
    if thing.get("kind") not in ("Deployment", "StatefulSet", "DaemonSet"):
        return
    for group, path, container in containers(thing):
        for probe in ("livenessProbe", "readinessProbe"):
            if group == "containers" and probe not in container:
                yield f"{path}: no {probe}"


def _images(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    for _, path, container in containers(thing):
        image = str(container.get("image") or "")
        name, _, digest = image.partition("@")
        tag = name.rsplit("/", 1)[-1].partition(":")[2]
        if tag == "latest" or not (tag or digest):
            yield f"{path}.image: {image!r} moves; give a tag or a digest"
        elif profile == "production" and not digest.startswith("sha256:"):
            yield f"{path}.image: {image!r} is not pinned by digest"


def _secrets(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    if thing.get("kind") == "Secret":
        yield "data: a Secret in the manifests; make it in the cluster instead"
    for _, path, container in containers(thing):
        for variable in container.get("env") or []:
            name = str(variable.get("name", ""))
            private = any(word in name for word in ("PASSWORD", "TOKEN", "SECRET", "ACCESS_KEY"))
            value = str(variable.get("value") or "")
            if private and value and not value.startswith("/"):
                yield f"{path}.env: {name} is written out; take it from a Secret"


def _ray(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    for path, cluster in _clusters(thing):
        if (cluster.get("authOptions") or {}).get("mode") != "token":
            yield f"{path}.authOptions.mode: must be token; without one anybody can run code"
        scaled = cluster.get("enableInTreeAutoscaling")
        if scaled and (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
            yield f"{path}.autoscalerOptions.version: must be v2"
        for number, group in enumerate(cluster.get("workerGroupSpecs") or []):
            low, now, high = (
                group.get(k, d)
                for k, d in (("minReplicas", 0), ("replicas", 0), ("maxReplicas", 1))
            )
            where = f"{path}.workerGroupSpecs.{number}"
            if not low <= now <= high:
                yield f"{where}: not {low} <= {now} <= {high} (min, replicas, max)"
            pod = (group.get("template") or {}).get("spec") or {}
            if scaled and pod.get("restartPolicy") != "Never":
                yield f"{where}.template.spec.restartPolicy: autoscaler v2 needs Never"


def _jobs(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    if thing.get("kind") != "RayJob":
        return
    spec = thing.get("spec") or {}
    for field in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not spec.get(field):
            yield f"spec.{field}: must be set, or a stuck job holds its GPUs"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes: must be true"


def _disruption(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    if thing.get("kind") != "PodDisruptionBudget":
        return
    spec = thing.get("spec") or {}
    selector = str(spec.get("selector") or {})
    of_ray = "ray.io/" in selector or "ecg-agent/role" in selector
    if of_ray and not isinstance(spec.get("minAvailable"), int):
        yield (
            "spec.minAvailable: must be an integer, without maxUnavailable; the eviction API "
            "cannot count a custom resource's pods and would refuse every drain"
        )


def _alerts(thing: dict[str, Any], profile: str | None) -> Iterator[str]:
    if thing.get("kind") != "PrometheusRule":
        return
    for group in (thing.get("spec") or {}).get("groups") or []:
        for rule in group.get("rules") or []:
            if "alert" in rule and "runbook" not in (rule.get("annotations") or {}):
                yield f"spec.groups.{group.get('name')}.{rule['alert']}: names no runbook"


def _clusters(thing: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = thing.get("spec") or {}
    if thing.get("kind") == "RayCluster":
        yield "spec", spec
    for key in ("rayClusterSpec", "rayClusterConfig"):
        if isinstance(spec.get(key), dict):
            yield f"spec.{key}", spec[key]


RULES: dict[str, Rule] = {
    "resources": _resources,
    "security": _security,
    "probes": _probes,
    "images": _images,
    "secrets": _secrets,
    "ray": _ray,
    "jobs": _jobs,
    "disruption": _disruption,
    "alerts": _alerts,
}
