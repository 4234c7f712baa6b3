r"""MLflow's deployment target "ray-serve": models as Ray Serve applications.

    mlflow deployments create -t ray-serve --name cardio -m models:/m@champion -C num_cpus=2
    curl http://127.0.0.1:8000/cardio/invocations -d '{"inputs": …}' -H 'content-type: …'
    mlflow deployments update -t ray-serve --name cardio -m models:/m/7

A model with a service of its own is deployed by that service's builder, the same that Serve's YAML
files name; `args` are its configuration:

    mlflow deployments create -t ray-serve --name cardio -m models:/ecg-agent@champion \
        -C builder=ecg_agent_ray.serving:build -C args='{"agent": "{model_uri}"}' \
        -C route_prefix=/

An alias is replaced by the version it names now. An update starts the new replicas, waits until
they are healthy and only then drains the old ones; where they do not become healthy, the deployment
is what it was, and the error says why. :func:`target_help` has the options.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

from ecg_agent_ray.errors import EcgAgentError
from ecg_agent_ray.plugins.deployment_config import (
    DeploymentConfig,
    EndpointConfig,
    options_table,
)
from ecg_agent_ray.plugins.options import validated
from ecg_agent_ray.plugins.pyfunc_app import JSON_TYPE
from ecg_agent_ray.plugins.serve_apps import (
    Applications,
    DeployFailedError,
    endpoint_app,
    model_app,
)

__all__ = ["RayServeClient", "run_local", "target_help"]

FLAVOR = "python_function"
_SCORING_KEYS = {"dataframe_split", "dataframe_records", "instances", "inputs", "messages", "input"}


def target_help() -> str:
    """Shown by ``mlflow deployments help -t ray-serve``."""
    return f"""\
Deploys MLflow models to Ray Serve; every model with the python_function flavour.

