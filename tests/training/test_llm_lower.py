"""Rows that share system messages, and lower layers run once: the same losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, EncodedDialogue
from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_head import TargetHead
from ecg_agent_ray.training.llm_lower import LowerStates, skip_lower_layers
from ecg_agent_ray.training.llm_model import (
    build_model,
    causal_lm,
    first_trained_layer,
    restrict_vocabulary,
    sequence_loss,
    target_losses,
)
from ecg_agent_ray.training.packing import Pack, make_packs

LAYERS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of four layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    return folder


def model(folder: Path, *overrides: str) -> Any:
    common = [f"base_model={folder}", "train=/none.jsonl", "dtype=float32", "lora.r=4"]
    torch.manual_seed(1)
    built = build_model(load_config(LLMFinetuneConfig, None, [*common, *overrides]))
    with torch.no_grad():  # a new adapter's B is zero, so its A would get no gradient
        for name, parameter in built.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return built


def dialogues(count: int = 9) -> list[EncodedDialogue]:
    """Three system messages, each of several dialogues, and one dialogue twice."""
    generator = torch.Generator().manual_seed(2)
    prefixes = [torch.randint(0, 64, (n,), generator=generator).tolist() for n in (11, 7, 11)]
    found = []
    for index in range(count):
        prefix = prefixes[index % 3]
        rest = torch.randint(0, 64, (5 + 3 * index,), generator=generator).tolist()
        ids = prefix + rest
        labels = [
            token if place > len(prefix) and place % 2 else IGNORE_INDEX
            for place, token in enumerate(ids)
        ]
        action = [place == len(prefix) + 3 - len(prefix) % 2 for place in range(len(ids))]
        found.append(EncodedDialogue(ids, labels, action, len(prefix)))
    return [*found, found[4]]


def gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def total(model: Any, packs: list[Pack], states: Any = None) -> float:
    model.zero_grad()
    losses = [
        sequence_loss(model, pack, "cpu", 3.0, states=states and states(pack)) for pack in packs
    ]
    sum(losses).backward()  # type: ignore[union-attr]
    return float(sum(loss.item() for loss in losses))


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_shared_system_messages_change_neither_loss_nor_gradient(
    tiny: Path, attention: str
) -> None:
    ours = model(tiny, f"attention={attention}")
    alone = make_packs(dialogues(), 64, seed=0, packing=False)
    expected, slopes = total(ours, alone), gradients(ours)
    packed = make_packs(dialogues(), 64, seed=0, share_prefix=attention == "packed")
    assert total(ours, packed) == pytest.approx(expected, rel=1e-5)
    assert gradients(ours).keys() == slopes.keys()
    for name, slope in gradients(ours).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-3, atol=1e-4)
    tokens = sum(len(pack.input_ids) for pack in packed)
    whole = sum(len(pack.input_ids) for pack in alone)
    assert (tokens < whole) == (attention == "packed")
    assert sum(p.n_targets for p in packed) == sum(p.n_targets for p in alone)


def test_the_head_gives_the_losses_of_plain_logits(tiny: Path) -> None:
    ours = model(tiny, "attention=packed")
    head = causal_lm(ours).get_output_embeddings()
    assert isinstance(head, TargetHead)
    (pack, *_) = make_packs(dialogues(), 64, seed=0, share_prefix=True)
    found = target_losses(ours, pack, "cpu")
    causal_lm(ours).set_output_embeddings(torch.nn.Linear(1, 1))
    plain = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    plain.weight = head.weight
    causal_lm(ours).set_output_embeddings(plain)
    expected = target_losses(ours, pack, "cpu")
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert found.action_hits[1] == sum(pack.is_action[index] for index in pack.targets)
    assert expected.hits is None


def test_a_restricted_vocabulary_is_a_softmax_over_it(tiny: Path) -> None:
    ours = model(tiny, "attention=packed")
    (pack, *_) = make_packs(dialogues(), 64, seed=0, share_prefix=True)
    labels = [pack.labels[index] for index in pack.targets]
    with torch.no_grad():
        logits = ours(input_ids=torch.tensor([[1, 2, 3]])).logits
    whole = float(target_losses(ours, pack, "cpu").losses.detach().sum())
    assert restrict_vocabulary(ours, 64, []) == 64
    same = target_losses(ours, pack, "cpu").losses.detach().sum()
    assert float(same) == pytest.approx(whole, rel=1e-5)
    count = restrict_vocabulary(ours, 5, dialogues())
    targets = {n for d in dialogues() for n in d.labels if n != IGNORE_INDEX}
    assert count == len(targets | {*range(5)}) < 64
    found = target_losses(ours, pack, "cpu")
    assert found.losses.sum() < whole
    kept = sorted(targets | {*range(5)})
    head = causal_lm(ours).get_output_embeddings()
    expected = torch.nn.functional.cross_entropy
    hidden: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    target_losses(ours, pack, "cpu")
    hook.remove()
    part = hidden[0][0] @ head.weight[kept].t()
    places = torch.tensor([kept.index(label) for label in labels])
    torch.testing.assert_close(found.losses, expected(part, places, reduction="none"))
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=torch.tensor([[1, 2, 3]])).logits, logits)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_upper_layers_alone_are_trained(tiny: Path, layers: int) -> None:
    ours = model(tiny, f"lora.layers={layers}")
    assert first_trained_layer(ours) == LAYERS - layers
    same = model(tiny, f"lora.first_layer={LAYERS - layers}")
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in same.named_parameters() if p.requires_grad
    }


def test_more_layers_than_there_are_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="of 4 layers"):
        model(tiny, "lora.layers=5")


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)]
)
@pytest.mark.parametrize("share", [True, False])
def test_cached_lower_layers_give_the_same_losses_and_gradients(
    tiny: Path, tmp_path: Path, dtype: str, rtol: float, share: bool
) -> None:
    ours = model(tiny, "lora.layers=2")
    whole = dialogues()
    packs = make_packs(whole, 64, seed=5, share_prefix=share)
    expected, slopes = total(ours, packs), gradients(ours)
    lower = LowerStates(ours, whole, 2, tmp_path, dtype=dtype, max_tokens=64)
    lower.fill(0, 1, "cpu")
    assert lower.missing == 0
    skip_lower_layers(ours, 2)
    found = total(ours, packs, lambda pack: lower.of(pack, "cpu", torch.float32))
    assert found == pytest.approx(expected, rel=rtol)
    for name, slope in gradients(ours).items():
        torch.testing.assert_close(slope, slopes[name], rtol=20 * rtol, atol=20 * rtol)


def test_a_system_message_and_a_repeated_dialogue_are_kept_once(tiny: Path, tmp_path: Path) -> None:
    whole = dialogues()
    lower = LowerStates(
        model(tiny, "lora.layers=2"), whole, 2, tmp_path, dtype="float16", max_tokens=64
    )
    rests = sum(len(d.input_ids) - d.prefix for d in whole[:-1])
    assert lower.tokens == rests + 11 + 7 + 11
    assert next(tmp_path.glob("*.states")).stat().st_size == 2 * 32 * lower.tokens


def test_a_killed_filling_goes_on_and_another_model_does_not_share_it(
    tiny: Path, tmp_path: Path
) -> None:
    ours, whole = model(tiny, "lora.layers=2"), dialogues()

    def states(folder: Path = tmp_path, first: int = 2) -> LowerStates:
        return LowerStates(ours, whole, first, folder, dtype="float32", max_tokens=64)

    half = states()
    rows = half.missing
    half.fill(0, 2, "cpu")  # the first of two workers
    assert 0 < states().missing == rows - -(-rows // 2)
    states().fill(1, 2, "cpu")
    assert states().missing == 0
    assert states(first=1).missing > 0
    with torch.no_grad():
        causal_lm(ours).model.layers[0].mlp.up_proj.weight.add_(1e-3)
    assert states().missing > 0


def test_states_that_overflow_are_refused(tiny: Path, tmp_path: Path) -> None:
    ours = model(tiny, "lora.layers=2")
    with torch.no_grad():
        causal_lm(ours).model.embed_tokens.weight.mul_(1e6)
    lower = LowerStates(ours, dialogues(), 2, tmp_path, dtype="float16", max_tokens=64)
    with pytest.raises(TrainingError, match="cache_dtype=bfloat16"):
        lower.fill(0, 1, "cpu")
