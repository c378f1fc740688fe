"""A second device for torch, without a GPU: `open_device()` compiles `device.cpp` and registers it as the device "second".

It changes the whole process, so it has a process of its own (`trainings.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "sr_dist_second_device"
STALE = 300.0  # seconds; compiling takes half a minute
PROGRAMS = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)  # of an environment that is not active too
PACKAGES = ("/sr_dist/", "/trainings.py")  # whose lines a wait is traced to


def missing() -> str | None:
    """What the machine lacks to compile the device, or None."""
    compiler = shutil.which("c++") or shutil.which("g++")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    lacking = {"g++": compiler, f"{header} (python3-dev)": header.exists(), "ninja": shutil.which("ninja", path=PROGRAMS)}
    names = [name for name, present in lacking.items() if not present]
    return f"the second device needs {', '.join(names)}" if names else None


class Wait(NamedTuple):
    """Something of which the device's host hears: a copy, or an operation that makes it wait."""

    kind: str  # "to device", "to host", each perhaps with ", waiting", or "wait"
    operation: str
    bytes: int
    place: str  # where the package asked for it


class DeviceTime:
    """The device's own clock. Copies to it may take time, for which the host need not wait."""

    def __init__(self) -> None:
        self.per_copy = 0.0  # seconds
        self._busy_until = 0.0

    def now(self) -> float:
        return max(time.perf_counter(), self._busy_until)

    def work(self) -> None:
        """One copy to the device. The host waits for the one before, as it does when the queue of a GPU is full."""
        if self.per_copy:
            self.wait()
            self._busy_until = self.now() + self.per_copy

    def wait(self) -> None:
        time.sleep(max(self._busy_until - time.perf_counter(), 0))


device_time = DeviceTime()


class Event:
    """A moment in the device's time, as `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._moment = 0.0

    def record(self) -> None:
        self._moment = device_time.now()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end._moment - self._moment)


def open_device(hear: Callable[[str, str, int], None]) -> torch.device:
    """`hear(kind, operation, bytes)` is told of everything for which the host of a GPU would wait."""
    from torch.utils.cpp_extension import load

    os.environ["PATH"] = PROGRAMS  # torch looks for ninja there
    extension = load(NAME, [str(SOURCE)], extra_cflags=["-O1", "-g0"], build_directory=str(build_folder()))
    torch.utils.rename_privateuse1_backend("second")
    torch._register_device_module("second", device_module())
    torch.utils.generate_methods_for_privateuse1_backend()
    # As for CUDA: a module that moves to the device keeps its parameters as the same objects.
    torch.__future__.set_swap_module_params_on_conversion(True)

    def observe(kind: str, operation: str, size: int) -> None:
        if "waiting" in kind or kind == "wait":
            device_time.wait()
        if kind.startswith("to device"):
            device_time.work()
        hear(kind, operation, size)

    extension.observe(observe)
    return torch.device("second", 0)


def build_folder() -> Path:
    """The cache of this source's binary. A process that was killed while it compiled has left a lock there, on which torch would
    wait for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    versions = f"{torch.__version__} {sys.version} {SOURCE.read_text()}"
    folder = Path(get_default_build_root(), f"{NAME}-{hashlib.sha256(versions.encode()).hexdigest()[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if time.time() - (folder / "lock").stat().st_mtime > STALE:
            (folder / "lock").unlink()
    return folder


def device_module() -> Any:
    """What torch asks of `torch.second`."""
    module: Any = ModuleType("torch.second")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = module.synchronize = module.manual_seed = module.manual_seed_all = lambda *_: None
    module._is_in_bad_fork = lambda: False
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.get_rng_state = lambda *_: torch.get_rng_state()
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module.Event = Event
    return module


def place() -> str:
    """The innermost lines of the package; none in the backward pass, which has threads of its own."""
    lines: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None and len(lines) < 3:
        if any(name in frame.f_code.co_filename for name in PACKAGES):
            lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "backward"
