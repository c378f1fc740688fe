"""Writes docs/plan.md, whose tables are those of the command `python -m sr_dist.plan`.  `python -m docs.make` calls it."""

from __future__ import annotations

from typing import Any

from docs.make.pages import NOTE, table
from sr_dist.data import data_checks
from sr_dist.tools import plan, plan_text
from sr_dist.tools.gpus import GPUS, Gpu

PATH = "docs/plan.md"
RECIPES = ("esrgan_x4", "realesrgan_x4", "srugan_x2", "imagenet_srugan_x2_large")
NODE = 8  # GPUs of the tables
TEXT = """# Plan

What a training costs, before it waits in a queue. Everything on this page and in the command's output is computed from the
recipe and from published figures of GPUs; nothing was measured.

```
python -m sr_dist.plan esrgan_x4 --gpus=8 --time_limit=24h
python -m sr_dist.plan imagenet_srugan_x2_large --gpus=64 --gpu=a100-80 --backend=zero1 --images=1281167 \\
  --discriminator.classes=1000
python -m sr_dist.plan realesrgan_x4 --gpus=16 --data.batch=96 --images_per_second=25 --json
```

It says

- **memory per GPU** under DDP and ZeRO 1, 2, 3, as [`bench step --memory`](memory.md): weights, gradients, optimizer, EMA,
  content networks, buffers, activations; where it does not fit, the options that lower it, the cheapest first, until it does;
- **operations** per image and step, kernel launches and bytes (below);
- **time**: images/s, hours, GPU hours, and jobs of `--time_limit` in a chain, at 14, 30 and 40 % of the peak or at
  `--efficiency=0.3`. A figure is better than a share: `--images_per_second` is what `sr_dist.bench step` measures on one GPU;
- **communication** per GPU and step, from 1 to 256 GPUs; *without overlap* adds it to the time of each step;
- **data**: epochs and bytes per node, from the manifest of `data.train` or `--images`;
- the **learning rate** by the square-root rule, if you change the batch ([Large batches](large_batches.md));
- the **line for `sbatch`**.

`sr_dist.train RECIPE --dry_run` ends with the shortest form of it.

"""
LATER = """## How it is computed

- **Operations**: matrix products and convolutions, a multiplication and an addition as two, forward and backward of all networks,
  counted by torch on tensors without numbers; the log's TFLOP/s use the same count.
- **Launches and bytes**: every operation of torch that is no view is one launch that reads its inputs and writes its outputs.
  That is eager mode in fp32, without the optimizer; `compile` fuses many. From them two bounds follow, at the memory's bandwidth
  (bytes half as many with 16 bits) and at 5 us per launch, which is an assumption: no share above them can be reached without
  `compile`, however large the peak.
- **Images/s** = GPUs x peak x share / operations per image. No share is promised: small networks and crops reach less.
- **Communication**, for N GPUs, S bytes of fp32 gradients and A micro-batches: DDP sends 2 (N-1)/N S per GPU and step, ZeRO-1
  3 (N-1)/N S, ZeRO-2 (2A+1) (N-1)/N S, and ZeRO-3 2A (N-1)/N S for a generator, 5 to 8 times A (N-1)/N S for a discriminator,
  whose weights are collected in every pass. These are DeepSpeed's collectives as counted (0.19.8); it adds gradients up by
  all-reduce where the paper scatters them. The least time is that of rings: at the speed of the link inside a node, or of the
  node's network adapters together if that is less. Latency is not counted.
- **A GPU's memory** is its nominal GB of 10^9 bytes, less 0.5 GB for CUDA.

## GPUs

`--link` and `--network` replace two of the columns. The network is an assumption: one adapter of 400 Gbit/s per H100 and H200, of
200 Gbit/s per A100, of 100 Gbit/s per other GPU. Peaks are dense; a link's figure is one direction.

"""
COSTS = "recipe | step | precision | parameters | GFLOP per image | TFLOP per step | launches per step | GB per GPU | at most"
GPU_COLUMNS = "GPU | GB | TFLOP/s: 16 bit | TF32 | fp32 | memory GB/s | link GB/s | network GB/s | from"


