"""Plug-in files that were written for version 0.1: what to change in them, read from the syntax tree without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sr_dist.core.errors import UserError, nearest

ROOT = Path(__file__).parents[2]

MOVED = {  # modules and names of 0.1 -> the present ones. A module stands for all its names that are not listed
    "sr_dist.batch": "sr_dist.core.batch",
    "sr_dist.batch.Verdict": "sr_dist.core.batch.DiscriminatorOutput",
    "sr_dist.children": "sr_dist.core.child_processes",
    "sr_dist.commands": "sr_dist.core.files",
    "sr_dist.commands.BASELINES": "sr_dist.evaluation.presets.BASELINES",
    "sr_dist.commands.Boarding": "sr_dist.dashboard.Dashboard",
    "sr_dist.commands.Evaluation": "sr_dist.evaluate.Evaluate",
    "sr_dist.commands.Examination": "sr_dist.doctor.Doctor",
    "sr_dist.commands.Exporting": "sr_dist.export.Export",
    "sr_dist.commands.FORMATS": "sr_dist.models.image_files.FORMATS",
    "sr_dist.commands.Interpolating": "sr_dist.interpolate.Interpolate",
    "sr_dist.commands.Plotting": "sr_dist.plot.Plot",
    "sr_dist.commands.Positive": "sr_dist.core.config.Positive",
    "sr_dist.commands.PROTOCOLS": "sr_dist.evaluation.presets.PROTOCOLS",
    "sr_dist.commands.Scale": "sr_dist.core.config.OptionalPositive",
    "sr_dist.commands.there": "sr_dist.core.files.check_exists",
    "sr_dist.commands.twice": "sr_dist.core.files.same_place_twice",
    "sr_dist.commands.Upscaling": "sr_dist.upscale.Upscale",
    "sr_dist.config": "sr_dist.core.config",
    "sr_dist.config.flat": "sr_dist.core.config.flatten",
    "sr_dist.config.listed": "sr_dist.core.config.parse_list",
    "sr_dist.config.section": "sr_dist.core.config.parse_section",
    "sr_dist.data.ahead": "sr_dist.data.remote.prefetch",
    "sr_dist.data.ahead.Ahead": "sr_dist.data.remote.prefetch.Prefetcher",
    "sr_dist.data.ahead.Need": "sr_dist.data.crops.ShardNeed",
    "sr_dist.data.augment.tilted": "sr_dist.data.augment.tilt",
    "sr_dist.data.augment.turned": "sr_dist.data.augment.orient",
    "sr_dist.data.augment.varied": "sr_dist.data.augment.vary",
    "sr_dist.data.bands": "sr_dist.data.jpeg_rows",
    "sr_dist.data.cache": "sr_dist.data.remote.cache",
    "sr_dist.data.crops.Place": "sr_dist.data.crops.Location",
    "sr_dist.data.crops.Replaced": "sr_dist.data.crops.Substitution",
    "sr_dist.data.crops.Samples": "sr_dist.data.crops.DataSet",
    "sr_dist.data.degradations.real.blurred": "sr_dist.data.degradations.real.blur",
    "sr_dist.data.degradations.real.compressed": "sr_dist.data.degradations.real.compress",
    "sr_dist.data.degradations.real.degraded": "sr_dist.data.degradations.real.degrade_twice",
    "sr_dist.data.degradations.real.filtered": "sr_dist.data.degradations.real.filter_images",
    "sr_dist.data.degradations.real.MODES": "sr_dist.data.degradations.real.NUM_MODES",
    "sr_dist.data.degradations.real.noisy": "sr_dist.data.degradations.real.add_noise",
    "sr_dist.data.degradations.real.Probability": "sr_dist.core.config.Fraction",
    "sr_dist.data.degradations.real.resized": "sr_dist.data.degradations.real.resize_randomly",
    "sr_dist.data.degradations.real.to_size": "sr_dist.data.degradations.real.resize_to",
    "sr_dist.data.draws": "sr_dist.data.keyed_random",
    "sr_dist.data.folder_images.SUFFIXES": "sr_dist.core.files.IMAGE_SUFFIXES",
    "sr_dist.data.jpeg": "sr_dist.data.jpeg_compression",
    "sr_dist.data.jpeg.coded": "sr_dist.data.jpeg_compression.quantize",
    "sr_dist.data.jpeg.COLOUR": "sr_dist.data.jpeg_compression.CHROMINANCE",
    "sr_dist.data.jpeg.TO_RGB": "sr_dist.data.jpeg_compression.YCC_TO_RGB",
    "sr_dist.data.jpeg.TO_YCC": "sr_dist.data.jpeg_compression.RGB_TO_YCC",
    "sr_dist.data.ledger": "sr_dist.data.fetch_log",
    "sr_dist.data.ledger.Ledger": "sr_dist.data.fetch_log.FetchLog",
    "sr_dist.data.order.crop_place": "sr_dist.data.order.crop_corner",
    "sr_dist.data.order.home": "sr_dist.data.order.home_node",
    "sr_dist.data.order.LONGEST_PATTERN": "sr_dist.recipe.sections.LONGEST_PATTERN",
    "sr_dist.data.order.near_home": "sr_dist.data.near_home.indices_of",
    "sr_dist.data.order.share": "sr_dist.data.order.split_range",
    "sr_dist.data.order.whole_weights": "sr_dist.recipe.sections.whole_weights",
    "sr_dist.data.outlook": "sr_dist.data.startup_report",
    "sr_dist.data.pace": "sr_dist.tools.data_speed",
    "sr_dist.data.remote": "sr_dist.data.remote.sources",
    "sr_dist.data.ring": "sr_dist.data.shared_batches",
    "sr_dist.data.ring.Ring": "sr_dist.data.shared_batches.SharedBatches",
    "sr_dist.data.stream": "sr_dist.data.loader",
    "sr_dist.data.stream.Stream": "sr_dist.data.loader.Loader",
    "sr_dist.data.validation": "sr_dist.data.images",
    "sr_dist.data.validation.Batches": "sr_dist.data.image_pairs.Batches",
    "sr_dist.data.validation.content": "sr_dist.data.images.contents_of",
    "sr_dist.data.validation.Degrade": "sr_dist.core.contracts.Degradation",
    "sr_dist.data.validation.load": "sr_dist.data.image_pairs.load",
    "sr_dist.data.validation.numbers_of_this_rank": "sr_dist.data.image_pairs.numbers_of_this_rank",
    "sr_dist.data.validation.Scored": "sr_dist.data.image_pairs.ImagePairs",
    "sr_dist.door": "sr_dist.core.cli",
    "sr_dist.door.only": "sr_dist.core.cli.check_words",
    "sr_dist.engine": "sr_dist.training",
    "sr_dist.engine.backends": "sr_dist.training",
    "sr_dist.engine.backends.ddp": "sr_dist.training.ddp",
    "sr_dist.engine.backends.ddp.Engine": "sr_dist.training.ddp.DDPEngine",
    "sr_dist.engine.backends.deepspeed": "sr_dist.training.deepspeed",
    "sr_dist.engine.backends.deepspeed.Engine": "sr_dist.training.deepspeed.DeepSpeedEngine",
    "sr_dist.engine.bench": "sr_dist.tools.bench",
    "sr_dist.engine.checkpoint": "sr_dist.training.checkpoint",
    "sr_dist.engine.classification": "sr_dist.training.classification",
    "sr_dist.engine.dashboard": "sr_dist.tools.dashboard",
    "sr_dist.engine.doctor": "sr_dist.tools.doctor",
    "sr_dist.engine.ema": "sr_dist.training.ema",
    "sr_dist.engine.evaluate": "sr_dist.evaluation.run",
    "sr_dist.engine.extractor": "sr_dist.evaluation.distances.extractor",
    "sr_dist.engine.flops": "sr_dist.tools.flops",
    "sr_dist.engine.flops.peak": "sr_dist.training.throughput.peak",
    "sr_dist.engine.flops.PEAKS": "sr_dist.training.throughput.PEAKS",
    "sr_dist.engine.flops.work": "sr_dist.training.throughput.work",
    "sr_dist.engine.flops.Work": "sr_dist.training.throughput.Work",
    "sr_dist.engine.log": "sr_dist.training.log",
    "sr_dist.engine.log.Clock": "sr_dist.training.throughput.Clock",
    "sr_dist.engine.log.peak_memory_gb": "sr_dist.training.throughput.peak_memory_gb",
    "sr_dist.engine.loop": "sr_dist.training.loop",
    "sr_dist.engine.loop.frozen": "sr_dist.training.step.frozen",
    "sr_dist.engine.loop.learning_rate": "sr_dist.training.schedule.learning_rate",
    "sr_dist.engine.loop.train_step": "sr_dist.training.step.take_step",
    "sr_dist.engine.loop.weighted_sum": "sr_dist.training.step.weighted_sum",
    "sr_dist.engine.memory": "sr_dist.tools.memory",
    "sr_dist.engine.mirror": "sr_dist.training.trackers.wandb",
    "sr_dist.engine.mirror.Mirror": "sr_dist.training.trackers.wandb.WandbTracker",
    "sr_dist.engine.optimizers": "sr_dist.training.optimizer_state",
    "sr_dist.engine.optimizers.load_slots": "sr_dist.training.optimizer_state.load_optimizer_state",
    "sr_dist.engine.optimizers.slots": "sr_dist.training.optimizer_state.optimizer_state",
    "sr_dist.engine.picture_files": "sr_dist.models.image_files",
    "sr_dist.engine.picture_files.Picture": "sr_dist.models.image_files.ImageFile",
    "sr_dist.engine.picture_files.Unreadable": "sr_dist.models.image_files.ImageFileError",
    "sr_dist.engine.plot": "sr_dist.tools.plot",
    "sr_dist.engine.restore": "sr_dist.models.tiling",
    "sr_dist.engine.restore.for_any_colour": "sr_dist.models.tiling.adapt_channels",
    "sr_dist.engine.restore.in_tiles": "sr_dist.models.tiling.upscale_in_tiles",
    "sr_dist.engine.restore.Span": "sr_dist.models.tiling.AxisTile",
    "sr_dist.engine.restore.spans": "sr_dist.models.tiling.axis_tiles",
    "sr_dist.engine.run": "sr_dist.training.run",
    "sr_dist.engine.run_folder": "sr_dist.training.run_folder",
    "sr_dist.engine.samples": "sr_dist.training.samples",
    "sr_dist.engine.schedule": "sr_dist.training.schedule",
    "sr_dist.engine.setup": "sr_dist.training.build",
    "sr_dist.engine.setup.build_degradation": "sr_dist.training.networks.build_degradation",
    "sr_dist.engine.setup.build_network": "sr_dist.training.networks.build_network",
    "sr_dist.engine.setup.build_objective": "sr_dist.training.networks.build_objective",
    "sr_dist.engine.setup.open_accelerator": "sr_dist.core.ranks.open_accelerator",
    "sr_dist.engine.setup.phase_network": "sr_dist.training.networks.phase_network",
    "sr_dist.engine.setup.prepared": "sr_dist.training.networks.prepared",
    "sr_dist.engine.setup.under_deepspeed": "sr_dist.core.launch_env.under_deepspeed",
    "sr_dist.engine.signals": "sr_dist.training.stop_request",
    "sr_dist.engine.terminal": "sr_dist.training.log",
    "sr_dist.engine.train": "sr_dist.training.train",
    "sr_dist.engine.train.check_launch": "sr_dist.recipe.checks.check_launch",
    "sr_dist.engine.upscale": "sr_dist.models.upscaling",
    "sr_dist.engine.watchdog": "sr_dist.training.watchdog",
    "sr_dist.errors": "sr_dist.core.errors",
    "sr_dist.eval": "sr_dist.evaluation",
    "sr_dist.eval.attribute_tables": "sr_dist.evaluation.report.attribute_tables",
    "sr_dist.eval.attributes": "sr_dist.evaluation.classifiers.attributes",
    "sr_dist.eval.baselines": "sr_dist.evaluation.baselines",
    "sr_dist.eval.bench": "sr_dist.tools.distance_speed",
    "sr_dist.eval.chosen": "sr_dist.evaluation.metric_set",
    "sr_dist.eval.classification": "sr_dist.evaluation.classifiers.answers",
    "sr_dist.eval.classification_report": "sr_dist.evaluation.classifiers.classification_report",
    "sr_dist.eval.drawings": "sr_dist.evaluation.report.drawings",
    "sr_dist.eval.extractor": "sr_dist.evaluation.distances.extractor",
    "sr_dist.eval.features": "sr_dist.evaluation.distances.features",
    "sr_dist.eval.features.dealt": "sr_dist.evaluation.distances.features.random_groups",
    "sr_dist.eval.features.distances": "sr_dist.evaluation.distances.features.frechet_distances",
    "sr_dist.eval.features.spread": "sr_dist.evaluation.distances.features.run_on_ranks",
    "sr_dist.eval.frechet": "sr_dist.evaluation.distances.frechet",
    "sr_dist.eval.frechet.refuse_unlike": "sr_dist.evaluation.distances.frechet.refuse_counts",
    "sr_dist.eval.intervals": "sr_dist.evaluation.intervals",
    "sr_dist.eval.intervals.paired": "sr_dist.evaluation.intervals.accuracy_difference",
    "sr_dist.eval.metrics": "sr_dist.evaluation.metrics",
    "sr_dist.eval.metrics.class_fid": "sr_dist.evaluation.metrics.class_fid",
    "sr_dist.eval.metrics.fid": "sr_dist.evaluation.metrics.fid",
    "sr_dist.eval.metrics.kid": "sr_dist.evaluation.metrics.kid",
    "sr_dist.eval.metrics.lpips": "sr_dist.evaluation.metrics.lpips",
    "sr_dist.eval.metrics.patch_fid": "sr_dist.evaluation.metrics.patch_fid",
    "sr_dist.eval.metrics.psnr": "sr_dist.evaluation.metrics.psnr",
    "sr_dist.eval.metrics.ssim": "sr_dist.evaluation.metrics.ssim",
    "sr_dist.eval.opinions": "sr_dist.evaluation.classifiers.classifier_answers",
    "sr_dist.eval.opinions.Judge": "sr_dist.evaluation.classifiers.classifier_answers.NamedClassifier",
    "sr_dist.eval.opinions.right": "sr_dist.evaluation.classifiers.classifier_answers.correct",
    "sr_dist.eval.opinions.with_opinions": "sr_dist.evaluation.classifiers.classifier_answers.rows_with_answers",
    "sr_dist.eval.page": "sr_dist.evaluation.report.page",
    "sr_dist.eval.parts": "sr_dist.evaluation.partial_results",
    "sr_dist.eval.parts.Parts": "sr_dist.evaluation.partial_results.PartialResults",
    "sr_dist.eval.pictures": "sr_dist.evaluation.contact_sheet",
    "sr_dist.eval.pictures.enlarged": "sr_dist.evaluation.contact_sheet.enlarge",
    "sr_dist.eval.protocol": "sr_dist.evaluation.protocol",
    "sr_dist.eval.protocol.kept": "sr_dist.evaluation.protocol.as_stored",
    "sr_dist.eval.protocol.pictures": "sr_dist.evaluation.protocol.inside_border",
    "sr_dist.eval.protocol.PRESETS": "sr_dist.evaluation.presets.PROTOCOLS",
    "sr_dist.eval.references": "sr_dist.evaluation.distances.reference_cache",
    "sr_dist.eval.report": "sr_dist.evaluation.report.report",
    "sr_dist.eval.run": "sr_dist.evaluation.scoring",
    "sr_dist.eval.sets": "sr_dist.evaluation.distances.set_distances",
    "sr_dist.eval.sets.distances": "sr_dist.evaluation.distances.set_distances.set_distances",
    "sr_dist.eval.sets.Found": "sr_dist.evaluation.distances.set_distances.SetDistance",
    "sr_dist.files": "sr_dist.core.files",
    "sr_dist.files.claimed": "sr_dist.core.files.lock_file",
    "sr_dist.labels": "sr_dist.recipe.labels",
    "sr_dist.labels.SCORES": "sr_dist.recipe.columns.CLASSIFICATION",
    "sr_dist.losses.adversarial.above_one": "sr_dist.losses.adversarial.hinge_real",
    "sr_dist.losses.adversarial.below_minus_one": "sr_dist.losses.adversarial.hinge_fake",
    "sr_dist.losses.adversarial.large": "sr_dist.losses.adversarial.negative_mean",
    "sr_dist.losses.adversarial.near_one": "sr_dist.losses.adversarial.squared_to_one",
    "sr_dist.losses.adversarial.near_zero": "sr_dist.losses.adversarial.squared_to_zero",
    "sr_dist.losses.adversarial.says_class": "sr_dist.losses.adversarial.class_cross_entropy",
    "sr_dist.losses.adversarial.says_fake": "sr_dist.losses.adversarial.bce_fake",
    "sr_dist.losses.adversarial.says_real": "sr_dist.losses.adversarial.bce_real",
    "sr_dist.losses.classes": "sr_dist.losses.classification",
    "sr_dist.losses.content.classifier.check_runs": "sr_dist.losses.content.classifier.check_labels",
    "sr_dist.losses.terms": "sr_dist.losses.content_terms",
    "sr_dist.models.containers": "sr_dist.models.weights_files",
    "sr_dist.models.discriminators.acgan.ACGANCritic": "sr_dist.models.discriminators.acgan.ACGANDiscriminator",
    "sr_dist.models.discriminators.patch.PatchCritic": "sr_dist.models.discriminators.patch.PatchDiscriminator",
    "sr_dist.models.discriminators.srgan_vgg.SRGANCritic": "sr_dist.models.discriminators.srgan_vgg.SRGANDiscriminator",
    "sr_dist.models.discriminators.unet_sn.halving": "sr_dist.models.discriminators.unet_sn.downsampling",
    "sr_dist.models.discriminators.unet_sn.same": "sr_dist.models.discriminators.unet_sn.same_size",
    "sr_dist.models.discriminators.unet_sn.UNetCritic": "sr_dist.models.discriminators.unet_sn.UNetDiscriminator",
    "sr_dist.models.frozen": "sr_dist.models.frozen_classifier",
    "sr_dist.models.generators.srugan.initialise": "sr_dist.models.generators.srugan.initialize",
    "sr_dist.models.initial": "sr_dist.models.initialization",
    "sr_dist.models.layouts.Found": "sr_dist.models.layouts.ForeignGenerator",
    "sr_dist.models.layouts.recognise": "sr_dist.models.layouts.recognize",
    "sr_dist.models.published": "sr_dist.models.imagenet",
    "sr_dist.models.weights": "sr_dist.models.trained",
    "sr_dist.models.weights.called": "sr_dist.models.trained.name_and_step",
    "sr_dist.models.weights.chosen_weights": "sr_dist.models.trained.best_weights",
    "sr_dist.models.weights.classifier_metadata": "sr_dist.models.metadata.classifier_metadata",
    "sr_dist.models.weights.described": "sr_dist.models.trained.describe",
    "sr_dist.models.weights.Fit": "sr_dist.models.trained.TensorMatch",
    "sr_dist.models.weights.fit": "sr_dist.models.trained.match_tensors",
    "sr_dist.models.weights.is_run": "sr_dist.core.run_layout.is_run",
    "sr_dist.models.weights.metadata": "sr_dist.models.metadata.generator_metadata",
    "sr_dist.models.weights.METADATA": "sr_dist.models.metadata.METADATA",
    "sr_dist.models.weights.open_restorer": "sr_dist.models.trained.open_generator",
    "sr_dist.models.weights.Restorer": "sr_dist.models.trained.TrainedGenerator",
    "sr_dist.models.weights.start": "sr_dist.models.trained.load_starting_weights",
    "sr_dist.plugins": "sr_dist.core.plugins",
    "sr_dist.pretrained": "sr_dist.models.pretrained",
    "sr_dist.ranks": "sr_dist.core.ranks",
    "sr_dist.ranks.Exchange": "sr_dist.core.ranks.AllReduceTest",
    "sr_dist.ranks.from_first": "sr_dist.core.ranks.broadcast_from_first",
    "sr_dist.ranks.gather": "sr_dist.core.ranks.all_gather",
    "sr_dist.ranks.joined": "sr_dist.core.ranks.all_gather_flat",
    "sr_dist.ranks.leave": "sr_dist.core.ranks.destroy_group",
    "sr_dist.ranks.total": "sr_dist.core.ranks.all_reduce_sum",
    "sr_dist.ranks.Vote": "sr_dist.core.ranks.DelayedAny",
    "sr_dist.ranks.wait": "sr_dist.core.ranks.barrier",
    "sr_dist.recipe": "sr_dist.recipe.checks",
    "sr_dist.recipe.called": "sr_dist.recipe.columns.extractor_name",
    "sr_dist.recipe.check_backend": "sr_dist.recipe.checks.check_launch",
    "sr_dist.recipe.check_data": "sr_dist.data.data_checks.check_data",
    "sr_dist.recipe.check_world": "sr_dist.recipe.checks.check_batch",
    "sr_dist.recipe.columns": "sr_dist.recipe.columns.columns",
    "sr_dist.recipe.content_parts": "sr_dist.recipe.content.content_sections",
    "sr_dist.recipe.find_weights": "sr_dist.training.needed_files.find_weights",
    "sr_dist.recipe.foreign": "sr_dist.recipe.columns.foreign_column",
    "sr_dist.recipe.load": "sr_dist.data.data_checks.load",
    "sr_dist.recipe.load_without_data": "sr_dist.data.data_checks.load_without_data",
    "sr_dist.recipe.metric_facts": "sr_dist.recipe.columns.metric_facts",
    "sr_dist.recipe.of_sets": "sr_dist.recipe.columns.compares_sets",
    "sr_dist.recipe.PACKAGES": "sr_dist.core.plugins.PACKAGES",
    "sr_dist.recipe.sense": "sr_dist.recipe.columns.better_direction",
    "sr_dist.recipe.senses": "sr_dist.recipe.columns.all_columns",
    "sr_dist.recipe.stated": "sr_dist.recipe.checks.read_recipe",
    "sr_dist.resize": "sr_dist.core.resize",
    "sr_dist.resumption": "sr_dist.recipe.resume_rules",
    "sr_dist.resumption.changed": "sr_dist.recipe.resume_rules.forbidden_changes",
    "sr_dist.sections": "sr_dist.recipe.sections",
    "sr_dist.sections.Fraction": "sr_dist.core.config.Fraction",
    "sr_dist.sections.Positive": "sr_dist.core.config.Positive",
    "sr_dist.sections.Text": "sr_dist.core.config.OptionalText",
    "shards.items.fit": "shards.items.clean_key",
    "shards.items.other_keys": "shards.items.unusual_keys",
    "shards.items.Texts": "shards.items.PackedTexts",
    "shards.pixels.Rejected": "shards.image_header.Rejected",
    "shards.work": "shards.workers",
    "shards.writer.read_file": "shards.source.read_file",
}  # fmt: skip
ATTRIBUTES = {  # of objects that a plug-in gets or makes
    "critic_classes": "discriminator_classes",
    "fool": "generator",
    "realness": "logits",
    "wanted": "words",
}
REFUSES = "'refuses(config, *, zero_stage, cuda, ranks)' is now 'refuses(config, launch)', with launch.stage, .cuda and .ranks"
VERDICT = "'Verdict(realness, classes)' is now 'DiscriminatorOutput(logits, class_logits)'"
CHECK_RUNS = "'check_runs(config, recipe)' is now 'check_labels(config, available)', with available.classes and .attributes"


def refuse_old_file(tree: ast.Module, path: Path, key: str) -> None:
    """Refuses a file that was written for 0.1 and names every import and function that must change."""
    for module, line in _imported_modules(tree):
        if _is_ours(module) and not _is_module(module) and not _was_module(module):
            raise UserError(f"{key}: '{path}', line {line}: no module '{module}'{nearest(module, _modules())}")
    changes = [*_imports(tree), *_module_attributes(tree), *_hooks(tree)]
    if changes:
        changes += [*_attributes(tree), *([VERDICT] if "Verdict" in _names(tree) else [])]
        raise UserError(f"{key}: '{path}' was written for sr_dist 0.1; {'; '.join(changes)}")


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_ours(alias.name) and not _is_module(alias.name):
                    module, name = MOVED.get(alias.name), f" as {alias.asname}" if alias.asname else ""
                    yield f"line {node.lineno} becomes 'import {module}{name}'" if module else _gone(alias.name, node.lineno)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and _is_ours(node.module):
            names = {alias.name: _present(node.module, alias.name) for alias in node.names}
            if any(new != f"{node.module}.{name}" for name, new in names.items()):
                if any(names.values()):
                    yield f"line {node.lineno} becomes {_import_lines(list(filter(None, names.values())))}"
                yield from (_gone(f"{node.module}.{name}", node.lineno) for name, new in names.items() if new is None)


def _import_lines(names: list[str]) -> str:
    """`from X import a, b` for each module."""
    by_module: dict[str, list[str]] = {}
    for module, _, name in (new.rpartition(".") for new in names):
        by_module.setdefault(module, []).append(name)
    return " and ".join(f"'from {module} import {', '.join(sorted(own))}'" for module, own in by_module.items())


def _gone(name: str, line: int) -> str:
    return f"line {line}: '{name}' does not exist any more"


def _module_attributes(tree: ast.Module) -> Iterator[str]:
    """Uses such as `ranks.wait` after `from sr_dist import ranks`."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    modules = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if new := MOVED.get(f"{modules.get(node.value.id)}.{node.attr}"):
            yield f"line {node.lineno}: '{node.value.id}.{node.attr}' is now '{new}'"


