"""What a RayJob starts: script, configuration, and whether its cluster has room for the workers."""

from __future__ import annotations

import importlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ecg_agent_ray.errors import EcgAgentError, InputError
from ecg_agent_ray.shipped import shipped

__all__ = ["JOB_CONFIGS", "entrypoint_problems"]

JOB_CONFIGS = {
    "finetune_llm": "ecg_agent_ray.training.llm_config:LLMFinetuneConfig",
    "finetune_classifier": "ecg_agent_ray.training.classifier_config:ClassifierFinetuneConfig",
    "pretrain_classifier": "ecg_agent_ray.training.pretrain_config:PretrainConfig",
    "train_delineator": "ecg_agent_ray.training.delineator_config:DelineatorTrainConfig",
    "extract_tool_outputs": "ecg_agent_ray.pipelines.extract_config:ExtractConfig",
    "evaluate_agent": "ecg_agent_ray.evaluation.config:EvaluationConfig",
    "prepare_data": "ecg_agent_ray.pipelines.prepare_config:PrepareConfig",
    "fairseq_hydra_train": "ecg_agent_ray.training.pretrain_fairseq:FairseqTrainConfig",
}
"""Configuration class of each script in ``jobs/`` that runs as a RayJob."""

IN_IMAGE = PurePosixPath("/opt/ecg-agent")
"""Where the Dockerfile puts ``jobs/``."""


def entrypoint_problems(thing: dict[str, Any], objects: list[dict[str, Any]]) -> Iterator[str]:
    """``python …/jobs/NAME.py --config FILE… key=value…``: script, files, content, room."""
    if thing["kind"] != "RayJob":
        return
    entrypoint = str(thing["spec"].get("entrypoint") or "")
    words = shlex.split(entrypoint)
    script = Path(words[1]).stem if words[:1] == ["python"] and len(words) > 1 else None
    if script is None or Path(words[1]).parts[-2:] != ("jobs", f"{script}.py"):
        yield f"spec.entrypoint: {entrypoint!r} is not `python …/jobs/NAME.py --config FILE …`"
        return
    known = sorted(path.stem for path in shipped("jobs").glob("*.py"))
    if script not in known or script not in JOB_CONFIGS:
        yield f"spec.entrypoint: no job {words[1]!r}; there are: {', '.join(known)}"
        return
    rest = words[2:]
    files = [value for flag, value in pairwise(rest) if flag == "--config"]
    overrides = [word for word in rest if word != "--config" and word not in files]
    texts = [_text(thing, file, objects) for file in files]
    for file, text in zip(files, texts, strict=True):
        if text is None:
            where = "is in the image's jobs/" if _in_image(file) else "is mounted from a ConfigMap"
            yield f"spec.entrypoint: nothing of these manifests {where} as {file}"
    if None not in texts:
        yield from _config_problems(thing, script, [text or "" for text in texts], overrides)


def _config_problems(
    thing: dict[str, Any], script: str, texts: Sequence[str], overrides: Sequence[str]
) -> Iterator[str]:
    from ecg_agent_ray.training.config import load_config

    module, _, name = JOB_CONFIGS[script].partition(":")
    model = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"config-{number}.yaml") for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        try:
            config = load_config(model, paths, overrides)
        except EcgAgentError as error:
            told = str(error)
            for path in paths:
                told = told.replace(str(path), "of the job")
            yield f"spec.entrypoint: {told}"
            return
    if (spread := getattr(config, "distributed", None)) is not None:
        yield from _room_problems(thing, spread)


def _room_problems(thing: dict[str, Any], spread: Any) -> Iterator[str]:
    """Whether the worker pods hold all of Ray Train's workers, which else wait for ever."""
    room, pods, sizes = 0, [], []
    for group in thing["spec"]["rayClusterSpec"].get("workerGroupSpecs") or []:
        limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
        cpus, gpus = _number(limits.get("cpu", 0)), _number(limits.get("nvidia.com/gpu", 0))
        sizes.append((int(group.get("maxReplicas", 1)), cpus, gpus))
        pods.append(f"{sizes[-1][0]} with {cpus:g} CPUs and {gpus:g} GPUs")
    gpu_each = spread.use_gpu is True or (spread.use_gpu == "auto" and any(s[2] for s in sizes))
    for number, cpus, gpus in sizes:
        held = int(cpus // spread.cpus_per_worker)
        room += number * (min(held, int(gpus)) if gpu_each else held)
    if room < spread.num_workers:
        yield (
            f"spec.rayClusterSpec.workerGroupSpecs: pods ({'; '.join(pods) or 'none'}) have no "
            f"room for {spread.num_workers} workers of {spread.cpus_per_worker:g} CPUs and "
            f"{int(gpu_each)} GPUs each"
        )


def _number(quantity: Any) -> float:
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _in_image(path: str) -> bool:
    return PurePosixPath(path).is_relative_to(IN_IMAGE / "jobs")


def _text(thing: dict[str, Any], path: str, objects: list[dict[str, Any]]) -> str | None:
    """Content of a configuration file as the job's driver finds it."""
    if not _in_image(path):
        return _mounted(thing, path, objects)
    try:
        file = shipped(str(PurePosixPath(path).relative_to(IN_IMAGE)))
    except InputError:
        return None
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _mounted(thing: dict[str, Any], path: str, objects: list[dict[str, Any]]) -> str | None:
    """Text of the ConfigMap file that the head sees at ``path``."""
    head = thing["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for mount in head["containers"][0].get("volumeMounts") or []:
        if Path(path).parent != Path(mount["mountPath"]):
            continue
        for volume in head.get("volumes") or []:
            if volume["name"] == mount["name"] and "configMap" in volume:
                wanted = volume["configMap"]["name"]
                for one in objects:
                    if one["kind"] == "ConfigMap" and one["metadata"]["name"] == wanted:
                        return (one.get("data") or {}).get(Path(path).name)
    return None