def page() -> str:
    plans = {name: plans_of(name) for name in RECIPES}
    lines = [TEXT.rstrip(), "", "## Four recipes", "", f"On {NODE} GPUs, with each recipe's batch and precision (computed):", ""]
    lines += table(COSTS, [cost_row(name, both["h100"]) for name, both in plans.items()])
    lines += ["*At most*: the share of an H100's peak that memory traffic, and launches, allow without `compile`.", ""]
    lines += [f"Images/s of {NODE} GPUs at three shares of the peak (computed); those in brackets are beyond *at most*:", ""]
    shares = " | ".join(f"{gpu}, {100 * share:.0f} %" for gpu in ("h100", "a100-80") for share in plan.EFFICIENCIES)
    lines += table(f"recipe | {shares}", [speed_row(name, both) for name, both in plans.items()])
    lines += ["Memory per GPU in GB (computed; activations estimated):", ""]
    lines += table("recipe | DDP | ZeRO-1 | ZeRO-2 | ZeRO-3", [memory_row(name, both["h100"]) for name, both in plans.items()])
    lines += ["## Communication", "", "MB that each GPU sends in a step, and the least ms on H100 nodes of 8 (computed):", ""]
    numbers = " | ".join(map(str, plan.NUMBERS))
    rows = [row for name, both in plans.items() for row in exchange_rows(name, both["h100"])]
    lines += [*table(f"recipe | GPUs: {numbers}", rows), LATER.rstrip(), ""]
    lines += table(GPU_COLUMNS, [gpu_row(gpu) for gpu in GPUS.values()])
    return f"{chr(10).join(lines).strip()}\n\n{NOTE}"


def plans_of(name: str) -> dict[str, plan.Plan]:
    """The same plan on two kinds of GPU, which differ in speed alone."""
    recipe = data_checks.load_without_data(name, {"discriminator.classes": "1000"} if "srugan" in name else {})
    requests = [plan.Request(GPUS[gpu], NODE, 1) for gpu in ("h100", "a100-80")]
    first = plan.make(recipe, requests[0], recipe.data.batch)
    other = {**first, "peak_tflops": requests[1].gpu.peak(recipe.precision, recipe.tf32)}
    other["bounds"] = plan.bounds(other, requests[1].gpu)
    return {"h100": first, "a100-80": {**other, "speed": plan.speeds(recipe, requests[1], other)}}


def cost_row(name: str, made: plan.Plan) -> list[str]:
    parameters = " + ".join(f"{count / 1e6:,.1f} M" for count in made["parameters"].values())
    precision = "fp32, TF32" if made["precision"] == "no" else made["precision"]
    return [
        f"`{name}`", f"{made['batch']} of {made['crop']} x {made['crop']}", precision, parameters,
        f"{made['flops_per_image'] / 1e9:,.0f}", f"{made['flops_per_step'] / 1e12:,.1f}",
        f"{made['launches_per_step']:,}", f"{made['bytes_per_step'] / NODE / 1e9:,.1f}",
        " / ".join(f"{100 * made['bounds'][kind]['share_of_peak']:.0f} %" for kind in ("traffic", "launches")),
    ]  # fmt: skip


def speed_row(name: str, both: dict[str, plan.Plan]) -> list[str]:
    return [f"`{name}`", *(speed_cell(row) for made in both.values() for row in made["speed"])]


def speed_cell(row: dict[str, Any]) -> str:
    figure = plan_text.number(row["images_per_second"])
    return f"({figure})" if row["needs_compile"] else figure


def memory_row(name: str, made: plan.Plan) -> list[str]:
    return [f"`{name}`", *(plan_text.gigabytes(row["total"]) for row in made["memory"].values())]


def exchange_rows(name: str, made: plan.Plan) -> list[list[str]]:
    """Backends that send the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for backend, numbers in made["communication"].items():
        cells = (f"{numbers[n]['bytes'] / 1e6:,.0f} / {1e3 * numbers[n]['seconds']:.2f}" for n in plan.NUMBERS)
        rows.setdefault(tuple(cells), []).append(plan.BACKENDS[backend])
    return [[f"`{name}`, {', '.join(backends)}", *cells] for cells, backends in rows.items()]


def gpu_row(gpu: Gpu) -> list[str]:
    figures = [gpu.memory_gb, gpu.half, gpu.tf32 or "-", gpu.fp32, gpu.memory_bandwidth]
    return [f"`{gpu.name}`", *map(str, figures), f"{gpu.link:g} ({gpu.link_name})", f"{gpu.network:g}", gpu.source]
