"""The same command again goes on with a job that was killed, at the step of its checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_resume import JobRecord, job_digest, unfinished_job

STEPS = 12


def config(**changes: Any) -> LLMFinetuneConfig:
    return LLMFinetuneConfig.model_validate({"train": "t.jsonl", **changes})


def test_settings_that_decide_the_result_decide_whether_a_job_goes_on(tmp_path: Path) -> None:
    own = config(output=str(tmp_path))
    digest = job_digest(own, "data")
    record = JobRecord(digest=digest, name="job", run_id="run", tracking_uri="sqlite:///x.db")
    assert unfinished_job(own, digest) is None
    record.write(tmp_path)
    assert unfinished_job(own, digest) == record
    assert job_digest(config(output="elsewhere", checkpoint_minutes=1), "data") == digest
    assert job_digest(config(distributed={"num_workers": 1}), "data") == digest
    assert job_digest(own, "other data") != digest
    assert job_digest(config(optimizer={"lr": 1e-3}), "data") != digest
    assert unfinished_job(own, "of other settings") is None
    assert unfinished_job(config(output=str(tmp_path), resume="never"), digest) is None
    record.model_copy(update={"finished": True}).write(tmp_path)
    assert unfinished_job(own, digest) is None
    (tmp_path / "job.json").write_text("{")
    assert unfinished_job(own, digest) is None


def job(folder: Path, name: str) -> Path:
    """A configuration file for a random model of four layers; two trained, one worker."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer

    model = folder / "tiny"
    if not model.exists():
        tokenizer = load_tokenizer(LAPTOP_BASE_MODEL)
        torch.manual_seed(0)
        shape = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        Qwen2ForCausalLM(shape).save_pretrained(model)
        tokenizer.save_pretrained(model)
        write_dialogues(folder / "train.jsonl", [_dialogue(60 + rate) for rate in range(12)])
    values = {
        "base_model": str(model),
        "train": str(folder / "train.jsonl"),
        "output": str(folder / name),
        "dtype": "float32",
        "steps": STEPS,
        "lora": {"r": 4, "layers": 2, "dropout": 0.1},
        "cache_lower_layers": True,
        "checkpoint_every": None,
        "checkpoint_minutes": 1e-9,  # at every step, by the clock
        "batch": {"max_tokens": 512, "packs_per_step": 2, "share_prefix": True},
        "distributed": {"num_workers": 1, "use_gpu": False, "zero_stage": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    load_config(LLMFinetuneConfig, path)
    return path


def _dialogue(rate: int) -> Dialogue:
    return Dialogue(
        turns=[
            Turn.user("What is my heart rate?"),
            Turn.call(Action.CALL_MEASUREMENT, "A value is asked for.", {"heart_rate": str(rate)}),
            Turn.answer(Action.RESPONSE, "I have it.", f"Your heart rate is {rate} bpm."),
        ],
        ecg_files=["a.hea"],
        metadata={"lead_configuration": "12-lead"},
    )


def start(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ecg_agent_ray.cli", "train", "llm", "--config", str(path)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def steps(output: Path) -> list[dict[str, Any]]:
    path = output / "steps.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(reports: list[dict[str, Any]]) -> dict[int, float]:
    return {report["global_step"]: report["loss"] for report in reports}


def wait_for_steps(output: Path, count: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 500
    while len(steps(output)) < count:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_killed_with_all_its_processes_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    assert start(job(tmp_path, "whole")).wait(600) == 0
    path = job(tmp_path, "killed")
    running = start(path)
    wait_for_steps(tmp_path / "killed", 4, running)
    family = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, signal.SIGKILL)
    for process in family:
        if process.is_running():
            process.kill()
    running.wait(30)
    before = steps(tmp_path / "killed")
    assert start(path).wait(600) == 0
    after = steps(tmp_path / "killed")[len(before) :]
    # from a checkpoint on, not from the beginning
    assert after[0]["global_step"] >= 3
    assert after[-1]["global_step"] == STEPS
    expected = losses(steps(tmp_path / "whole"))
    assert losses(before) == pytest.approx({n: expected[n] for n in losses(before)}, rel=1e-6)
    assert losses(after) == pytest.approx({n: expected[n] for n in losses(after)}, rel=1e-6)
    weights = [
        (tmp_path / name / "agent" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "killed" / "job.json").read_text())
    assert record["finished"]


@pytest.mark.slow
def test_a_job_that_loses_rays_own_process_goes_on_by_itself(tmp_path: Path) -> None:
    output = tmp_path / "lost"
    running = start(job(tmp_path, "lost"))
    wait_for_steps(output, 4, running)
    for process in psutil.Process(running.pid).children(recursive=True):
        if " ".join(process.cmdline()).startswith("ray::TrainController"):
            process.kill()
    assert running.wait(600) == 0
    found = [report["global_step"] for report in steps(output)]
    assert found[-1] == STEPS
    again = next(n for n in range(1, len(found)) if found[n] <= found[n - 1])
    assert found[again] > 2
    assert found.count(STEPS) == 1
