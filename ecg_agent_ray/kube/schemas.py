"""An object against the schema that the API server would hold it against."""

from __future__ import annotations

import difflib
import functools
import gzip
import json
from collections.abc import Iterator
from typing import Any

from ecg_agent_ray.shipped import shipped

__all__ = ["schema_problems"]

_INT_OR_STRING = {"type": ["integer", "string"]}


def schema_problems(thing: dict[str, Any]) -> Iterator[str] | None:
    """``path: what is wrong`` for each fault; None where no schema is carried for this kind.

    As in the API server, nulls are dropped and defaults satisfy `required` first. Unknown fields,
    which it would drop silently, are faults. CEL rules are not evaluated.
    """
    validator = _validator(str(thing["apiVersion"]), str(thing["kind"]))
    return None if validator is None else _faults(validator, _without_nulls(thing))


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


@functools.cache
def _validator(api_version: str, kind: str) -> Any:
    import jsonschema

    folder = shipped("kube/schemas")
    group, _, version = api_version.rpartition("/")
    path = folder / f"{kind}.{group}.{version}.json.gz"
    if path.is_file():
        schema = _closed(json.loads(gzip.decompress(path.read_bytes())), top=True)
        return jsonschema.Draft202012Validator(schema)
    short = group.split(".")[0] or "core"
    builtin = _builtin()
    name = f"io.k8s.api.{short}.{version}.{kind}"
    if name not in builtin["definitions"]:
        return None
    return jsonschema.Draft202012Validator({"$ref": f"#/definitions/{name}", **builtin})


@functools.cache
def _builtin() -> dict[str, Any]:
    (path,) = shipped("kube/schemas").glob("kubernetes-*.json.gz")
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def _closed(schema: Any, *, top: bool = False) -> Any:
    """A structural schema of a CRD as JSON Schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return _INT_OR_STRING
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
