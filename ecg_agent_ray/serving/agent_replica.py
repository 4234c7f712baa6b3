"""The language model and the turn loop as a Serve deployment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.serve.handle import DeploymentHandle

from ecg_agent_ray.errors import ModelNotFoundError
from ecg_agent_ray.serving.config import ServiceConfig
from ecg_agent_ray.serving.handles import HandleToolbox
from ecg_agent_ray.serving.logs import configure_replica_logs
from ecg_agent_ray.serving.models import AGENT_NAME, LoadedPart, choose_model

__all__ = ["AgentReplica"]


class AgentReplica:
    """Runs turns in threads, since generation is synchronous, and streams their events."""

    def __init__(
        self,
        config: ServiceConfig,
        measurement: DeploymentHandle,
        classification: DeploymentHandle,
    ) -> None:
        configure_replica_logs()
        self._config = config
        self._measurement = measurement
        self._classification = classification
        self._threads = ThreadPoolExecutor(
            config.deployments.agent.max_ongoing_requests, thread_name_prefix="turn"
        )
        self._variants: dict[str, Any] = {}
        self._agent: LoadedPart[Any] = LoadedPart("the agent", self._load)

    def _load(self) -> tuple[Any, dict[str, Any]]:
        import torch

        from ecg_agent_ray.agent import load_agent

        torch.set_num_threads(self._config.deployments.agent.threads)
        chosen = choose_model(self._config.agent, "agent")
        agent = load_agent(chosen.source)
        about = {
            "uri": chosen.uri,
            "reason": chosen.reason,
            "models": [AGENT_NAME],
            "lead_configuration": agent.lead_configuration,
            "engine": agent.engine.name,
        }
        return agent, about

    def _agent_for(self, agent: Any, configuration: str) -> Any:
        """The same engine with the system prompt of another lead configuration."""
        from ecg_agent_ray.agent import Agent

        if configuration not in self._variants:
            self._variants[configuration] = Agent(
                agent.engine, configuration, classifier=agent.classifier, name=agent.name
            )
        return self._variants[configuration]

    def status(self) -> dict[str, Any]:
        return self._agent.status()

    async def chat(self, turn: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events of one turn.

        Args:
            turn: ``model``, ``messages`` (OpenAI-shaped, user and assistant only), ``ecg_id``,
                ``lead_configuration`` and ``steps`` of earlier turns.

        Raises:
            ModelNotFoundError: ``model`` is none of ours.
            ServiceError: there is no agent.
        """
        if turn["model"] != AGENT_NAME:
            raise ModelNotFoundError(
                f"there is no model {turn['model']!r}", hint="see GET /v1/models"
            )
        agent = await asyncio.to_thread(self._agent.get)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        stop = threading.Event()

        def put(item: dict[str, Any] | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            events = self._run(agent, turn)
            try:
                for event in events:
                    if stop.is_set():
                        return
                    put(event.to_dict())
            except Exception as error:  # handed to the caller, who raises it
                put(error)
            finally:
                events.close()
                put(None)

        self._threads.submit(work)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()

    def _run(self, agent: Any, turn: Mapping[str, Any]) -> Any:
        configuration = turn["lead_configuration"] or agent.lead_configuration
        if configuration != agent.lead_configuration:
            agent = self._agent_for(agent, configuration)
        toolbox = HandleToolbox(
            ecg_id=turn["ecg_id"],
            lead_configuration=configuration,
            measurement=self._measurement,
            classification=self._classification,
            timeout_s=self._config.timeouts.tool_s,
        )
        return agent.run(turn["messages"], toolbox, steps=turn["steps"])
