"""Which version is chosen and when it is changed, with a real registry."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import ModelNotFoundError, ServiceError
from ecg_agent_ray.plugins.tracking import tracked_run
from ecg_agent_ray.registry import ModelVersion, log_classifier, resolve
from ecg_agent_ray.serving import ServiceConfig
from ecg_agent_ray.serving.config import ModelsConfig
from ecg_agent_ray.serving.followed import FollowedModel, ModelSet
from ecg_agent_ray.serving.models import ChosenModel, choose_model
from ecg_agent_ray.serving.tool_replicas import ClassificationReplica


@pytest.fixture
def registry(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    yield Registry()


class Registry:
    """Versions of the shipped classifier, one of them with weights that give no numbers."""

    def __init__(self) -> None:
        self.client = mlflow.MlflowClient()
        with tracked_run("train") as run:
            pass
        self.run_id = run.run_id

    def add(self, folder: Path | None = None, leads: str = "12-lead") -> ModelVersion:
        return log_classifier(
            folder or resolve("builtin:classifier"),
            run_id=self.run_id,
            metrics={"macro_auroc": 0.9},
            lead_configuration=leads,
            alias=None,
        )

    def point(self, alias: str, version: ModelVersion) -> None:
        self.client.set_registered_model_alias(version.name, alias, str(version.version))


def broken_copy(folder: Path) -> Path:
    shutil.copytree(resolve("builtin:classifier"), folder)
    weights = load_file(folder / "model.safetensors")
    spoilt = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    (folder / "model.safetensors").unlink()
    save_file(spoilt, folder / "model.safetensors")
    return folder


def test_auto_says_why(registry: Registry) -> None:
    assert choose_model("auto", "classifier").version == "builtin:"
    version = registry.add()
    assert choose_model("auto", "classifier").version == "builtin:"
    registry.point("champion", version)
    chosen = choose_model("auto", "classifier")
    assert chosen.uri == "models:/ecg-classifier@champion"
    assert chosen.version == "models:/ecg-classifier/1"
    assert chosen.reason == "the registered champion"
    assert chosen.evaluation == {"macro_auroc": 0.9}
    with pytest.raises(ModelNotFoundError):
        choose_model("auto", "classifier", "II")
    with pytest.raises(ModelNotFoundError):
        choose_model("auto", "classifier", alias="challenger")
    with pytest.raises(ModelNotFoundError, match="no variants"):
        choose_model("builtin:", "classifier", "II")


def replica(tmp_path: Path, **models: Any) -> ClassificationReplica:
    config = ServiceConfig(
        store=str(tmp_path / "ecgs"), models=ModelsConfig(follow_s=None, **models)
    )
    return ClassificationReplica(config.resolved())


def refresh(held: ClassificationReplica) -> None:
    for followed in held._models._sets.values():
        followed.refresh()


def test_the_champion_is_followed_and_a_broken_one_is_not(
    registry: Registry, tmp_path: Path
) -> None:
    first, second = registry.add(), registry.add()
    registry.point("champion", first)
    held = replica(tmp_path)
    meta = held.store.add(ecg.sample(3), {}, "a")
    assert asyncio.run(held.status())["version"] == first.uri
    before = asyncio.run(held.classification(meta.id, {"leads": "12-lead"}))["detail"]
    assert before["model"] == first.uri

    registry.point("champion", registry.add(broken_copy(tmp_path / "broken")))
    refresh(held)
    status = asyncio.run(held.status())
    assert status["ready"] is True
    assert status["version"] == first.uri
    assert status["rejected"]["version"] == "models:/ecg-classifier/3"
    assert asyncio.run(held.classification(meta.id, {"leads": "12-lead"}))["detail"] == before

    registry.point("champion", second)
    refresh(held)
    assert asyncio.run(held.status())["version"] == second.uri
    assert "rejected" not in asyncio.run(held.status())
    after = asyncio.run(held.classification(meta.id, {"leads": "12-lead"}))["detail"]
    assert after == before | {"model": second.uri}

    registry.client.delete_registered_model_alias("ecg-classifier", "champion")
    refresh(held)
    assert asyncio.run(held.status())["version"] == second.uri


def test_a_single_lead_has_its_own_champion(registry: Registry, tmp_path: Path) -> None:
    registry.point("champion", registry.add())
    own = registry.add(leads="II")
    registry.point("champion", own)
    held = replica(tmp_path)
    meta = held.store.add(ecg.sample(3), {}, "a")
    models = {
        leads: asyncio.run(held.classification(meta.id, {"leads": leads}))["detail"]["model"]
        for leads in ("12-lead", "I", "II")
    }
    twelve = "models:/ecg-classifier/1"
    assert models == {"12-lead": twelve, "I": twelve, "II": own.uri}
    assert list(asyncio.run(held.status())["variants"]) == ["II"]


def test_the_challenger_gets_its_share_and_is_compared(registry: Registry, tmp_path: Path) -> None:
    champion, challenger = registry.add(), registry.add()
    registry.point("champion", champion)
    registry.point("challenger", challenger)
    held = replica(tmp_path, canary_share=0.5)
    metas = [held.store.add(ecg.sample(3), {}, "a") for _ in range(24)]
    arms = {meta.id: held._models.pick("12-lead", meta.id)[1] for meta in metas}
    assert set(arms.values()) == {"champion", "challenger"}
    for meta in metas[:6]:
        answer = asyncio.run(held.classification(meta.id, {"leads": "12-lead"}))
        if arms[meta.id] == "champion":
            assert answer["detail"]["model"] == champion.uri
            assert "canary" not in answer
        else:
            assert answer["detail"]["model"] == challenger.uri
            assert answer["canary"] == {
                "champion": champion.uri,
                "challenger": challenger.uri,
                "disagree": [],
                "largest_difference": 0.0,
            }


def test_share_holds_over_many_ecgs() -> None:
    def load(chosen: ChosenModel, leads: str) -> tuple[str, dict[str, Any]]:
        return chosen.version, {}

    models: ModelSet[str] = ModelSet(
        "agent", "builtin:", load, ModelsConfig(follow_s=None, canary_share=0.2)
    )
    models._sets["12-lead", "challenger"] = FollowedModel(
        "rival", lambda: ChosenModel("u", "v2", "r"), lambda chosen: (chosen.version, {})
    )
    models._sets["12-lead", "challenger"].refresh()
    arms = [models.pick("I", f"ecg_{i}")[1] for i in range(5000)]
    assert 0.17 < arms.count("challenger") / len(arms) < 0.23
    assert models.pick("I", "")[1] == "champion"


def test_a_part_that_cannot_load_says_why_and_tries_again() -> None:
    attempts = []

    def load(chosen: ChosenModel) -> tuple[str, dict[str, Any]]:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("the disk is away")
        return "part", {"engine": "e"}

    part = FollowedModel("the part", lambda: ChosenModel("u", "u/1", "r"), load)
    part.refresh()
    assert part.status()["ready"] is False
    with pytest.raises(ServiceError, match="the disk is away"):
        part.get()
    part.refresh()
    assert len(attempts) == 1, "a version that failed is left alone for a while"
    part.retry_s = 0.0
    assert part.get().part == "part"
    assert part.status()["uri"] == "u"
    assert part.status()["problem"] is None


def test_a_registry_that_is_away_changes_nothing() -> None:
    answers: list[Any] = [ChosenModel("u", "u/1", "r"), ConnectionError("away")]

    def choose() -> ChosenModel:
        answer = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    part = FollowedModel("the part", choose, lambda chosen: (chosen.version, {}))
    part.refresh()
    answers.pop(0)
    part.refresh()
    assert part.get().part == "u/1"
    assert "cannot be asked" in part.status()["problem"]
