"""A real SLURM on this machine: slurmctld and two slurmd, which stand for two nodes; all files are in a temporary folder.

    python -m tests.slurm_cluster FOLDER COMMAND ...     # runs COMMAND, with SLURM_CONF set, while the cluster is up

No cgroups, no munge, no accounting: processes are found by their parents. ``low`` and ``high`` are partitions of both nodes;
jobs of ``high`` preempt those of ``low``, which get SIGTERM and GRACE_SECONDS.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NODES = ("node1", "node2")
GRACE_SECONDS = 120
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
KillWait=5
MinJobAge=86400
ReturnToService=0
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE
"""


def missing_programs() -> list[str]:
    """Programs of SLURM that are not installed."""
    return [program for program in PROGRAMS if _path(program) is None]


class Cluster:
    """What a test does with a running SLURM.

    Args:
        folder: Of the configuration and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *command: str, stdin: str | None = None) -> str:
        """Run a command; its output."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, input=stdin, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, program: str) -> dict[str, str]:
        """Submit jobs with a program of emim_slurm; name -> number."""
        lines = self.call("bash", stdin=program).splitlines()
        return {name: number for number, name in map(str.split, lines)}

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Jobs and array tasks that are not finished -> their state and node; waiting ones may start at once."""
        lines = self.call("squeue", "-h", "-r", "-o", "%i|%T|%N|%r").splitlines()
        found = {}
        for job, state, node, reason in (line.split("|") for line in lines):
            found[job] = (state, node)
            if reason == "BeginTime":  # SLURM lets what it requeues wait for two minutes
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now"],
                    env=os.environ | self.environment,
                    capture_output=True,
                    check=False,
                )
        return found

    def about(self, job: str) -> dict[str, str]:
        """What SLURM says about a job or an array task."""
        words = self.call("scontrol", "-o", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Callable[[], bool], seconds: float = 900) -> None:
        """Wait, while requeued jobs start."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self.tasks()}\n{self.log()}"
            self.tasks()
            time.sleep(0.2)

    def until_idle(self, seconds: float = 1800) -> None:
        """Wait until no job is left."""
        self.until(lambda: not self.tasks(), seconds)

    def set_node(self, node: str, state: str) -> None:
        """``down``, ``drain`` or ``resume``."""
        self.call("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")

    def log(self) -> str:
        """The ends of the logs of SLURM."""
        return "\n".join(
            f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in self.folder.glob("*.log")
        )


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start SLURM, and end it with all its jobs.

    Args:
        folder: An empty folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", *NODES):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(
        host=host, user=getpass.getuser(), folder=folder, ports=_free_ports(3), grace=GRACE_SECONDS
    )
    file = folder / "slurm.conf"
    file.write_text(text)
    found = Cluster(folder)
    environment = os.environ | found.environment
    programs = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    running = []
    try:
        for name, *options in programs:
            command = [str(_path(name)), *options, "-f", str(file)]
            with (folder / f"{'_'.join([name, *options[2:]])}.txt").open("w") as output:
                running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        end = time.monotonic() + 60
        while _idle_nodes(environment) < len(NODES):
            assert time.monotonic() < end, found.log()
            time.sleep(0.2)
        yield found
    finally:
        subprocess.run(
            ["scancel", "--full", "-u", getpass.getuser()], env=environment, capture_output=True, check=False
        )
        end = time.monotonic() + 20
        while subprocess.run(["squeue", "-h"], env=environment, capture_output=True, check=False).stdout.strip():
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def owner_of(lock: Path) -> int | None:
    """The process that holds a lock of ours; None where nobody does."""
    try:
        return int(json.loads(lock.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _idle_nodes(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.split())


def _path(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).absolute()) as running:
        code = subprocess.call(sys.argv[2:], env=os.environ | running.environment)
    sys.exit(code)