def _hooks(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "refuses" and any(
            argument.arg == "zero_stage" for argument in node.args.kwonlyargs
        ):  # fmt: skip
            yield f"line {node.lineno}: {REFUSES}"
        if isinstance(node, ast.FunctionDef) and node.name == "check_runs":
            yield f"line {node.lineno}: {CHECK_RUNS}"


def _attributes(tree: ast.Module) -> list[str]:
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    return [f"'.{old}' is now '.{new}'" for old, new in ATTRIBUTES.items() if old in used]


def _present(module: str, name: str) -> str | None:
    """Where a name of 0.1 is now; None if it is gone. A module that still exists may define names that we do not see."""
    old = f"{module}.{name}"
    if name == "*":
        return f"{MOVED.get(module, module)}.*"
    candidates = (old, MOVED.get(old, ""), f"{MOVED.get(module)}.{name}")
    return next((new for new in candidates if exists(new)), old if _is_module(module) else None)


def exists(dotted: str) -> bool:
    """Whether this is a module of ours, or a name at the top level of one. Imports nothing."""
    module, _, name = dotted.rpartition(".")
    return _is_module(dotted) or name in _top_level_names(module)


def _imported_modules(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def _names(tree: ast.Module) -> set[str]:
    """Every name that a file uses, or imports, or takes from a module."""
    nodes = list(ast.walk(tree))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _was_module(module: str) -> bool:
    return any(old == module or old.startswith(f"{module}.") for old in MOVED)


def _modules() -> list[str]:
    files = [file for package in ("sr_dist", "shards") for file in (ROOT / package).rglob("*.py")]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("sr_dist", "shards")


def _is_module(dotted: str) -> bool:
    return _file(dotted) is not None


def _file(dotted: str) -> Path | None:
    path = ROOT.joinpath(*dotted.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if dotted and file.is_file()), None)


@lru_cache(maxsize=256)
def _top_level_names(module: str) -> frozenset[str]:
    file = _file(module)
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)
