"""A SLURM cluster of three nodes on one machine, with its own key, sockets, ports and folders. It ends all its processes.

Jobs run on two of the nodes unless they ask for the partition `wide`, which has all three. Jobs in `urgent` pre-empt the others.
"""

from __future__ import annotations

import os
import platform
import random
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

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue", "sdiag")
TIMEOUT = 240  # seconds, for a busy machine
NODES = ("n0", "n1", "n2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")

CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
FirstJobId={first_job}
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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=urgent Nodes=n0,n1 MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
PartitionName=wide Nodes=n0,n1,n2 MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"


def missing() -> str | None:
    """Why this machine cannot run a cluster, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)} on this machine (Debian: apt-get install slurm-wlm munge)"
    return "the cluster needs root" if os.geteuid() else None


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass
class Cluster:
    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)
    timeout: float = TIMEOUT  # of each wait

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            key: value for key, value in processes.environment().items() if not key.startswith(("SBATCH_", "SRUN_", "MASTER_"))
        }
        private = {"PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf"), "SBATCH_OUTPUT": f"{self.folder}/job-%j.log"}
        return {**inherited, **private, "SR_DIST_PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1"}

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def stop_node(self, name: str) -> None:
        """Kills the node's daemon and everything that runs on it at once, like a power failure."""
        daemon = self.daemons.pop(name)
        _kill([psutil.Process(daemon.pid), *_families(self.steps(name))])
        daemon.wait()

    def steps(self, *nodes: str) -> list[psutil.Process]:
        """The daemons of the steps on these nodes, recognized by the nodes' logs, which they write."""
        logs = {str(self.folder / f"slurmd-{name}.log") for name in nodes or NODES}
        daemons = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "slurmstepd" in " ".join(process.cmdline()) and logs & {file.path for file in process.open_files()}:
                    daemons.append(process)
        return daemons

    def tasks(self, job_id: int) -> list[psutil.Process]:
        """The processes that srun started for a job on all nodes, without the batch script."""
        pattern = re.compile(rf"\[{job_id}\.\d+\]")
        steps = [step for step in self.steps() if pattern.search(" ".join(step.cmdline()))]
        return [child for step in steps for child in step.children(recursive=True)]

    def submit(self, script: str, *words: object, options: Sequence[object] = (), **environment: str) -> int:
        """`sbatch OPTIONS launch/slurm/SCRIPT WORDS` in the folder of the repository -> the job id."""
        command = ["sbatch", "--parsable", *map(str, options), f"launch/slurm/{script}", *map(str, words)]
        return int(self.run(*command, **environment))

    def log(self, job_id: int) -> str:
        path = self.folder / f"job-{job_id}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            command, env={**self.environment, **environment}, cwd=processes.ROOT, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, job_id: int | str) -> dict[str, str]:
        """The fields of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(job_id))))

    def idle(self) -> bool:
        return self.run("sinfo", "--noheader", "--format=%T", "--Node", "--partition=wide").split() == ["idle"] * len(NODES)

    def has_sent_all(self) -> bool:
        """Whether no message of the controller waits for a node. It repeats those to a lost node once a minute."""
        return re.search(r"^Agent queue size:\s*0$", self.run("sdiag"), re.MULTILINE) is not None

    def wait(self, condition: Callable[[], object], event: str) -> None:
        deadline = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {self.timeout:.0f} s: {event}\n{self._logs()}")
            time.sleep(0.2)

    def ended(self, job_id: int | str) -> dict[str, str]:
        """Waits for the final end of a job. A requeued job starts again soon instead of after two minutes."""

        def over() -> bool:
            self.hurry(job_id)
            return self.job(job_id)["JobState"] in ENDED

        self.wait(over, f"the end of job {job_id}")
        return self.job(job_id)

    def hurry(self, job_id: int | str) -> None:
        """Starts a requeued job in three seconds. In the same second, its nodes would still refuse its old credential."""
        job = self.job(job_id)
        waits = job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and job["StartTime"] != "Unknown"
        if waits and datetime.fromisoformat(job["StartTime"]) > datetime.now() + timedelta(seconds=20):
            self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now+3")

    def _logs(self) -> str:
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return self.run("squeue", "--long") + "".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}\n" for path in logs
        )


def _kill(processes: list[psutil.Process]) -> None:
    """Kills all at the same moment, so that none sees another end and dumps core."""
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)


def _families(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [member for process in processes for member in (process, *process.children(recursive=True))]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _configure(folder: Path) -> None:
    host = platform.node().split(".")[0]
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = [NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports, strict=True)]
    first_job = random.randrange(1, 60_000)  # the port of a job follows from its id: two clusters on a machine need other ids
    conf = CONF.format(folder=folder, host=host, controller_port=controller, first_job=first_job, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("NodeName=n[0-2] Name=gpu File=/dev/null,/dev/zero\n")
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of idle nodes. All its processes are ended afterwards."""
    _configure(folder)
    made = Cluster(folder)
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that SIGTERM also cleans up
    names = {key: f"--{key}-file={folder}/munge.{key}" for key in ("key", "pid", "log", "seed")}
    try:
        made.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *names.values())
        made.wait((folder / "munge.socket").exists, "munged")
        made.start("slurmctld", "slurmctld", "-D")
        for name in NODES:
            made.start_node(name)
        made.wait(lambda: _ready(made), "idle nodes")
        yield made
    finally:
        running = [psutil.Process(daemon.pid) for daemon in made.daemons.values() if daemon.poll() is None]
        _kill(_families([*running, *made.steps()]))
        _kill(_families(made.steps()))  # steps that were starting
        for daemon in made.daemons.values():
            daemon.wait()
        signal.signal(signal.SIGTERM, previous_handler)


def _ready(made: Cluster) -> bool:
    with suppress(AssertionError):
        return made.idle()
    return False
