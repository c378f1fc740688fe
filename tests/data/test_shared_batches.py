from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sr_dist.data.shared_batches import Ring, Slot


class Numbers(Dataset):
    """Fills a slot with the number that was asked for."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    def __getitem__(self, number: int):
        slot = self.ring.next(1 + number % 2)
        for images in self.ring.images(slot):
            images.fill_(number)
        return slot


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_slot_holds_what_its_process_put_there_until_all_others_were_filled(start):
    """Python 3.14 starts processes by a server, to which the memory must be sent."""
    ring = Ring(2, 3, 2, [(4, 4, 3), (2, 2, 3)])
    loader = DataLoader(Numbers(ring), sampler=range(20), batch_size=None, collate_fn=tuple, num_workers=2, prefetch_factor=2,
                        multiprocessing_context=start)  # fmt: skip
    for number, (worker, place, images) in enumerate(loader):
        assert (worker, place, images) == (number % 2, (number // 2 + 1) % 3, 1 + number % 2)
        hr, lr = ring.images(Slot(worker, place, images))
        assert hr.shape == (images, 4, 4, 3) and lr.shape == (images, 2, 2, 3)
        assert hr.unique().tolist() == lr.unique().tolist() == [number]


def test_slots_and_members_lie_apart():
    ring = Ring(2, 3, 2, [(4, 4, 3), (2, 2, 3)])
    places = [images.data_ptr() for images in ring._rooms]
    assert [images.numel() for images in ring._rooms] == [2 * 3 * 2 * 48, 2 * 3 * 2 * 12]
    assert all(images.is_shared() for images in ring._rooms) and len(set(places)) == 2
    assert all(images.dtype == torch.uint8 for images in ring._rooms)
