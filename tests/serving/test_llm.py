"""Ray Serve LLM as the agent's language model: its configuration, its absence, its handle.

vLLM itself is not installed where these tests usually run; what needs it is skipped there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.agent import Agent
from ecg_agent_ray.agent.load import AgentManifest, write_manifest
from ecg_agent_ray.errors import ConfigError, MissingDependencyError, ServiceError
from ecg_agent_ray.serving import ServiceConfig, build_app
from ecg_agent_ray.serving.config import DeploymentConfig, DeploymentsConfig, LlmConfig
from ecg_agent_ray.serving.llm import LLM_NAME, HandleEngine, adapter_engine, llm_config

VLLM = find_spec("vllm") is not None
USER = [{"role": "user", "content": "heart rate?"}]
SAY = "Action: response_followup\nThought: I answer.\nContent: A heart beats."


@pytest.mark.skipif(VLLM, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        build_app(ServiceConfig(llm=LlmConfig(model="some/model")))
    assert "ecg-agent-ray[vllm]" in (caught.value.hint or "")
    assert "ray.serve.llm" not in sys.modules


@pytest.mark.skipif(not VLLM, reason="vLLM is not installed")
def test_the_configuration_in_ray_serve_llms_terms() -> None:
    wanted = LlmConfig(
        model="meta-llama/Llama-3.2-1B-Instruct",
        max_adapters=3,
        accelerator_type="L4",
        engine_kwargs={"tensor_parallel_size": 2},
    )
    size = DeploymentConfig(num_replicas=2, max_ongoing_requests=32, num_cpus=1.5)
    made = llm_config(ServiceConfig(llm=wanted, deployments=DeploymentsConfig(llm=size)).resolved())
    assert made.model_id == LLM_NAME
    assert made.model_loading_config.model_source == wanted.model
    assert made.accelerator_type == "L4"
    assert made.multiplex_config().max_num_models_per_replica == 3
    assert made.engine_kwargs == {
        "max_model_len": 8192,
        "enable_lora": True,
        "max_loras": 3,
        "max_lora_rank": 64,
        "tensor_parallel_size": 2,
    }
    assert made.deployment_config["num_replicas"] == 2
    assert made.deployment_config["max_ongoing_requests"] == 32
    assert made.deployment_config["ray_actor_options"] == {"num_cpus": 1.5}
    assert "MLFLOW_TRACKING_URI" in made.runtime_env["env_vars"]
    with pytest.raises(ConfigError, match="Ray Serve LLM refuses"):
        llm_config(ServiceConfig(llm=LlmConfig(model="m", accelerator_type="abacus")).resolved())


@pytest.fixture
def writer(service: Any) -> Iterator[Any]:
    """Handle of a deployment that writes as vLLM's does, in the Serve of the service."""
    from ray import serve

    def piece(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}

    said = SAY

    class Writer:
        async def write(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            if body["model"] != serve.get_multiplexed_model_id() and body["model"] != LLM_NAME:
                raise ServiceError("another adapter than the handle was asked for")
            if body["messages"][-1]["content"] == "fail":
                raise ServiceError("the language model refused: too long")
            if body["messages"][-1]["content"] == "stall":
                await asyncio.sleep(120)
            yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
            for word in said.split(" "):
                yield piece(f"{word} ")
            yield piece(finish="stop")
            yield {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}

    app: Any = serve.deployment(Writer, ray_actor_options={"num_cpus": 0}).bind()
    yield serve.run(app, name="writer", route_prefix=None)
    serve.delete("writer")


def test_a_turn_over_a_handle(writer: Any) -> None:
    for model in (LLM_NAME, "models:/ecg-agent/7"):
        final = Agent(HandleEngine(writer, model)).respond(USER)
        assert final.content == "A heart beats."
        assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (11, 7)
    with pytest.raises(ServiceError, match="too long"):
        Agent(HandleEngine(writer, LLM_NAME)).respond([{"role": "user", "content": "fail"}])
    with pytest.raises(ServiceError, match="said nothing for 1 s"):
        stalls = HandleEngine(writer, LLM_NAME, silence_s=1)
        Agent(stalls).respond([{"role": "user", "content": "stall"}])


def test_only_agents_of_the_served_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    write_manifest(tmp_path / "adapter", AgentManifest(base_model="some/base"))
    (tmp_path / "merged").mkdir()
    write_manifest(tmp_path / "merged", AgentManifest())

    class Handle:
        def options(self, **chosen: Any) -> dict[str, Any]:
            return chosen

    def engine(model: str, folder: str) -> Any:
        config = ServiceConfig(llm=LlmConfig(model=model))
        handle: Any = Handle()
        return adapter_engine(handle, config, "models:/ecg-agent/7", tmp_path / folder)

    chosen = engine("some/base", "adapter")._handle
    assert chosen["multiplexed_model_id"] == "models:/ecg-agent/7"
    assert engine(str(tmp_path / "merged"), "merged")._handle["multiplexed_model_id"] == ""
    with pytest.raises(ConfigError, match="adapter of some/base"):
        engine("other/base", "adapter")
    with pytest.raises(ConfigError, match="merged weights"):
        engine("some/base", "merged")
