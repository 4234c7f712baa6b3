"""The label sets: PTB-XL's 71 SCP-ECG statements and what fewer leads can tell of them.

Order (index 0 to 70) is that of ECG-Agent's classifier, which is the statements' ASCII order
(capitals before ``_``). Names follow PTB-XL's ``scp_statements.csv`` (Wagner et al. 2020,
doi:10.1038/s41597-020-0495-6), worded for a reader who knows no codes. ``groups`` are PTB-XL's
three kinds of statement: a statement can be of two kinds (``NDT`` is diagnostic and form).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ecg_agent_ray.errors import ConfigError, LeadError

__all__ = [
    "LABELS",
    "LABEL_INFO",
    "LEAD_CONFIGURATIONS",
    "LabelInfo",
    "LeadConfiguration",
    "configuration_labels",
    "configuration_leads",
    "read_labels",
]

LeadConfiguration = Literal["12-lead", "I", "II"]
LEAD_CONFIGURATIONS: tuple[LeadConfiguration, ...] = ("12-lead", "I", "II")


@dataclass(frozen=True)
class LabelInfo:
    """What a code stands for; ``groups`` is a subset of diagnostic, form, rhythm."""

    code: str
    name: str
    groups: tuple[str, ...]


_D, _F, _R = "diagnostic", "form", "rhythm"

LABEL_INFO: dict[str, LabelInfo] = {
    code: LabelInfo(code, name, groups)
    for code, name, *groups_ in (
        ("1AVB", "first-degree AV block", _D),
        ("2AVB", "second-degree AV block", _D),
        ("3AVB", "third-degree AV block", _D),
        ("ABQRS", "abnormal QRS", _F),
        ("AFIB", "atrial fibrillation", _R),
        ("AFLT", "atrial flutter", _R),
        ("ALMI", "anterolateral myocardial infarction", _D),
        ("AMI", "anterior myocardial infarction", _D),
        ("ANEUR", "ST-T changes compatible with a ventricular aneurysm", _D),
        ("ASMI", "anteroseptal myocardial infarction", _D),
        ("BIGU", "bigeminal pattern", _R),
        ("CLBBB", "complete left bundle branch block", _D),
        ("CRBBB", "complete right bundle branch block", _D),
        ("DIG", "digitalis effect", _D, _F),
        ("EL", "electrolyte disturbance or drug effect", _D),
        ("HVOLT", "high QRS voltage", _F),
        ("ILBBB", "incomplete left bundle branch block", _D),
        ("ILMI", "inferolateral myocardial infarction", _D),
        ("IMI", "inferior myocardial infarction", _D),
        ("INJAL", "subendocardial injury in anterolateral leads", _D),
        ("INJAS", "subendocardial injury in anteroseptal leads", _D),
        ("INJIL", "subendocardial injury in inferolateral leads", _D),
        ("INJIN", "subendocardial injury in inferior leads", _D),
        ("INJLA", "subendocardial injury in lateral leads", _D),
        ("INVT", "inverted T waves", _F),
        ("IPLMI", "inferoposterolateral myocardial infarction", _D),
        ("IPMI", "inferoposterior myocardial infarction", _D),
        ("IRBBB", "incomplete right bundle branch block", _D),
        ("ISCAL", "ischaemic changes in anterolateral leads", _D),
        ("ISCAN", "ischaemic changes in anterior leads", _D),
        ("ISCAS", "ischaemic changes in anteroseptal leads", _D),
        ("ISCIL", "ischaemic changes in inferolateral leads", _D),
        ("ISCIN", "ischaemic changes in inferior leads", _D),
        ("ISCLA", "ischaemic changes in lateral leads", _D),
        ("ISC_", "non-specific ischaemic changes", _D),
        ("IVCD", "non-specific intraventricular conduction disturbance", _D),
        ("LAFB", "left anterior fascicular block", _D),
        ("LAO/LAE", "left atrial overload or enlargement", _D),
        ("LMI", "lateral myocardial infarction", _D),
        ("LNGQT", "long QT interval", _D, _F),
        ("LOWT", "low-amplitude T waves", _F),
        ("LPFB", "left posterior fascicular block", _D),
        ("LPR", "prolonged PR interval", _F),
        ("LVH", "left ventricular hypertrophy", _D),
        ("LVOLT", "low QRS voltage", _F),
        ("NDT", "non-diagnostic T-wave abnormalities", _D, _F),
        ("NORM", "normal ECG", _D),
        ("NST_", "non-specific ST changes", _D, _F),
        ("NT_", "non-specific T-wave changes", _F),
        ("PAC", "atrial premature complex", _F),
        ("PACE", "functioning artificial pacemaker", _R),
        ("PMI", "posterior myocardial infarction", _D),
        ("PRC(S)", "premature complexes", _F),
        ("PSVT", "paroxysmal supraventricular tachycardia", _R),
        ("PVC", "ventricular premature complex", _F),
        ("QWAVE", "Q waves present", _F),
        ("RAO/RAE", "right atrial overload or enlargement", _D),
        ("RVH", "right ventricular hypertrophy", _D),
        ("SARRH", "sinus arrhythmia", _R),
        ("SBRAD", "sinus bradycardia", _R),
        ("SEHYP", "septal hypertrophy", _D),
        ("SR", "sinus rhythm", _R),
        ("STACH", "sinus tachycardia", _R),
        ("STD_", "non-specific ST depression", _F),
        ("STE_", "non-specific ST elevation", _F),
        ("SVARR", "supraventricular arrhythmia", _R),
        ("SVTAC", "supraventricular tachycardia", _R),
        ("TAB_", "T-wave abnormality", _F),
        ("TRIGU", "trigeminal pattern", _R),
        ("VCLVH", "voltage criteria for left ventricular hypertrophy", _F),
        ("WPW", "Wolff-Parkinson-White syndrome", _D),
    )
    for groups in (tuple(groups_),)
}

LABELS: tuple[str, ...] = tuple(LABEL_INFO)

# Statements judged detectable from the one lead by ECG-Agent's single-lead classifiers.
_DETECTABLE: dict[str, frozenset[str]] = {
    "I": frozenset(
        [
            "SR",
            "PAC",
            "ABQRS",
            "1AVB",
            "2AVB",
            "3AVB",
            "AFIB",
            "AFLT",
            "BIGU",
            "CLBBB",
            "CRBBB",
            "LAFB",
            "LPR",
            "PACE",
            "PSVT",
            "RVH",
            "SBRAD",
            "STACH",
            "SVTAC",
            "TRIGU",
            "WPW",
            "STD_",
            "STE_",
            "PVC",
        ]
    ),
    "II": frozenset(
        [
            "SR",
            "LAFB",
            "LNGQT",
            "1AVB",
            "2AVB",
            "3AVB",
            "AFIB",
            "AFLT",
            "BIGU",
            "CLBBB",
            "CRBBB",
            "DIG",
            "ILBBB",
            "LPR",
            "PACE",
            "PRC(S)",
            "PSVT",
            "RVH",
            "SBRAD",
            "STACH",
            "SVARR",
            "SVTAC",
            "TRIGU",
            "WPW",
            "PAC",
            "STD_",
            "STE_",
            "PVC",
        ]
    ),
}


def configuration_leads(configuration: str) -> tuple[str, ...]:
    """Leads a configuration feeds to the classifier; the others are zero.

    Raises
    ------
    LeadError
        For anything but ``12-lead``, ``I`` or ``II``.
    """
    from ecg_agent_ray.classifier.preprocessing import STANDARD_LEADS

    if configuration == "12-lead":
        return STANDARD_LEADS
    if configuration in _DETECTABLE:
        return (configuration,)
    raise LeadError(
        f"unknown lead configuration {configuration!r}",
        hint=f"one of {', '.join(LEAD_CONFIGURATIONS)}",
    )


def configuration_labels(configuration: str, labels: tuple[str, ...] = LABELS) -> tuple[str, ...]:
    """Those of ``labels`` that can be told from the leads of ``configuration``, in model order.

    Labels outside PTB-XL's 71 are kept only for ``12-lead``, since nothing is known of them.
    """
    configuration_leads(configuration)
    detectable = _DETECTABLE.get(configuration)
    return labels if detectable is None else tuple(code for code in labels if code in detectable)


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Label codes from a file: a JSON list, or one code a line.

    Raises
    ------
    ConfigError
        No such file, or no distinct codes in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
        codes = json.loads(text) if text.startswith("[") else text.splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read labels from {path}: {error}") from error
    labels = tuple(str(code).strip() for code in codes if str(code).strip())
    if not labels or len(set(labels)) != len(labels):
        raise ConfigError(f"{path} holds no list of distinct label codes")
    return labels
