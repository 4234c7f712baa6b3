"""Groups of statements that people ask for together, and statements that imply others."""

from __future__ import annotations

from collections.abc import Mapping

from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["GROUPS", "IMPLIED_BY", "Group", "members"]

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """``name`` reads after "no", ``plural`` after "assess"."""

    name: str
    plural: str
    codes: tuple[str, ...]


def _of_kind(kind: str, *, without: str = "") -> tuple[str, ...]:
    return tuple(
        code
        for code, item in STATEMENTS.items()
        if item.kind == kind and not (without and code.startswith(without))
    )


GROUPS: Mapping[str, Group] = {
    "MI": Group("infarction", "infarctions", _of_kind("infarction", without="INJ")),
    "BBB": Group("bundle branch block", "bundle branch blocks",
                 ("CLBBB", "ILBBB", "CRBBB", "IRBBB")),
    "ECTOPY": Group("extra beat", "extra beats", ("PVC", "PAC", "PRC(S)", "BIGU", "TRIGU")),
    "ISCHEMIA": Group("sign of ischemia", "signs of ischemia", _of_kind("ischemia")),
    "HYPERTROPHY": Group("hypertrophy", "hypertrophies", ("LVH", "VCLVH", "RVH", "SEHYP")),
    "AVB": Group("AV block", "AV blocks", ("1AVB", "2AVB", "3AVB", "LPR")),
}  # fmt: skip

IMPLIED_BY: Mapping[str, tuple[str, ...]] = {
    "SR": ("STACH", "SBRAD", "SARRH"),
    "ISC_": ("ISCAL", "ISCAN", "ISCAS", "ISCIL", "ISCIN", "ISCLA"),
    "PRC(S)": ("PAC", "PVC"),
    "LPR": ("1AVB",),
    "1AVB": ("LPR",),
}
"""A statement that a narrower one makes true: sinus tachycardia is a sinus rhythm."""


def members(code: str) -> tuple[str, ...]:
    """The codes of a group, else the code alone."""
    return GROUPS[code].codes if code in GROUPS else (code,)
