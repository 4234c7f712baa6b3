"""The MLflow projects: what they declare is right, and each runs locally and on Ray."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
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


def run_project(name: str, backend: str, store: str, home: Path, **params: Any) -> str:
    """``mlflow run`` in a process of its own; returns the run's id."""
    folder = shipped(f"mlflow_projects/{name}")
    command = [sys.executable, "-m", "mlflow", "run", str(folder), "-b", backend]
    command += ["--env-manager", "local", "--run-name", f"{name}-{backend}"]
    for key, value in params.items():
        command += ["-P", f"{key}={value}"]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"MLFLOW_TRACKING_URI": store, "ECG_AGENT_HOME": str(home), "PATH": tools}
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_each_project_runs(
    backend: str, store: str, tmp_path: Path, records: Path, dialogues: Path
) -> None:
    home = tmp_path / "home"
    run = run_project(
        "tool_outputs", backend, store, home, ecg_dir=records, output_dir=tmp_path / "tables"
    )
    assert mlflow.get_run(run).data.metrics["n_extracted"] == 2
    assert (tmp_path / "tables" / "measurements.csv").is_file()
    output = tmp_path / "classifier"
    run = run_project("classifier", backend, store, home, epochs=1, output=output)
    assert mlflow.get_run(run).inputs.dataset_inputs
    run = run_project(
        "llm", backend, store, home, train=dialogues, steps=1, max_tokens=512,
        output=tmp_path / "llm",
    )  # fmt: skip
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("ecg-agent", "challenger")
    assert version.run_id == run
    assert client.get_model_version_by_alias("ecg-classifier", "challenger").version == "1"
    run = run_project(
        "evaluation", backend, store, home, dialogues=dialogues, ecg_dir=records, limit=2,
        output=tmp_path / "evaluation",
    )  # fmt: skip
    assert 0 <= mlflow.get_run(run).data.metrics["next_action_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_pipeline_promotes_and_takes_over_what_is_unchanged(store: str, tmp_path: Path) -> None:
    from ecg_agent_ray.pipelines.agent_chain import STEPS

    home = tmp_path / "home"
    parent = run_project("pipeline", "local", store, home, output=tmp_path / "out")
    client = mlflow.MlflowClient()
    for name in ("ecg-classifier", "ecg-agent"):
        assert client.get_model_version_by_alias(name, "champion").version == "1"
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
