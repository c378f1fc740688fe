"""Evaluation beside a plain loop of Pillow and scikit-image over the same images, methods and metrics; SSIM beside that of
scikit-image and torchmetrics.

    python benchmarks/evaluation.py HR_FOLDER --scale=4 --rounds=3 [--before=CHECKOUT]

Both programs run in turn, each as a process of its own with one thread: seconds (wall, CPU) with the start, and peak memory. With
--before, the package of another checkout runs as well. The mean PSNR and SSIM of bicubic are printed for each, so that one sees
that they measure the same (Pillow's bicubic differs from MATLAB's at the borders and in rounding).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def plain_loop(folder: str, scale: int) -> None:
    """Nearest, bilinear and bicubic by Pillow; PSNR and SSIM of Y and of RGB inside the border by scikit-image."""
    import numpy as np
    from PIL import Image
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    weights, values = np.array([65.481, 128.553, 24.966]) / 255, []
    ssim = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for path in sorted(Path(folder).iterdir()):
        hr = Image.open(path).convert("RGB")
        hr = hr.crop((0, 0, hr.width // scale * scale, hr.height // scale * scale))
        lr = hr.resize((hr.width // scale, hr.height // scale), Image.Resampling.BICUBIC)
        for kernel in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            a, b = (np.asarray(i)[scale:-scale, scale:-scale] for i in (lr.resize(hr.size, kernel), hr))
            y, x = ((i @ weights + 16).round() for i in (a, b))
            row = {
                "psnr_y": peak_signal_noise_ratio(x, y, data_range=255),
                "psnr_rgb": peak_signal_noise_ratio(b, a, data_range=255),
                "ssim_y": structural_similarity(x, y, **ssim),
                "ssim_rgb": structural_similarity(b, a, channel_axis=2, **ssim),
            }
        values.append(row)
    print(json.dumps({key: statistics.mean(row[key] for row in values) for key in values[0]}))


def ssim_alone(side: int, rounds: int) -> None:
    """One thread, one process: SSIM of Y of one float64 image, in turn; CPU time, which other programs disturb least."""
    import torch
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import structural_similarity_index_measure

    from sr_dist.evaluation.metrics import ssim
    from sr_dist.evaluation.protocol import Protocol, luma, tiles

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, side // 8, side // 8, dtype=torch.float64, generator=draw)
    hr = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    sr = (hr + 0.05 * torch.randn(hr.shape, dtype=torch.float64, generator=draw)).clamp(0, 1)
    rules = Protocol("floats", 2, 0, eight_bit=False, rounded_luma=False)
    a, b = hr * 255, sr * 255
    x, y, colours = a[0, 0].numpy(), b[0, 0].numpy(), [image.expand(-1, 3, -1, -1) for image in (sr, hr)]
    reference = {"sigma": 1.5, "data_range": 255.0, "return_full_image": True}

    def y_alone(sr: torch.Tensor, hr: torch.Tensor) -> float:
        pairs = ([luma(tile, rules, True)[0] for tile in pair] for pair in tiles(sr, hr, rules, ssim.WINDOW - 1))
        return sum(float(ssim.plane_sums(*pair)) for pair in pairs) / (side - 10) ** 2

    programs = {
        "ours": lambda: y_alone(*colours),
        "ours, Y and RGB": lambda: ssim.per_image(*colours, rules, grey=True)["ssim_y"][0],
        "scikit-image": lambda: structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        ),
        "torchmetrics": lambda: float(structural_similarity_index_measure(b, a, **reference)[1][..., 5:-5, 5:-5].mean()),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    values = {name: program() for name, program in programs.items()}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            program()
            times[name].append(time.process_time() - start)
    for name in programs:
        print(f"SSIM {side} x {side}, {name}: {1e3 * statistics.median(times[name]):.0f} ms of CPU, {values[name]:.12f}")


def measured(line: list[str], path: Path) -> tuple[float, float, float, str]:
    """Wall seconds, CPU seconds, peak GB and output of a process. It runs in `path`, because `-m` looks there first."""
    start = time.perf_counter()
    variables = {**os.environ, **THREADS, "PYTHONPATH": str(path)}
    with subprocess.Popen(line, env=variables, cwd=path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: '{' '.join(line)}' ended with {process.returncode}; its last line is above")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, text


def evaluations(folder: str, scale: int, rounds: int, before: str | None) -> None:
    folder, script = str(Path(folder).resolve()), str(Path(__file__).resolve())
    paths = {"ours": ROOT, **({"ours before": Path(before).resolve()} if before else {})}
    results: dict[str, list[tuple[float, float, float]]] = {}
    means: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name in [*paths, "plain loop"]:
            with tempfile.TemporaryDirectory() as out:
                line = [sys.executable, "-m", "sr_dist.evaluate", "bicubic", f"--data={folder}", f"--scale={scale}",
                        "--metrics=psnr,ssim", f"--out={out}/report"]  # fmt: skip
                if name == "plain loop":
                    line = [sys.executable, script, "--loop", folder, f"--scale={scale}"]
                wall, cpu, peak, text = measured(line, paths.get(name, ROOT))
                results.setdefault(name, []).append((wall, cpu, peak))
                report = Path(out, "report", "report.json")
                means[name] = json.loads(report.read_text())["methods"]["bicubic"] if report.exists() else json.loads(text)
    for name, rows in results.items():
        wall, cpu, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        numbers = ", ".join(f"{column} {value:.4f}" for column, value in means[name].items())
        print(f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU, {peak:.2f} GB; bicubic {numbers}")


def folder_of_images(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no folder '{text}'")
    if not any(path.suffix.lower() in SUFFIXES for path in Path(text).iterdir()):
        raise argparse.ArgumentTypeError(f"'{text}' has no images ({', '.join(SUFFIXES)})")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=folder_of_images, metavar="HR_FOLDER")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="another checkout of this repository")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ssim", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        return plain_loop(options.folder, options.scale)
    if options.ssim:
        return ssim_alone(512, 15)
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "scikit-image", "pillow", "torchmetrics"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}", flush=True)
    # A process of its own: the peak of a child process begins with that of the process that starts it.
    print(measured([sys.executable, str(Path(__file__).resolve()), options.folder, "--ssim"], ROOT)[3], end="", flush=True)
    evaluations(options.folder, options.scale, options.rounds, options.before)


if __name__ == "__main__":
    main()
