"""Put classifiers and agents into MLflow's registry as light, pickle-free pyfunc models.

A model is the directory with its safetensors, a three-line script that names the class in this
package (models from code), a signature, pinned requirements and the model card. The weights of an
agent's base LLM are not copied: the adapter's directory refers to them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import CheckpointError
from ecg_agent_ray.registry.store import (
    CHALLENGER,
    EVALUATION_TAG,
    ModelVersion,
    find_version,
    model_name,
    registry_client,
)
from ecg_agent_ray.registry.uris import pinned

__all__ = ["attach_evaluation", "log_agent", "log_classifier", "register_directory"]

_COMMON = ("ecg-agent-ray", "mlflow", "numpy", "scipy", "torch", "safetensors", "wfdb", "neurokit2")
_AGENT = (*_COMMON, "transformers", "tokenizers", "peft", "accelerate", "gguf", "xgrammar")


def log_classifier(
    directory: str | Path,
    *,
    run_id: str,
    metrics: Mapping[str, float] | None = None,
    data_digest: str | None = None,
    lead_configuration: str = "12-lead",
    tags: Mapping[str, str] | None = None,
    alias: str | None = CHALLENGER,
) -> ModelVersion:
    """Register a classifier directory as a new version of ``ecg-classifier…``.

    Parameters
    ----------
    directory : with ``model.safetensors``, ``config.json`` and ``README.md``
    run_id : the training run, which the model is linked to
    metrics : the evaluation that gates read, sample sizes among them (``n_records``)
    data_digest : digest of the training data
    lead_configuration : ``12-lead``, ``I`` or ``II``; chooses the registered model
    tags : more tags of the version
    alias : set on the new version

    Raises
    ------
    CheckpointError
        The directory lacks a file, or holds a pickle.
    """
    folder = Path(directory)
    _check_directory(folder, ("model.safetensors", "config.json", "README.md"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _register(
        "classifier",
        folder,
        run_id=run_id,
        lead_configuration=lead_configuration,
        metrics=metrics,
        tags={
            "base_model": str(config.get("architecture", "ecg-transformer")),
            "data_digest": data_digest or "",
            **(tags or {}),
        },
        alias=alias,
    )


def log_agent(
    directory: str | Path,
    *,
    run_id: str,
    metrics: Mapping[str, float] | None = None,
    data_digest: str | None = None,
    lead_configuration: str | None = None,
    classifier_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
    alias: str | None = CHALLENGER,
) -> ModelVersion:
    """Register an agent directory as a new version of ``ecg-agent…``.

    Parameters are those of :func:`log_classifier`; the directory holds ``adapter_config.json``,
    ``adapter_model.safetensors``, ``ecg_agent.json`` and ``README.md``. ``classifier_uri`` is the
    classifier the agent was evaluated with: an alias is replaced by the version it points to now,
    written into the model's ``ecg_agent.json`` and the tag ``classifier``. Left out, the
    directory's own is kept.
    """
    folder = Path(directory)
    _check_directory(
        folder,
        ("adapter_config.json", "adapter_model.safetensors", "ecg_agent.json", "README.md"),
    )
    about = json.loads((folder / "ecg_agent.json").read_text(encoding="utf-8"))
    leads = lead_configuration or about.get("lead_configuration", "12-lead")
    classifier = pinned(classifier_uri) if classifier_uri else about.get("classifier")
    about |= {"lead_configuration": leads, "classifier": classifier}
    return _register(
        "agent",
        folder,
        run_id=run_id,
        lead_configuration=leads,
        metrics=metrics,
        tags={
            "base_model": str(about["base_model"]),
            "data_digest": data_digest or "",
            "classifier": classifier or "builtin:",
            **(tags or {}),
        },
        alias=alias,
        replace={"ecg_agent.json": json.dumps(about, indent=2) + "\n"},
    )


def register_directory(
    directory: str | Path, *, run_id: str | None = None, lead_configuration: str | None = None
) -> ModelVersion:
    """Register a trained classifier or agent, whichever the directory holds, as challenger.

    ``metrics.json`` in it becomes the version's evaluation. Without ``run_id`` a run is made; the
    data digest is the one the run was trained on.

    Raises
    ------
    CheckpointError
        It holds neither.
    """
    from ecg_agent_ray.plugins.tracking import tracked_run

    folder = Path(directory)
    is_agent = (folder / "adapter_config.json").is_file()
    if not is_agent and not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds neither an agent nor a classifier")
    client = registry_client(create=True)
    if run_id is None:
        with tracked_run("register", experiment="ecg-agent") as run:
            run_id = run.run_id
    digest = client.get_run(run_id).data.tags.get("data_digest")
    if is_agent:
        return log_agent(
            folder, run_id=run_id, data_digest=digest, lead_configuration=lead_configuration
        )
    return log_classifier(
        folder,
        run_id=run_id,
        data_digest=digest,
        lead_configuration=lead_configuration or "12-lead",
        metrics=_metrics_of(folder),
    )


def _metrics_of(folder: Path) -> dict[str, float]:
    path = folder / "metrics.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def attach_evaluation(
    name: str, version: int, metrics: Mapping[str, Any], *, data_digest: str | None = None
) -> None:
    """Link evaluation results to a version: gates read them, MLflow shows them with the model.

    Nested metrics get their names joined by ``/``, as in ``as_shown/dropped_share``.

    ``data_digest`` is that of the evaluation data. Two versions are only compared on equal data.
    """
    import mlflow

    from ecg_agent_ray.plugins.train_callback import numeric_metrics

    client = registry_client()
    found = find_version(client, name, version)
    values = numeric_metrics(metrics)
    client.set_model_version_tag(
        name, str(version), EVALUATION_TAG, json.dumps({**found.metrics, **values})
    )
    if data_digest:
        client.set_model_version_tag(name, str(version), "evaluation_data_digest", data_digest)
    model_id = client.get_model_version(name, str(version)).model_id
    if found.run_id and model_id:
        mlflow.log_metrics(values, run_id=found.run_id, model_id=model_id)


def _register(
    kind: str,
    folder: Path,
    *,
    run_id: str,
    lead_configuration: str,
    metrics: Mapping[str, float] | None,
    tags: Mapping[str, str],
    alias: str | None,
    replace: Mapping[str, str] | None = None,
) -> ModelVersion:
    import mlflow

    name = model_name(kind, lead_configuration)
    script = resources.files("ecg_agent_ray.registry") / "model_code" / f"{kind}.py"
    client = registry_client(create=True)
    with tempfile.TemporaryDirectory() as scratch, _active(run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        staged = Path(scratch) / kind
        shutil.copytree(folder, staged)
        for file, text in (replace or {}).items():
            (staged / file).write_text(text, encoding="utf-8")
        info = mlflow.pyfunc.log_model(
            name=kind,
            python_model=str(script),
            artifacts={kind: str(staged)},
            pip_requirements=_requirements(_AGENT if kind == "agent" else _COMMON),
            registered_model_name=name,
            metadata={"kind": kind, "lead_configuration": lead_configuration},
            model_config={"lead_configuration": lead_configuration},
            **_interface(kind, lead_configuration),
        )
    version = int(info.registered_model_version)
    run_tags = client.get_run(run_id).data.tags
    all_tags = {
        "lead_configuration": lead_configuration,
        "git_commit": run_tags.get("git.commit") or run_tags.get("mlflow.source.git.commit", ""),
        **tags,
    }
    for key, value in all_tags.items():
        if value:
            client.set_model_version_tag(name, str(version), key, str(value))
    card = (folder / "README.md").read_text(encoding="utf-8")
    client.update_model_version(name, str(version), description=card[:5000])
    if metrics:
        attach_evaluation(name, version, metrics)
    if alias:
        client.set_registered_model_alias(name, alias, str(version))
    return find_version(client, name, version)


def _interface(kind: str, lead_configuration: str) -> dict[str, Any]:
    """Signature and example; an agent's signature is set by MLflow itself."""
    if kind == "agent":
        from ecg_agent_ray.registry.agent_model import INPUT_EXAMPLE

        return {"input_example": INPUT_EXAMPLE}
    from ecg_agent_ray.registry.classifier_model import signature

    # no example: MLflow would run it, and no path of a recording is right on every machine
    return {"signature": signature(lead_configuration)}


@contextlib.contextmanager
def _active(run_id: str) -> Iterator[None]:
    """Make ``run_id`` the active run and leave its status as it was."""
    import mlflow

    if (active := mlflow.active_run()) is not None and active.info.run_id == run_id:
        yield
        return
    client = mlflow.MlflowClient()
    status = client.get_run(run_id).info.status
    with mlflow.start_run(run_id=run_id, nested=active is not None):
        yield
    if status != "FINISHED":
        client.update_run(run_id, status=status)


def _requirements(packages: tuple[str, ...]) -> list[str]:
    """Installed versions, without local parts such as ``+cpu``, which no index has."""
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in packages]


def _check_directory(folder: Path, needed: tuple[str, ...]) -> None:
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}")
    pickles = [p.name for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {', '.join(sorted(pickles))}",
            hint="only safetensors are registered; remove it from the directory",
        )
