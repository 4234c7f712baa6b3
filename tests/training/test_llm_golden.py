"""Losses of a few steps, to four decimals: whatever changes them changes what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, render_turn, write_dialogues
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_loop import learning_rate
from ecg_agent_ray.training.llm_lower import LowerStates, skip_lower_layers
from ecg_agent_ray.training.llm_model import TargetLosses, build_model, target_losses
from ecg_agent_ray.training.llm_objectives import Objective, Share, load_objective
from ecg_agent_ray.training.llm_pairs import PreferencePair, write_pairs
from ecg_agent_ray.training.packing import Pack

STEPS = 4

# a system message of this test's own: the agent's may change its wording without changing training
SYSTEM = "You talk about an ECG."


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(LAPTOP_BASE_MODEL))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, chat: ChatFormat) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(chat.tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecg_agent_ray.training.llm_data.system_prompt", lambda *_, **__: SYSTEM)


def call(rate: int | None = None) -> Turn:
    thought = "A value is asked for."
    if rate is None:
        return Turn(role="assistant", action=Action.CALL_MEASUREMENT, thought=thought)
    return Turn.call(Action.CALL_MEASUREMENT, thought, {"heart_rate": f"{rate}.00"})


def question(rate: int) -> str:
    return f"What is my heart rate? It was {rate - 3} last year."


def files(folder: Path) -> dict[str, Path]:
    dialogues = [
        Dialogue(
            turns=[
                Turn.user(question(rate)),
                call(rate),
                Turn.answer(Action.RESPONSE, "I have it.", f"Your heart rate is {rate} bpm."),
            ],
            ecg_files=["a.hea"],
            metadata={"lead_configuration": "12-lead"},
        )
        for rate in range(60, 72)
    ]
    refusal = render_turn(Turn.answer(Action.RESPONSE_FAIL, "No.", "I cannot tell you that."))
    pairs = [
        PreferencePair(
            messages=[
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question(rate)},
            ],
            chosen=render_turn(call()),
            rejected=refusal,
        )
        for rate in range(60, 72)
    ]
    return {
        "sft": write_dialogues(folder / "dialogues.jsonl", dialogues),
        "dpo": write_pairs(folder / "pairs.jsonl", pairs),
    }


def run(folder: Path, tiny: Path, chat: ChatFormat, kind: str, *overrides: str) -> list[float]:
    """The losses of the training loop's steps, without Ray and DeepSpeed around them."""
    common = [f"base_model={tiny}", f"train={files(folder)[kind]}", f"objective={kind}"]
    common += ["dtype=float32", "lora.r=4", "optimizer.lr=5e-3", "optimizer.warmup_steps=2"]
    common += ["batch.max_tokens=256", "batch.packs_per_step=2", f"steps={STEPS}"]
    job = load_config(LLMFinetuneConfig, None, [*common, *overrides])
    objective: Objective = load_objective(job, chat)
    torch.manual_seed(job.seed)
    model = build_model(job)
    lower: LowerStates | None = None
    if job.cache_lower_layers:
        lower = LowerStates(model, objective.sequences, 2, folder, dtype="float32", max_tokens=256)
        lower.fill(0, 1, "cpu")
        skip_lower_layers(model, 2)

    def score(pack: Pack) -> TargetLosses:
        states = lower and lower.of(pack, "cpu", torch.float32)
        return target_losses(model, pack, "cpu", job.action_weight, states=states)

    with torch.no_grad():
        objective.prepare(score, Share(0, 1, lambda values: values, folder, None))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, betas=job.optimizer.betas, weight_decay=0.0)
    found = []
    for step, packs in enumerate(objective.plan.steps(0, STEPS)):
        optimizer.param_groups[0]["lr"] = learning_rate(job, step, STEPS)
        total = torch.stack([objective.row(score(pack), pack).loss for pack in packs]).sum()
        loss = total / sum(objective.weight(pack) for pack in packs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.optimizer.max_grad_norm)
        optimizer.step()
        found.append(loss.item())
    return found


GOLDEN = {
    "sft": [10.82035, 10.66389, 10.52149, 10.48331],
    "sft-upper": [10.82485, 10.72311, 10.59485, 10.55423],
    "sft-first-actions": [10.82158, 10.67182, 10.55527, 10.51429],
    "dpo": [0.69315, 0.25304, 0.08400, 0.06504],
}


def test_dialogues(tmp_path: Path, tiny: Path, chat: ChatFormat) -> None:
    found = run(tmp_path, tiny, chat, "sft", "action_weight=3")
    assert found == pytest.approx(GOLDEN["sft"], abs=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_upper_layers_from_kept_states_or_not(
    tmp_path: Path, tiny: Path, chat: ChatFormat, cached: bool
) -> None:
    overrides = ["lora.layers=2", "batch.share_prefix=true"]
    found = run(
        tmp_path, tiny, chat, "sft", *overrides, f"cache_lower_layers={str(cached).lower()}"
    )
    assert found == pytest.approx(GOLDEN["sft-upper"], abs=1e-4)


def test_mixed_sources_with_first_actions(tmp_path: Path, tiny: Path, chat: ChatFormat) -> None:
    path = files(tmp_path)["sft"]
    train = (
        f"train=[{{path: {path}, repeat: 0.5, weight: 2}}, {{path: {path}, first_actions: 0.5}}]"
    )
    found = run(tmp_path, tiny, chat, "sft", train)
    assert found == pytest.approx(GOLDEN["sft-first-actions"], abs=1e-4)


def test_preferences(tmp_path: Path, tiny: Path, chat: ChatFormat) -> None:
    overrides = ["lora.layers=2", "cache_lower_layers=true", "batch.share_prefix=true"]
    found = run(tmp_path, tiny, chat, "dpo", *overrides, "dpo.beta=0.5")
    assert found == pytest.approx(GOLDEN["dpo"], abs=1e-4)
