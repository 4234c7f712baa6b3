"""The MLflow projects: what they declare is right, and each runs locally and on Ray."""

from __future__ import annotations

import json
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import typer
import yaml

from ecg_agent_ray import ecg
from ecg_agent_ray.dialogue import write_dialogues
from ecg_agent_ray.shipped import shipped

PROJECTS = sorted(path.parent.name for path in shipped("mlflow_projects").glob("*/MLproject"))
ENTRY_POINTS = [
    (project, name)
    for project in PROJECTS
    for name in yaml.safe_load(shipped(f"mlflow_projects/{project}/MLproject").read_text())[
        "entry_points"
    ]
]


def entry_point(project: str, name: str) -> dict[str, Any]:
    text = shipped(f"mlflow_projects/{project}/MLproject").read_text()
    found: dict[str, Any] = yaml.safe_load(text)["entry_points"][name]
    return found


def test_the_projects_are_those_of_the_readme() -> None:
    assert PROJECTS == ["classifier", "evaluation", "llm", "pipeline", "tool_outputs"]


def test_the_environment_is_made_from_the_constraints() -> None:
    script = runpy.run_path(str(shipped("mlflow_projects/pin_environment.py")))
    assert shipped("mlflow_projects/python_env.yaml").read_text() == script["text"]()


@pytest.mark.parametrize(("project", "name"), ENTRY_POINTS)
def test_parameters_have_a_type_and_say_what_they_are(project: str, name: str) -> None:
    parameters = entry_point(project, name)["parameters"]
    assert parameters
    for parameter in parameters.values():
        assert parameter["type"] in ("string", "float", "path", "uri")
        assert parameter["description"].endswith(".")


@pytest.mark.parametrize(("project", "name"), ENTRY_POINTS)
def test_commands_fit_the_command_line_and_the_configurations(project: str, name: str) -> None:
    from mlflow.projects.utils import load_project

    loaded = load_project(str(shipped(f"mlflow_projects/{project}")))
    assert loaded.env_config_path.endswith("python_env.yaml")
    point = loaded.get_entry_point(name)
    given = {key: "given" for key, value in point.parameters.items() if value.default is None}
    for command in point.compute_command(given, None).split("&&"):
        words = shlex.split(command)
        if words[:2] == ["ecg-agent", "train"]:
            overrides = [word for word in words[5:] if "=" in word]
            load_train(words[2], words[4], overrides)
        elif words[0] == "ecg-agent":
            check_options(words[1:])
        else:
            assert words[:3] == ["python", "-m", "ecg_agent_ray.pipelines.agent_chain"]
            from ecg_agent_ray.pipelines.agent_chain import AgentChainConfig
            from ecg_agent_ray.training.config import load_config

            config = load_config(AgentChainConfig, None, words[3:])
            # the project's defaults are the chain's own
            assert config == AgentChainConfig()


def load_train(verb: str, config: str, overrides: list[str]) -> None:
    from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
    from ecg_agent_ray.training.config import load_config
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
    from ecg_agent_ray.training.pretrain_config import PretrainConfig

    models = {
        "classifier": ClassifierFinetuneConfig,
        "llm": LLMFinetuneConfig,
        "pretrain": PretrainConfig,
    }
    assert load_config(models[verb], shipped(f"jobs/configs/{config}.yaml"), overrides)


