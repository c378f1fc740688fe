"""What works on this machine. Every check looks at one thing and says one line about it; none stops the others."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import netrc
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Literal
from urllib.parse import urlparse

from sr_dist.core.errors import UserError, first_line

PYTHON = (3, 10)
NEEDED = ("accelerate", "webdataset", "torchmetrics", "PIL", "safetensors", "pydantic", "yaml", "jinja2", "scipy", "braceexpand")
OPTIONAL = {
    "wandb": "log.wandb",
    "lpips": "LPIPS",
    "cleanfid": "FID",
    "matplotlib": "sr_dist.plot",
    "skimage": "launch/demo.sh",
    "onnxruntime": "sr_dist.export to .onnx; pip install 'sr_dist[export]'",
    "wandb_workspaces": "sr_dist.dashboard; pip install 'sr_dist[dashboard]'",
}
BLOCK = 64  # MiB that are written, or sent between ranks
TIMES = 5


@dataclass(frozen=True)
class Finding:
    status: Literal["ok", "missing", "BROKEN"]
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.status:7}  {self.what:16}  {self.said}"


def examine(runs: Path) -> int:
    """Says everything; -> the exit code. Under a launcher all ranks must call, and the first one speaks."""
    speaks = os.environ.get("RANK", "0") == "0"
    worst = 0
    for finding in findings(runs):
        worst = max(worst, int(finding.status == "BROKEN"))
        if speaks:
            print(finding, flush=True)
    if speaks:
        print("nothing is broken" if not worst else "something is BROKEN: training will not work before it is mended")
    return worst


def findings(runs: Path) -> Iterator[Finding]:
    yield python()
    torch_is_there = torch()
    yield torch_is_there
    if torch_is_there.status == "ok":
        yield torchvision()
    yield from (package(name) for name in NEEDED)
    yield from (package(name, use) for name, use in OPTIONAL.items())
    if torch_is_there.status == "ok":
        yield gpus()
        yield deepspeed()
        yield from weights()
        yield from between_ranks()
    yield disk(runs)
    yield login()
    yield slurm()


def python() -> Finding:
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {sys.prefix}"
    if sys.version_info < PYTHON:
        return Finding("BROKEN", "python", f"{said}; this needs {'.'.join(map(str, PYTHON))} or newer")
    return Finding("ok", "python", said)


def torch() -> Finding:
    try:
        import torch
    except Exception as problem:
        return Finding("BROKEN", "torch", f"cannot be imported ({first_line(problem)}); pip install torch torchvision")
    return Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")


def torchvision() -> Finding:
    """Its operators are compiled for one build of torch; another build is known by an operator that does not exist."""
    import torch

    try:
        import torchvision
    except Exception as problem:
        found = version("torchvision")
        if found is None:
            return Finding("BROKEN", "torchvision", "not installed; pip install torchvision, from where torch came")
        return Finding(
            "BROKEN", "torchvision",
            f"{found} does not fit torch {torch.__version__} ({first_line(problem)}); they come from different indexes or "
            f"releases: pip uninstall -y torch torchvision, then install both in one command from one index",
        )  # fmt: skip
    return Finding("ok", "torchvision", torchvision.__version__)


def package(name: str, use: str | None = None) -> Finding:
    """Without importing it, which may take long. `use`: what does not work without it, where other things do."""
    if importlib.util.find_spec(name) is not None:
        return Finding("ok", name, version(name) or "installed")
    if use:
        return Finding("missing", name, f"needed for {use}")
    return Finding("BROKEN", name, "not installed; pip install sr_dist brings it")


def version(module: str) -> str | None:
    names = metadata.packages_distributions().get(module, [module])
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(names[0])
    return None


def gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        hint = "this torch is built without CUDA" if torch.version.cuda is None else "see nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Finding("missing", "GPUs", f"none; everything runs on the CPU, slowly ({hint})")
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in found)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use fp16"
    return Finding("ok", "GPUs", f"{names}; CUDA {torch.version.cuda}, NCCL {nccl}, {bf16}")


def deepspeed() -> Finding:
    """Imported for real, because that is where it fails; what it prints then is its own business."""
    if importlib.util.find_spec("deepspeed") is None:
        return Finding("missing", "deepspeed", "needed for ZeRO; pip install deepspeed transformers")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = importlib.import_module("deepspeed").__version__
    except Exception as problem:
        return Finding("missing", "deepspeed", f"cannot be imported, so ZeRO does not work ({first_line(problem)})")
    if importlib.util.find_spec("transformers") is None:
        return Finding("missing", "deepspeed", f"{found}, but accelerate selects it only where transformers is: pip install it")
    return Finding("ok", "deepspeed", found)


def weights() -> Iterator[Finding]:
    """Published files that content terms and metrics ask for."""
    from sr_dist.models import pretrained

    for name in pretrained.ADDRESSES:
        try:
            yield Finding("ok", "weights", str(pretrained.find(name, "weights")))
        except pretrained.MissingWeights:
            place = pretrained.folders()[0] / name
            yield Finding("missing", "weights", f"{name}; put it at {place}, or set allow_download=true in a recipe")
        except UserError as problem:
            yield Finding("missing", "weights", f"{str(problem).removeprefix('weights: ')}; delete it and fetch it again")


def disk(runs: Path) -> Finding:
    """How fast checkpoints can be written where the runs are, or will be."""
    place = runs.resolve()
    while not place.is_dir():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            block = os.urandom(1 << 20)
            begun = time.perf_counter()
            for _ in range(BLOCK):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - begun
    except OSError as problem:
        return Finding("BROKEN", "disk", f"'{place}' cannot be written ({problem.strerror}); choose another folder with --runs=")
    free = shutil.disk_usage(place).free / 2**30
    return Finding("ok", "disk", f"{BLOCK / seconds:,.0f} MiB/s written, {free:,.0f} GiB free in {place}")


def login() -> Finding:
    """Whether W&B's client would find a key; whether the key is good is known to the server alone."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if os.environ.get("WANDB_API_KEY"):
        return Finding("ok", "W&B login", f"WANDB_API_KEY is set, for {host}")
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(str(file)).authenticators(host):
            return Finding("ok", "W&B login", f"a key for {host} is in {file}")
    return Finding("missing", "W&B login", "no key; `wandb login` for log.wandb=online; off and offline need none")


def slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding("missing", "SLURM", "no sbatch here; needed for launch/slurm alone")
    answer = subprocess.run(["sbatch", "--version"], capture_output=True, text=True)
    if answer.returncode:
        complaint = (answer.stderr.strip() or "no word").splitlines()[-1]
        return Finding("missing", "SLURM", f"sbatch is installed, but belongs to no cluster ({complaint})")
    inside = f", in job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    return Finding("ok", "SLURM", f"{answer.stdout.strip()}{inside}")


def between_ranks() -> Iterator[Finding]:
    """Sums between all ranks, by the backend that trains and by gloo, which carries votes. All ranks must call."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Finding("missing", "ranks", "one process; accelerate launch --num_processes N -m sr_dist.doctor tries them")
        return
    from sr_dist.core import ranks

    try:
        accelerator = ranks.open_accelerator("no")
        yield exchange("gloo", "cpu")
        if accelerator.device.type == "cuda":
            yield exchange("nccl", accelerator.device)
    except Exception as problem:
        yield Finding(
            "BROKEN", "ranks",
            f"{world} ranks cannot talk ({first_line(problem)}); look at MASTER_ADDR, firewalls and NCCL_SOCKET_IFNAME; "
            f"NCCL_DEBUG=INFO says more",
        )  # fmt: skip
    finally:
        ranks.leave()


def exchange(backend: str, device: object) -> Finding:
    """The bandwidth is what a ring sends per rank: 2 (n - 1) / n of the block, over the time. All ranks must call."""
    import torch

    from sr_dist.core import ranks

    summed = ranks.Exchange(backend, torch.device(device), BLOCK)
    right, seconds = summed(), median(timed(summed) for _ in range(TIMES))
    if not right:
        return Finding("BROKEN", backend, f"a sum over {ranks.size()} ranks is wrong")
    speed = 2 * (ranks.size() - 1) / ranks.size() * BLOCK / 1024 / seconds
    return Finding("ok", backend, f"{ranks.size()} ranks, {speed:.2f} GiB/s per rank when {BLOCK} MiB are summed")


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
