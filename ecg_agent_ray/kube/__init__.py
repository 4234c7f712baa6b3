"""The manifests under ``kube/``: rendering, offline validation, and submitting jobs."""

from ecg_agent_ray.kube.render import Parameters, load_objects, render
from ecg_agent_ray.kube.submit import prepare_job, submit_job
from ecg_agent_ray.kube.validate import Problem, validate

__all__ = [
    "Parameters",
    "Problem",
    "load_objects",
    "prepare_job",
    "render",
    "submit_job",
    "validate",
]
