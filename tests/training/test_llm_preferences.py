"""Preference tuning of a tiny model: the loss is DPO's, it falls, and the margin rises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, ChatFormat
from ecg_agent_ray.dialogue import Action, Turn, render_turn, system_prompt
from ecg_agent_ray.errors import ConfigError, DialogueError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_lower import LowerStates, skip_lower_layers
from ecg_agent_ray.training.llm_model import TargetLosses, build_model, target_losses
from ecg_agent_ray.training.llm_objectives import PreferenceObjective, Share
from ecg_agent_ray.training.llm_pairs import PreferencePair, encode_pairs, read_pairs, write_pairs
from ecg_agent_ray.training.packing import Pack


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


def pair(number: int) -> PreferencePair:
    call = Turn(role="assistant", action=Action.CALL_MEASUREMENT, thought="A value is asked for.")
    refusal = Turn.answer(Action.RESPONSE_FAIL, "No.", "I cannot tell you that.")
    return PreferencePair(
        messages=[
            {"role": "system", "content": system_prompt("12-lead")},
            {"role": "user", "content": f"What is my heart rate, number {number}?"},
        ],
        chosen=render_turn(call),
        rejected=render_turn(refusal),
        lead_configuration="12-lead",
        number=number,
    )


def config(tmp_path: Path, model: Path | str, *overrides: str) -> LLMFinetuneConfig:
    file = write_pairs(tmp_path / "pairs.jsonl", [pair(n) for n in range(8)])
    values = [f"base_model={model}", f"train={file}", "objective=dpo", "dtype=float32", "lora.r=4"]
    batch = ["batch.max_tokens=640", "batch.packs_per_step=2", "batch.share_prefix=true"]
    return load_config(LLMFinetuneConfig, None, [*values, *batch, *overrides])


def alone(folder: Path, weights: str | None = None) -> Share:
    return Share(0, 1, lambda values: values, folder, (lambda: weights) if weights else None)


def scorer(model: Any, states: Any = None) -> Any:
    def score(pack: Pack) -> TargetLosses:
        return target_losses(model, pack, "cpu", states=states and states(pack))

    return score


def test_pairs_survive_a_file_and_a_faulty_line_is_named(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "pairs.jsonl", [pair(1), pair(2)])
    assert read_pairs(file) == [pair(1), pair(2)]
    with file.open("a") as out:
        out.write('{"messages": [], "chosen": "a"}\n')
    with pytest.raises(DialogueError, match="line 3"):
        read_pairs(file)


def test_targets_are_the_answers_alone_and_a_call_ends_at_its_marker(chat: ChatFormat) -> None:
    chosen, rejected = encode_pairs(chat, [pair(1)], 640)
    said = [
        chat.tokenizer.decode([label for label in one.labels if label != IGNORE_INDEX])
        for one in (chosen, rejected)
    ]
    assert said[0] == pair(1).chosen + "\nTool_Output:"
    assert said[1] == pair(1).rejected + "<|im_end|>"
    assert chosen.input_ids[: chosen.prefix] == chat.encode_prompt(pair(1).messages)
    assert chosen.prefix == rejected.prefix
    assert encode_pairs(chat, [pair(1)], chosen.prefix + 10) == []


def test_a_row_holds_both_answers_and_their_history_once(
    tmp_path: Path, chat: ChatFormat, tiny: Path
) -> None:
    objective = PreferenceObjective(config(tmp_path, tiny), chat)
    rows = objective.plan.epoch(0)
    for row in rows:
        answers = [piece.dialogue for piece in row.pieces if piece.begin]
        assert [n + 1 for n in answers[::2]] == answers[1::2]
        assert all(n % 2 == 0 for n in answers[::2])
    assert sum(objective.weight(row) for row in rows) == 8
    tokens = sum(len(row.input_ids) for row in rows)
    assert tokens < 0.6 * sum(len(one.input_ids) for one in objective.sequences)


@pytest.mark.parametrize("share", [True, False])
def test_the_loss_is_dpos(tmp_path: Path, chat: ChatFormat, tiny: Path, share: bool) -> None:
    job = config(
        tmp_path,
        tiny,
        f"batch.share_prefix={str(share).lower()}",
        "dpo.beta=0.3",
        "dpo.sft_weight=0.5",
    )
    objective = PreferenceObjective(job, chat)
    model = build_model(job).eval()
    with torch.no_grad():
        objective.prepare(scorer(model), alone(tmp_path))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
        found = sum(
            float(objective.row(scorer(model)(row), row).loss) for row in objective.plan.epoch(0)
        )
        expected = 0.0
        for index in range(0, 16, 2):
            values, lengths = [], []
            for one in objective.sequences[index : index + 2]:
                ids = torch.tensor([one.input_ids])
                logs = model(input_ids=ids).logits[0].log_softmax(-1)
                own = [p for p, label in enumerate(one.labels) if label != IGNORE_INDEX]
                values.append(sum(float(logs[p - 1, one.input_ids[p]]) for p in own))
                lengths.append(len(own))
            gain = values[0] - values[1]
            gain -= objective.reference[index] - objective.reference[index + 1]
            expected += math.log1p(math.exp(-0.3 * gain)) - 0.5 * values[0] / lengths[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_loss_falls_and_the_margin_rises_with_cached_lower_layers(
    tmp_path: Path, chat: ChatFormat, tiny: Path
) -> None:
    job = config(tmp_path, tiny, "lora.layers=2")
    objective = PreferenceObjective(job, chat)
    torch.manual_seed(0)
    model = build_model(job)
    lower = LowerStates(model, objective.sequences, 2, tmp_path, dtype="float16", max_tokens=640)
    lower.fill(0, 1, "cpu")
    skip_lower_layers(model, 2)
    score = scorer(model, lambda pack: lower.of(pack, "cpu", torch.float32))
    with torch.no_grad():
        objective.prepare(score, alone(tmp_path))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    reports = []
    for packs in objective.plan.steps(0, 16):
        optimizer.zero_grad()
        rows = [objective.row(score(pack), pack) for pack in packs]
        weight = sum(objective.weight(pack) for pack in packs)
        sum(row.loss for row in rows).backward()  # type: ignore[attr-defined]
        optimizer.step()
        sums = {name: sum(row.sums[name] for row in rows) for name in rows[0].sums}
        assert sums["pairs"] == weight
        reports.append(objective.report(sums))
    assert reports[0]["plain_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert reports[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert reports[-1]["plain_loss"] < 0.5
    assert reports[-1]["margin"] > 0.5
    assert reports[-1]["preferred"] == 1.0


def test_the_reference_is_computed_once(tmp_path: Path, chat: ChatFormat, tiny: Path) -> None:
    job = config(tmp_path, tiny)
    model = build_model(job).eval()
    first = PreferenceObjective(job, chat)
    with torch.no_grad():
        first.prepare(scorer(model), alone(tmp_path, "weights"))
    again = PreferenceObjective(job, chat)
    again.prepare(lambda _: pytest.fail("scored again"), alone(tmp_path, "weights"))
    assert again.reference == first.reference
    with pytest.raises(pytest.fail.Exception):
        again.prepare(lambda _: pytest.fail("scored again"), alone(tmp_path, "other weights"))


def test_what_does_not_fit_together_is_refused(tmp_path: Path, chat: ChatFormat) -> None:
    with pytest.raises(ConfigError, match="first_actions"):
        config(tmp_path, "x/y", "train=[{path: a.jsonl, first_actions: 0.5}]")
    with pytest.raises(ConfigError, match="max_tokens"):
        PreferenceObjective(config(tmp_path, "x/y", "batch.max_tokens=64"), chat)


@pytest.mark.slow
def test_a_job_prefers_what_was_chosen(tmp_path: Path, tiny: Path, ray_cluster: Any) -> None:
    import mlflow

    from ecg_agent_ray.training.llm import finetune_llm

    job = config(
        tmp_path,
        tiny,
        f"output={tmp_path / 'out'}",
        f"validation={tmp_path / 'pairs.jsonl'}",
        "steps=16",
        "validate_every=4",
        "lora.layers=2",
        "cache_lower_layers=true",
        "optimizer.lr=1e-2",
        "optimizer.warmup_steps=0",
        "distributed.zero_stage=2",
    )
    result = finetune_llm(job)
    seen = {
        name: [m.value for m in mlflow.MlflowClient().get_metric_history(result.run_id, name)]
        for name in ("loss", "margin", "preferred", "validation_loss", "validation_preferred")
    }
    assert seen["loss"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert seen["loss"][-1] < 0.5 < seen["margin"][-1]
    assert seen["validation_preferred"][-1] == seen["preferred"][-1] == 1.0
    assert seen["validation_loss"][-1] < seen["validation_loss"][0]
    assert len(list((tmp_path / "out").glob("reference-*.npy"))) == 1
    assert "preference pairs" in (Path(result.agent_dir) / "README.md").read_text()
