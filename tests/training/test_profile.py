"""`--profile=A:B` records steps of the first rank."""

from __future__ import annotations

import gzip
import json

import pytest

from sr_dist import train
from sr_dist.core.errors import UserError


def steps_in(path) -> list[str]:
    """The steps that a trace names, in the order of its times."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {"aten::conv2d", "aten::_fused_adam_"} <= {event.get("name") for event in events}
    steps = [event for event in events if str(event.get("name", "")).startswith("step ") and event.get("ph") == "X"]
    return [event["name"] for event in sorted(steps, key=lambda event: event["ts"])]


def test_a_range_of_steps_is_recorded_also_of_a_run_that_continues(write_recipe, run_commands):
    recipe = write_recipe(steps=4)
    path, runs = str(recipe), recipe.parent / "runs"
    command = "sr_dist.train"
    first, continued, past, whole = run_commands(
        [
            (command, [path, "--profile=2:3"]),
            (command, [path, "--steps=6", "--profile=6:6"]),
            (command, [path, "--steps=8", "--profile=6:7"]),
            (command, [path, "--name=whole", "--steps=2", "--profile=1:2"]),
        ]
    )
    assert (first.code, continued.code, whole.code) == (0, 0, 0), first.err + continued.err + whole.err
    assert past.code == 2 and past.err.splitlines()[-1] == (
        "error: profile: 6:7, but the run continues after step 6; choose later steps"
    )
    run = runs / "tiny"
    assert (run / "DONE").exists() and "steps: 6\n" in (run / "recipe.yaml").read_text()  # as before the mistake
    assert sorted(file.name for file in (run / "profile").iterdir()) == [
        "0000002-0000003.json.gz",
        "0000006-0000006.json.gz",
    ]
    assert steps_in(run / "profile" / "0000002-0000003.json.gz") == ["step 2", "step 3"]
    assert steps_in(run / "profile" / "0000006-0000006.json.gz") == ["step 6"]
    assert steps_in(runs / "whole" / "profile" / "0000001-0000002.json.gz") == ["step 1", "step 2"]
    assert "open it in https://ui.perfetto.dev" in first.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7", "'7' is not A:B"), ("a:b", "'a:b' is not A:B"), ("0:2", "steps count from 1"), ("4:2", "the first is not after"),
        ("3:99", "the last step of the recipe is 50"), ("1:", "'1:' is not A:B"),
    ],
)  # fmt: skip
def test_bad_ranges_are_refused(text, reason):
    with pytest.raises(UserError, match=f"^profile: .*{reason}"):
        train.span(text, 50)


def test_a_profile_has_at_most_a_hundred_steps():
    assert train.span("101:200", 1000) == (101, 200)
    with pytest.raises(UserError, match=r"^profile: 100:200 are 101 steps; a profile has at most 100$"):
        train.span("100:200", 1000)
