"""Checks of this machine. Each check looks at one thing and reports it in one line; a failure does not stop the others."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import netrc
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from sr_dist.core import catalogue, launch_env
from sr_dist.core.errors import UserError, first_line
from sr_dist.models import pretrained

if TYPE_CHECKING:
    import torch  # takes seconds

PYTHON = (3, 10)
REQUIRED = ("accelerate", "webdataset", "PIL", "safetensors", "pydantic", "yaml", "jinja2", "scipy", "braceexpand")
OPTIONAL = {
    "wandb": "log.wandb",
    "lpips": "LPIPS",
    "cleanfid": "FID",
    "torchmetrics": "benchmarks/evaluation.py and the tests, which compare our PSNR and SSIM with its own",
    "matplotlib": "sr_dist.plot",
    "skimage": "launch/demo.sh",
    "onnxruntime": "sr_dist.export to .onnx; pip install 'sr_dist[export]'",
    "wandb_workspaces": "sr_dist.dashboard; pip install 'sr_dist[dashboard]'",
}
BLOCK = 64  # MiB that are written to the disk, or summed over ranks
ROUNDS = 5  # sums over ranks, of which the median counts


@dataclass(frozen=True)
class Finding:
    """The result of one check. `missing`: only some recipes or machines need it. `BROKEN`: nothing trains without it."""

    status: Literal["ok", "missing", "BROKEN"]
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:7}  {self.name:16}  {self.text}"


def examine(runs: Path) -> int:
    """Prints all findings and returns the exit code. Under a launcher all ranks must call; the first one prints."""
    is_first = launch_env.rank() == 0
    broken = False
    for finding in run_checks(runs):
        broken |= finding.status == "BROKEN"
        if is_first:
            print(finding, flush=True)
    if is_first:
        print("something is BROKEN: training does not work until it is fixed" if broken else "nothing is broken")
    return int(broken)


def run_checks(runs: Path) -> Iterator[Finding]:
    yield check_python()
    torch_finding = check_torch()
    yield torch_finding
    if torch_finding.status == "ok":
        yield check_torchvision()
    yield from (check_package(name) for name in REQUIRED)
    yield from (check_package(name, use) for name, use in OPTIONAL.items())
    if torch_finding.status == "ok":
        yield check_gpus()
        yield check_deepspeed()
        yield from check_weights()
        yield check_interfaces()
        yield from check_ranks()
    yield check_disk(runs)
    yield check_login()
    yield check_slurm()


def check_python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {sys.prefix}"
    if sys.version_info < PYTHON:
        return Finding("BROKEN", "python", f"{text}; this needs {'.'.join(map(str, PYTHON))} or newer")
    return Finding("ok", "python", text)


def check_torch() -> Finding:
    try:
        import torch  # the import is the check
    except Exception as problem:
        return Finding("BROKEN", "torch", f"cannot be imported ({first_line(problem)}); pip install torch torchvision")
    return Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")


def check_torchvision() -> Finding:
    """torchvision's operators are compiled for one build of torch. With another build the import fails at an unknown operator."""
    import torch  # may fail, which check_torch reports

    try:
        import torchvision  # the import is the check
    except Exception as problem:
        installed = version("torchvision")
        if installed is None:
            return Finding("BROKEN", "torchvision", "not installed; pip install torchvision from the index that torch came from")
        return Finding(
            "BROKEN", "torchvision",
            f"{installed} does not fit torch {torch.__version__} ({first_line(problem)}); they come from different indexes or "
            f"releases: pip uninstall -y torch torchvision, then install both in one command from one index",
        )  # fmt: skip
    return Finding("ok", "torchvision", torchvision.__version__)


def check_package(name: str, use: str | None = None) -> Finding:
    """Does not import the package, which may take long. `use`: what needs it, if training does not."""
    if importlib.util.find_spec(name) is not None:
        return Finding("ok", name, version(name) or "installed")
    if use:
        return Finding("missing", name, f"needed for {use}")
    return Finding("BROKEN", name, "not installed; pip install sr_dist installs it")


def version(module: str) -> str | None:
    names = metadata.packages_distributions().get(module, [module])
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(names[0])
    return None


def check_gpus() -> Finding:
    import torch  # may fail, which check_torch reports

    if not torch.cuda.is_available():
        hint = "this torch is built without CUDA" if torch.version.cuda is None else "see nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Finding("missing", "GPUs", f"none; everything runs on the CPU, slowly ({hint})")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use fp16"
    return Finding("ok", "GPUs", f"{names}; CUDA {torch.version.cuda}, NCCL {nccl}, {bf16}")


def check_deepspeed() -> Finding:
    """Imports DeepSpeed, because a broken installation fails at the import. Its output is discarded."""
    if importlib.util.find_spec("deepspeed") is None:
        return Finding("missing", "deepspeed", "needed for ZeRO; pip install deepspeed transformers")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            installed = importlib.import_module("deepspeed").__version__
    except Exception as problem:
        return Finding("missing", "deepspeed", f"cannot be imported, so ZeRO does not work ({first_line(problem)})")
    if importlib.util.find_spec("transformers") is None:
        return Finding("missing", "deepspeed", f"{installed}, but accelerate uses it only with transformers: pip install it")
    return Finding("ok", "deepspeed", installed)


