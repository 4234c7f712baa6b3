"""The estimator: published sizes, a measured step, plans refused with what would mend them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecg_agent_ray.agent.chat_format import EncodedDialogue
from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError, MissingDependencyError, PlanDoesNotFitError
from ecg_agent_ray.shipped import shipped
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_kernels import check_packages, choose_kernels
from ecg_agent_ray.training.llm_plan import activation_bytes, check_fits, memory_parts, plan_llm
from ecg_agent_ray.training.llm_shapes import SHAPES, ModelShape, model_shape
from ecg_agent_ray.training.packing import make_packs

CONFIGS = sorted(path.name for path in shipped("jobs/configs/llm").glob("*x*.yaml"))


def config(*overrides: str) -> LLMFinetuneConfig:
    return load_config(LLMFinetuneConfig, None, ["train=/nowhere.jsonl", *overrides])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("weights:qwen2.5-coder-0.5b-instruct", 494_032_768),
        ("weights:qwen2.5-coder-1.5b-instruct", 1_543_714_304),
    ],
)
def test_shapes_give_the_published_numbers_of_parameters(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_layout_loads_and_fits(name: str, paper: bool) -> None:
    files = [shipped(f"jobs/configs/llm/{name}")]
    files += [shipped("jobs/configs/llm/paper.yaml")] if paper else []
    loaded = load_config(LLMFinetuneConfig, files)
    plan = check_fits(loaded)
    assert loaded.batch.packs_per_step % plan.ranks == 0
    assert plan.steps and plan.hours and plan.tokens_per_second > 0
    if paper:
        assert (loaded.lora.r, loaded.lora.alpha, len(loaded.lora.target_modules)) == (16, 16, 7)
        assert (loaded.optimizer.lr, loaded.epochs) == (2e-4, 3)
        assert (loaded.batch.packs_per_step, loaded.batch.packing) == (128, False)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_and_kept_activations_are_those_of_a_real_step(checkpointing: bool) -> None:
    """Tensors that autograd keeps, counted once each, without parameters and logits."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    ).to(torch.bfloat16)
    shape = ModelShape.from_config(base.config.to_dict())
    assert sum(p.numel() for p in base.parameters()) == shape.parameters
    job = config("batch.max_tokens=512", f"gradient_checkpointing={checkpointing}")
    lora = LoraConfig(r=16, target_modules=list(job.lora.target_modules), task_type="CAUSAL_LM")
    if checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    model = get_peft_model(base, lora, autocast_adapter_dtype=False).train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == shape.lora_parameters(16, job.lora.target_modules)

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: object) -> object:
        storage = tensor.untyped_storage()  # type: ignore[attr-defined]
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 64, (1, 512))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.float().sum()
    measured = sum(kept.values())
    estimated = activation_bytes(shape, job)
    if checkpointing:
        # what recomputing one layer keeps for a while is not kept at the end of the forward pass
        one = activation_bytes(shape, job.model_copy(update={"gradient_checkpointing": False}))
        estimated -= one // shape.layers
    assert estimated == pytest.approx(measured, rel=0.05)


def test_zero_stages_spread_what_they_say() -> None:
    shape = SHAPES["meta-llama/Llama-3.1-8B-Instruct"]
    one = memory_parts(shape, config("distributed.num_workers=8", "distributed.zero_stage=1"))
    two = memory_parts(shape, config("distributed.num_workers=8", "distributed.zero_stage=2"))
    three = memory_parts(shape, config("distributed.num_workers=8", "distributed.zero_stage=3"))
    assert two["weights"] == one["weights"] == 2 * shape.parameters
    assert three["weights"] == one["weights"] // 8
    assert two["optimizer"] == one["optimizer"]
    assert two["gradients"] == one["gradients"] // 8
    alone = memory_parts(shape, config("distributed.num_workers=8", "distributed.zero_stage=0"))
    assert alone["optimizer"] == 8 * shape.lora_parameters(16, config().lora.target_modules)
    assert one["optimizer"] == alone["optimizer"] * 12 // 8 // 8


