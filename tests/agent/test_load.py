"""Agents from folders: adapter, merged weights, and what is wrong with the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.agent import load_agent
from ecg_agent_ray.agent.load import AgentManifest, read_manifest, write_manifest
from ecg_agent_ray.errors import ConfigError, ModelNotFoundError, WeightsUnavailableError


@pytest.fixture(scope="module")
def base(make_tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: Any) -> Path:
    folder = Path(tmp_path_factory.mktemp("base"))
    make_tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_an_adapter_folder(
    base: Path, make_tiny_model: Callable[..., Any], tmp_path: Path, fixed_toolbox: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "agent"
    get_peft_model(make_tiny_model(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        folder
    )
    write_manifest(folder, AgentManifest(base_model=str(base), lead_configuration="II"))
    agent = load_agent(folder, max_tokens=48)
    assert agent.lead_configuration == "II"
    assert "lead II" in agent.system["content"]
    assert agent.name == str(folder)
    assert agent.respond([{"role": "user", "content": "hi"}], fixed_toolbox).content
    assert load_agent(folder, lead_configuration="I").lead_configuration == "I"


def test_a_folder_of_merged_weights(base: Path) -> None:
    write_manifest(base, AgentManifest(lead_configuration="I"))
    assert load_agent(base, max_tokens=48).respond([{"role": "user", "content": "hi"}]).content


def test_a_base_model_alone(base: Path) -> None:
    assert load_agent(f"base:{base}").engine.name == f"base:{base}"


def test_another_agent_takes_its_place_where_the_weights_are_not_available(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ECG_AGENT_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    folder, small = tmp_path / "agent", tmp_path / "small"
    shutil.copytree(base, small)
    write_manifest(small, AgentManifest(lead_configuration="II"))
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    larger = AgentManifest(base_model="weights:qwen2.5-coder-1.5b-instruct")
    write_manifest(folder, larger.model_copy(update={"fallback": "../small"}))
    agent = load_agent(folder)
    assert agent.lead_configuration == "II"
    write_manifest(folder, larger)
    with pytest.raises(WeightsUnavailableError, match=r"qwen2\.5-coder-1\.5b"):
        load_agent(folder)


def test_an_older_prompt_is_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_manifest(base, AgentManifest(prompt_version="0"))
    load_agent(base)
    assert "prompt version 0" in caplog.text


def test_what_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"ecg_agent\.json"):
        load_agent(tmp_path)
    (tmp_path / "ecg_agent.json").write_text(json.dumps({"lead_configuration": "V9"}))
    with pytest.raises(ConfigError, match="lead_configuration"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match=r"registry\.resolve"):
        load_agent("models:/ecg-agent@champion")
