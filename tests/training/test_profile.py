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


def convolutions_in_bars(path) -> list[int]:
    """How many convolutions begin in each step."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    bars = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if str(e.get("name")).startswith("step ") and e.get("ph") == "X")
    begins = [event["ts"] for event in events if event.get("name") == "aten::conv2d"]
    assert any(begin > bars[-1][1] for begin in begins)  # of the validation
    return [sum(low <= begin <= high for begin in begins) for low, high in bars]


def test_a_range_of_steps_is_recorded_also_of_a_run_that_continues(write_recipe, run_commands, photo_shards):
    recipe = write_recipe(steps=4)
    path, runs, data = str(recipe), recipe.parent / "runs", photo_shards
    command = "sr_dist.train"
    first, continued, partly, behind, whole = run_commands(
        [
            (command, [path, "--profile=2:3"]),
            (command, [path, "--steps=6", "--profile=6:6"]),
            (command, [path, "--steps=8", "--profile=6:7"]),
            (command, [path, "--steps=9", "--profile=2:3"]),  # the first command again, with more steps
            (command, [path, "--name=whole", "--steps=2", "--profile=1:2", "--validate_every=2", f"--data.validation={data}"]),
        ]
    )
    for answer in (first, continued, partly, behind, whole):
        assert answer.code == 0, answer.err
    assert "profile: 6:7, but the run continues after step 6: steps 7 to 7 are recorded" in partly.out
    assert "profile: 2:3, but the run continues after step 8: nothing is recorded" in behind.out
    run = runs / "tiny"
    assert sorted(file.name for file in (run / "profile").iterdir()) == [
        "0000002-0000003.json.gz",
        "0000006-0000006.json.gz",
        "0000007-0000007.json.gz",
    ]
    assert steps_in(run / "profile" / "0000002-0000003.json.gz") == ["step 2", "step 3"]
    assert steps_in(run / "profile" / "0000006-0000006.json.gz") == ["step 6"]
    assert steps_in(runs / "whole" / "profile" / "0000001-0000002.json.gz") == ["step 1", "step 2"]
    one, two = convolutions_in_bars(runs / "whole" / "profile" / "0000001-0000002.json.gz")
    assert one == two > 0  # the validation of step 2 is in no bar
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