def check_options(words: list[str]) -> None:
    from ecg_agent_ray.cli import app

    command: Any = typer.main.get_command(app)
    context = click.Context(command)
    while words and not words[0].startswith("-") and hasattr(command, "get_command"):
        command = command.get_command(context, words.pop(0))
        assert command is not None
    known = {text for option in command.params for text in (*option.opts, *option.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def run_project(
    name: str,
    backend: str,
    store: str,
    home: Path,
    *,
    folder: Path | None = None,
    env_manager: str = "local",
    extra_env: dict[str, str] | None = None,
    **params: Any,
) -> str:
    """``mlflow run`` in a process of its own; returns the run's id."""
    folder = folder or Path(str(shipped(f"mlflow_projects/{name}")))
    command = [sys.executable, "-m", "mlflow", "run", str(folder), "-b", backend]
    command += ["--env-manager", env_manager, "--run-name", f"{name}-{backend}"]
    for key, value in params.items():
        command += ["-P", f"{key}={value}"]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"MLFLOW_TRACKING_URI": store, "ECG_AGENT_HOME": str(home), "PATH": tools}
    env |= extra_env or {}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (found,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"run_name = '{name}-{backend}'",
        output_format="list",
    )
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.project.backend"] == backend
    return str(found.info.run_id)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    for header in ecg.samples()[:2]:
        for path in (header, header.with_suffix(".dat")):
            (folder / path.name).symlink_to(path.resolve())
    return folder


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    from ecg_agent_ray.dialogue.synthesis import synthesize
    from ecg_agent_ray.pipelines.facts import collect_facts

    facts = collect_facts(ecg.samples()[:2]).facts
    return write_dialogues(tmp_path / "dialogues.jsonl", synthesize(facts, n=6, seed=1))


both_ways = pytest.mark.parametrize("backend", ["local", "ray"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@both_ways
def test_tool_outputs_runs(backend: str, store: str, tmp_path: Path, records: Path) -> None:
    run = run_project(
        "tool_outputs", backend, store, tmp_path / "home", ecg_dir=records,
        output_dir=tmp_path / "tables",
    )  # fmt: skip
    assert mlflow.get_run(run).data.metrics["n_extracted"] == 2
    assert (tmp_path / "tables" / "measurements.csv").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@both_ways
def test_classifier_runs(backend: str, store: str, tmp_path: Path) -> None:
    output = tmp_path / "classifier"
    run = run_project("classifier", backend, store, tmp_path / "home", epochs=1, output=output)
    found = mlflow.get_run(run)
    assert found.inputs.dataset_inputs
    assert 0 <= found.data.metrics["macro_auroc"] <= 1
    version = mlflow.MlflowClient().get_model_version_by_alias("ecg-classifier", "challenger")
    assert version.run_id == run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@both_ways
def test_llm_runs(backend: str, store: str, tmp_path: Path, dialogues: Path) -> None:
    run = run_project(
        "llm", backend, store, tmp_path / "home", train=dialogues, steps=1, max_tokens=512,
        output=tmp_path / "llm",
    )  # fmt: skip
    assert mlflow.get_run(run).data.metrics["loss"] > 0
    version = mlflow.MlflowClient().get_model_version_by_alias("ecg-agent", "challenger")
    assert version.run_id == run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@both_ways
def test_evaluation_runs(
    backend: str, store: str, tmp_path: Path, records: Path, dialogues: Path
) -> None:
    run = run_project(
        "evaluation", backend, store, tmp_path / "home", dialogues=dialogues, ecg_dir=records,
        limit=1, output=tmp_path / "evaluation",
    )  # fmt: skip
    metrics = mlflow.get_run(run).data.metrics
    assert metrics["n_dialogues"] == 1
    assert 0 <= metrics["next_action_accuracy"] <= 1
    assert (tmp_path / "evaluation" / "metrics.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_in_an_environment_that_mlflow_makes(
    store: str, tmp_path: Path, records: Path
) -> None:
    """All of ``python_env.yaml`` is installed: minutes, and gigabytes that are removed again."""
    python = platform.python_version()
    pyenv = shutil.which("pyenv")
    if pyenv is None or subprocess.run([pyenv, "prefix", python], capture_output=True).returncode:
        pytest.skip(f"MLflow's virtualenv environments need pyenv with Python {python}")
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    root = Path(str(shipped("mlflow_projects"))).parent
    subprocess.run([*build, "-w", str(wheels), str(root)], check=True)
    projects = tmp_path / "mlflow_projects"
    shutil.copytree(str(shipped("mlflow_projects")), projects)
    # MLflow would have pyenv build the newest 3.11
    pins = projects / "python_env.yaml"
    pins.write_text(pins.read_text().replace("python: '3.11'", f"python: '{python}'"))
    with tempfile.TemporaryDirectory() as environments:
        run = run_project(
            "tool_outputs", "local", store, tmp_path / "home", folder=projects / "tool_outputs",
            env_manager="virtualenv",
            extra_env={
                "MLFLOW_ENV_ROOT": environments,
                "PIP_FIND_LINKS": f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}",
                "PATH": os.environ["PATH"],
                "PYTHONPATH": "",
            },
            ecg_dir=records, output_dir=tmp_path / "tables",
        )  # fmt: skip
        (made,) = Path(environments).glob("*/lib/python*/site-packages/ecg_agent_ray")
        assert not made.is_symlink()
    found = mlflow.get_run(run)
    assert found.data.tags["mlflow.project.env"] == "virtualenv"
    assert found.data.metrics["n_extracted"] == 2
    assert (tmp_path / "tables" / "measurements.csv").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_pipeline_promotes_and_takes_over_what_is_unchanged(store: str, tmp_path: Path) -> None:
    from ecg_agent_ray.pipelines.agent_chain import STEPS

    home = tmp_path / "home"
    parent = run_project("pipeline", "local", store, home, output=tmp_path / "out")
    client = mlflow.MlflowClient()
    for name in ("ecg-classifier", "ecg-agent"):
        assert int(client.get_model_version_by_alias(name, "champion").version) == 1
    assert steps_of(parent) == dict.fromkeys(STEPS, False)
    command = [sys.executable, "-m", "ecg_agent_ray.pipelines.agent_chain"]
    command += [f"output={tmp_path / 'out'}", "experiment=Default"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"MLFLOW_TRACKING_URI": store, "ECG_AGENT_HOME": str(home)}
    for extra, ran in (([], ()), (["start=gate"], ("gate",))):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-4000:]
        run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
        assert steps_of(run_id) == {name: name not in ran for name in STEPS}


def steps_of(parent: str) -> dict[str, bool]:
    """Child runs' names, and whether each took over an earlier result."""
    children = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`mlflow.parentRunId` = '{parent}'",
        output_format="list",
    )
    return {run.data.tags["chain.step"]: "chain.reused_run" in run.data.tags for run in children}
