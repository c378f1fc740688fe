"""Looks for the protocol of a published number: scores under every combination of conditions, and says which reproduce it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.formats import stamp
from sr_dist.core.outputs import write_output
from sr_dist.core.printable import plural
from sr_dist.data.image_pairs import Batches, ImagePairs, progress_of_rank
from sr_dist.data.order import split_range
from sr_dist.evaluation.conditions import AXES, PSNR_AXES, SHARED, SSIM_AXES, Conditions, borders, known_as, statement
from sr_dist.evaluation.methods import Method, Methods, common_scale, named_methods, open_generators, open_methods, restored
from sr_dist.evaluation.pictures import Pictures
from sr_dist.evaluation.protocol_values import Errors, Key, Target, pixel_forms, psnr_errors, psnr_of_set, ssim_values
from sr_dist.evaluation.report.folders import numbered
from sr_dist.evaluation.report.markdown import table
from sr_dist.evaluation.report.report import FORMAT, REPORT
from sr_dist.evaluation.resizers import RESIZERS
from sr_dist.evaluation.run import ImageOptions, deterministic, open_batches
from sr_dist.evaluation.words import method_word

AXES_OF = {"psnr": PSNR_AXES, "ssim": SSIM_AXES}
NEAR = {"psnr": 0.02, "ssim": 0.001}  # other versions of a program or of the images differ by so much
AROUND = {"psnr": 0.25, "ssim": 0.01}  # where values are counted, to say how many agree by chance
SHOWN = 10
REPORTS = ("report.md", REPORT)
FEW_DIGITS = "So few digits fit several protocols: take the one that its authors can have used, or give more numbers."


class Candidate(NamedTuple):
    conditions: Conditions
    value: float


@dataclass(frozen=True)
class Number:
    """A published number: `digits` decimals are known."""

    metric: str
    text: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def unit(self) -> float:
        return 10.0 ** -len(self.text.partition(".")[2])

    def is_reproduced(self, value: float) -> bool:
        return abs(value - self.value) <= self.unit / 2 * (1 + 1e-6)


@dataclass(frozen=True)
class Request:
    numbers: tuple[tuple[str, str], ...]  # metric, published number
    out: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a search gives for one number of one method."""

    number: Number
    hits: list[Candidate]
    near: list[Candidate]  # not reproduced, the nearest first
    named: dict[str, Candidate]  # a known protocol -> its value, with the LR that brings it nearest
    by_chance: float  # candidates that would agree with any number of so many digits here
    tried: int


def search(words: Sequence[str], sets: Mapping[str, ImageOptions], scale: int | None, request: Request) -> Path:
    """Prints what reproduces the numbers, and writes it as a report: -> its folder. All ranks must call."""
    method_words = [method_word(text) for text in words]
    ranks.open_group()
    generators = open_generators(method_words, scale)
    scale = common_scale(scale, list(generators.values()))
    numbers = [Number(metric, text) for metric, text in request.numbers]
    all_batches = {name: open_batches(options, scale) for name, options in sets.items()}
    accelerator = ranks.open_accelerator("no")
    texts, searches = [], []
    with deterministic():
        for name, batches in all_batches.items():
            opened, batches = open_methods(method_words, generators, batches, None, name)
            methods, sources = named_methods(opened, scale, accelerator.device)
            requested = [*(word.path for word in method_words if word.is_baseline), *sources]
            candidates = all_candidates(
                {method: methods[method] for method in requested}, batches, [n.metric for n in numbers], accelerator.device
            )
            for method in requested:
                answers = [answer(number, candidates[method][number.metric], scale) for number in numbers]
                title = f"{method} on {plural(len(batches.images.names), 'image')}{f' of {name}' if name else ''}, x{scale}"
                texts.append(described(title, answers, scale))
                about = {"method": method, "set": name, "n": len(batches.images.names), "scale": scale}
                matches = agreeing(answers)
                searches += [{**about, **as_tree(one, hits, scale)} for one, hits in zip(answers, matches, strict=True)]
    return ranks.from_first(lambda: write(Path(request.out or "eval"), "\n\n".join(texts), searches))


