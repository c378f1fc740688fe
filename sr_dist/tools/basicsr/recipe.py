"""An option file of BasicSR, Real-ESRGAN or traiNNer-redux -> a recipe, and a report of every option."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sr_dist.core import config
from sr_dist.core.config import Tree
from sr_dist.core.errors import UserError
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.basicsr import data, losses, networks, training
from sr_dist.tools.basicsr.options import Options, shown, whole


class Imported(NamedTuple):
    recipe: Tree
    options: Options
    commands: list[str]  # that build the shards

    def text(self, file: str) -> str:
        """The recipe as a file, with the report as comments."""
        comments = [f"# Imported from {Path(file).name}.", *(f"# {line}".rstrip() for line in self.report())]
        return "\n".join(comments) + "\n" + config.tree_text(self.recipe)

    def report(self) -> list[str]:
        """What was taken over, what is to be checked, what has no equal, and what is not known."""
        options = self.options
        parts = [
            ("Build the shards:", self.commands),
            ("Check:", options.checks),
            ("No equal:", [f"{path}: {self._given(path)} ({reason})" for path, reason in options.without.items()]),
            ("Unknown, not taken over:", [f"{path}: {self._given(path)}" for path in options.unknown()]),
            ("Taken over:", [f"{path}: {self._given(path)} -> {ours}" for path, ours in options.taken.items()]),
        ]
        return [line for title, lines in parts if lines for line in ("", title, *(f"  {' '.join(one.split())}" for one in lines))]

    def _given(self, path: str) -> str:
        return shown(config.flatten(self.options.tree)[path])


def import_options(file: Path, gpus: int | None) -> Imported:
    options = Options(config.read(file))
    for key in ("datasets", "network_g", "train"):
        if not isinstance(options.value(key), dict):
            raise UserError(f"{key}: '{file}' has no such section, so it is no option file of BasicSR for training")
    recipe, commands = _recipe(options, gpus)
    try:
        typed = config.typed(Recipe, config.parse(config.tree_text(recipe)))
        checks.check_names(typed)
        checks.check_agreement(typed)
    except UserError as mistake:
        raise UserError(f"'{file}' gives a recipe that is not valid: {mistake}") from None
    return Imported(recipe, options, commands)


def _recipe(options: Options, gpus: int | None) -> tuple[Tree, list[str]]:
    scale = options.take("scale", whole, 1, "scale")
    losses.read_list(options)
    losses.check_discriminator(options)
    gan = losses.is_gan(options)
    section, commands = data.data(options, scale, gpus or _gpus(options))
    recipe: Tree = {
        "name": options.take("name", str, "imported", "name").replace("/", "_"),
        "seed": options.take("manual_seed", whole, 0, "seed"),
        "scale": scale,
        **training.steps_and_ema(options),
        "data": section,
        "generator": networks.generator(options, scale),
    }
    if gan:
        recipe["discriminator"] = networks.discriminator(options, section["crop"])
    if init := networks.starting_weights(options, gan, recipe.get("discriminator", {}).get("name", "")):
        recipe["init"] = init
    recipe["objective"] = losses.objective(options)
    recipe |= training.optimizers(options, gan)
    recipe["schedule"] = training.schedule(options, recipe["optimizer"]["learning_rate"])
    recipe |= {**training.precision(options), **training.validation(options), **training.log(options)}
    accumulate = options.take("datasets.train.accum_iter", whole, 1, "accumulate, and data.batch times it")
    if accumulate > 1:
        recipe["accumulate"] = accumulate
        section["batch"] *= accumulate
    options.note("num_gpu", "data.batch; accelerate launch --num_processes")
    options.drop("dist_params", "accelerate's configuration has it; GPUs talk over NCCL")
    options.drop("find_unused_parameters", "both networks use all their parameters")
    return recipe, commands


def _gpus(options: Options) -> int:
    """0 is BasicSR's CPU mode, and `auto` the GPUs that it finds."""
    if options.value("num_gpu") == "auto":
        options.checks.append("num_gpu: auto. data.batch is that of 1 GPU; --gpus=N multiplies it (Real-ESRGAN has 4).")
        return 1
    return max(options.read("num_gpu", whole, 1), 1)
