"""An object against the schema that the API server would hold it against."""

from __future__ import annotations

import difflib
import functools
import gzip
import importlib
import json
from collections.abc import Iterator
from typing import Any

from ecg_agent_ray.shipped import shipped

__all__ = ["cel_is_installed", "schema_problems"]

# as in apimachinery's resource.Quantity: 1, 500m, 1.5, 16Gi, 1e3; "8GB" is none
_QUANTITY = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"
_PROMETHEUS = "cloudcoil.models.prometheus_operator"


def schema_problems(thing: dict[str, Any]) -> list[str] | None:
    """``path: what is wrong`` for each fault; None where no schema is at hand for this kind.

    As in the API server, nulls are dropped and defaults satisfy `required` first. Unknown fields,
    which it would drop silently, are faults. CEL rules of custom resources are evaluated where the
    extra ``kubernetes`` is installed, those about a change (``oldSelf``) never.
    """
    api_version, kind = str(thing["apiVersion"]), str(thing["kind"])
    validator = _validator(api_version, kind)
    if validator is None:
        return None
    thing = _without_nulls(thing)
    problems = list(_faults(validator, thing))
    crd = _crd(api_version, kind)
    if crd is not None and not problems:
        problems += _rule_faults(crd, thing, "")
    return problems


@functools.cache
def cel_is_installed() -> bool:
    try:
        importlib.import_module("cel")
    except ImportError:
        return False
    return True


def _faults(validator: Any, thing: Any) -> Iterator[str]:
    for error in validator.iter_errors(thing):
        where = ".".join(str(part) for part in error.absolute_path) or "(top level)"
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for field in sorted(error.instance.keys() - known.keys()):
                near = difflib.get_close_matches(field, known, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                yield f"{where}: unknown field {field!r}{hint}"
        else:
            yield f"{where}: {error.message[:300]}"


def _rule_faults(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """What the schema language of custom resources says beyond JSON Schema: CEL, keyed lists."""
    where = path or "(top level)"
    for rule in schema.get("x-kubernetes-validations") or ():
        if "oldSelf" not in rule["rule"] and cel_is_installed():
            import cel

            if cel.evaluate(rule["rule"], {"self": value}) is not True:
                yield f"{where}: {rule.get('message') or rule['rule']}"
    if isinstance(value, dict):
        for key, inner in value.items():
            below = (schema.get("properties") or {}).get(key) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _rule_faults(below, inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        keys = schema.get("x-kubernetes-list-map-keys") or ()
        seen: set[str] = set()
        for number, item in enumerate(value):
            same = json.dumps([item.get(key) for key in keys]) if keys else ""
            if same in seen:
                yield f"{where}.{number}: the same {', '.join(keys)} as another item: {same}"
            if keys:
                seen.add(same)
            yield from _rule_faults(schema["items"], item, f"{where}.{number}")


@functools.cache
def _validator(api_version: str, kind: str) -> Any:
    import jsonschema

    crd = _crd(api_version, kind)
    if crd is not None:
        return jsonschema.Draft202012Validator(_closed(crd, top=True))
    group, _, version = api_version.rpartition("/")
    if group == "monitoring.coreos.com":
        schema = _prometheus_schema(version, kind)
        return None if schema is None else jsonschema.Draft202012Validator(schema)
    builtin = _builtin()
    name = f"io.k8s.api.{group.split('.')[0] or 'core'}.{version}.{kind}"
    if name not in builtin["definitions"]:
        return None
    return jsonschema.Draft202012Validator({"$ref": f"#/definitions/{name}", **builtin})


@functools.cache
def _crd(api_version: str, kind: str) -> dict[str, Any] | None:
    group, _, version = api_version.rpartition("/")
    path = shipped("kube/schemas") / f"{kind}.{group}.{version}.json.gz"
    return dict(json.loads(gzip.decompress(path.read_bytes()))) if path.is_file() else None


@functools.cache
def _builtin() -> dict[str, Any]:
    (path,) = shipped("kube/schemas").glob("kubernetes-*.json.gz")
    schema = dict(json.loads(gzip.decompress(path.read_bytes())))
    for name, definition in schema["definitions"].items():
        if name.endswith(".api.resource.Quantity"):
            definition.clear()
            definition.update({"type": ["string", "number"], "pattern": _QUANTITY})
    return schema


def _prometheus_schema(version: str, kind: str) -> dict[str, Any] | None:
    """Of the Prometheus operator's kinds, from the typed models of the extra ``kubernetes``."""
    try:
        model = getattr(importlib.import_module(f"{_PROMETHEUS}.{version}"), kind)
    except (ImportError, AttributeError):
        return None
    schema: dict[str, Any] = _without_null_type(model.model_json_schema(by_alias=True))
    parts = schema.get("$defs", {})
    for part in (schema, *(inner for name, inner in parts.items() if name != "ObjectMeta")):
        if "properties" in part:
            part["additionalProperties"] = False
    return schema


def _without_null_type(schema: Any) -> Any:
    """Optional fields as the field alone: nulls are dropped before, and messages get clearer."""
    if isinstance(schema, list):
        return [_without_null_type(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = [one for one in schema.get("anyOf") or () if one != {"type": "null"}]
    if len(kept) == 1:
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        schema = rest | kept[0]
    return {key: _without_null_type(inner) for key, inner in schema.items()}


def _closed(schema: Any, *, top: bool = False) -> Any:
    """A structural schema of a CRD as JSON Schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        pattern = {"pattern": schema["pattern"]} if "pattern" in schema else {}
        return {"type": ["integer", "string"], **pattern}
    closed = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("default", "format")
    }
    properties = closed.get("properties")
    if properties is not None:
        closed["properties"] = {
            name: inner if top and name == "metadata" else _closed(inner)
            for name, inner in properties.items()
        }
        if "additionalProperties" not in closed and not schema.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            closed["additionalProperties"] = False
        required = [n for n in closed.get("required", []) if "default" not in properties.get(n, {})]
        closed["required"] = required
    if isinstance(closed.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(closed["additionalProperties"])
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
