"""The processes of a project: started, found again whoever started them, and stopped.

A process is known by a variable in its environment, which it has from its first instant and its children have too. So one whose
worker was killed before it could write anything down is found all the same, and a number that the system gave to another
process since is not taken for it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from resource_allocator_client import Disposition

from .errors import PipelineError

MARK = "DEVOPS_PIPELINE_DEPLOYMENT"
# How long processes may take to end by themselves.
GRACE_S = 10.0
_PAUSE_S = 0.05
# How often a process is looked at that may become another program, and for how long after its start it may.
_LOOKS = 5
_YOUNG_S = 60.0
# Whose children are the threads of the kernel, which run no program (proc(5)).
_KTHREADD = 2
# What of the worker's environment a process may see; the rest, credentials among it, is the worker's own.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER")


def mark_of(work: Path, project_id: str) -> str:
    """Gives the mark of a project that the workers of a folder deploy."""
    return f"{work.resolve()}#{project_id}"


def start(
    command: list[str], folder: Path, environment: Mapping[str, str], mark: str, log: Path
) -> subprocess.Popen[bytes]:
    """Starts a process that outlives its worker; what it prints goes to the log."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=passed_on | dict(environment) | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Not in the worker's group: what ends the worker at a terminal does not end what it deployed.
                start_new_session=True,
            )
        except OSError as error:
            message = f"cannot start `{' '.join(command)}` in {folder}: {error.strerror}"
            raise PipelineError("CANNOT_START", Disposition.CALLER, message, command=command[0]) from error
    _await_mark(process.pid, mark)
    return process


def _await_mark(pid: int, mark: str) -> None:
    """Waits until a process that was just started can be found: for an instant the system shows its environment as empty."""
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).environ().get(MARK) == mark:
                return
        except (psutil.Error, OSError):
            # It ended already.
            return
        time.sleep(_PAUSE_S / 50)


def find(mark: str) -> list[psutil.Process]:
    """Finds the processes of a project that run."""
    found = []
    left = list(psutil.process_iter())
    for _ in range(_LOOKS):
        unclear = []
        for process in left:
            try:
                environment = process.environ()
                if environment.get(MARK) == mark:
                    found.append(process)
                elif not environment and _may_become_another_program(process):
                    unclear.append(process)
            except (psutil.Error, OSError):
                # It ended in the meantime, or is another user's: not one of ours.
                continue
        if not unclear:
            break
        left = unclear
        time.sleep(_PAUSE_S)
    return found


def _may_become_another_program(process: psutil.Process) -> bool:
    """Says whether a process may be one whose environment is empty just because it is about to run a program.

    A launcher, such as a shell that ends in `exec`, does so a moment after its start.
    """
    is_program = process.ppid() != _KTHREADD and process.status() != psutil.STATUS_ZOMBIE
    return is_program and time.time() - process.create_time() < _YOUNG_S


def hold(mark: str, port: int, protocol: str) -> bool:
    """Says whether one of the project's processes is who has the port: listens at it, or takes its datagrams."""
    for process in find(mark):
        try:
            connections = process.net_connections(protocol.lower())
        except psutil.Error:
            continue
        for one in connections:
            # A connection that the process made for itself has a port of its own too.
            ours = one.status == psutil.CONN_LISTEN if protocol == "TCP" else not one.raddr
            if ours and one.laddr and one.laddr.port == port:
                return True
    return False


def stop(mark: str) -> list[int]:
    """Ends the processes of a project, and gives their numbers. One that does not end by itself is killed."""
    ended: list[int] = []
    # Once more, for what a process started while it was told to end.
    while processes := find(mark):
        _signal_all(processes, "terminate")
        _signal_all(_left_after(GRACE_S, processes), "kill")
        _left_after(GRACE_S, processes)
        ended += [process.pid for process in processes]
    return ended


def _left_after(longest: float, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Waits until the processes ended, and gives those that did not.

    One that ended is kept by the system until its parent asks for it, and the parent may be another worker with other things to do.
    """
    until = time.monotonic() + longest
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < until:
        time.sleep(_PAUSE_S)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_all(processes: Iterable[psutil.Process], how: str) -> None:
    for process in processes:
        try:
            getattr(process, how)()
        except psutil.NoSuchProcess:
            continue
