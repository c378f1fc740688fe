"""Read by mypy, never run: the objectives keep their Protocols. Networks and content terms say theirs in `build`."""

from sr_dist.core.contracts import ClassifierObjective, ContentObjective, GANObjective
from sr_dist.objectives import classify, esrgan, pixel, srgan, srugan


def pixel_objective(objective: pixel.Objective) -> ContentObjective:
    return objective


def srgan_objective(objective: srgan.Objective) -> GANObjective:
    return objective


def esrgan_objective(objective: esrgan.Objective) -> GANObjective:
    return objective


def srugan_objective(objective: srugan.Objective) -> GANObjective:
    return objective


def classify_objective(objective: classify.Objective) -> ClassifierObjective:
    return objective