def write(folder: Path, text: str, searches: Sequence[dict[str, Any]]) -> Path:
    """report.md and report.json with `find`, in a folder where no other report is."""
    free = next(place for place in chain([folder], numbered(folder)) if not any((place / name).exists() for name in REPORTS))
    tree = {**stamp(FORMAT), "find": searches[0] if len(searches) == 1 else searches}
    for name, content in zip(REPORTS, (f"{text}\n", f"{json.dumps(tree, indent=1)}\n"), strict=True):
        write_output(free / name, content.encode(), "out")
    print(f"{text}\n\nreport: {free / REPORTS[0]}")
    return free


def all_candidates(
    methods: Methods, batches: Batches, metrics: Sequence[str], device: torch.device
) -> dict[str, dict[str, list[Candidate]]]:
    """Method -> metric -> the value of the set under every combination of conditions. All ranks must call: each computes some
    images."""
    errors: dict[str, dict[Key, dict[int, Errors]]] = {name: defaultdict(dict) for name in methods}
    values: dict[str, dict[Key, dict[int, float]]] = {name: defaultdict(dict) for name in methods}
    own = split_range(len(batches.images.names), ranks.size(), ranks.rank())
    with ranks.failing_together(), progress_of_rank(len(own), 0, "searching") as progress:
        for i in own:
            pair = load_pair(batches, i)
            target = Target(pair.hr[0].double(), borders(batches.scale), pair.grey)
            degraded = all_lr(methods, pair, batches.scale)
            for name, method in methods.items():
                for way, sr in restorations(name, method, pair, degraded, device):
                    forms = pixel_forms(sr)
                    if "psnr" in metrics:
                        for key, one in psnr_errors(forms, target):
                            errors[name][way + key][i] = one
                    if "ssim" in metrics:
                        for key, value in ssim_values(forms, target):
                            values[name][way + key][i] = value
            progress.advance()
    count = len(batches.images.names)
    return {name: candidates_of(ranks.all_gather((errors[name], values[name])), count) for name in methods}


def candidates_of(parts: Sequence[tuple[Any, Any]], count: int) -> dict[str, list[Candidate]]:
    """Joins what the ranks computed. A combination that an image lacks, being too small, is left out."""
    errors: dict[Key, dict[int, Errors]] = defaultdict(dict)
    values: dict[Key, dict[int, float]] = defaultdict(dict)
    for some_errors, some_values in parts:
        for key, by_image in some_errors.items():
            errors[key] |= by_image
        for key, numbers in some_values.items():
            values[key] |= numbers
    psnr = [
        Candidate(conditions, value)
        for key, by_image in errors.items() if len(by_image) == count
        for conditions, value in psnr_of_set(key, [by_image[i] for i in range(count)])
    ]  # fmt: skip
    ssim = [
        Candidate(dict(zip(SSIM_AXES, key, strict=True)), math.fsum(numbers.values()) / count)
        for key, numbers in values.items() if len(numbers) == count and all(map(math.isfinite, numbers.values()))
    ]  # fmt: skip
    return {"psnr": psnr, "ssim": ssim}


def load_pair(batches: Batches, i: int) -> ImagePairs:
    """One image, with the LR that is stored with it, or an empty one."""
    hr, stored, label = batches.stored_pair(i)  # exact, since one value in a tie of Y's rounding moves the sixth digit
    lr = torch.zeros(3, 0, 0) if stored is None else stored
    names, grey = (batches.images.names[i],), batches.images.shape(i)[2]
    return ImagePairs(lr[None].float(), hr[None], names, torch.tensor([label]), grey)


