"""One step from inside: which network gets which gradients."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from sr_dist.core import ranks
from sr_dist.data import data_checks, order
from sr_dist.evaluation.distances.extractor import torchscript
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.recipe import checks
from sr_dist.training import loop, stop_request
from sr_dist.training import run as run_module
from sr_dist.training.batch_norm import GlobalBatchNorm
from sr_dist.training.buffers import equal_on_all_ranks
from sr_dist.training.build import set_up
from sr_dist.training.stop_request import StopRequest

RECIPE = """
name: tiny
scale: 2
steps: 4
data: {{train: {shards}, validation: none, crop: 32, batch: 4, workers: 0}}
generator: {{name: srugan, widths: [8, 12], num_blocks: 1, num_dense_blocks: 1}}
discriminator: {{name: acgan, classes: manifest, widths: [8, 12], features: 16}}
objective: {{name: srugan, content: {{mse: 1.0}}, adversarial_weight: {weight}}}
optimizer: {{name: sgd, learning_rate: 0.1}}
log: {{wandb: off}}
"""


@pytest.fixture
def tiny(photo_shards, tmp_path):
    """A run of two phases on the CPU, with this adversarial weight."""
    opened = []

    def make(weight: float = 0.1, **options: str):
        path = tmp_path / "tiny.yaml"
        path.write_text(RECIPE.format(shards=photo_shards, weight=weight))
        runs = str(tmp_path / f"runs{len(opened)}")
        run = set_up(checks.complete(data_checks.load(path, {"runs": runs, **options})))
        opened.append(run)
        return run

    yield make
    for run in opened:
        run.stop.close()
        run.watchdog.close()
        run.log.close()


def gradients_at_each_update(run, monkeypatch) -> list[tuple[str, dict[str, bool]]]:
    """Which networks have a gradient when each phase updates."""
    seen = []
    for name, engine in run.engines.items():

        def noting(learning_rate, name=name, step=engine.step):
            present = {other: any(p.grad is not None for p in phase.bare.parameters()) for other, phase in run.engines.items()}
            seen.append((name, present))
            return step(learning_rate)

        monkeypatch.setattr(engine, "step", noting)
    return seen


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_each_phase_leaves_no_gradient_in_the_other_network(tiny, monkeypatch, accumulate):
    """The discriminator has no gradient after the generator's phase, and the generator none after the discriminator's."""
    run = tiny(accumulate=accumulate)
    seen = gradients_at_each_update(run, monkeypatch)
    for step, batches in run.loader.steps(1):
        loop.advance(run, step, batches)
    assert (
        seen
        == [
            ("generator", {"generator": True, "discriminator": False}),
            ("discriminator", {"generator": False, "discriminator": True}),
        ]
        * 4
    )
    assert all(p.requires_grad for p in run.engines["discriminator"].bare.parameters())


def generator_gradient(run) -> torch.Tensor:
    caught = {}
    engine = run.engines["generator"]
    right = engine.step

    def noting(learning_rate):
        caught["gradient"] = torch.cat([p.grad.flatten() for p in engine.bare.parameters()])
        return right(learning_rate)

    engine.step = noting
    step, batches = next(iter(run.loader.steps(1)))
    loop.advance(run, step, batches)
    return caught["gradient"]


def test_the_adversarial_gradient_reaches_the_generator(tiny):
    """Twice the weight moves the gradient twice as far from that of the content alone."""
    none, one, two = (generator_gradient(tiny(weight)) for weight in (0.0, 0.1, 0.2))
    assert (one - none).norm() > 1e-4 * none.norm()
    assert (two - none - 2 * (one - none)).norm() < 1e-3 * (two - none).norm()


@pytest.mark.parametrize("optimizer", ["{name: adam}", "{name: training.without_fused_form, momentum: 0.9}"])
def test_gradients_that_are_not_finite_change_nothing_and_are_counted(tiny, monkeypatch, optimizer):
    """A loss of nan in step 2: weights and optimizer do not change, step and data advance, the third step trains again."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    run = tiny(optimizer=optimizer, **{"optimizer.learning_rate": "1e-3"})
    engine = run.engines["generator"]
    right = run.objective.generator_loss
    steps = run.loader.steps(1)
    for number in (1, 2, 3):
        step, batches = next(steps)
        if number == 2:
            monkeypatch.setattr(run.objective, "generator_loss", lambda *w: {"mse": right(*w)["mse"] * float("nan")})
        else:
            monkeypatch.setattr(run.objective, "generator_loss", right)
        before = {name: value.clone() for name, value in engine.bare.state_dict().items()}
        count = int(next(iter(engine.optimizer.state.values()))["step"]) if engine.optimizer.state else 0
        _, norms = loop.advance(run, step, batches)
        moved = any(not value.equal(before[name]) for name, value in engine.bare.state_dict().items())
        assert moved == (number != 2)
        assert torch.isfinite(norms["generator"]) == (number != 2)
        assert int(next(iter(engine.optimizer.state.values()))["step"]) == count + (number != 2)
        assert int(engine.skipped) == (number == 2)
    assert int(engine.skipped_total) == 1
    assert all(torch.isfinite(value).all() for value in run.ema.network.state_dict().values())


