"""The replica that runs vLLM. Importing this module needs ``ecg-agent-ray[vllm]``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

# Serve LLM has no public name for what a LoRA loader returns
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from ecg_agent_ray.serving.llm import refused

__all__ = ["RegistryAdapters", "VllmReplica"]


class VllmReplica(LLMServer):  # type: ignore[misc]
    """Ray Serve LLM's server, spoken to in plain dictionaries instead of vLLM's classes."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: Any, **options: Any
    ) -> None:
        from ecg_agent_ray.agent import resolve_base_model

        loading = llm_config.model_loading_config
        # here, not where the graph is built: this node may be another one
        source = await asyncio.to_thread(resolve_base_model, loading.model_source)
        loaded = loading.model_copy(update={"model_source": source})
        await super().__init__(
            llm_config.model_copy(update={"model_loading_config": loaded}), **options
        )

    async def write(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the chat completion that ``body`` asks for.

        Raises:
            ServiceError: vLLM refuses it.
        """
        async for batch in await self.chat(ChatCompletionRequest(**body)):
            for item in batch if isinstance(batch, list) else [batch]:
                if not isinstance(item, str):
                    raise refused(item)
                for line in item.splitlines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise refused(chunk["error"].get("message", "no reason given"))
                    yield chunk


class RegistryAdapters:
    """Serve LLM's loader of LoRA adapters, from our registry: their ids are versions' URIs."""

    def __init__(self, download_timeout_s: float | None = None, max_tries: int = 1) -> None:
        self._timeout_s = download_timeout_s
        self._tries = max_tries
        self._number = 0

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> Any:
        """Download the adapter; Serve LLM gives it to vLLM and forgets the least used one."""
        from ecg_agent_ray.registry import resolve

        for attempt in range(1, self._tries + 1):
            try:
                async with asyncio.timeout(self._timeout_s):
                    folder = await asyncio.to_thread(resolve, lora_model_id, kind="agent")
                break
            except (OSError, TimeoutError):
                if attempt == self._tries:
                    raise
                await asyncio.sleep(2**attempt)
        self._number += 1
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(folder),
            lora_assigned_int_id=self._number,
        )