def all_lr(methods: Methods, pair: ImagePairs, scale: int) -> dict[str, Tensor]:
    """Every LR of an image that these methods can have had, (3, h, w) float64: the stored one, and HR made small."""
    if all(isinstance(method, Pictures) for method in methods.values()):
        return {}
    hr = pair.hr[0].double()
    height, width = hr.shape[-2:]
    stored = {"stored": pair.lr[0].double()} if pair.lr.numel() else {}
    return stored | {way: resize(hr, (height // scale, width // scale)) for way, resize in RESIZERS.items()}


@torch.no_grad()
def restorations(
    name: str, method: Method, pair: ImagePairs, degraded: Mapping[str, Tensor], device: torch.device
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """((lr, enlarged), SR (3, H, W) float64) for every way in which LR can be made, and bicubic can enlarge it."""
    if isinstance(method, Pictures):
        yield ("given", "network"), restored(method, pair, device)[0].double().cpu()
        return
    height, width = pair.hr.shape[-2:]
    for way, lr in degraded.items():
        if name == "bicubic":
            enlargers = RESIZERS if way == "stored" else dict.fromkeys(["matlab", way])
            for enlarged in enlargers:
                if enlarged == "matlab_float" or way != "matlab_float" or enlarged == "matlab":
                    yield (way, enlarged), RESIZERS[enlarged](lr, (height, width))
        else:
            yield (way, "network"), method(lr[None].float().to(device))[0].double().cpu()


def answer(number: Number, candidates: Sequence[Candidate], scale: int) -> Answer:
    hits = [one for one in candidates if number.is_reproduced(one.value)]
    others = [one for one in candidates if not number.is_reproduced(one.value)]
    others.sort(key=lambda one: abs(one.value - number.value))
    around = AROUND[number.metric]
    values = {round(one.value, 9) for one in candidates if abs(one.value - number.value) <= around}
    by_chance, tried = len(values) / (2 * around) * number.unit, len({round(one.value, 9) for one in candidates})
    named: dict[str, Candidate] = {}
    for one in sorted_by_use(number.metric, hits, scale) + others:
        for name in known_as(number.metric, one.conditions, scale):
            named.setdefault(name, one)
    return Answer(number, hits, others, named, by_chance, tried)


def agreeing(answers: Sequence[Answer]) -> list[list[Candidate]]:
    """The hits of each number that have a partner among the hits of every other: the conditions that both metrics have agree."""
    keys = [{_shared(hit.conditions) for hit in one.hits} for one in answers]
    common = set.intersection(*keys)
    return [[hit for hit in one.hits if _shared(hit.conditions) in common] for one in answers]


def _shared(conditions: Conditions) -> Key:
    channel = "rgb" if conditions["channel"] == "channels" else conditions["channel"]
    return tuple(channel if axis == "channel" else conditions[axis] for axis in SHARED)


def described(title: str, answers: Sequence[Answer], scale: int) -> str:
    """Markdown: the numbers, what reproduces them, how to state it, what comes near."""
    blocks = [f"# {title}"]
    together = agreeing(answers)
    if len(answers) > 1:
        blocks.append(
            "The numbers have protocols in common; only those are listed." if all(together) else
            "No protocol gives all of these numbers."
        )  # fmt: skip
    for one, common in zip(answers, together, strict=True):
        hits = common if len(answers) > 1 and all(together) else one.hits
        blocks += _described(one, sorted_by_use(one.number.metric, hits, scale), scale)
    return "\n\n".join(blocks)


def _described(one: Answer, hits: Sequence[Candidate], scale: int) -> list[str]:
    metric, number = one.number.metric, one.number
    digits = len(number.text.partition(".")[2])
    chance = f"{one.tried} different values; about {one.by_chance:.2g} agree with any number of so many digits near it"
    if not hits:
        near = sorted_by_use(metric, [c for c in one.near if abs(c.value - number.value) <= NEAR[metric]], scale)
        rows = merged(metric, near, digits + 2)[:SHOWN] if near else merged(metric, one.near[:SHOWN], digits + 2)[:3]
        title = f"Within {NEAR[metric]:g} of it:" if near else f"Nothing is within {NEAR[metric]:g} of it. The nearest:"
        return [
            f"## {metric.upper()} {number.text}: none", f"No combination reproduces it ({chance}).", title,
            _rows(metric, rows, digits + 2, scale), *_named(one, digits + 2),
        ]  # fmt: skip
    rows = merged(metric, hits, digits)
    more = [f"and {len(rows) - SHOWN} rows more, of less usual conditions"] if len(rows) > SHOWN else []
    return [
        f"## {metric.upper()} {number.text}: reproduced by {len(hits)} combinations", f"Tried: {chance}.",
        _rows(metric, rows[:SHOWN], digits + 2, scale), *more, f"To state it: {statement(metric, hits[0].conditions)}",
        *([FEW_DIGITS] if one.by_chance > 0.5 else []), *_named(one, digits + 2),
    ]  # fmt: skip


def _named(one: Answer, digits: int) -> list[str]:
    """What well-known programs would give, the nearest first."""
    rows = [
        [name, f"{c.value:.{digits}f}", f"{c.value - one.number.value:+.{digits}f}", c.conditions["lr"]]
        for name, c in sorted(one.named.items(), key=lambda item: abs(item[1].value - one.number.value))
    ]
    return ["Well-known protocols, with the LR that brings each nearest:", table(["protocol", "value", "difference", "lr"], rows)]


class Row(NamedTuple):
    values: dict[str, tuple[str, ...]]  # axis -> values, of which every combination belongs to the row
    numbers: tuple[float, ...]


def merged(metric: str, candidates: Sequence[Candidate], digits: int) -> list[Row]:
    """Joins combinations that differ in one axis and agree to so many digits, until none is left."""
    rows = [Row({axis: (one.conditions[axis],) for axis in AXES_OF[metric]}, (one.value,)) for one in candidates]
    count = 0
    while len(rows) != count:
        count = len(rows)
        for axis in reversed(AXES_OF[metric]):
            groups: dict[Any, list[Row]] = {}
            for row in rows:
                rest = tuple(values for name, values in row.values.items() if name != axis)
                groups.setdefault((rest, round(row.numbers[0], digits)), []).append(row)
            rows = [_joined(axis, some) for some in groups.values()]
    return rows


def _joined(axis: str, rows: Sequence[Row]) -> Row:
    values = tuple(value for row in rows for value in row.values[axis])
    return Row({**rows[0].values, axis: values}, tuple(number for row in rows for number in row.numbers))


def sorted_by_use(metric: str, candidates: Sequence[Candidate], scale: int) -> list[Candidate]:
    """Known protocols first, then those with the most usual values."""

    def rank(one: Candidate) -> tuple[bool, int]:
        places = [list(AXES[axis]).index(value) for axis, value in one.conditions.items() if axis != "border"]
        return not known_as(metric, one.conditions, scale), sum(places) + borders(scale).index(int(one.conditions["border"]))

    return sorted(candidates, key=rank)


def _rows(metric: str, rows: Sequence[Row], digits: int, scale: int) -> str:
    axes = [axis for axis in AXES_OF[metric] if axis != "enlarged" or any(row.values[axis] != ("network",) for row in rows)]
    return table(
        ["value", *axes, "that of"],
        [[_span(row, digits), *(" or ".join(row.values[axis]) for axis in axes), _known(metric, row, scale)] for row in rows],
    )


def _span(row: Row, digits: int) -> str:
    low, high = (f"{end(row.numbers):.{digits}f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _known(metric: str, row: Row, scale: int) -> str:
    """Published names of what the row has. Where it joins several values of an axis that belongs to a name, each with its own."""
    several = [axis for axis, values in row.values.items() if len(values) > 1 and axis not in ("lr", "enlarged")]
    names: dict[str, None] = {}
    rows: list[Conditions] = [{}]
    for axis, values in row.values.items():
        rows = [{**one, axis: value} for one in rows for value in values]
    for conditions in rows:
        own = ", ".join(f"{axis} {conditions[axis]}" for axis in several)
        names |= dict.fromkeys(f"{name} with {own}" if own else name for name in known_as(metric, conditions, scale))
    return f"{'among them ' if names and several else ''}{', '.join(names)}"


def as_tree(one: Answer, matches: Sequence[Candidate], scale: int) -> dict[str, Any]:
    """`matches`: the hits that agree with those of the other numbers."""
    metric, together = one.number.metric, set(map(id, matches))

    def rows(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        return [
            {"metric": metric, **value_and_conditions(c), "known_as": known_as(metric, c.conditions, scale),
             "statement": statement(metric, c.conditions)} for c in candidates
        ]  # fmt: skip

    near = [c for c in one.near if abs(c.value - one.number.value) <= NEAR[metric]] or one.near[:5]
    return {
        "metric": metric,
        "value": one.number.value,
        "number": one.number.text,
        "matches": rows(sorted_by_use(metric, matches, scale)),
        "alone": rows(sorted_by_use(metric, [hit for hit in one.hits if id(hit) not in together], scale)),
        "near": rows(near),
        "protocols": {name: value_and_conditions(c) for name, c in one.named.items()},
        "different_values": one.tried,
        "by_chance": one.by_chance,
    }


def value_and_conditions(candidate: Candidate) -> dict[str, Any]:
    """Whole numbers as such, and whether SR is rounded to 8 bits as a truth value of its own."""
    conditions = {key: int(text) if text.isdigit() else text for key, text in candidate.conditions.items()}
    rounded = {"rounded": candidate.conditions["pixels"] == "rounded"} if "pixels" in candidate.conditions else {}
    return {"value": candidate.value, **conditions, **rounded}
