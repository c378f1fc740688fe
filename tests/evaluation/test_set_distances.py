"""From the batches of a pass to sets of features."""

import numpy as np
import pytest
import torch
from PIL import Image

from sr_dist.data.folder_images import FolderImages
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.distances.features import Unmeasurable
from sr_dist.evaluation.distances.frechet import moments
from sr_dist.evaluation.distances.reference_cache import Reference
from sr_dist.evaluation.distances.set_distances import BatchFeatures
from sr_dist.evaluation.partial_results import PartialResults

CPU = torch.device("cpu")


@pytest.fixture
def batch_features(tmp_path):
    """Images 0, 1 | 2 | 3, 4 of three sizes. The feature of an image is its number; a patch adds a decimal."""
    for i, side in enumerate((20, 20, 300, 24, 24)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    batches = Batches(FolderImages(tmp_path, None, "data"), 2, None, 4)
    assert [list(group) for group in batches.groups] == [[0, 1], [2], [3, 4]]
    results = PartialResults()
    for number, group in enumerate(batches.groups):
        patches = [[2.1], [2.2]] if number == 1 else np.zeros((0, 0))
        results.put(number, {}, {"whole/1": np.array(group, np.float32)[:, None], "patches/1": np.array(patches, np.float32)})
    return BatchFeatures(batches, results, range(3), CPU)


def test_every_row_is_of_its_image(batch_features):
    whole, patches = batch_features.features("whole", 1), batch_features.features("patches", 1)
    assert whole.images.tolist() == whole.rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (patches.images.tolist(), patches.rows[:, 0].tolist()) == ([2, 2], pytest.approx([2.1, 2.2]))
    assert (whole.total, whole.width) == (5, 1)


def test_a_rank_without_batches_has_no_rows(batch_features):
    with pytest.raises(Unmeasurable, match="no image has 299 pixels"):  # as far as one process can know
        BatchFeatures(batch_features.batches, batch_features.results, range(0), CPU).features("whole", 1)


def test_a_rank_gets_the_rows_of_its_images_from_a_reference(batch_features):
    rows = np.arange(5, dtype=np.float32)[:, None]
    reference = Reference(rows, np.arange(5), moments(rows))
    features = BatchFeatures(batch_features.batches, batch_features.results, [0, 2], CPU).cached(reference)
    assert features.images.tolist() == features.rows[:, 0].tolist() == [0, 1, 3, 4]
