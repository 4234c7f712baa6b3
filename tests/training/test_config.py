"""Configs: overrides mean what they say, and all mistakes are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.shipped import shipped
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("train: a.jsonl\noptimizer: {lr: 1.0}\nstorage: s3://b\n")
    config = load_config(
        LLMFinetuneConfig,
        file,
        [
            "optimizer.lr=1e-4",
            "steps=7",
            "storage=null",
            "adapter=builtin:",
            "lora.target_modules=[q_proj]",
        ],
    )
    assert config.optimizer.lr == 1e-4
    assert config.steps == 7
    assert config.storage is None
    assert config.adapter == "builtin:"
    assert config.lora.target_modules == ["q_proj"]


def test_every_problem_is_reported_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("batch: {max_token: 512}\noptimizer: {lr: -1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(LLMFinetuneConfig, file, ["nonsense"])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "batch.max_token: unknown key, did you mean 'max_tokens'?" in text
    assert "optimizer.lr" in text
    assert "train" in text
    assert "'nonsense' is not of the form key=value" in text


@pytest.mark.parametrize("content", ["- a list", "{broken", "\x00"])
def test_a_file_that_is_no_configuration_is_an_input_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        load_config(LLMFinetuneConfig, file)


@pytest.mark.parametrize(
    "file", sorted(path.name for path in shipped("jobs/configs").glob("*llm*.yaml"))
)
def test_every_shipped_llm_config_loads(file: str) -> None:
    config = load_config(LLMFinetuneConfig, shipped(f"jobs/configs/{file}"))
    assert config.batch.packs_per_step % config.distributed.num_workers == 0
    deepspeed = config.deepspeed(gpu=False, workers=2)
    assert deepspeed["zero_optimization"]["stage"] == config.distributed.zero_stage
