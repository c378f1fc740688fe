"""GPUs with the figures that their maker publishes, for computations before a run.

TFLOP/s are dense, of 16 bits, TF32 and fp32; those of GPUs that the log also knows are the log's. Bandwidths are in GB/s. A
link's is that of one direction, half of what data sheets add up for both: NVLink inside a node, or PCIe 4.0 x16 where there is
none.
"""

from __future__ import annotations

from dataclasses import dataclass

from sr_dist.training.throughput import PEAKS

GB = 1_000_000_000
NVIDIA = "NVIDIA's data sheet"


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: float
    half: float  # TFLOP/s
    tf32: float | None  # None: it has no TF32
    fp32: float
    bf16: bool
    memory_bandwidth: float
    link: float
    link_name: str
    network: float  # of one GPU to other nodes: an assumption about the usual machine with eight of them
    source: str

    def peak(self, precision: str, tf32: bool) -> float:
        """TFLOP/s in a recipe's precision."""
        if precision != "no":
            return self.half
        return self.tf32 if tf32 and self.tf32 else self.fp32


def _gpu(name: str, log_name: str, memory: tuple[float, float], link: tuple[float, str, float], source: str) -> Gpu:
    """`memory`: GB and GB/s. `link`: GB/s, its name, and GB/s to other nodes."""
    half, tf32, fp32 = PEAKS[log_name]
    return Gpu(name, memory[0], half, tf32, fp32, True, memory[1], *link, source)


PCIE = (32, "PCIe 4.0 x16", 12.5)
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", "H100", (80, 3350), (450, "NVLink", 50), f"{NVIDIA} of the H100 SXM"),
        _gpu("h200", "H200", (141, 4800), (450, "NVLink", 50), f"{NVIDIA} of the H200 SXM"),
        _gpu("a100-80", "A100", (80, 2039), (300, "NVLink", 25), f"{NVIDIA} of the A100 80GB SXM"),
        _gpu("a100-40", "A100", (40, 1555), (300, "NVLink", 25), f"{NVIDIA} of the A100 40GB SXM"),
        Gpu("v100", 32, 125, None, 15.7, False, 900, 150, "NVLink", 12.5, f"{NVIDIA} of the V100 SXM2 32GB"),
        _gpu("l40s", "L40S", (48, 864), PCIE, f"{NVIDIA} of the L40S"),
        _gpu("rtx4090", "RTX 4090", (24, 1008), PCIE, "NVIDIA's white paper of the Ada GPU architecture"),
    )
}
