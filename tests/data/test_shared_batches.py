from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sr_dist.data.shared_batches import SharedBatches, Slot


class Numbers(Dataset):
    """Fills a slot with the requested number."""

    def __init__(self, shared: SharedBatches) -> None:
        self.shared = shared

    def __getitem__(self, number: int):
        slot = self.shared.next_slot(1 + number % 2)
        for images in self.shared.arrays(slot):
            images[:] = number
        return slot


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_slot_is_overwritten_only_after_all_other_slots_of_its_worker(start):
    """Python 3.14 starts processes by a fork server, to which the shared memory is sent."""
    shared = SharedBatches(2, 3, 2, [(4, 4, 3), (2, 2, 3)])
    loader = DataLoader(Numbers(shared), sampler=range(20), batch_size=None, collate_fn=tuple, num_workers=2, prefetch_factor=2,
                        multiprocessing_context=start)  # fmt: skip
    for number, (worker, slot, images) in enumerate(loader):
        assert (worker, slot, images) == (number % 2, (number // 2 + 1) % 3, 1 + number % 2)
        hr, lr = shared.arrays(Slot(worker, slot, images))
        assert hr.shape == (images, 4, 4, 3) and lr.shape == (images, 2, 2, 3)
        assert set(hr.flat) == set(lr.flat) == {number}


def test_hr_and_lr_have_separate_memory():
    shared = SharedBatches(2, 3, 2, [(4, 4, 3), (2, 2, 3)])
    addresses = [buffer.data_ptr() for buffer in shared._buffers]
    assert [buffer.numel() for buffer in shared._buffers] == [2 * 3 * 2 * 48, 2 * 3 * 2 * 12]
    assert all(buffer.is_shared() for buffer in shared._buffers) and len(set(addresses)) == 2
    assert all(buffer.dtype == torch.uint8 for buffer in shared._buffers)
