"""The table of a classifier's report in W&B."""

from __future__ import annotations

import numpy as np
import pytest

from sr_dist.evaluation.classifiers.answers import Answers, head_statistics
from sr_dist.recipe.labels import Labels
from sr_dist.training.classification import per_class


@pytest.mark.parametrize("classes", [3, 20, 21])
def test_the_table_has_a_column_per_answer_up_to_20_classes(classes):
    """Two images of each class; the second is classified as the class before it."""
    truth = np.repeat(np.arange(classes), 2)[:, None]
    answer = truth - np.tile([0, 1], classes)[:, None]
    answer[1] = classes - 1
    sure = np.full(truth.shape, 0.5)
    names = tuple(f"c{i}" for i in range(classes))
    head = head_statistics(Answers(["image"] * len(truth), truth, answer, sure, sure, sure.astype(int)), Labels("class", names))[
        "class"
    ]
    rows = per_class(head)
    assert [row["truth"] for row in rows] == list(names)
    assert rows[2].items() >= {"n": 2, "accuracy": 0.5}.items()
    counts = {f"said {name}": int(name in ("c1", "c2")) for name in names} if classes <= 20 else {}
    assert {key: value for key, value in rows[2].items() if key.startswith("said")} == counts
