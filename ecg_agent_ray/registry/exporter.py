"""The registry as Prometheus metrics: who is champion, since when, and what gates refused.

``python -m ecg_agent_ray.registry.exporter --port 9109`` asks MLflow at each scrape; it needs read
access alone. Alerts on a changed champion and a refused gate rest on it, since promotions run
anywhere and end before anybody could scrape them.
"""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ecg_agent_ray.registry.store import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS_CHAMPION,
    registered_names,
    registry_client,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from prometheus_client import Metric

__all__ = ["RegistryCollector", "main"]

_log = logging.getLogger(__name__)


class RegistryCollector(Collector):
    """``ecg_agent_registry_*``; with ``up`` 0 and nothing else where MLflow does not answer."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names must not cost a request when the collector is registered."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        from mlflow.exceptions import MlflowException

        up = GaugeMetricFamily("ecg_agent_registry_up", "Whether the registry answered")
        aliases = GaugeMetricFamily(
            "ecg_agent_registry_alias_version",
            "Version an alias points to",
            labels=["name", "alias"],
        )
        refused = GaugeMetricFamily(
            "ecg_agent_registry_gate_refused",
            "Versions whose last gate was not passed",
            labels=["name"],
        )
        try:
            for name in registered_names(self._client):
                model = self._client.get_registered_model(name)
                for alias in (CHAMPION, CHALLENGER, PREVIOUS_CHAMPION):
                    if alias in model.aliases:
                        aliases.add_metric([name, alias], float(model.aliases[alias]))
                versions = self._client.search_model_versions(f"name='{name}'")
                results = (str(one.tags.get("gate_result", "")) for one in versions)
                refused.add_metric([name], sum(text.startswith("failed") for text in results))
        except (MlflowException, OSError) as error:
            _log.warning("the registry does not answer: %s", error)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield from (up, aliases, refused)


def main(arguments: list[str] | None = None) -> None:
    """Serve ``/metrics`` until the process is ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9109)
    options = parser.parse_args(arguments)
    registry = CollectorRegistry()
    registry.register(RegistryCollector(registry_client(create=True)))
    start_http_server(options.port, options.host, registry)
    threading.Event().wait()


if __name__ == "__main__":
    main()
