"""Electrocardiograms: recordings, file formats, leads, signal quality, paper plots. No torch.

>>> from ecg_agent_ray import ecg
>>> ecg.sample(3)
Recording('00003_hr', wfdb, 12 leads, 500 Hz, 10.0 s)
"""

from __future__ import annotations

from ecg_agent_ray.ecg.assembly import ReadingOptions
from ecg_agent_ray.ecg.leads import LIMB_LEADS, STANDARD_LEADS, normalise_lead
from ecg_agent_ray.ecg.plotting import plot
from ecg_agent_ray.ecg.quality import LeadQuality, assess_quality
from ecg_agent_ray.ecg.reading import SUPPORTED_FORMATS, read
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.ecg.samples import sample, sample_metadata, samples

__all__ = [
    "LIMB_LEADS",
    "STANDARD_LEADS",
    "SUPPORTED_FORMATS",
    "LeadQuality",
    "ReadingOptions",
    "Recording",
    "assess_quality",
    "normalise_lead",
    "plot",
    "read",
    "sample",
    "sample_metadata",
    "samples",
]
