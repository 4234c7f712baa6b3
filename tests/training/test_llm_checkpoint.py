"""What is trained, saved by two workers and gone on with by one: the same losses in every stage."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from ecg_agent_ray.agent.chat_format import EncodedDialogue
from ecg_agent_ray.errors import CheckpointError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.deepspeed_setup import build_ops, deepspeed_environment
from ecg_agent_ray.training.llm_checkpoint import (
    load_training_state,
    restore_engine,
    save_training_state,
)
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.packing import make_packs

STEPS, SAVED = 20, 10


def config(model: Path, *overrides: str) -> LLMFinetuneConfig:
    common = ["train=/none.jsonl", "lora.r=4", "dtype=float32", "batch.packs_per_step=2"]
    return load_config(LLMFinetuneConfig, None, [f"base_model={model}", *common, *overrides])


def train(
    rank: int, world: int, port: int, job: LLMFinetuneConfig, folder: Path, first: int
) -> None:
    """One worker: steps ``first`` to the end, a checkpoint on the way, losses in a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= deepspeed_environment(gpu=False)
    import deepspeed
    import torch

    from ecg_agent_ray.training.llm_model import build_model, sequence_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    build_ops()
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = build_model(job)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=2e-3),
        config=job.deepspeed(gpu=False, workers=world),
    )
    if first:
        restore_engine(engine, *load_training_state(folder))
    rng = random.Random(3)
    rows = [[rng.randrange(60) for _ in range(20 + 9 * row)] for row in range(2)]
    losses = []
    for step in range(first, STEPS):
        if step == SAVED and not first:
            save_training_state(engine, folder, {"step": step}, rank=rank, world=world)
        total = torch.zeros(())
        for ids in rows[rank::world]:
            (pack,) = make_packs([EncodedDialogue(ids, ids, [False] * len(ids))], 64, seed=0)
            loss = sequence_loss(engine, pack, "cpu")
            engine.backward(loss * 2 / 100)
            engine.step()
            total += loss.detach()
        if world > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total))
    if rank == 0:
        (folder / f"losses-{world}.txt").write_text("\n".join(map(repr, losses)))
    # ends gloo's threads: an interpreter that exits under them is aborted now and then
    torch.distributed.destroy_process_group()


def run(world: int, job: LLMFinetuneConfig, folder: Path, first: int = 0) -> list[float]:
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(world, port, job, folder, first), nprocs=world)
    return [float(line) for line in (folder / f"losses-{world}.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_one_stage() -> dict[str, list[float]]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_agree_and_another_number_of_workers_goes_on(
    model: Path, tmp_path: Path, stage: int, of_one_stage: dict[str, list[float]]
) -> None:
    job = config(model, f"distributed.zero_stage={stage}")
    whole = run(2, job, tmp_path)
    assert whole[-1] < whole[0]
    assert whole == pytest.approx(of_one_stage.setdefault("losses", whole), rel=1e-4)
    assert run(1, job, tmp_path, SAVED) == pytest.approx(whole[SAVED:], rel=1e-5)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2


@pytest.mark.slow
def test_a_checkpoint_of_another_adapter_is_refused(model: Path, tmp_path: Path) -> None:
    run(1, config(model, "distributed.zero_stage=2"), tmp_path)
    other = config(model, "lora.target_modules=[q_proj]", "distributed.zero_stage=2")
    with pytest.raises(Exception, match="other tensors than this job trains"):
        run(1, other, tmp_path, SAVED)


def test_a_checkpoint_with_a_missing_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"step": 3, "shards": 2, "optimizer_steps": 3}')
    with pytest.raises(CheckpointError, match="not whole"):
        load_training_state(tmp_path)
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match="not whole"):
        load_training_state(tmp_path)