Target: ray-serve (the cluster of RAY_ADDRESS, else the one that runs on this machine), or
ray-serve:ADDRESS with what ray.init takes (HEAD:6379, ray://HEAD:10001). The cluster needs this
package. run-local starts a cluster of its own and serves until it is interrupted; it takes
port and host beside the options below.

Options of create and update, -C NAME=VALUE:
{options_table(DeploymentConfig)}

Options of create-endpoint and update-endpoint:
{options_table(EndpointConfig)}
"""


def run_local(
    target: str,
    name: str,
    model_uri: str,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Serve the model from a local cluster until interrupted."""
    from ecg_agent_ray.plugins.local_cluster import local_ray

    options = dict(config or {})
    host, port = str(options.pop("host", "127.0.0.1")), int(options.pop("port", 8000))
    with local_ray(num_cpus=8):
        from ray import serve

        serve.start(http_options={"host": host, "port": port})
        deployed = RayServeClient(target).create_deployment(name, model_uri, flavor, options)
        print(f"serving {deployed['model_uri']} at {deployed['url']}", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
        serve.shutdown()


class RayServeClient(BaseDeploymentClient):
    """``mlflow.deployments.get_deploy_client("ray-serve")``."""

    def __init__(self, target_uri: str = "ray-serve") -> None:
        super().__init__(target_uri)
        self._apps = Applications(target_uri.partition(":")[2].strip("/") or None)

    # -- deployments -----------------------------------------------------------------------------

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy and wait until it is healthy; nothing is left of one that does not become so."""
        with _mlflow_errors():
            if self._apps.status(name) is not None:
                raise MlflowException(f"deployment {name!r} exists", RESOURCE_ALREADY_EXISTS)
            if endpoint is not None:
                self._existing(endpoint, "endpoint")
            about = _about(name, model_uri, flavor, config or {}, endpoint)
            try:
                self._apps.deploy(name, model_app(about), about["route_prefix"], _timeout(about))
            except DeployFailedError as error:
                self._apps.delete(name)
                raise MlflowException(f"deployment {name!r} {error}", INTERNAL_ERROR) from error
            if endpoint is not None:
                traffic = self._apps.about(endpoint)["traffic"]
                weight = 0 if any(traffic.values()) else 100
                self.update_endpoint(endpoint, {"traffic": {**traffic, name: weight}})
        return self.get_deployment(name)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Change model or options in place; options that are not given stay."""
        with _mlflow_errors():
            self._existing(name, "deployment")
            before = self._apps.about(name)
            about = _about(
                name,
                model_uri or before["model_uri"],
                flavor,
                {**before["config"], **(config or {})},
                endpoint or before["endpoint"],
            )
            try:
                self._apps.deploy(name, model_app(about), about["route_prefix"], _timeout(about))
            except DeployFailedError as error:
                self._apps.deploy(name, model_app(before), before["route_prefix"], _timeout(before))
                raise MlflowException(
                    f"deployment {name!r} {error}; it is {before['model_uri']} as before",
                    INTERNAL_ERROR,
                ) from error
        return self.get_deployment(name)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Take it out of its endpoint, let it finish its requests and remove it."""
        with _mlflow_errors():
            self._deletable(name)
            for other in self._apps.names("MLflowEndpoint"):
                # an endpoint that does not answer may send it requests: then it stays
                traffic = self._apps.about(other)["traffic"]
                if name in traffic:
                    left = {key: value for key, value in traffic.items() if key != name}
                    self.update_endpoint(other, {"traffic": left})
            self._apps.delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        found = [self.get_deployment(name) for name in self._apps.names("MLflowModel")]
        return [item for item in found if endpoint is None or item["endpoint"] == endpoint]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """``name, flavor, model_uri, status, replicas, url, endpoint, config, message``."""
        status = self._existing(name, "deployment")
        about = self._apps.about_if_known(name)
        return {
            "name": name,
            "flavor": FLAVOR,
            "model_uri": about.get("model_uri"),
            "status": status.status.value,
            "replicas": self._apps.replicas(status),
            "url": self._apps.url(about.get("route_prefix")),
            "endpoint": about.get("endpoint"),
            "config": about.get("config", {}),
            "message": status.message,
        }

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """``inputs``: a DataFrame, an array, a list, or a dict of the scoring protocol."""
        name = deployment_name or endpoint
        if name is None:
            raise MlflowException("give a deployment or an endpoint", INVALID_PARAMETER_VALUE)
        self._existing(name, "deployment" if deployment_name else "endpoint")
        about = self._apps.about(name)
        if (about.get("config") or {}).get("builder"):
            raise MlflowException(
                f"{name} is an application of its own and is asked over HTTP, at "
                f"{self._apps.url(about['route_prefix'])}",
                INVALID_PARAMETER_VALUE,
            )
        status, _, text = self._apps.call(name, "score", _payload(inputs).encode(), JSON_TYPE)
        if status >= 400:
            raise MlflowException(f"{name} answered {status}: {text}", INVALID_PARAMETER_VALUE)
        answer = json.loads(text)
        return PredictionsResponse(answer if isinstance(answer, dict) else {"predictions": answer})

    # -- endpoints -------------------------------------------------------------------------------

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self._apps.status(name) is not None:
            raise MlflowException(f"endpoint {name!r} exists", RESOURCE_ALREADY_EXISTS)
        return self._deploy_endpoint(name, config or {})

    def update_endpoint(
        self, endpoint: str, config: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Options that are not given stay; ``traffic`` is replaced as a whole."""
        self._existing(endpoint, "endpoint")
        before = self._apps.about(endpoint)
        kept = {key: before[key] for key in EndpointConfig.model_fields}
        return self._deploy_endpoint(endpoint, {**kept, **(config or {})})

    def delete_endpoint(self, endpoint: str) -> None:
        """Its deployments stay."""
        self._existing(endpoint, "endpoint")
        self._apps.delete(endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        return [self.get_endpoint(name) for name in self._apps.names("MLflowEndpoint")]

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """``name, status, url, traffic``."""
        status = self._existing(endpoint, "endpoint")
        about = self._apps.about_if_known(endpoint)
        return {
            "name": endpoint,
            "status": status.status.value,
            "url": self._apps.url(about.get("route_prefix")),
            "traffic": about.get("traffic", {}),
        }

    def _deploy_endpoint(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        with _mlflow_errors():
            options = validated(EndpointConfig, config, f"options of endpoint {name!r}")
            for deployment in options.traffic:
                self._existing(deployment, "deployment")
            route = options.route_prefix or f"/{name}"
            about = {**options.model_dump(), "route_prefix": route}
            try:
                self._apps.deploy(name, endpoint_app(about), route, 120)
            except DeployFailedError as error:
                raise MlflowException(f"endpoint {name!r} {error}", INTERNAL_ERROR) from error
        return self.get_endpoint(name)

    def _deletable(self, name: str) -> None:
        """A deployment, or what its builder made of one that is too ill to say so."""
        status = self._apps.status(name)
        if status is None or status.status.value == "RUNNING":
            self._existing(name, "deployment")

    def _existing(self, name: str, kind: str) -> Any:
        app = {"deployment": "MLflowModel", "endpoint": "MLflowEndpoint"}[kind]
        status = self._apps.status(name)
        if status is None or not self._apps.is_a(app, name, status):
            raise MlflowException(f"no {kind} {name!r}", RESOURCE_DOES_NOT_EXIST)
        return status


def _about(
    name: str,
    model_uri: str,
    flavor: str | None,
    config: Mapping[str, Any],
    endpoint: str | None,
) -> dict[str, Any]:
    """All that is needed to deploy again: what a replica keeps and gives out."""
    import mlflow

    options = validated(DeploymentConfig, config, f"options of deployment {name!r}")
    pinned = _pinned(model_uri)
    flavors = mlflow.models.get_model_info(pinned).flavors
    if FLAVOR not in flavors or flavor not in (None, FLAVOR):
        raise MlflowException(
            f"{model_uri} is served by its flavour {FLAVOR}, "
            f"{'not ' + repr(flavor) if flavor else 'which it lacks'}",
            INVALID_PARAMETER_VALUE,
        )
    pip = None
    if options.env == "model":
        path = Path(mlflow.pyfunc.get_model_dependencies(pinned, format="pip"))
        pip = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    route = options.route_prefix or (None if endpoint else f"/{name}")
    return {
        "name": name,
        "model_uri": pinned,
        "config": options.model_dump(exclude_unset=True),
        "route_prefix": route,
        "endpoint": endpoint,
        "pip": pip,
        "tracking_uri": options.tracking_uri or mlflow.get_tracking_uri(),
    }


def _timeout(about: Mapping[str, Any]) -> float:
    return DeploymentConfig.model_validate(about["config"]).timeout_s


def _pinned(model_uri: str) -> str:
    """An alias, a stage or ``latest`` as the version it is now, so that all replicas have it."""
    import mlflow
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    if not model_uri.startswith("models:/") or model_uri.startswith("models://"):
        return model_uri
    found = get_model_name_and_version(mlflow.MlflowClient(), model_uri)
    return f"models:/{'/'.join(map(str, found))}"


def _payload(inputs: Any) -> str:
    from mlflow.utils.proto_json_utils import NumpyEncoder

    if isinstance(inputs, dict) and _SCORING_KEYS & set(inputs):
        return json.dumps(inputs, cls=NumpyEncoder)
    if hasattr(inputs, "to_dict"):
        return json.dumps({"dataframe_split": inputs.to_dict(orient="split")}, cls=NumpyEncoder)
    return json.dumps({"inputs": inputs}, cls=NumpyEncoder)


@contextlib.contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Errors of this package as MLflow's, which its command line and callers expect."""
    try:
        yield
    except EcgAgentError as error:
        raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
