"""A plan in words and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sr_dist.tools.gpus import GB, Gpu
from sr_dist.tools.plan import BACKENDS, Plan


def text(plan: Plan, gpu: Gpu, job: str) -> str:
    """All of it; everything in it is computed."""
    parts = ", ".join(f"{phase} {count / 1e6:,.1f} M" for phase, count in plan["parameters"].items())
    lines = [
        f"{plan['recipe']} on {plan['gpus']} x {gpu.name} ({plan['nodes']} nodes), {BACKENDS[plan['backend']]}, precision "
        f"{plan['precision']}. Everything below is computed, not measured.",
        "",
        f"parameters (computed)     {parts}",
        f"step (computed)           {plan['batch']} images of {plan['crop']} x {plan['crop']}; {plan['images_per_micro_batch']} "
        f"per micro-batch, {plan['accumulate']} micro-batches per GPU",
        f"operations (computed)     {plan['flops_per_image'] / 1e9:,.1f} GFLOP per image, "
        f"{plan['flops_per_step'] / 1e12:,.2f} TFLOP per step",
        f"traffic (computed)        {plan['launches_per_step']:,} kernel launches per GPU and step, "
        f"{plan['bytes_per_step'] / plan['gpus'] / GB:,.1f} GB per GPU and step, eager and in fp32",
        "", "Memory per GPU in GB (computed; activations estimated):", *memory_lines(plan, gpu),
        "", *speed_lines(plan, gpu),
        "", *exchange_lines(plan), "", *data_lines(plan), *rate_lines(plan),
        "", "Submit (from the repository's folder):", f"  {job}",
    ]  # fmt: skip
    return "\n".join(lines)


def memory_lines(plan: Plan, gpu: Gpu) -> list[str]:
    rows = [["", "weights", "gradients", "optimizer", "EMA", "content", "buffers", "activations", "total", ""]]
    for backend, row in plan["memory"].items():
        names = ("weights", "gradients", "optimizer", "ema", "content", "buffers", "activations", "total")
        verdict = "refused" if row["refused"] else f"fits {gpu.memory_gb:g}" if row["fits"] else f"too much for {gpu.memory_gb:g}"
        rows.append([BACKENDS[backend], *(gigabytes(row[name]) for name in names), verdict])
    lines = aligned(rows)
    lines += [f"  {BACKENDS[backend]}: {row['refused']}" for backend, row in plan["memory"].items() if row["refused"]]
    if not plan["memory"][plan["backend"]]["fits"]:
        lines += ["", "To make it fit, cheapest first, each added to those before (computed):"]
        for row in plan["remedies"]:
            verdict = "fits" if row["fits"] else "not enough"
            lines.append(f"  {gigabytes(row['total'])} GB, {verdict}: {' '.join(row['options'])}  ({row['note']})")
        if not any(row["fits"] for row in plan["remedies"]):
            lines.append("  then a smaller crop (--data.crop, --discriminator.crop), which is another training, or more GPUs")
    return lines


def speed_lines(plan: Plan, gpu: Gpu) -> list[str]:
    title = f"Time (computed from a share of the peak of {plan['peak_tflops']:g} TFLOP/s per GPU, {gpu.source}):"
    rows = [["share of peak", "images/s", "s/step", "hours", "GPU hours", "without overlap", "jobs", "MB/s per node", ""]]
    for row in plan["speed"]:
        node = row["bytes_per_second_of_node"]
        rows.append([
            f"{100 * row['share_of_peak']:.0f} %{' (measured)' if row['measured'] else ''}", number(row["images_per_second"]),
            number(row["seconds_per_step"]), number(row["hours"]), number(row["gpu_hours"]), number(row["hours_without_overlap"]),
            "-" if row["jobs"] is None else str(row["jobs"]), "?" if node is None else number(node / 1e6),
            _condition(row, plan),
        ])  # fmt: skip
    causes = {
        "traffic": f"memory traffic at {gpu.memory_bandwidth:,.0f} GB/s takes",
        "launches": "kernel launches, at an assumed 5 us each, take",
    }
    notes = []
    for kind, cause in causes.items():
        share, milliseconds = 100 * plan["bounds"][kind]["share_of_peak"], 1e3 * plan["bounds"][kind]["seconds"]
        notes.append(f"  Without compile at most {share:.0f} % of the peak: {cause} {milliseconds:.1f} ms per step.")
    return [title, *aligned(rows), *notes]


def _condition(row: dict[str, Any], plan: Plan) -> str:
    if row["measured"]:
        return ""
    if row["needs_compile"]:
        return "only with compile"
    most = min(bound["share_of_peak"] for bound in plan["bounds"].values())
    return "at most, as it is" if row["share_of_peak"] == most else ""


def exchange_lines(plan: Plan) -> list[str]:
    rows = [["", *(f"{gpus} GPUs" for gpus in plan["communication"]["ddp"])]]
    for backend, numbers in plan["communication"].items():
        rows.append([BACKENDS[backend], *(f"{gigabytes(n['bytes'])} / {1e3 * n['seconds']:.1f}" for n in numbers.values())])
    return ["Communication per GPU and step in GB / ms (computed; rings, without latency):", *aligned(rows)]


def data_lines(plan: Plan) -> list[str]:
    data = plan["data"]
    if data["epochs"] is None:
        return [f"data (computed)           {data['images_seen']:,} images seen; epochs {data['source']}"]
    stream = "" if data["bytes_of_node"] is None else f"; {data['bytes_of_node'] / GB:,.1f} GB read per node"
    return [
        f"data (computed)           {data['images_seen']:,} images seen = {number(data['epochs'])} epochs of {data['images']:,} "
        f"({data['source']}){stream}"
    ]


def rate_lines(plan: Plan) -> list[str]:
    rate = plan["learning_rate"]
    line = f"learning rate             {rate['stated']:g}, as the recipe says for a batch of {rate['batch_of_file']}"
    if rate["by_square_root"] is not None:
        line += (
            f"; yours is {plan['batch']}: by the square root (docs/large_batches.md) --optimizer.learning_rate="
            f"{rate['by_square_root']:.3g}, and fewer steps"
        )
    return [line]


def gigabytes(amount: float) -> str:
    return f"{amount / GB:.2f}" if amount < 10 * GB else f"{amount / GB:,.1f}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    return ["  " + "  ".join(row).rstrip() for row in cells]
