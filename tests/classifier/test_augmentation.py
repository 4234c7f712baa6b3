"""Augmentation is the same whatever the batch, and masks leads as configurations do."""

from __future__ import annotations

import torch

from ecg_agent_ray.classifier.augmentation import Augmentation, augment, mask_leads

WINDOWS = torch.randn(4, 12, 500, generator=torch.Generator().manual_seed(0))


def test_a_record_is_changed_alike_in_any_batch() -> None:
    options = Augmentation()
    whole = augment(WINDOWS, [3, 5, 8, 9], seed=1, epoch=2, options=options)
    part = augment(WINDOWS[2:3], [8], seed=1, epoch=2, options=options)
    assert torch.equal(whole[2:3], part)
    assert not torch.equal(whole, augment(WINDOWS, [3, 5, 8, 9], seed=1, epoch=3, options=options))


def test_single_lead_leaves_lead_one_or_two() -> None:
    options = Augmentation(single_lead=1.0, lead_dropout=0.0)
    rows = set()
    for epoch in range(10):
        for window in augment(WINDOWS, [0, 1, 2, 3], seed=0, epoch=epoch, options=options):
            present = torch.nonzero(window.abs().sum(1)).flatten().tolist()
            assert len(present) == 1
            rows.update(present)
    assert rows == {0, 1}


def test_absent_leads_stay_absent_and_nothing_can_be_switched_off() -> None:
    windows = WINDOWS.clone()
    windows[:, 5:] = 0
    assert (
        augment(windows, [0, 1, 2, 3], seed=0, epoch=0, options=Augmentation())[:, 5:] == 0
    ).all()
    nothing = Augmentation(shift=False, gain=0, noise_mv=0, single_lead=0, lead_dropout=0)
    assert torch.equal(augment(WINDOWS, [0, 1, 2, 3], seed=0, epoch=0, options=nothing), WINDOWS)


def test_mask_leads() -> None:
    assert torch.equal(mask_leads(WINDOWS, "12-lead"), WINDOWS)
    single = mask_leads(WINDOWS, "II")
    assert torch.equal(single[:, 1], WINDOWS[:, 1])
    assert (single[:, [0, *range(2, 12)]] == 0).all()