@pytest.fixture
def poisoned():
    """Memory that nobody has written is not a number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_momentum_begins_at_zero_also_where_the_first_update_is_skipped(tiny, monkeypatch, poisoned):
    """Two steps of which the first is skipped leave the weights of the second step alone: its momentum is its gradient."""
    options = {"optimizer.name": "sgd", "optimizer.momentum": "0.9", "optimizer.learning_rate": "0.1"}
    skipping, plain = tiny(**options), tiny(**options)
    right = skipping.objective.generator_loss
    broken = {"mse": torch.tensor(float("nan"), requires_grad=True)}
    (_, first), (second, batches) = (step for _, step in zip(range(2), skipping.loader.steps(1), strict=False))
    monkeypatch.setattr(skipping.objective, "generator_loss", lambda *w: {"mse": right(*w)["mse"] * broken["mse"]})
    loop.advance(skipping, 1, first)
    assert int(skipping.engines["generator"].skipped) == 1
    monkeypatch.setattr(skipping.objective, "generator_loss", right)
    for run in (skipping, plain):
        discriminator = run.engines["discriminator"].bare
        run.engines["discriminator"].load_weights({name: torch.zeros_like(p) for name, p in discriminator.state_dict().items()})
        loop.advance(run, second, batches)
    ours, theirs = (run.engines["generator"].bare.state_dict() for run in (skipping, plain))
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert all(value.equal(theirs[name]) for name, value in ours.items() if "num_batches" not in name)


def test_too_many_skipped_updates_end_the_run_with_a_diagnosis(tiny, monkeypatch):
    run = tiny(max_skipped="2")
    monkeypatch.setattr(run.objective, "generator_loss", lambda discriminator, batch, sr: {"mse": sr.sum() * float("inf")})
    with pytest.raises(loop.Diverged, match=r"generator were not finite for 2 steps in a row .* lower optimizer.learning_rate"):
        loop.fit(run)


def test_a_run_whose_last_steps_were_all_skipped_is_not_done(tiny, monkeypatch):
    """It ended with DONE, images of it were black, and only `skipped/generator` of metrics.jsonl told."""
    run = tiny()
    right = run.objective.generator_loss

    def loss(discriminator, batch, sr):
        terms = right(discriminator, batch, sr)
        return terms if batch.step == 1 else {"mse": terms["mse"] * float("nan")}

    monkeypatch.setattr(run.objective, "generator_loss", loss)
    with pytest.raises(loop.Diverged, match=r"generator were not finite for 3 steps in a row \(max_skipped\), to step 4"):
        loop.fit(run)


def test_random_numbers_of_a_step_are_those_of_manual_seed():
    loop.seed_everything(3, 7, torch.device("cpu"))
    ours = torch.rand(4)
    torch.manual_seed(order.draw(3, epoch=0, sample=7, use=order.NOISE) >> 1)
    assert ours.equal(torch.rand(4))


def test_the_stop_file_is_looked_for_once_a_second(tmp_path, monkeypatch):
    request, now, looks = StopRequest(tmp_path), [100.0], []
    monkeypatch.setattr(stop_request.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(type(tmp_path), "exists", lambda path: (looks.append(path), len(looks) > 2)[1])
    try:
        for moment, stopping in ((0.0, False), (0.5, False), (0.9, False), (1.0, False), (1.5, False), (2.0, True), (2.1, True)):
            now[0] = 100 + moment
            assert request.pending() == stopping
        assert looks == [tmp_path / "STOP"] * 3
    finally:
        request.close()


def test_buffers_are_broadcast_where_ranks_compute_different_ones():
    nn = torch.nn
    plain, synchronized = (nn.Sequential(nn.Conv2d(1, 2, 1), norm(2)) for norm in (nn.BatchNorm2d, GlobalBatchNorm))
    assert equal_on_all_ranks(nn.Conv2d(1, 2, 1)) and equal_on_all_ranks(synchronized) and not equal_on_all_ranks(plain)
    synchronized.register_buffer("constant", torch.ones(2), persistent=False)
    assert equal_on_all_ranks(synchronized)
    synchronized.register_buffer("mean", torch.ones(2))
    assert not equal_on_all_ranks(synchronized)


def test_a_save_is_one_message_between_ranks(tiny, monkeypatch):
    run = tiny()
    messages = []
    monkeypatch.setattr(ranks, "broadcast_from_first", lambda value: (messages.append(value), value)[1])
    for save, most in ((run_module.save, 1), (run_module.save_validated, 2)):
        save(run)
        assert len(messages) == most
        messages.clear()
        run.writer.wait()
    loop.check_saves(run, last=True)
    assert len(messages) == 1


def test_divergence_is_looked_for_in_one_message(tiny, monkeypatch):
    run = tiny()
    messages = []
    monkeypatch.setattr(ranks, "all_reduce_max", lambda values: (messages.append(values), values)[1])
    monkeypatch.setattr(ranks, "all_gather", pytest.fail)
    loop.check_updates(run, [])
    (counts,) = messages
    assert counts.tolist() == [0] * 6  # skipped in a row, refused and skipped in all, of two networks


def test_recomputed_activations_change_no_gradient(tiny):
    plain, recomputed = generator_gradient(tiny()), generator_gradient(tiny(checkpointing="[dense*,encoder.*]"))
    assert plain.equal(recomputed)


def test_clipping_bounds_the_update(tiny):
    run = tiny(**{"optimizer.clip": "1e-3", "optimizer.learning_rate": "1.0"})
    before = torch.cat([p.detach().clone().flatten() for p in run.engines["generator"].bare.parameters()])
    step, batches = next(iter(run.loader.steps(1)))
    _, norms = loop.advance(run, step, batches)
    after = torch.cat([p.detach().flatten() for p in run.engines["generator"].bare.parameters()])
    assert norms["generator"] > 1e-3
    assert (after - before).norm() == pytest.approx(1e-3, rel=1e-2)


def test_validation_computes_the_recipes_metrics_and_records_the_best(tiny, photos, tmp_path):
    """With an extractor of three numbers per image in place of the Inception file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        torch.jit.trace(means, torch.rand(2, 3, 299, 299)).save(str(tmp_path / "means.pt"))
    options = {"data.validation": str(photos), "data.validation_limit": "4", "metrics": "psnr,ssim", "keep.best": "ssim_y"}
    run = tiny(**options)
    assert list(run.metrics.better) == ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"]
    run.metrics = open_metrics(["ssim", "fid"], run.device, extractor=torchscript(tmp_path / "means.pt", "clean", run.device))
    assert loop.validate(run)
    row = json.loads((run.recipe.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"validation/ssim_y", "validation/fd_means"} <= row.keys()
    assert run.state["best"] == {"metric": "ssim_y", "value": row["validation/ssim_y"], "step": 0, "by": None}
    assert "(n 4, floor" in (run.recipe.folder / "log.txt").read_text()
    assert not loop.validate(run)  # no better than itself


def test_kernels_are_timed_in_steps_only(tiny, photos, monkeypatch):
    """Sizes of validation images vary."""
    seen = []
    forward = torch.nn.Conv2d.forward

    def noting(layer, x):
        seen.append((layer.training, torch.backends.cudnn.benchmark))
        return forward(layer, x)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", noting)
    loop.fit(tiny(**{"cudnn_benchmark": "true", "steps": "1", "data.validation": str(photos), "data.validation_limit": "1"}))
    assert set(seen) == {(True, True), (False, False)}
    tiny()
    assert not torch.backends.cudnn.benchmark
