"""The conditions under which PSNR and SSIM are computed, in words, and what well-known code does. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Conditions = dict[str, str]  # axis -> value

AXES: Mapping[str, Mapping[str, str]] = {  # axis -> value -> how a paper states it; the first value is the usual one
    "lr": {
        "stored": "LR as stored with the data",
        "matlab": "LR by MATLAB's bicubic imresize",
        "matlab_float": "LR by MATLAB's bicubic imresize of floats, not rounded",
        "pil": "LR by PIL's bicubic resize",
        "opencv": "LR by OpenCV's INTER_CUBIC, without antialiasing",
        "torch": "LR by torch's bicubic interpolate without antialiasing",
        "torch_antialias": "LR by torch's bicubic interpolate with antialiasing",
        "given": "pictures as given",
    },
    "enlarged": {
        "network": "",
        "matlab": "enlarged by MATLAB's imresize",
        "matlab_float": "enlarged by MATLAB's imresize of floats",
        "pil": "enlarged by PIL",
        "opencv": "enlarged by OpenCV",
        "torch": "enlarged by torch's interpolate",
        "torch_antialias": "enlarged by torch's interpolate with antialiasing",
    },
    "pixels": {
        "rounded": "8-bit images",
        "floats": "images as floats in [0, 1], not rounded",
        "unclipped": "floats, neither clipped nor rounded",
        "truncated": "images truncated to 8 bits",
    },
    "channel": {
        "y_rounded": "Y of BT.601 in studio range (16 to 235), rounded as MATLAB's rgb2ycbcr does",
        "y": "Y of BT.601 in studio range (16 to 235), not rounded",
        "y_full": "Y of BT.601 in full range (0 to 255)",
        "rgb": "RGB, all channels together",
        "channels": "the mean over R, G and B of each one's value",
    },
    "border": {},  # pixels: depends on the scale
    "range": {
        "255": "data range 255",
        "219": "data range 219, that of studio Y",
        "hr_max": "data range: the largest value of HR",
        "hr_range": "data range: the largest less the smallest value of HR",
        "pair_range": "data range: the largest less the smallest value of SR or HR, whichever is more",
    },
    "mean": {
        "images": "mean of per-image values",
        "mse": "one value of the mean of per-image MSE",
        "pooled": "one value of the MSE of all pixels",
    },
    "window": {
        "gaussian": "Gaussian window 11 x 11, sigma 1.5, valid positions",
        "gaussian_zero": "Gaussian window 11 x 11, sigma 1.5, zeros around the image",
        "gaussian_reflect": "Gaussian window 11 x 11, sigma 1.5, edges reflected",
        "gaussian_replicate": "Gaussian window 11 x 11, sigma 1.5, edges repeated",
        "uniform7": "uniform window 7 x 7, valid positions",
    },
    "covariance": {"population": "covariances over N", "sample": "covariances over N - 1"},
}
PSNR_AXES = ("lr", "enlarged", "pixels", "channel", "border", "range", "mean")
SSIM_AXES = ("lr", "enlarged", "pixels", "channel", "border", "window", "covariance", "range")
SHARED = ("lr", "enlarged", "pixels", "channel", "border")  # PSNR and SSIM of one table agree in these


def borders(scale: int) -> list[int]:
    """0, the scale, that of NTIRE's scripts, and that of BasicSR's x4 options; each once."""
    return list(dict.fromkeys([scale, 0, scale + 6, 4]))


@dataclass(frozen=True)
class Named:
    """What a program or a challenge does. `border`: a function of the scale is written as `scale`, `scale+6` or a number."""

    name: str
    source: str  # where one can read it
    border: str
    fixed: Mapping[str, str]  # axes of both metrics
    psnr: Mapping[str, str]
    ssim: Mapping[str, str]

    def conditions(self, metric: str, scale: int) -> Conditions:
        border = {"scale": scale, "scale+6": scale + 6}.get(self.border)
        own = self.psnr if metric == "psnr" else self.ssim
        return {**self.fixed, "border": str(border if border is not None else int(self.border)), **own}


_PER_IMAGE = {"range": "255", "mean": "images"}
_WANG = {"window": "gaussian", "covariance": "population", "range": "255"}
_Y, _Y_ROUNDED, _RGB = ({"pixels": "rounded", "channel": channel} for channel in ("y", "y_rounded", "rgb"))
NAMED = (
    Named("MATLAB tables (SRCNN, SelfExSR, EDSR)", "this project's protocol matlab-y", "scale", _Y_ROUNDED, _PER_IMAGE, _WANG),
    Named("BasicSR, test_y_channel", "XPixelGroup/BasicSR basicsr/metrics/psnr_ssim.py", "scale", _Y, _PER_IMAGE, _WANG),
    Named("BasicSR, RGB", "XPixelGroup/BasicSR options/test/SRResNet_SRGAN: crop_border 4", "4", _RGB, _PER_IMAGE, _WANG),
    Named("KAIR, Y of 8-bit images", "cszn/KAIR main_test_msrresnet.py", "scale", _Y_ROUNDED, _PER_IMAGE, _WANG),
    Named("KAIR, Y of floats", "cszn/KAIR main_test_swinir.py", "scale", _Y, _PER_IMAGE, _WANG),
    Named("KAIR, RGB", "cszn/KAIR main_test_msrresnet.py", "scale", _RGB, _PER_IMAGE, _WANG),
    Named(
        "SRGAN-PyTorch", "Lornatang/SRGAN-PyTorch test.py, image_quality_assessment.py", "scale",
        {"pixels": "floats", "channel": "y"}, _PER_IMAGE, _WANG,
    ),
    Named("MMagic, Y", "open-mmlab/mmagic mmagic/evaluation/metrics/psnr.py", "scale", _Y, _PER_IMAGE, _WANG),
    Named("MMagic, RGB", "open-mmlab/mmagic mmagic/evaluation/metrics/psnr.py", "scale", _RGB, _PER_IMAGE, _WANG),
    Named("NTIRE 2017", "the challenge's NTIRE_PeakSNR_imgs.m and NTIRE_SSIM_imgs.m", "scale+6", _RGB, _PER_IMAGE, _WANG),
    Named(
        "torchmetrics", "Lightning-AI/torchmetrics src/torchmetrics/functional/image/psnr.py, ssim.py", "0",
        {"pixels": "unclipped", "channel": "rgb"}, {"range": "255", "mean": "pooled"},
        {"window": "gaussian_reflect", "covariance": "population", "range": "255"},
    ),
    Named(
        "torchmetrics, SSIM without data_range", "Lightning-AI/torchmetrics src/torchmetrics/functional/image/ssim.py", "0",
        {"pixels": "unclipped", "channel": "rgb"}, {"range": "255", "mean": "pooled"},
        {"window": "gaussian_reflect", "covariance": "population", "range": "pair_range"},
    ),
    Named(
        "scikit-image's defaults for 8 bits", "scikit-image/scikit-image skimage/metrics", "0", _RGB, _PER_IMAGE,
        {"window": "uniform7", "covariance": "sample", "range": "255"},
    ),
    Named(
        "leftthomas/SRGAN", "leftthomas/SRGAN test_benchmark.py, pytorch_ssim", "0",
        {"pixels": "unclipped", "channel": "rgb"}, _PER_IMAGE,
        {"window": "gaussian_zero", "covariance": "population", "range": "255"},
    ),
)  # fmt: skip


def known_as(metric: str, conditions: Conditions, scale: int) -> list[str]:
    """The names of what these conditions are. How LR was made does not belong to a name."""
    return [
        named.name for named in NAMED
        if all(conditions.get(axis) == value for axis, value in named.conditions(metric, scale).items())
    ]  # fmt: skip


def statement(metric: str, conditions: Conditions) -> str:
    """The conditions as a sentence for a paper."""
    words = [
        f"a border of {value} pixels removed" if axis == "border" and value != "0" else "no border removed" if axis == "border"
        else AXES[axis][value]
        for axis, value in conditions.items()
    ]  # fmt: skip
    mean = [] if metric == "psnr" else [AXES["mean"]["images"]]
    return f"{metric.upper()}: {'; '.join(word for word in [*words, *mean] if word)}."
