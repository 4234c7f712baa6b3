"""Which job an output folder belongs to, so that the same command goes on where it was killed.

Ray Train continues a run of the same name in the same storage from its latest checkpoint. The name
is kept in ``OUTPUT/job.json`` with a digest of all that decides the job's result.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

__all__ = ["JobRecord", "job_digest", "unfinished_job"]

logger = logging.getLogger(__name__)

_JOB_FILE = "job.json"
_WITHOUT_EFFECT = {
    "name",
    "experiment",
    "output",
    "storage",
    "lead_configuration",
    "classifier",
    "validate_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "resume",
    "distributed",
    "assume",
}
"""Settings that may change between two parts of one job: its steps stay the same."""


class JobRecord(BaseModel):
    """``job.json``."""

    digest: str
    name: str
    run_id: str
    tracking_uri: str
    finished: bool = False

    def write(self, output: str | Path) -> None:
        """Replace the record in ``output`` at once, whole."""
        path = Path(output) / _JOB_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)


def job_digest(config: LLMFinetuneConfig, data_digest: str) -> str:
    """Of the settings that decide what is trained, and of the data."""
    # without defaults, a setting that a later version adds changes nothing
    settings = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT, exclude_defaults=True)
    text = json.dumps([settings, data_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def unfinished_job(config: LLMFinetuneConfig, digest: str) -> JobRecord | None:
    """The job to go on with, or None for a new one; says why in the log."""
    path = Path(config.output) / _JOB_FILE
    if config.resume == "never" or not path.is_file():
        return None
    try:
        record = JobRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        logger.warning("a new job: %s is malformed: %s", path, error)
        return None
    if record.finished:
        logger.info("a new job: the one in %s is finished", config.output)
        return None
    if record.digest != digest:
        logger.warning("a new job: the unfinished one in %s has other settings", config.output)
        return None
    logger.info("going on with the unfinished job %s in %s", record.name, config.output)
    return record
