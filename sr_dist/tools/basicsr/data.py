"""`datasets` and the degradation options -> the `data` section, and the commands that build its shards."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
from pathlib import PurePath

from sr_dist.core.config import Tree
from sr_dist.core.errors import UserError
from sr_dist.tools.basicsr.options import Options, numbers, texts, whole, yes

KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
ROUND = {  # option of a round, without its number -> our key, and the section where BasicSR has it
    "resize_prob": ("resize_weights", ""), "resize_range": ("resize_range", ""),
    "gaussian_noise_prob": ("gaussian_probability", ""), "noise_range": ("noise_sigma", ""),
    "poisson_scale_range": ("poisson_scale", ""), "gray_noise_prob": ("grey_probability", ""), "jpeg_range": ("jpeg_quality", ""),
    "blur_sigma": ("blur_sigma", "datasets.train."), "sinc_prob": ("sinc_probability", "datasets.train."),
    "betag_range": ("generalised_beta", "datasets.train."), "betap_range": ("plateau_beta", "datasets.train."),
}  # fmt: skip
ENDLESS = "epochs end inside a step"


def data(options: Options, scale: int, gpus: int) -> tuple[Tree, list[str]]:
    """The section, and the commands that build the shards."""
    path = "datasets.train"
    if not options.has(f"{path}.dataroot_gt"):
        raise UserError(f"{path}.dataroot_gt: this key is missing; an option file for training has it")
    train = _shards(options, "train", scale)
    commands = list(train.values())
    section: Tree = {"train": next(iter(train))}
    sets, more = _validation(options, scale)
    if sets:
        section["validation"] = sets
    commands += more
    section["crop"] = _crop(options, scale)
    per_gpu = options.take(f"{path}.batch_size_per_gpu", whole, 16, f"data.batch, times {gpus} GPUs")
    section["batch"] = per_gpu * gpus
    for flip in ("use_hflip", "use_flip"):
        section["flip"] = options.take(f"{path}.{flip}", yes, section.get("flip", True), "data.flip")
    section["rotate"] = options.take(f"{path}.use_rot", yes, True, "data.rotate")
    section["workers"] = options.take(f"{path}.num_worker_per_gpu", whole, 2, "data.workers")
    for name in ("dataset_enlarge_ratio", "prefetch_mode", "num_prefetch_queue", "use_shuffle"):
        options.drop(f"{path}.{name}", ENDLESS if name != "prefetch_mode" else "batches are prefetched always")
    if degraded(options):
        section["degradation"] = _degradation(options)
    options.drop("high_order_degradation", "shards with LR train on it; without it, data.degradation makes it")
    options.drop("queue_size", "every image has its own random numbers, so there is no pool of pairs")
    return section, commands


def _validation(options: Options, scale: int) -> tuple[str | dict[str, str], list[str]]:
    """The place of one set, or the places of several by name, and the commands that build them."""
    sets: dict[str, str] = {}
    commands: list[str] = []
    for part in [name for name in options.value("datasets") if name != "train"]:
        if not options.has(f"datasets.{part}.dataroot_gt"):
            options.drop(f"datasets.{part}", "validation needs HR; images without HR: evaluate --lr=FOLDER")
            continue
        name = _slug(str(options.value(f"datasets.{part}.name") or part))
        for place, command in _shards(options, part, scale).items():
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            sets[name if name not in sets else next(one for one in numbered if one not in sets)] = place
            commands.append(command)
    return (next(iter(sets.values())) if len(sets) == 1 else sets), list(dict.fromkeys(commands))


def degraded(options: Options) -> bool:
    """LR is made as in Real-ESRGAN."""
    return str(options.value("datasets.train.type")).lower() == "realesrgandataset"


def _shards(options: Options, part: str, scale: int) -> dict[str, str]:
    """Where the shards of each folder of a set will be, and the command that makes them."""
    path = f"datasets.{part}"
    roots, lr = texts(options.value(f"{path}.dataroot_gt")), texts(options.value(f"{path}.dataroot_lq") or [])
    backend = options.read(f"{path}.io_backend.type", str, "lmdb" if roots[0].endswith(".lmdb") else "disk")
    listed = next(
        (options.value(f"{path}.{name}") for name in ("meta_info_file", "meta_info") if options.has(f"{path}.{name}")), None
    )
    source = "lmdb" if backend == "lmdb" else "pairs" if lr else "folder"
    shards: dict[str, str] = {}
    for number, root in enumerate(roots):
        words: dict[str, str] = {}
        if number < len(lr):
            words |= {"lr": lr[number], "scale": str(scale)}
        if listed and source != "lmdb":
            words["list"] = str(listed)
        if part == "train" and options.value(f"{path}.gt_size"):
            words["min_side"] = str(options.value(f"{path}.gt_size"))
        place = _place(source, root, words)
        command = ["python", "-m", "shards.build", source, root, place, *(f"--{key}={value}" for key, value in words.items())]
        shards.setdefault(place, shlex.join(command))
    _note_set(options, part, source, list(shards))
    return shards


def _place(source: str, root: str, words: dict[str, str]) -> str:
    """For the shards of one folder of images: its name, and a digest of all that decides what is in the shards."""
    paths = {key: _normalized(value) if key in ("lr", "list") else value for key, value in words.items()}
    digest = hashlib.sha256(json.dumps([source, _normalized(root), paths]).encode()).hexdigest()[:8]
    return f"data/{_slug('_'.join(PurePath(_normalized(root)).parts[-2:]))}_{digest}"


def _normalized(path: str) -> str:
    """The same text for a relative and for a whole path."""
    whole_path, folder = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole_path, folder) if whole_path.startswith(folder + os.sep) else whole_path


def _note_set(options: Options, part: str, source: str, places: list[str]) -> None:
    path, key = f"datasets.{part}", "data.train" if part == "train" else "data.validation"
    options.note(f"{path}.dataroot_gt", f"{key}: {', '.join(places)}, built by shards.build {source}")
    options.note(f"{path}.dataroot_lq", f"--lr of shards.build {source}")
    for name in ("meta_info_file", "meta_info"):
        options.note(f"{path}.{name}", f"--list of shards.build {source}")
    options.note(f"{path}.io_backend", f"shards.build {source}")
    options.note(f"{path}.type", f"shards.build {source}")
    if part == "train":
        options.drop(f"{path}.name", "shards have the name of the folder of images")
    options.note(f"{path}.name", "the name of the set, where there are several")
    options.drop(f"{path}.filename_tmpl", "pairs are matched by name; endings such as x4 and _LR are no part of it")
    if options.value(f"{path}.color") == "y":
        options.checks.append(f"{path}.color: y. Build shards of grey images; networks here read the images as they are stored.")
        options.drop(f"{path}.color", "images are read as they are stored")
    options.note(f"{path}.color", "images are read as they are stored")
    for name in ("mean", "std"):
        options.drop(f"{path}.{name}", "images are [0, 1]")
    if part == "train" and len(places) > 1:
        mixed = ", ".join(f"{place}: 1" for place in places)
        options.checks.append(f"{path}.dataroot_gt has {len(places)} folders; data.train: {{{mixed}}} names the shards of all.")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "set"


def _crop(options: Options, scale: int) -> int:
    if options.has("datasets.train.lq_size"):
        return scale * options.take("datasets.train.lq_size", whole, 32, "data.crop, times scale")
    top = options.take("gt_size", whole, 0, "data.crop")
    size = options.take("datasets.train.gt_size", whole, top or 128, "data.crop")
    crop = top or size  # RealESRGANModel cuts to its own size last
    if crop % scale and crop > scale:
        whole_crop = crop // scale * scale
        options.checks.append(f"gt_size: {crop} is no multiple of scale {scale}; data.crop is {whole_crop}, as BasicSR cuts it.")
        return whole_crop
    return crop


def _degradation(options: Options) -> Tree:
    first, second = (_round(options, suffix, ours) for suffix, ours in (("", "first"), ("2", "second")))
    second["blur_probability"] = options.take("second_blur_prob", float, 0.8, "data.degradation.second.blur_probability")
    section: Tree = {"name": "real", "first": first, "second": second}
    size = options.take("datasets.train.blur_kernel_size", whole, 21, "data.degradation.kernel_size")
    other = options.read("datasets.train.blur_kernel_size2", whole, size)
    (options.note if other == size else options.drop)("datasets.train.blur_kernel_size2", "one kernel_size for all rounds")
    section["kernel_size"] = min(max(size, 7), 51)
    section["final_sinc_probability"] = options.take(
        "datasets.train.final_sinc_prob", float, 0.8, "data.degradation.final_sinc_probability"
    )
    model = options.value("model_type")
    section["sharpen"] = options.read("gt_usm", yes, False) or model == "RealESRGANModel"
    return section


def _round(options: Options, suffix: str, ours: str) -> Tree:
    section: Tree = {}
    for option, (key, place) in ROUND.items():
        path = f"{place}{option}{suffix}"
        if options.has(path):
            values: list[float] = options.take(path, numbers, [], f"data.degradation.{ours}.{key}")
            section[key] = values if isinstance(options.value(path), list) else values[0]
    path = f"datasets.train.kernel_prob{suffix}"
    if options.has(path):
        kinds = texts(options.value(f"datasets.train.kernel_list{suffix}") or KERNELS)
        given: list[float] = options.take(path, numbers, [], f"data.degradation.{ours}.kernel_weights")
        weights = dict(zip(kinds, given, strict=False))
        section["kernel_weights"] = [weights.get(kind, 0.0) for kind in KERNELS]
    options.note(f"datasets.train.kernel_list{suffix}", f"the order of data.degradation.{ours}.kernel_weights")
    return section
