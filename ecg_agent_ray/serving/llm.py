"""Ray Serve LLM as the agent's language model: vLLM in deployments of its own.

        agent ─> llm (vLLM: base weights once, the agents' LoRA adapters multiplexed)

Covers: the configuration in Ray Serve LLM's own terms, and the engine by which the agent's replicas
speak to that deployment's handle. vLLM is imported where the application is built and in the
deployment's replicas; the agent's own replicas never import it, and a service without ``llm`` needs
neither.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from ecg_agent_ray.agent.openai_engine import ChatCompletionsEngine
from ecg_agent_ray.errors import ConfigError, MissingDependencyError, ServiceError
from ecg_agent_ray.serving.config import ServiceConfig
from ecg_agent_ray.serving.handles import CALL_FAILURES, as_service_error

__all__ = ["LLM_NAME", "HandleEngine", "adapter_engine", "build_llm", "llm_config"]

LLM_NAME = "ecg-agent-base"
"""What vLLM calls the base weights."""
_SILENCE_S = 60.0


def llm_config(config: ServiceConfig) -> Any:
    """``ray.serve.llm.LLMConfig`` of a service whose ``llm`` is given.

    Raises:
        MissingDependencyError: Ray Serve LLM or vLLM is not installed.
        ConfigError: Ray Serve LLM refuses what was configured.
    """
    serve_llm = _serve_llm()
    wanted = config.llm
    if wanted is None:
        raise ConfigError("the service has no `llm`")
    options = config.deployments.llm.options(config.environment())
    actor = options.pop("ray_actor_options")
    # plain text to HTTP clients, which this deployment has none of
    options.pop("backpressure_config")
    # vLLM's workers bring their own GPUs, one for each of tensor_parallel_size
    options["ray_actor_options"] = {"num_cpus": actor["num_cpus"]}
    lora = {
        "enable_lora": True,
        "max_loras": wanted.max_adapters,
        "max_lora_rank": wanted.max_lora_rank,
    }
    try:
        return serve_llm.LLMConfig(
            model_loading_config={"model_id": LLM_NAME, "model_source": wanted.model},
            lora_config={"max_num_adapters_per_replica": wanted.max_adapters},
            accelerator_type=wanted.accelerator_type,
            accelerator_config={"kind": "cpu"} if wanted.cpu else None,
            engine_kwargs={"max_model_len": wanted.max_model_len, **lora, **wanted.engine_kwargs},
            deployment_config=options,
            runtime_env=actor["runtime_env"],
        )
    except ValueError as error:
        raise ConfigError(f"Ray Serve LLM refuses the configuration: {error}") from error


def build_llm(config: ServiceConfig) -> Application:
    """The ``llm`` deployment, to be bound into the graph; raises as :func:`llm_config` does."""
    built = llm_config(config)
    from ecg_agent_ray.serving.vllm_replica import RegistryAdapters, VllmReplica

    app: Application = _serve_llm().build_llm_deployment(
        built,
        bind_kwargs={"model_downloader": RegistryAdapters},
        override_serve_options={"name": "llm"},
        deployment_cls=VllmReplica,
    )
    return app


def _serve_llm() -> Any:
    try:
        import vllm  # noqa: F401
        from ray.serve import llm
    except ImportError as error:
        raise MissingDependencyError(
            f"`llm` is served by Ray Serve LLM, which needs vLLM: {error}",
            hint="pip install 'ecg-agent-ray[vllm]', or leave `llm` out: the agent's replicas then "
            "run the weights themselves",
        ) from error
    return llm


class HandleEngine(ChatCompletionsEngine):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` over a deployment's handle. Thread-safe.

    Args:
        handle: of a deployment whose ``write`` takes the body of a chat completion and yields the
            chunks of its stream.
        model: what vLLM knows the weights by: the base's name, or an adapter's URI, which is also
            what the replicas are chosen by (one that holds the adapter already, if there is one).
        silence_s: until a stream without a next chunk is given up with a ServiceError.
    """

    def __init__(self, handle: DeploymentHandle, model: str, silence_s: float = _SILENCE_S) -> None:
        super().__init__(f"llm#{model}", model, grammar="vllm")
        self._silence_s = silence_s
        adapter = "" if model == LLM_NAME else model
        self._handle = handle.options(
            stream=True, method_name="write", multiplexed_model_id=adapter
        )

    def chunks(self, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        stream: Any = self._handle.remote(dict(body))
        silent, chunk_came = threading.Event(), threading.Event()
        ended = False

        def watch() -> None:
            while chunk_came.wait(self._silence_s):
                chunk_came.clear()
                if ended:
                    return
            silent.set()
            stream.cancel()

        # a handle's stream has no timeout of its own, and this thread waits in it
        threading.Thread(target=watch, daemon=True, name="llm-silence").start()
        try:
            for chunk in stream:
                chunk_came.set()
                yield chunk
        except (*CALL_FAILURES, CancelledError, asyncio.CancelledError) as error:
            if silent.is_set():
                raise ServiceError(
                    f"the language model said nothing for {self._silence_s:.0f} s"
                ) from error
            if not isinstance(error, CALL_FAILURES):
                raise
            raise as_service_error(error, "the language model") from error
        finally:
            ended = True
            chunk_came.set()
            # a turn that ends early, at a tool's output or because its client left
            stream.cancel()


def adapter_engine(
    handle: DeploymentHandle, config: ServiceConfig, version: str, folder: str | Path
) -> HandleEngine:
    """The engine of an agent whose files are in ``folder``.

    Raises:
        ConfigError: it was not trained on the weights that ``llm`` serves, or is merged.
    """
    from ecg_agent_ray.agent.load import agent_weights

    assert config.llm is not None
    base, adapter = agent_weights(folder)
    if adapter is None:
        if Path(base) != Path(config.llm.model).expanduser().resolve():
            raise ConfigError(
                f"{version} holds merged weights, and `llm.model` serves {config.llm.model}",
                hint=f"set llm.model to {base}, or register the adapter",
            )
        return HandleEngine(handle, LLM_NAME)
    if base != config.llm.model:
        raise ConfigError(
            f"{version} is an adapter of {base}, and `llm.model` is {config.llm.model}",
            hint="serve the base model that the adapter was trained on",
        )
    return HandleEngine(handle, version)


def refused(answer: Any) -> ServiceError:
    """What vLLM's error answer means to the agent."""
    error = getattr(answer, "error", answer)
    return ServiceError(f"the language model refused: {getattr(error, 'message', error)}")