@pytest.mark.parametrize(
    ("overrides", "mend"),
    [
        (["base_model=Qwen/Qwen3-32B"], "gradient_checkpointing=true quantize=nf4"),
        (
            ["base_model=Qwen/Qwen3-32B", "distributed.num_workers=8", "batch.max_tokens=4096",
             "gradient_checkpointing=true", "assume.device=a100-40gb"],
            "distributed.zero_stage=3",
        ),
        (
            ["base_model=meta-llama/Llama-3.2-1B-Instruct", "batch.max_tokens=16384",
             "assume.device=l4-24gb", "distributed.num_workers=1"],
            "gradient_checkpointing=true",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_fit_is_refused_with_what_would(overrides: list[str], mend: str) -> None:
    first = ["distributed.num_workers=1", "assume.device=a100-40gb", "batch.max_tokens=8192"]
    job = config(*first, *overrides)
    with pytest.raises(PlanDoesNotFitError) as caught:
        check_fits(job)
    hint = str(caught.value.hint)
    assert mend in hint
    changed = config(*first, *overrides, *hint.removeprefix("it fits with ").split())
    assert plan_llm(changed).fits


def test_the_command_ends_with_3_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(shipped("jobs/configs/llm/qwen3-32b-1x.yaml"))
    assert run(["train", "llm", "--config", file, "--plan"]) == 0
    assert "fits" in "".join(capsys.readouterr())
    refused = ["train", "llm", "--config", file, "--plan", "quantize=none", "assume.device=l4-24gb"]
    assert run(refused) == 3
    assert "GiB a rank do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("where", [[], ["--address", "http://127.0.0.1:9"]])
def test_training_refuses_what_cannot_fit_before_anything_starts(
    where: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    joined = ray.is_initialized()  # the session's cluster, where other tests asked for it
    for started in (
        "ecg_agent_ray.training.llm.local_ray",
        "ecg_agent_ray.training.llm.tracked_run",
        "ecg_agent_ray.training.llm.resolve_base_model",
        "ecg_agent_ray.plugins.ray_jobs.connect",
    ):
        monkeypatch.setattr(started, lambda *_, **__: pytest.fail("something was started"))
    file = str(shipped("jobs/configs/llm/qwen3-32b-1x.yaml"))
    job = ["train", "llm", "--config", file, *where, "train=/nowhere.jsonl"]
    assert run([*job, "quantize=none", "assume.device=a100-40gb"]) == 3
    shown = capsys.readouterr()
    assert "GiB a rank do not fit" in shown.err
    assert "it fits with quantize=nf4" in shown.err
    assert "assume.device" in shown.err
    assert not shown.out
    assert ray.is_initialized() == joined


def test_of_an_unknown_shape_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from ecg_agent_ray.training.llm import refuse_what_cannot_fit

    with caplog.at_level("WARNING"):
        refuse_what_cannot_fit(config("base_model=/no/such/model"))
    assert "is not known" in caplog.text


def test_tokens_are_counted_where_the_data_are_here(tmp_path: Path) -> None:
    from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues

    turns = [Turn.user("hello"), Turn.answer(Action.SYSTEM_BYE, "End.", "Bye.")]
    row = Dialogue(turns=turns, ecg_files=["a.hea"], metadata={"lead_configuration": "I"})
    write_dialogues(tmp_path / "train.jsonl", [row] * 5)
    plan = plan_llm(load_config(LLMFinetuneConfig, None, [f"train={tmp_path / 'train.jsonl'}"]))
    assert plan.data is not None and plan.data.dialogues == 5
    assert plan.data.tokens > 5 * 100 and plan.data.source.startswith("counted")


def test_settings_that_exclude_each_other_and_unknown_names_are_refused() -> None:
    for bad in (
        ["quantize=nf4", "distributed.zero_stage=3"],
        ["distributed.offload_parameters=true"],
        ["early_stopping_patience=2"],
    ):
        with pytest.raises(ConfigError, match="needs"):
            config(*bad)
    with pytest.raises(ConfigError, match=r"assume\.device"):
        plan_llm(config("assume.device=tpu"))
    with pytest.raises(ConfigError, match="shape"):
        model_shape("org/unheard-of")


def test_kernels_are_decided_with_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    here: set[str] = set()
    monkeypatch.setattr("ecg_agent_ray.training.llm_kernels._installed", lambda name: name in here)
    plain = choose_kernels(config(), gpu=True)
    assert (plain.attention, plain.liger) == ("sdpa", False)
    assert any("flash-attn is not installed" in reason for reason in plain.reasons)
    with pytest.raises(MissingDependencyError, match="bitsandbytes"):
        check_packages(config("quantize=nf4"))
    here |= {"flash_attn", "liger_kernel"}
    fast = choose_kernels(config(), gpu=True)
    assert (fast.attention, fast.liger) == ("flash_attention_2", True)
    assert choose_kernels(config(), gpu=False).attention == "packed"
    assert choose_kernels(config("dtype=float32"), gpu=True).attention == "sdpa"


def test_without_packing_a_row_is_a_dialogue() -> None:
    encoded = [EncodedDialogue([i] * n, [i] * n, [False] * n) for i, n in enumerate((5, 7, 90))]
    rows = make_packs(encoded, 80, seed=0, packing=False)
    assert sorted(len(row.input_ids) for row in rows) == [5, 7, 80]
