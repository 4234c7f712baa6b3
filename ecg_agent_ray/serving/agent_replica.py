"""The language model and the turn loop as a Serve deployment."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opentelemetry.trace import Span
from ray.serve.handle import DeploymentHandle

from ecg_agent_ray.errors import ModelNotFoundError, ServiceError
from ecg_agent_ray.serving.config import ServiceConfig
from ecg_agent_ray.serving.followed import ModelSet
from ecg_agent_ray.serving.handles import HandleToolbox
from ecg_agent_ray.serving.logs import configure_replica_logs
from ecg_agent_ray.serving.models import ChosenModel
from ecg_agent_ray.serving.tracing import configure_tracing, span

__all__ = ["AGENT_NAMES", "AgentReplica"]

AGENT_NAMES = {
    "ecg-agent": "12-lead",
    "ecg-agent-lead-I": "I",
    "ecg-agent-lead-II": "II",
}
"""Models of the API -> lead configuration of a dialogue that names none and has no ECG."""


class AgentReplica:
    """Runs turns in threads, since generation is synchronous, and streams their events."""

    def __init__(
        self,
        config: ServiceConfig,
        measurement: DeploymentHandle,
        classification: DeploymentHandle,
        llm: DeploymentHandle | None = None,
    ) -> None:
        configure_replica_logs()
        configure_tracing(config, "agent")
        self._config = config
        self._measurement = measurement
        self._classification = classification
        self._llm = llm
        self._threads = ThreadPoolExecutor(
            config.deployments.agent.max_ongoing_requests, thread_name_prefix="turn"
        )
        import torch

        torch.set_num_threads(config.deployments.agent.threads)
        # in a thread: a trial that asks another deployment may not wait within an event loop
        self._models: ModelSet[Any] = self._threads.submit(
            lambda: ModelSet("agent", config.agent, self._load, config.models)
        ).result()

    def _load(self, chosen: ChosenModel, leads: str) -> tuple[Any, dict[str, Any]]:
        from ecg_agent_ray.agent import load_agent

        source = chosen.fetch("agent")
        if self._llm is None or source.startswith("openai:"):
            agent = load_agent(source)
        else:
            agent = self._served_by_llm(self._llm, chosen, source)
        if not chosen.version.startswith("openai:"):
            _try_agent(agent)
        return _Variants(agent), {
            "lead_configuration": agent.lead_configuration,
            "engine": agent.engine.name,
        }

    def _served_by_llm(self, llm: DeploymentHandle, chosen: ChosenModel, folder: str) -> Any:
        from ecg_agent_ray.agent import Agent
        from ecg_agent_ray.agent.load import read_manifest
        from ecg_agent_ray.serving.llm import adapter_engine

        manifest = read_manifest(folder)
        return Agent(
            adapter_engine(llm, self._config, chosen.version, folder),
            manifest.lead_configuration,
            classifier=manifest.classifier,
            speech=manifest.speech,
            name=chosen.version,
        )

    def status(self) -> dict[str, Any]:
        status = self._models.status()
        return status | ({"models": list(AGENT_NAMES)} if status["ready"] else {})

    async def chat(self, turn: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events of one turn.

        Args:
            turn: ``model``, ``messages`` (OpenAI-shaped, user and assistant only), ``ecg_id``,
                ``lead_configuration``, ``steps`` of earlier turns, ``sampling`` (arguments of
                :meth:`~ecg_agent_ray.agent.Agent.run`), ``sent_at`` (seconds since the epoch) and
                ``trace``, the caller's span.

        Raises:
            ModelNotFoundError: ``model`` is none of ours.
            ServiceError: there is no agent.
        """
        if turn["model"] not in AGENT_NAMES:
            raise ModelNotFoundError(
                f"there is no model {turn['model']!r}", hint="see GET /v1/models"
            )
        configuration = turn["lead_configuration"] or AGENT_NAMES[turn["model"]]
        model, arm = await asyncio.to_thread(self._models.pick, configuration, turn["ecg_id"] or "")
        agent = model.part.for_leads(configuration)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        stop = threading.Event()

        def put(item: dict[str, Any] | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        toolbox = HandleToolbox(
            ecg_id=turn["ecg_id"],
            lead_configuration=configuration,
            measurement=self._measurement,
            classification=self._classification,
            timeout_s=self._config.timeouts.tool_s,
        )

        def work() -> None:
            about = {"leads": configuration, "arm": arm, "version": model.chosen.version}
            with span("turn", turn["trace"], **about) as traced:
                answer(traced)

        def answer(traced: Span) -> None:
            queue_s = max(0.0, time.time() - turn["sent_at"])
            events: Any = iter(())
            try:
                events = agent.run(
                    turn["messages"], toolbox, steps=turn["steps"], **turn["sampling"]
                )
                for event in events:
                    if stop.is_set():
                        return
                    body = event.to_dict()
                    if body["type"] == "final":
                        body["timings"]["queue_s"] = round(queue_s, 4)
                        traced.set_attribute("ecg_agent.action", body["action"])
                        for name, count in body["usage"].items():
                            traced.set_attribute(f"ecg_agent.{name}", count)
                        body |= {
                            "version": model.chosen.version,
                            "arm": arm,
                            "lead_configuration": configuration,
                            "degraded": sorted(toolbox.missing),
                        }
                    put(body)
            except Exception as error:  # handed to the caller, who raises it
                put(error)
            finally:
                if hasattr(events, "close"):
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


class _Variants:
    """One engine with the system prompts of several lead configurations."""

    def __init__(self, agent: Any) -> None:
        self._agents = {agent.lead_configuration: agent}
        self._first = agent

    def for_leads(self, configuration: str) -> Any:
        from ecg_agent_ray.agent import Agent

        if configuration not in self._agents:
            first = self._first
            self._agents[configuration] = Agent(
                first.engine, configuration, classifier=first.classifier, name=first.name
            )
        return self._agents[configuration]


def _try_agent(agent: Any) -> None:
    """One short turn without an ECG.

    Raises:
        ServiceError: it ends without a word.
    """
    final = agent.respond([{"role": "user", "content": "Hello"}])
    if not final.content.strip():
        raise ServiceError("the agent answers a greeting with nothing")
