"""Several small trainings in one process group, one after the other. `prove` and the equality tests launch it:

[accelerate launch ...] -m sr_dist.tools.prove_trainings JOBS.json      a list of `Job`s; each run folder holds its result
"""

from __future__ import annotations

import copy
import gc
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_dist.core import cli, ranks
from sr_dist.core.batch import Batch, Reading
from sr_dist.core.files import write_json
from sr_dist.core.json_text import read_json
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.prove_results import RESULT, Result, rates
from sr_dist.training import checkpoint, classification, step
from sr_dist.training.build import set_up
from sr_dist.training.ddp import DDPEngine
from sr_dist.training.loop import fit, seed_everything
from sr_dist.training.run import Run

NOT_FROZEN, NOT_REDUCED, NOT_DIVIDED = "discriminator not frozen", "gradients not reduced", "loss not divided"
FAULTS = (NOT_FROZEN, NOT_REDUCED, NOT_DIVIDED)
PROBED = 8  # images that tell whether a loss depends on the images beside it
PROBED_STEP, PASSES = 1, 3  # of the same images
ROUNDING = 1e-4  # relative, and more than that of any loss


@dataclass(frozen=True)
class Job:
    """One training."""

    recipe: str
    options: dict[str, str]  # overrides of the recipe
    fault: str | None = None
    continues: str | None = None  # a run folder, a copy of which is continued
    measured: str | None = None  # a run folder of one step, whose gradients give the rates
    divides: bool = False  # also asks whether losses repeat, and depend on which images are together; in one process


def run_all(file: str) -> None:
    """All ranks must call."""
    ranks.open_group()
    for number, entry in enumerate(read_json(Path(file))):
        run_one(Job(**entry))
        if number == 0:
            gc.collect()
            gc.freeze()  # DeepSpeed collects garbage for every engine; this spares it the modules that are loaded by now
    ranks.barrier()
    ranks.destroy_group()


def run_one(job: Job) -> None:
    options = job.options | (rates(Path(job.measured)) if job.measured else {})
    recipe = checks.complete(data_checks.load(job.recipe, options))
    if job.continues:
        ranks.on_first(lambda: shutil.copytree(str(job.continues), recipe.folder))
    with planted(job.fault):
        result = train(recipe, job.divides)
    ranks.on_first(lambda: write_json(recipe.folder / RESULT, asdict(result)))


def train(recipe: Recipe, divides: bool) -> Result:
    """Does the same as `sr_dist.training.train`, but stays in the process group."""
    run = set_up(recipe)
    state = unequal_state(run)
    assert isinstance(run.objective, nn.Module)
    networks = run.objective.state_dict()  # those of the losses, which are frozen
    before = {name: value.clone() for name, value in networks.items()}
    unseeded, shared = probe(run) if divides else (False, False)
    assert fit(run)
    drawn = draws_random_numbers(run, run.step)
    if run.objective.validation == "classification":
        classification.report(run)
    run.loader.close()
    run.stop.close()
    run.watchdog.close()
    run.log.close()
    changed = [name for name, value in networks.items() if not value.equal(before[name])]
    return Result(state, changed, drawn, shared, unseeded)


def unequal_state(run: Run) -> list[str]:
    """The tensors of a checkpoint that the engines do not have after resuming from it. All ranks must call."""
    if not run.step:
        return []
    saved = checkpoint.newest(run.recipe.folder, print)
    assert saved
    unequal = []
    for name, engine in run.engines.items():
        state = engine.state()
        for stem, tensors in ((name, state["weights"]), (f"{name}.optimizer", state["optimizer"])):
            stored = saved.tensors(stem)
            for key in sorted(stored.keys() | tensors.keys()):
                if key not in stored or key not in tensors or not tensors[key].cpu().equal(stored[key]):
                    unequal.append(f"{stem}: {key}")
    return unequal


def draws_random_numbers(run: Run, step: int) -> bool:
    """Whether the step that was just computed has used the random numbers of the rank, as dropout does: others follow where ranks
    are others."""
    after = torch.default_generator.get_state()
    seed_everything(run.recipe.seed, step, run.device)
    return not after.equal(torch.default_generator.get_state())


# -------------------------------------------------------------------------------------------- losses of images together


def probe(run: Run) -> tuple[bool, bool]:
    """Whether the same images have other losses in every pass, although the step's seed is the same, and whether the losses of
    images differ from those of their halves, as with batch normalization. Random numbers of a step hide the second."""
    if run.recipe.data.crop is None:
        return False, False
    images = run.loader.first_batches(PROBED)
    half = len(images) // 2
    if not half:
        return False, False
    whole, *again = [losses(run, joined(images[: 2 * half])) for _ in range(PASSES)]
    unseeded = any(repr(other) != repr(whole) for other in again)  # NaN is equal to NaN
    if unseeded or draws_random_numbers(run, PROBED_STEP):
        return unseeded, False
    parts = [losses(run, joined(some)) for some in (images[:half], images[half : 2 * half])]
    means = {name: (parts[0][name] + parts[1][name]) / 2 for name in whole}
    return False, any(abs(value - means[name]) > ROUNDING * max(abs(value), ROUNDING) for name, value in whole.items())


def losses(run: Run, batch: Batch) -> dict[str, float]:
    """Every term of every phase, from copies of the networks."""
    networks = {phase: copy.deepcopy(engine.bare) for phase, engine in run.engines.items()}
    seed_everything(run.recipe.seed, PROBED_STEP, run.device)
    output = run.objective(networks[run.primary], batch)
    terms = dict(step.loss_of(run.objective, run.primary)(networks.get("discriminator"), batch, output))
    for phase in list(networks)[1:]:
        terms |= step.loss_of(run.objective, phase)(networks[phase], batch, output.detach())
    return {name: float(term) for name, term in terms.items() if not isinstance(term, Reading)}


def joined(images: Sequence[Batch]) -> Batch:
    attributes = {name: torch.cat([image.attributes[name] for image in images]) for name in images[0].attributes}
    keys = tuple(key for image in images for key in image.keys)

    def together(field: str) -> Tensor:
        return torch.cat([getattr(image, field) for image in images])

    return replace(
        images[0],
        lr=together("lr"),
        hr=together("hr"),
        label=together("label"),
        keys=keys,
        attributes=attributes,
        step=PROBED_STEP,
    )


# ----------------------------------------------------------------------------------------------------------------- faults


@contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """Plants a mistake that a training loop could have, to show that the comparison detects it."""
    frozen, weighted_sum, accumulating = step.frozen, step.weighted_sum, DDPEngine.accumulating

    @contextmanager
    def nothing(*_: object, **__: object) -> Iterator[None]:
        yield

    if fault == NOT_FROZEN:
        step.frozen = nothing
    elif fault == NOT_DIVIDED:
        step.weighted_sum = lambda *args: weighted_sum(*args) * 2
    elif fault == NOT_REDUCED:
        DDPEngine.accumulating = lambda engine, last: accumulating(engine, False)  # type: ignore[method-assign,assignment]
    else:
        assert fault is None
    yield
    step.frozen, step.weighted_sum = frozen, weighted_sum
    DDPEngine.accumulating = accumulating  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(cli.run_words(lambda words, options: run_all(*cli.check_words(words, "JOBS")), str))
