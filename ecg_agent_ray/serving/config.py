"""What the service is made of, as one typed tree: the ``args`` of a Serve application.

``serve_configs/*.yaml`` are files in Ray Serve's own schema whose only application is built by
``ecg_agent_ray.serving:build`` from a :class:`ServiceConfig`. ``ecg-agent serve``, ``serve deploy``
and KubeRay therefore all read the same file.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.settings import load_settings
from ecg_agent_ray.shipped import shipped

__all__ = [
    "AutoscalingConfig",
    "DeploymentConfig",
    "DeploymentsConfig",
    "LimitsConfig",
    "LlmConfig",
    "ModelsConfig",
    "ServiceConfig",
    "TimeoutsConfig",
    "TracesConfig",
    "is_loopback",
    "load_service_config",
]

IMPORT_PATH = "ecg_agent_ray.serving:build"
RETRY_AFTER_S = 5
"""Seconds that a 503 asks its client to wait."""
_STATUSES = 8
"""Readiness checks that a replica with a queue of its own answers beside its work."""
_UNBOUNDED = 10_000


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AutoscalingConfig(_Model):
    """Bounds of Ray Serve's autoscaler for one deployment."""

    min_replicas: PositiveInt = Field(default=1, description="Replicas kept when idle.")
    max_replicas: PositiveInt = Field(default=4, description="Replicas at most.")
    target_ongoing_requests: PositiveFloat = Field(
        default=2.0, description="Requests per replica that the autoscaler aims at."
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})"
            )
        return self


class DeploymentConfig(_Model):
    """Size and queue of one deployment."""

    num_replicas: PositiveInt = Field(
        default=1, description="Fixed number of replicas; unused where `autoscaling` is given."
    )
    autoscaling: AutoscalingConfig | None = Field(
        default=None, description="Autoscaling bounds; null keeps `num_replicas`."
    )
    num_cpus: float = Field(
        default=0.1,
        ge=0,
        description="CPUs that one replica reserves in Ray's scheduler (a budget, not a fence).",
    )
    num_gpus: float = Field(default=0, ge=0, description="GPUs that one replica reserves.")
    threads: PositiveInt = Field(
        default=1, description="OMP_NUM_THREADS of one replica, which torch and numpy follow."
    )
    max_ongoing_requests: PositiveInt = Field(
        default=8, description="Requests one replica works on at the same time."
    )
    max_queued_requests: int = Field(
        default=64,
        ge=-1,
        description="Requests that wait before the answer is 503; -1 is no bound. For measurement "
        "and classification per replica and again per caller, else per caller.",
    )
    health_check_period_s: PositiveFloat = Field(default=10, description="Seconds between checks.")
    health_check_timeout_s: PositiveFloat = Field(
        default=60, description="Seconds until a silent replica is replaced."
    )
    graceful_shutdown_s: PositiveFloat = Field(
        default=10, description="Seconds a replica gets to finish its requests when it is stopped."
    )

    @property
    def most_let_in(self) -> int:
        """Requests that a replica with a queue of its own holds, with room for its status."""
        queued = self.max_queued_requests
        return self.max_ongoing_requests + (queued if queued >= 0 else _UNBOUNDED) + _STATUSES

    def options(self, environment: dict[str, str], *, let_in: int | None = None) -> dict[str, Any]:
        """Keyword arguments of ``Deployment.options``; ``environment`` is set in the replica.

        ``let_in``: requests that Serve lets a replica have at once, which then does the refusing;
        None is ``max_ongoing_requests``.
        """
        size: dict[str, Any] = (
            {"autoscaling_config": self.autoscaling.model_dump()}
            if self.autoscaling
            else {"num_replicas": self.num_replicas}
        )
        return size | {
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": {
                    "env_vars": {**environment, "OMP_NUM_THREADS": str(self.threads)},
                },
            },
            "max_ongoing_requests": let_in or self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_s,
            "graceful_shutdown_wait_loop_s": min(1.0, self.graceful_shutdown_s),
        }


class DeploymentsConfig(_Model):
    """One entry per deployment of the graph."""

    ingress: DeploymentConfig = Field(
        default=DeploymentConfig(max_ongoing_requests=256, max_queued_requests=512),
        description="HTTP: routes, tokens, limits. Holds no model.",
    )
    measurement: DeploymentConfig = Field(
        # more at once hold each other up: eight threads measure a quarter less than three
        default=DeploymentConfig(max_ongoing_requests=3),
        description="Reads uploads, measures, assesses quality, plots. CPU only.",
    )
    classification: DeploymentConfig = Field(
        default=DeploymentConfig(max_ongoing_requests=3),
        description="The ECG classifier and its explanations.",
    )
    agent: DeploymentConfig = Field(
        default=DeploymentConfig(max_ongoing_requests=16, max_queued_requests=16),
        description="The language model and the turn loop; calls the tools through their handles.",
    )
    llm: DeploymentConfig = Field(
        default=DeploymentConfig(num_cpus=1, max_ongoing_requests=64),
        description="vLLM; exists only where the service's `llm` is given. GPUs are those of "
        "`tensor_parallel_size` and `accelerator_type`, not `num_gpus`.",
    )


