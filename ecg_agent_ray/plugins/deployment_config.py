"""Options of deployments and endpoints; ``-C key=value`` gives them as text."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ecg_agent_ray.plugins.options import StrictConfig

__all__ = ["DeploymentConfig", "EndpointConfig", "options_table"]


def _json_text(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_text)]


class DeploymentConfig(StrictConfig):
    """What a deployment takes beside its model."""

    num_replicas: int = Field(default=1, ge=1, description="Replicas, where it does not autoscale.")
    min_replicas: int | None = Field(
        default=None, ge=0, description="With max_replicas: autoscaling between the two."
    )
    max_replicas: int | None = Field(default=None, ge=1)
    target_ongoing_requests: float = Field(
        default=2, gt=0, description="Autoscaling: requests a replica should have at once."
    )
    max_ongoing_requests: int = Field(default=8, ge=1, description="Requests a replica takes.")
    max_queued_requests: int = Field(
        default=-1, ge=-1, description="Waiting for each proxy; more get 503. -1: no limit."
    )
    num_cpus: float = Field(default=1, ge=0, description="Of a replica.")
    num_gpus: float = Field(default=0, ge=0, description="Of a replica.")
    memory: int | None = Field(default=None, ge=1, description="Bytes of a replica.")
    resources: JsonObject = Field(default_factory=dict, description="Custom resources, JSON.")
    env: Literal["cluster", "model"] = Field(
        default="cluster",
        description="model: install the model's own pip requirements for its replicas.",
    )
    runtime_env: JsonObject = Field(default_factory=dict, description="Ray's, JSON.")
    builder: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function that builds the whole application, replicas and resources "
        "included. It takes `args` and one key more, `deployed_as` (an object), which its ingress "
        "gives back from a method `about`.",
    )
    args: JsonObject = Field(
        default_factory=dict,
        description="Of the builder, JSON; {model_uri} in its texts is the model's URI.",
    )
    route_prefix: str | None = Field(
        default=None, pattern="^/", description="Left out: /NAME, or none within an endpoint."
    )
    tracking_uri: str | None = Field(
        default=None, description="MLflow as replicas reach it; left out: as seen from here."
    )
    timeout_s: float = Field(default=600, gt=0, description="To become healthy.")
    drain_s: float = Field(
        default=60, gt=0, description="A replica that goes may finish its requests for so long."
    )

    @model_validator(mode="after")
    def _both_bounds(self) -> Self:
        if (self.min_replicas is None) != (self.max_replicas is None):
            raise ValueError("min_replicas and max_replicas belong together")
        if self.args and self.builder is None:
            raise ValueError("args belong to a builder")
        return self

    def serve_options(self, pip: list[str] | None) -> dict[str, Any]:
        """Arguments of ``serve.deployment``. New replicas start before old ones are drained."""
        actor: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.memory:
            actor["memory"] = self.memory
        if self.resources:
            actor["resources"] = self.resources
        runtime_env = {**({"pip": pip} if pip else {}), **self.runtime_env}
        if runtime_env:
            actor["runtime_env"] = runtime_env
        options: dict[str, Any] = {
            "ray_actor_options": actor,
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "graceful_shutdown_timeout_s": self.drain_s,
            "graceful_shutdown_wait_loop_s": 0.5,
            "max_surge_percent": 100,
            "max_constructor_retry_count": 2,
        }
        if self.max_replicas is None:
            return {**options, "num_replicas": self.num_replicas}
        bounds = {"min_replicas": self.min_replicas, "max_replicas": self.max_replicas}
        target = {"target_ongoing_requests": self.target_ongoing_requests}
        return {**options, "autoscaling_config": {**bounds, **target}}


class EndpointConfig(StrictConfig):
    """An endpoint spreads requests over deployments."""

    route_prefix: str | None = Field(default=None, pattern="^/", description="Left out: /NAME.")
    traffic: Annotated[dict[str, float], BeforeValidator(_json_text)] = Field(
        default_factory=dict, description='Weights by deployment, JSON: {"a": 90, "b": 10}.'
    )
    num_replicas: int = Field(default=1, ge=1)


def options_table(model: type[StrictConfig]) -> str:
    """One line an option: name, default, meaning."""
    lines = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None or default == {} else f" [{default}]"
        lines.append(f"  {name}{shown}  {field.description or ''}".rstrip())
    return "\n".join(lines)