def check_weights() -> Iterator[Finding]:
    """The published files that content terms and metrics need."""
    for entry in [entry for entry in catalogue.read().values() if entry.kind == "features"]:
        for file in entry.files:
            yield check_weights_file(file.name)


def check_weights_file(name: str) -> Finding:
    try:
        return Finding("ok", "weights", str(pretrained.find(name, "weights")))
    except pretrained.MissingWeights:
        path = pretrained.folders()[0] / name
        return Finding("missing", "weights", f"{name}; {catalogue.advice(name)} fetches it, or put it at {path}")
    except UserError as problem:
        return Finding("missing", "weights", f"{str(problem).removeprefix('weights: ')}; delete it; {catalogue.advice(name)}")


def check_disk(runs: Path) -> Finding:
    """The speed at which checkpoints are written to the folder of runs, or to its nearest parent that exists."""
    folder = runs.resolve()
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            block = os.urandom(1 << 20)
            begin = time.perf_counter()
            for _ in range(BLOCK):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - begin
    except OSError as problem:
        return Finding("BROKEN", "disk", f"'{folder}' cannot be written ({problem.strerror}); choose another folder with --runs=")
    free = shutil.disk_usage(folder).free / 2**30
    return Finding("ok", "disk", f"{BLOCK / seconds:,.0f} MiB/s written, {free:,.0f} GiB free in {folder}")


def check_login() -> Finding:
    """Whether W&B's client finds a key. Only the server knows whether the key is valid."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if os.environ.get("WANDB_API_KEY"):
        return Finding("ok", "W&B login", f"WANDB_API_KEY is set, for {host}")
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(str(file)).authenticators(host):
            return Finding("ok", "W&B login", f"a key for {host} is in {file}")
    return Finding("missing", "W&B login", "no key; log.wandb=online needs `wandb login`, off and offline do not")


def check_slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding("missing", "SLURM", "no sbatch; only launch/slurm needs it")
    answer = subprocess.run(["sbatch", "--version"], capture_output=True, text=True)
    if answer.returncode:
        complaint = (answer.stderr.strip() or "no message").splitlines()[-1]
        return Finding("missing", "SLURM", f"sbatch is installed, but belongs to no cluster ({complaint})")
    job = f", in job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    return Finding("ok", "SLURM", f"{answer.stdout.strip()}{job}")


def check_interfaces() -> Finding:
    """Which network interfaces NCCL, for GPUs, and gloo, for votes, may use. A wrong name makes ranks wait for each other."""
    present = [name for _, name in socket.if_nameindex()]
    words = []
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        stated = os.environ.get(variable)
        words.append(f"{variable} {stated or 'not set'}")
        exact = variable.startswith("GLOO")
        if stated and not any(uses_interface(stated, name, exact) for name in present):
            return Finding("BROKEN", "network", f"{variable}={stated}: no interface fits; there are {', '.join(present)}")
    return Finding("ok", "network", f"interfaces {', '.join(present)}; {', '.join(words)}")


def uses_interface(stated: str, name: str, exact: bool) -> bool:
    """gloo takes names with commas; NCCL prefixes, after `=` whole names, after `^` what it leaves out."""
    if exact:
        return name in stated.split(",")
    names = stated.lstrip("^").lstrip("=").split(",")
    fits = name in names if stated.lstrip("^").startswith("=") else any(name.startswith(prefix) for prefix in names)
    return fits != stated.startswith("^")


def check_ranks() -> Iterator[Finding]:
    """Sums over all ranks by gloo, which carries stop requests, and by NCCL, which trains on GPUs. All ranks must call."""
    num_ranks = launch_env.num_ranks()
    if num_ranks == 1:
        yield Finding("missing", "ranks", "one process; accelerate launch --num_processes N -m sr_dist.doctor tests several")
        return
    from sr_dist.core import ranks  # loads torch, which may fail

    try:
        accelerator = ranks.open_accelerator("no")
        yield check_backend("gloo", "cpu")
        if accelerator.device.type == "cuda":
            yield check_backend("nccl", accelerator.device)
    except Exception as problem:
        yield Finding(
            "BROKEN", "ranks",
            f"{num_ranks} ranks cannot communicate ({first_line(problem)}); check MASTER_ADDR, firewalls and the "
            f"variables of the line network; "
            f"NCCL_DEBUG=INFO shows more",
        )  # fmt: skip
    finally:
        ranks.destroy_group()


def check_backend(backend: str, device: str | torch.device) -> Finding:
    """The bandwidth is what a ring sends per rank, 2 (n - 1) / n of the block, over the time. All ranks must call."""
    import torch  # may fail, which check_torch reports

    from sr_dist.core import ranks  # loads torch, which may fail

    test = ranks.AllReduceTest(backend, torch.device(device), BLOCK)
    correct, seconds = test(), median(seconds_of(test) for _ in range(ROUNDS))
    if not correct:
        return Finding("BROKEN", backend, f"a sum over {ranks.size()} ranks is wrong")
    speed = 2 * (ranks.size() - 1) / ranks.size() * BLOCK / 1024 / seconds
    return Finding("ok", backend, f"{ranks.size()} ranks, {speed:.2f} GiB/s per rank when {BLOCK} MiB are summed")


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