class LimitsConfig(_Model):
    """What one request may ask for. Exceeding a limit is a 413, 422 or 429, never a guess."""

    upload_bytes: PositiveInt = Field(
        default=32 * 2**20, description="Bytes of one upload, all its files together."
    )
    json_bytes: PositiveInt = Field(default=2**20, description="Bytes of any other request body.")
    upload_files: PositiveInt = Field(default=8, description="Files of one upload.")
    duration_s: PositiveFloat = Field(default=3600, description="Seconds of one recording.")
    leads: PositiveInt = Field(default=32, description="Leads of one recording.")
    sampling_rate_hz: PositiveFloat = Field(default=10_000, description="Samples per second.")
    samples: PositiveInt = Field(
        default=64_000_000, description="Samples of one recording, all leads together."
    )
    signal_samples: PositiveInt = Field(
        default=2_000_000, description="Samples in one answer of the signal endpoint."
    )
    messages: PositiveInt = Field(default=64, description="Messages of one dialogue.")
    message_chars: PositiveInt = Field(default=4_000, description="Characters of one message.")
    requests_per_minute: PositiveInt | None = Field(
        default=None,
        description="Requests a token may make per minute and ingress replica; null is no limit.",
    )


class TimeoutsConfig(_Model):
    """Seconds until a hop gives up with a 503. Ray Serve's own default is none."""

    body_s: PositiveFloat = Field(
        default=60, description="Receiving a request's whole body; a slower client gets a 408."
    )
    store_s: PositiveFloat = Field(default=10, description="One access to the ECG store.")
    upload_s: PositiveFloat = Field(default=60, description="Reading an upload.")
    tool_s: PositiveFloat = Field(default=60, description="One tool call.")
    chat_s: PositiveFloat = Field(default=300, description="One chat turn, tools included.")
    ready_s: PositiveFloat = Field(default=5, description="One part's answer to a readiness check.")


class ModelsConfig(_Model):
    """How the service follows the registry."""

    follow_s: PositiveFloat | None = Field(
        default=30,
        description="Seconds between looks at the aliases; null keeps what was loaded at the "
        "start. A replica holds the old and the new version for the moment of the change.",
    )
    canary_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the ECGs answered by the versions with the alias `challenger`, "
        "which are then held in memory, too. The classifier's are compared with the champion's "
        "answer for the same ECG; the agent's are counted apart in the metrics.",
    )


class LlmConfig(_Model):
    """Ray Serve LLM (vLLM) as the agent's language model, in deployments of its own."""

    model: str = Field(
        description="Base weights: a hub name, a folder on every node, a remote folder (s3://…) or "
        "`package:…`. The agents that the service follows must be adapters of exactly these, or be "
        "these.",
    )
    max_adapters: PositiveInt = Field(
        default=4, description="LoRA adapters that one replica holds; the least used makes room."
    )
    max_lora_rank: PositiveInt = Field(default=64, description="Largest rank of an adapter.")
    max_model_len: PositiveInt = Field(
        default=8192, description="Tokens of prompt and answer together."
    )
    accelerator_type: str | None = Field(
        default=None, description="GPU by Ray's name for it (A10G, L4, H100); null takes any."
    )
    cpu: bool = Field(default=False, description="Run on CPUs, with a CPU build of vLLM.")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's own arguments, such as tensor_parallel_size or "
        "gpu_memory_utilization. They win over those above.",
    )


class TracesConfig(_Model):
    """OpenTelemetry traces; they name no ECG and hold no word of a dialogue."""

    endpoint: str | None = Field(
        default=None,
        description="OTLP/HTTP address such as http://collector:4318/v1/traces, `mlflow` for the "
        "tracking server's own, or null for no traces.",
    )
    share: float = Field(
        default=1.0, ge=0, le=1, description="Share of requests that are traced from here on."
    )


