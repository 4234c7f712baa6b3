"""One real service for all tests of this folder: local Ray Serve, HTTP on 127.0.0.1, tokens on.

The language model is a random Llama of some thousand weights. Its words mean nothing, but they are
constrained by the grammar, so every turn is a well-formed one.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ecg_agent_ray import ecg
from ecg_agent_ray.agent.load import AgentManifest, write_manifest
from ecg_agent_ray.plugins.tracking import configure
from ecg_agent_ray.registry import ModelVersion, log_classifier, resolve
from ecg_agent_ray.serving import ServiceConfig, TokenFile, running_service
from ecg_agent_ray.serving.config import (
    DeploymentConfig,
    DeploymentsConfig,
    LimitsConfig,
    ModelsConfig,
    TimeoutsConfig,
    TracesConfig,
)

EXPORTER = find_spec("opentelemetry.exporter.otlp") is not None
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Replicas own their process and its log; here they are made within a test."""
    logger = logging.getLogger("ecg_agent_ray")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


@dataclass(frozen=True)
class Service:
    """Where the service is and with which tokens."""

    url: str
    tokens: dict[str, str]
    tokens_file: Path
    store: Path
    agent_folder: Path
    registry: str
    """URI of the MLflow store whose champion classifier is followed."""

    def client(self, name: str | None = "alice") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=180)

    def register(self, folder: Path | None = None, alias: str | None = None) -> ModelVersion:
        """The shipped classifier, or that in ``folder``, as a new version."""
        artifacts = self.store.parent / "artifacts"
        configure(self.registry, artifact_root=artifacts, experiment="serving")
        with mlflow.start_run() as run:
            return log_classifier(
                folder or resolve("builtin:classifier"),
                run_id=run.info.run_id,
                metrics={"macro_auroc": 0.9},
                alias=alias,
            )


@pytest.fixture(scope="session")
def tiny_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent folder whose base model is a random Llama over bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    base, agent = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("agent")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(base)
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
        )
    )
    # makes the names of the tool calls likely, so that the tests see some
    with torch.no_grad():
        for letter, factor in (("c", -20), ("m", 20)):
            model.lm_head.weight[fast.convert_tokens_to_ids(letter)] *= factor
    model.save_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(agent)
    write_manifest(agent, AgentManifest(base_model=str(base)))
    (agent / "README.md").write_text("A random model for tests.\n")
    return agent


class Collector:
    """An OTLP/HTTP endpoint: keeps the spans that replicas send, with their process's number."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for found in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {a.key: a.value for a in found.resource.attributes}
                    for scope in found.scope_spans:
                        spans.extend((about["process.pid"].int_value, s) for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_agent: Path,
    ray_cluster: Any,
    collector: Collector,
    empty_database: Path,
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(empty_database, folder / "mlflow.db")
    registry = f"sqlite:///{folder / 'mlflow.db'}"
    tokens_file = folder / "tokens"
    scopes = {"alice": ["read", "chat"], "bob": ["read", "chat"], "reader": ["read"]}
    tokens = {name: TokenFile(tokens_file).create(name, names) for name, names in scopes.items()}
    small = DeploymentConfig(num_cpus=0.2, graceful_shutdown_s=2)
    config = ServiceConfig(
        port=0,
        agent=str(tiny_agent),
        classifier="auto",
        store=str(folder / "ecgs"),
        tokens_file=tokens_file,
        tracking_uri=registry,
        models=ModelsConfig(follow_s=2),
        traces=TracesConfig(endpoint=collector.url if EXPORTER else None),
        # a busy machine is not a missing part
        timeouts=TimeoutsConfig(ready_s=30),
        limits=LimitsConfig(upload_bytes=2_000_000, duration_s=60, messages=12, message_chars=500),
        deployments=DeploymentsConfig(
            ingress=small, measurement=small, classification=small, agent=small
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECG_AGENT_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        known = Service("", tokens, tokens_file, folder / "ecgs", tiny_agent, registry)
        known.register(alias="champion")
        mlflow.set_tracking_uri(None)
        with running_service(config) as url:
            yield replace(known, url=url)


def wfdb_parts(header: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """A WFDB record as multipart parts."""
    paths = (header, header.with_suffix(".dat"))
    return [("files", (path.name, path.read_bytes())) for path in paths]


@pytest.fixture(scope="session")
def sample_path() -> Path:
    return ecg.samples()[0]


@pytest.fixture(scope="session")
def ecg_id(service: Service, sample_path: Path) -> str:
    """An ECG of alice's that no test deletes."""
    with service.client() as client:
        answer = client.post("/v1/ecgs", files=wfdb_parts(sample_path))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
