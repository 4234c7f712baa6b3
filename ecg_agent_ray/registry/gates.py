"""Gate files: what a version has to show before it becomes champion.

    description: What this gate is for.
    rules:
      - metric: next_action_accuracy    # a name of the logged evaluation
        comparison: ">="                # the better side: ">=" or "<="
        threshold: 0.80                 # the least (or most) it may be; optional
        allowed_regression: 0.02        # how much worse than the champion; optional
        sample_size: n_turns            # which metric counts the samples
        minimum_samples: 200
        significance: 0.05              # a regression counts only if it is unlikely to be chance

Significance is a one-sided two-proportion z-test with pooled variance, so it is for rates between 0
and 1 only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecg_agent_ray.errors import ConfigError, ModelNotFoundError

__all__ = ["Gate", "GateReport", "GateRule", "RuleResult", "load_gate"]


class GateRule(BaseModel):
    """One metric's requirement."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(description="Name in the version's logged evaluation.")
    comparison: Literal[">=", "<="] = Field(">=", description="The better side.")
    threshold: float | None = Field(None, description="Absolute limit, in the metric's unit.")
    allowed_regression: float | None = Field(
        None, ge=0, description="How much worse than the champion it may be, in the metric's unit."
    )
    sample_size: str | None = Field(None, description="Metric that counts the samples.")
    minimum_samples: int | None = Field(None, ge=1, description="Least value of sample_size.")
    significance: float | None = Field(
        None, gt=0, lt=0.5, description="Level below which a regression is taken to be real."
    )

    @model_validator(mode="after")
    def _complete(self) -> GateRule:
        if self.threshold is None and self.allowed_regression is None:
            raise ValueError(f"{self.metric}: give threshold, allowed_regression or both")
        if (self.minimum_samples or self.significance) and not self.sample_size:
            raise ValueError(f"{self.metric}: minimum_samples and significance need sample_size")
        if self.significance and self.allowed_regression is None:
            raise ValueError(f"{self.metric}: significance is about allowed_regression")
        return self


class Gate(BaseModel):
    """All rules of a gate file; every one has to hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    rules: tuple[GateRule, ...] = Field(min_length=1)
    same_evaluation_data: bool = Field(
        True, description="Refuse a comparison with a champion that was evaluated on other data."
    )

    def check(
        self,
        metrics: Mapping[str, float],
        champion: Mapping[str, float] | None = None,
        *,
        same_data: bool = True,
    ) -> GateReport:
        """Compare ``metrics`` with the limits and, if there is one, with the champion's metrics."""
        results: list[RuleResult] = []
        for rule in self.rules:
            results.extend(_check_rule(rule, metrics, champion))
        if champion is not None and self.same_evaluation_data and not same_data:
            reason = "champion was evaluated on other data; evaluate both on the same"
            results.append(RuleResult("(data)", "same evaluation data", None, None, False, reason))
        return GateReport(self.name, tuple(results))


@dataclass(frozen=True)
class RuleResult:
    """One line of the table: what was required, what it is, and by how much it misses."""

    metric: str
    requirement: str
    value: float | None
    missed_by: float | None
    passed: bool
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class GateReport:
    gate: str
    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "passed": self.passed,
            "results": [result.to_dict() for result in self.results],
        }

    def failures(self) -> str:
        """What failed and by how much, in one line for an error."""
        return "; ".join(_sentence(result) for result in self.results if not result.passed)


def load_gate(name_or_path: str | Path) -> Gate:
    """Read a gate file by path, or a shipped one by name (``agent``, ``classifier``, ``demo-…``).

    Raises
    ------
    ModelNotFoundError
        There is no such file.
    ConfigError
        The YAML is not a gate; lists every problem.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _shipped_gate(str(name_or_path))
    if not path.is_file():
        raise ModelNotFoundError(
            f"no gate file at {path}", hint="give a YAML file, or the name of a shipped gate"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Gate.model_validate({"name": path.stem, **values})
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path} is not YAML of a gate: {error}") from error
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(map(str, e['loc'])) or 'gate'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(f"{path}", problems=problems) from error


def _shipped_gate(name: str) -> Path:
    """The checkout's file, else the copy that the wheel carries."""
    inside = Path("mlflow_projects", "evaluation", "gates", f"{name}.yaml")
    package = Path(str(resources.files("ecg_agent_ray")))
    carried = package / "_shipped" / inside
    return carried if carried.is_file() else package.parent / inside


def _check_rule(
    rule: GateRule, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> list[RuleResult]:
    value = metrics.get(rule.metric)
    if value is None or math.isnan(value):
        return [RuleResult(rule.metric, "measured", None, None, False, "not in the evaluation")]
    results = []
    samples = metrics.get(rule.sample_size) if rule.sample_size else None
    if rule.minimum_samples is not None:
        short = rule.minimum_samples - (samples or 0)
        results.append(
            RuleResult(
                str(rule.sample_size),
                f">= {rule.minimum_samples}",
                samples,
                max(0.0, short),
                short <= 0,
            )
        )
    if rule.threshold is not None:
        missed = _worse_by(rule, value, rule.threshold)
        requirement = f"{rule.comparison} {rule.threshold:g}"
        results.append(RuleResult(rule.metric, requirement, value, max(0.0, missed), missed <= 0))
    before = (champion or {}).get(rule.metric)
    if rule.allowed_regression is not None and before is not None:
        results.append(_check_regression(rule, value, before, samples, champion or {}))
    return results


def _check_regression(
    rule: GateRule,
    value: float,
    before: float,
    samples: float | None,
    champion: Mapping[str, float],
) -> RuleResult:
    allowed = rule.allowed_regression or 0.0
    # a difference in the last bits is no regression
    missed = _worse_by(rule, value, before) - allowed
    passed = missed <= 1e-12
    note = ""
    if not passed and rule.significance is not None and rule.sample_size is not None:
        p = _p_of_regression(
            _worse_by(rule, value, before),
            value,
            before,
            samples or 0,
            champion.get(rule.sample_size, 0),
        )
        passed = p >= rule.significance
        note = f"p = {p:.3f}" + (", may be chance" if passed else "")
    requirement = f"{rule.comparison} champion's {before:g} within {allowed:g}"
    return RuleResult(rule.metric, requirement, value, max(0.0, missed), passed, note)


def _worse_by(rule: GateRule, value: float, limit: float) -> float:
    """How far ``value`` lies on the bad side of ``limit``; negative where it is better."""
    return limit - value if rule.comparison == ">=" else value - limit


def _p_of_regression(worse: float, a: float, b: float, n_a: float, n_b: float) -> float:
    """Probability of a difference this large between two samples of one rate (pooled z-test)."""
    if not (0 <= a <= 1 and 0 <= b <= 1) or n_a <= 0 or n_b <= 0:
        return 0.0  # no rate, or size unknown: the regression stands
    rate = (a * n_a + b * n_b) / (n_a + n_b)
    spread = math.sqrt(rate * (1 - rate) * (1 / n_a + 1 / n_b))
    return 0.0 if spread == 0 else 0.5 * math.erfc(worse / spread / math.sqrt(2))


def _sentence(result: RuleResult) -> str:
    if result.value is None:
        return f"{result.metric}: {result.note or 'missing'}"
    text = f"{result.metric} is {result.value:g}, required {result.requirement}"
    if result.missed_by:
        text += f", misses by {result.missed_by:.4g}"
    return f"{text} ({result.note})" if result.note else text