class ServiceConfig(_Model):
    """The whole service. Unknown keys are refused."""

    host: str = Field(
        default="127.0.0.1",
        description="Address `ecg-agent serve` binds; under KubeRay `http_options.host` decides.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    agent: str = Field(
        default="auto",
        description="URI of the agent: `models:/…`, a folder, `builtin:`, `openai:BASE_URL#MODEL` "
        "(any OpenAI-compatible server), or `auto`, which is "
        "models:/ecg-agent@champion where one is registered and else builtin:, and says which.",
    )
    classifier: str = Field(
        default="auto",
        description="URI of the classifier; `auto` is models:/ecg-classifier@champion where one is "
        "registered and else builtin:, and says which.",
    )
    llm: LlmConfig | None = Field(
        default=None,
        description="Ray Serve LLM for the agent's weights; null runs them with transformers in "
        "the agent's own replicas.",
    )
    store: str | None = Field(
        default=None,
        description="fsspec URL of the private ECG store; null is `ecgs` under ECG_AGENT_HOME. "
        "With more than one node it must be reachable from all (a shared volume, s3://…).",
    )
    retention_hours: PositiveFloat | None = Field(
        default=24.0, description="Hours until an uploaded ECG is deleted; null keeps it."
    )
    tokens_file: Path | None = Field(
        default=None,
        description="File of name:sha256:scopes lines; null is ECG_AGENT_API_TOKENS. Read again "
        "when it changes.",
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Without a tokens file answer requests that are not from this machine too. "
        "Anybody who reaches the port then reads every ECG.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow of the registry; null is MLFLOW_TRACKING_URI, else the local store.",
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="Per-request limits.")
    timeouts: TimeoutsConfig = Field(default=TimeoutsConfig(), description="Per-hop timeouts.")
    models: ModelsConfig = Field(
        default=ModelsConfig(), description="Following the registry's aliases; canary."
    )
    traces: TracesConfig = Field(default=TracesConfig(), description="OpenTelemetry traces.")
    deployments: DeploymentsConfig = Field(
        default=DeploymentsConfig(), description="Resources of each deployment."
    )
    deployed_as: dict[str, Any] = Field(
        default_factory=dict,
        description="Left to MLflow's deployment target, which keeps here what it deployed.",
    )

    def resolved(self) -> ServiceConfig:
        """With every null that means "from the environment" filled in, paths made absolute.

        Replicas run in other processes and perhaps on other machines, so the environment is read
        once, where the application is built.
        """
        settings = load_settings()
        tokens = self.tokens_file or settings.api_tokens
        return self.model_copy(
            update={
                "store": self.store or str(settings.home.resolve() / "ecgs"),
                "tokens_file": tokens.expanduser().resolve() if tokens else None,
                "tracking_uri": self.tracking_uri or settings.mlflow_uri,
            }
        )

    def environment(self) -> dict[str, str]:
        """Variables of the replicas: the builder's registry and caches."""
        settings = load_settings()
        return {
            "ECG_AGENT_HOME": str(settings.home.resolve()),
            "ECG_AGENT_CACHE": str(settings.cache_dir),
            "MLFLOW_TRACKING_URI": self.tracking_uri or settings.mlflow_uri,
            "MPLBACKEND": "Agg",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def check_exposure(self) -> None:
        """Refuse to listen beyond this machine without tokens.

        Raises:
            ConfigError: there is no tokens file, and ``host`` is no loopback address, or the proxy
                of a running cluster listens, wherever that does.
        """
        if self.allow_unauthenticated or (is_loopback(self.host) and not self.deployed_as):
            return
        if self.resolved().tokens_file is None:
            where = "behind the cluster's proxy" if self.deployed_as else f"on {self.host}"
            raise ConfigError(
                f"refusing to listen {where} without API tokens",
                hint="make some with `ecg-agent tokens create` and set ECG_AGENT_API_TOKENS, "
                "listen on 127.0.0.1, or set allow_unauthenticated: true",
            )


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_service_config(source: str | Path = "local") -> ServiceConfig:
    """Read a shipped configuration by name, or a file in Ray Serve's schema.

    Raises:
        ConfigError: not found, not YAML, not one application of ours, or with faulty arguments
            (all faults at once).
    """
    path = _find(str(source))
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    applications = document.get("applications") if isinstance(document, dict) else None
    ours = [
        a
        for a in (applications if isinstance(applications, list) else [])
        if isinstance(a, dict) and a.get("import_path") == IMPORT_PATH
    ]
    if len(ours) != 1:
        raise ConfigError(
            f"{path} must hold exactly one application with import_path {IMPORT_PATH}"
        )
    args = dict(ours[0].get("args") or {})
    for key in ("host", "port"):
        if key in (document.get("http_options") or {}):
            args.setdefault(key, document["http_options"][key])
    try:
        return ServiceConfig.model_validate(args)
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(str(part) for part in fault['loc']) or 'args'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigError(f"{path} has faulty arguments", problems=problems) from error


def _find(source: str) -> Path:
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigError(f"no configuration file at {path}")
        return path
    folder = shipped("serve_configs")
    path = folder / f"{source}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(known.stem for known in folder.glob("*.yaml")))
        raise ConfigError(f"no configuration named {source!r}", hint=f"there are: {names}")
    return path
