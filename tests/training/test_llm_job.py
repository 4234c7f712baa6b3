"""The LLM job for real: Ray Train, DeepSpeed, MLflow; a lost worker changes nothing."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.errors import ConfigError, MissingDependencyError, TrainingError
from ecg_agent_ray.shipped import shipped
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.deepspeed_setup import build_ops, check_compiler
from ecg_agent_ray.training.llm import LLMResult, finetune_llm
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig


def dialogue(rate: int) -> Dialogue:
    output = {
        "heart_rate": f"{rate}.00",
        "pr_interval": "160",
        "qrs_duration": "90",
        "qtc_interval": "410.00",
    }
    return Dialogue(
        turns=[
            Turn.user("What is my heart rate?"),
            Turn.call(Action.CALL_MEASUREMENT, "A value is asked for.", output),
            Turn.answer(Action.RESPONSE, "I have it.", f"Your heart rate is {rate} bpm."),
        ],
        ecg_files=["a.hea"],
        metadata={"lead_configuration": "12-lead"},
    )


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A random two-layer Llama with the laptop model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer

    folder = tmp_path / "tiny"
    tokenizer = load_tokenizer(LAPTOP_BASE_MODEL)
    torch.manual_seed(0)  # tests compare their losses with each other
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def job(tmp_path: Path, model: Path | str, name: str, *overrides: str) -> LLMFinetuneConfig:
    write_dialogues(tmp_path / "train.jsonl", [dialogue(60 + i) for i in range(12)])
    write_dialogues(tmp_path / "validation.jsonl", [dialogue(100 + i) for i in range(3)])
    return load_config(
        LLMFinetuneConfig,
        None,
        [
            f"base_model={model}",
            f"train={tmp_path / 'train.jsonl'}",
            f"validation={tmp_path / 'validation.jsonl'}",
            f"output={tmp_path / name}",
            "batch.max_tokens=512",
            "batch.packs_per_step=2",
            "validate_every=2",
            "checkpoint_every=2",
            "lora.r=4",
            *overrides,
        ],
    )


def losses(result: LLMResult) -> list[float]:
    import mlflow

    history = mlflow.MlflowClient().get_metric_history(result.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, len(history) + 1))
    return [metric.value for metric in history]


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of"):
        finetune_llm(job(tmp_path, "x/y", "out", "batch.packs_per_step=3"))


def test_missing_inputs_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file at"):
        finetune_llm(job(tmp_path, "x/y", "out", "validation=/nowhere.jsonl"))
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        finetune_llm(job(tmp_path, "x/y", "out", "adapter=/nowhere"))


def test_a_missing_compiler_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecg_agent_ray.training.deepspeed_setup._path", lambda: str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"g\+\+ and ninja"):
        check_compiler()


def test_a_build_killed_a_moment_ago_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    loaded: list[list[Path]] = []

    class Builder:
        def load(self, *, verbose: bool) -> None:
            loaded.append(list(tmp_path.glob("*/lock")))

    monkeypatch.setattr(get_accelerator(), "create_op_builder", lambda name: Builder())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm_op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    build_ops()
    assert loaded == [[]]
    with FileLock(tmp_path / "builds.lock"):
        lock.touch()  # of a build under way
        waiting = threading.Thread(target=build_ops, daemon=True)
        waiting.start()
        waiting.join(timeout=0.5)
        assert lock.exists()
        lock.unlink()
    waiting.join(timeout=30)
    assert loaded == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_gives_the_same_losses_and_a_whole_adapter(
    tmp_path: Path, tiny_model: Path, ray_cluster: Any, stage: int
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    result = finetune_llm(
        job(
            tmp_path,
            tiny_model,
            "out",
            "steps=4",
            "dtype=float32",
            f"distributed.zero_stage={stage}",
        )
    )
    weights = load_file(Path(result.agent_dir) / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2
    assert all(tensor.numel() for tensor in weights.values())
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    PeftModel.from_pretrained(base, result.agent_dir)
    manifest = json.loads((Path(result.agent_dir) / "ecg_agent.json").read_text())
    assert manifest["lead_configuration"] == "12-lead"
    reference = tmp_path.parent / "losses.json"
    if reference.exists():
        assert losses(result) == pytest.approx(json.loads(reference.read_text()), rel=1e-4)
    else:
        reference.write_text(json.dumps(losses(result)))


@pytest.mark.slow
def test_a_killed_worker_resumes_with_the_same_losses(
    tmp_path: Path, tiny_model: Path, ray_cluster: Any
) -> None:
    undisturbed = finetune_llm(job(tmp_path, tiny_model, "whole", "steps=8"))
    killer = threading.Thread(target=_kill_a_worker, args=(tmp_path / "killed",), daemon=True)
    killer.start()
    resumed = finetune_llm(job(tmp_path, tiny_model, "killed", "steps=8"))
    killer.join(timeout=5)
    assert not killer.is_alive()
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-5)


SHRUNK = (
    "steps=3",
    "validate_every=3",
    "checkpoint_every=3",
    "quantize=none",
    "batch.max_tokens=512",
    "batch.packs_per_step=2",
    "distributed={num_workers: 2, use_gpu: false, zero_stage: %d}",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(shipped("jobs/configs/llm").glob("*x*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_layout_trains_with_a_tiny_model(
    tmp_path: Path, tiny_model: Path, ray_cluster: Any, path: Path
) -> None:
    files = [path, shipped("jobs/configs/llm/paper.yaml")] if "1b" in path.name else [path]
    stage = load_config(LLMFinetuneConfig, files).distributed.zero_stage
    own = job(tmp_path, tiny_model, "out").model_dump()
    result = finetune_llm(
        load_config(
            LLMFinetuneConfig,
            files,
            [
                *(f"{key}={own[key]}" for key in ("base_model", "train", "validation", "output")),
                *(item % stage if "%" in item else item for item in SHRUNK),
            ],
        )
    )
    assert len(losses(result)) == 3


@pytest.mark.slow
def test_training_stops_early_and_keeps_the_best(
    tmp_path: Path, tiny_model: Path, ray_cluster: Any
) -> None:
    config = job(
        tmp_path,
        tiny_model,
        "out",
        "steps=40",
        "validate_every=1",
        "checkpoint_every=40",
        "early_stopping_patience=2",
        "optimizer.lr=3.0",
        "optimizer.warmup_steps=1",
    )
    result = finetune_llm(config)
    import mlflow

    seen = mlflow.MlflowClient().get_metric_history(result.run_id, "validation_loss")
    values = [metric.value for metric in seen]
    assert len(values) < 40
    assert result.metrics["validation_loss"] == min(values)
    assert min(values) not in values[-2:]


@pytest.mark.slow
def test_a_job_that_fails_is_a_failed_run(
    tmp_path: Path, tiny_model: Path, ray_cluster: Any
) -> None:
    import mlflow

    (tiny_model / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(TrainingError):
        finetune_llm(job(tmp_path, tiny_model, "out", "steps=2", "distributed.max_failures=0"))
    (run,) = mlflow.search_runs(experiment_names=["ecg-agent"], output_format="list")
    assert run.info.status == "FAILED"


def _kill_a_worker(output: Path) -> None:
    """End one training worker once the first checkpoint is whole."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if list(output.glob("checkpoints/*/checkpoint_*/state/progress.json")):
            for process in psutil.Process().children(recursive=True):
                if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                    process.kill()
                    return
        time.sleep(0.05)
