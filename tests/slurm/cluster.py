"""A whole SLURM of two nodes on this one machine: private key, sockets, ports and folders; it ends what it started."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import processes
import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
PATIENCE = 240  # seconds for whatever a busy machine should do at once
NODES = ("n0", "n1")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")

CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=60
SlurmdTimeout=15
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)} on this machine (Debian: apt-get install slurm-wlm munge)"
    return "a cluster of our own needs root" if os.geteuid() else None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass
class Cluster:
    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            key: value for key, value in processes.environment().items() if not key.startswith(("SBATCH_", "SRUN_", "MASTER_"))
        }
        private = {"PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf"), "SBATCH_OUTPUT": f"{self.folder}/job-%j.log"}
        return {**kept, **private, "SR_DIST_PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1"}

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def stop_node(self, name: str) -> None:
        """The node's daemon and all that runs on it, at once, as when a machine loses its power."""
        daemon = self.daemons.pop(name)
        _kill([psutil.Process(daemon.pid), *_families(self.steps(name))])
        daemon.wait()

    def steps(self, *nodes: str) -> list[psutil.Process]:
        """The daemons of the steps that run on these nodes: they write into the nodes' logs."""
        logs = {str(self.folder / f"slurmd-{name}.log") for name in nodes or NODES}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "slurmstepd" in " ".join(process.cmdline()) and logs & {file.path for file in process.open_files()}:
                    found.append(process)
        return found

    def tasks(self, number: int) -> list[psutil.Process]:
        """What srun started for a job on all nodes; not its batch script."""
        wanted = re.compile(rf"\[{number}\.\d+\]")
        steps = [step for step in self.steps() if wanted.search(" ".join(step.cmdline()))]
        return [child for step in steps for child in step.children(recursive=True)]

    def submit(self, script: str, *words: object, options: Sequence[object] = (), **environment: str) -> int:
        """`sbatch OPTIONS launch/slurm/SCRIPT WORDS` in the repository's folder -> the job's number."""
        command = ["sbatch", "--parsable", *map(str, options), f"launch/slurm/{script}", *map(str, words)]
        return int(self.ask(*command, **environment))

    def log(self, number: int) -> str:
        path = self.folder / f"job-{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def ask(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            command, env={**self.environment, **environment}, cwd=processes.ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What the controller knows of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", str(number))))

    def idle(self) -> bool:
        return self.ask("sinfo", "--noheader", "--format=%T", "--Node").split() == ["idle"] * len(NODES)

    def wait(self, happened: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE} s: {what}\n{self._story()}")
            time.sleep(0.2)

    def ended(self, number: int | str) -> dict[str, str]:
        """Waits for the end of a job for good; a requeued one is started again soon instead of in two minutes."""

        def over() -> bool:
            self.hurry(number)
            return self.job(number)["JobState"] in ENDED

        self.wait(over, f"the end of job {number}")
        return self.job(number)

    def hurry(self, number: int | str) -> None:
        """A requeued job starts in three seconds: in the same one, its nodes would still refuse its old credential."""
        known = self.job(number)
        waits = known["JobState"] == "PENDING" and known["Reason"] == "BeginTime" and known["StartTime"] != "Unknown"
        if waits and datetime.fromisoformat(known["StartTime"]) > datetime.now() + timedelta(seconds=20):
            self.ask("scontrol", "update", f"JobId={number}", "StartTime=now+3")

    def _story(self) -> str:
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return self.ask("squeue", "--long") + "".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}\n" for path in logs
        )


def _kill(processes: list[psutil.Process]) -> None:
    """All of them at one moment, as a power cut does: none sees another go and dumps core over it."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _families(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [member for process in processes for member in (process, *process.children(recursive=True))]


def _free_ports(count: int) -> list[int]:
    listening = [socket.socket() for _ in range(count)]
    for one in listening:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return ports


def _configure(folder: Path) -> None:
    host = platform.node().split(".")[0]
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = [NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports, strict=True)]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, controller_port=controller, nodes="\n".join(nodes)))
    (folder / "gres.conf").write_text("NodeName=n[0-1] Name=gpu File=/dev/null,/dev/zero\n")
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two idle nodes, and none of their processes afterwards."""
    _configure(folder)
    made = Cluster(folder)
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: not without cleaning up
    names = {key: f"--{key}-file={folder}/munge.{key}" for key in ("key", "pid", "log", "seed")}
    try:
        made.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *names.values())
        made.wait((folder / "munge.socket").exists, "munged")
        made.start("slurmctld", "slurmctld", "-D")
        for name in NODES:
            made.start_node(name)
        made.wait(lambda: _answers(made), "two idle nodes")
        yield made
    finally:
        running = [psutil.Process(daemon.pid) for daemon in made.daemons.values() if daemon.poll() is None]
        _kill(_families([*running, *made.steps()]))
        _kill(_families(made.steps()))  # what was just being started
        for daemon in made.daemons.values():
            daemon.wait()
        signal.signal(signal.SIGTERM, terminated)


def _answers(made: Cluster) -> bool:
    with suppress(AssertionError):
        return made.idle()
    return False
