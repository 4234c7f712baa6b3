"""Packing and step plans: nothing is lost, dialogues do not see each other, workers agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, EncodedDialogue
from ecg_agent_ray.training.packing import DialoguePlan, make_packs


def encoded(length: int, start: int) -> EncodedDialogue:
    ids = list(range(start, start + length))
    labels = [IGNORE_INDEX if position % 3 == 0 else token for position, token in enumerate(ids)]
    return EncodedDialogue(ids, labels, [position == 1 for position in range(length)])


@given(st.lists(st.integers(2, 90), min_size=1, max_size=40), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_token_is_in_exactly_one_pack(lengths: list[int], seed: int) -> None:
    dialogues = [encoded(length, 1000 * index) for index, length in enumerate(lengths)]
    packs = make_packs(dialogues, 100, seed)
    packed = sorted(token for pack in packs for token in pack.input_ids)
    assert packed == sorted(token for dialogue in dialogues for token in dialogue.input_ids)
    assert all(len(pack.input_ids) <= 100 for pack in packs)
    assert sum(pack.n_targets for pack in packs) == sum(d.n_targets for d in dialogues)
    for pack in packs:
        starts = [i for i, position in enumerate(pack.position_ids) if position == 0]
        assert all(pack.input_ids[i] % 1000 == 0 for i in starts)


def test_best_fit_fills_rows() -> None:
    lengths = [40 + 7 * (index % 9) for index in range(200)]
    packs = make_packs([encoded(n, 1000 * i) for i, n in enumerate(lengths)], 512, seed=1)
    assert sum(lengths) / (512 * len(packs)) > 0.93


def test_a_long_dialogue_keeps_its_beginning() -> None:
    (pack,) = make_packs([encoded(150, 0)], 100, seed=0)
    assert pack.input_ids == list(range(100))


def test_steps_go_on_where_a_restart_begins_and_epochs_differ() -> None:
    plan = DialoguePlan(
        [encoded(30, 1000 * i) for i in range(10)], max_tokens=60, packs_per_step=2, seed=3
    )
    whole = [[pack.input_ids for pack in step] for step in plan.steps(0, 8)]
    resumed = [[pack.input_ids for pack in step] for step in plan.steps(5, 8)]
    assert whole[5:] == resumed
    per_epoch = plan.packs_per_epoch
    flat = [ids for step in whole for ids in step]
    assert flat[:per_epoch] != flat[per_epoch : 2 * per_epoch]
    assert plan.total_steps(2.0) == per_epoch


def test_packed_loss_equals_the_loss_of_each_dialogue_alone() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from ecg_agent_ray.training.llm_model import sequence_loss

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()
    dialogues = [
        EncodedDialogue(
            ids, [IGNORE_INDEX, IGNORE_INDEX, *ids[2:]], [i == 2 for i in range(len(ids))]
        )
        for ids in (torch.randint(0, 64, (n,)).tolist() for n in (17, 30, 9))
    ]
    (together,) = make_packs(dialogues, 64, seed=0)
    alone = [make_packs([dialogue], 64, seed=0)[0] for dialogue in dialogues]
    with torch.no_grad():
        packed = sequence_loss(model, together, "cpu").item()
        separate = sum(sequence_loss(model, pack, "cpu").item() for pack in alone)
        weighted = sequence_loss(model, together, "cpu", 3.0).item()
    assert packed == pytest.approx(separate, rel=1e-5)
    assert weighted > packed
    assert together.total_weight(3.0) == together.n_targets + 2 * len(dialogues)
