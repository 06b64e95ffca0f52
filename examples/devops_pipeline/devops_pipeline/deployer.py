"""Deployer: writes the environment, starts the project's processes on the ports that were allocated, and probes each.

All or nothing here, too: where one module does not answer, everything that was started is stopped. What ran of the project before
is stopped first, since it holds the same ports.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resource_allocator_client import Disposition, ResourceAllocator
from resource_allocator_client.langgraph import AllocatedResource, resource_of

from . import probes, processes
from .errors import InventoryError, PipelineError, TryAgain
from .files import file_name, write_whole
from .project import Module
from .secret_resolver import part_of, render
from .state import PipelineState, Running

# How much of a module's log a failure tells.
_LAST_LINES = 20


def deployer_node(client: ResourceAllocator, work: Path) -> Callable[[PipelineState], dict[str, Any]]:
    """Makes the node; `client` is told of ports that are held, and `work` is the worker's folder."""

    def deploy(state: PipelineState) -> dict[str, Any]:
        return {"deployment": _Deployment(client, work, state).run()}

    return deploy


def deployment_folder(work: Path, project_id: str) -> Path:
    """Gives where a project's environment and its modules' logs are."""
    return work / "deployments" / file_name(project_id)


class _Deployment:
    """One deploy of one project."""

    def __init__(self, client: ResourceAllocator, work: Path, state: PipelineState) -> None:
        self._client = client
        self._project_id = state["project_id"]
        self._placement = state["placement"]
        self._source = Path(state["project_folder"])
        self._folder = deployment_folder(work, self._project_id)
        self._mark = processes.mark_of(work, self._project_id)
        self._secrets = {name: secret.get_secret_value() for name, secret in state["secrets"].items()}
        self._environment = state["environment"] | self._secrets
        # By name, whatever order they came in.
        self._modules = [
            (module, resource_of(state["allocated_resources"], module.name))
            for module in (Module.model_validate(spec) for spec in state["project_spec"]["modules"])
        ]

    def run(self) -> dict[str, Running]:
        self._check_place()
        processes.stop(self._mark)
        self._check_ports()
        write_whole(self._folder / ".env", render(self._environment))
        started: list[tuple[Module, AllocatedResource, subprocess.Popen[bytes]]] = []
        try:
            for module, resource in self._modules:
                started.append((module, resource, self._start(module, resource)))
            running = {module.name: self._probe(module, resource, process) for module, resource, process in started}
            # One may have ended while the next was probed.
            for module, _, process in started:
                self._check_alive(module, process)
            return running
        except BaseException:
            processes.stop(self._mark)
            raise

    def _check_place(self) -> None:
        server, address = self._placement["server_handle"], self._placement["server_address"]
        if not self._placement["server_admissible"]:
            message = f"`{self._project_id}` keeps its place on `{server}`, which takes no work now: see to the server"
            raise InventoryError("SERVER_NOT_ADMISSIBLE", Disposition.OPERATOR, message, server_handle=server)
        if not probes.is_this_machine(address):
            message = (
                f"`{self._project_id}` is placed on `{server}` at {address}, which is not an address of this machine: "
                "run a worker there"
            )
            raise PipelineError(
                "NOT_THIS_MACHINE", Disposition.OPERATOR, message, server_handle=server, address=address
            )

    def _check_ports(self) -> None:
        held = [(module, resource["port"]) for module, resource in self._modules if not self._is_free(module, resource)]
        # A port that the project wants, and no other, comes first: no port is set aside for a deploy that cannot be.
        held.sort(key=lambda one: one[0].port is None)
        told = [self._replace(module, port) for module, port in held]
        if told:
            names = ", ".join(module.name for module, _ in held)
            ports = ", ".join(str(port) for _, port in held)
            raise TryAgain("PORT_HELD", "; ".join(told), module=names, port=ports)

    def _is_free(self, module: Module, resource: AllocatedResource) -> bool:
        host, port = resource["server_address"], resource["port"]
        try:
            return probes.is_free(host, port, resource["protocol"])
        except OSError as error:
            # Nobody holds the port. Were it told to the service as held, so would be every port that it gives instead.
            message = (
                f"module `{module.name}` of `{self._project_id}` cannot listen on port {port} at {host} on this machine "
                f"({error.strerror or error}): see to the worker's rights and to the server's address, and retry the job"
            )
            raise PipelineError(
                "CANNOT_LISTEN", Disposition.OPERATOR, message, module=module.name, address=host, port=str(port)
            ) from error

    def _replace(self, module: Module, port: int) -> str:
        """Has the service give a module another port, and tells of it."""
        holder = probes.holder(port)
        message = f"port {port} of module `{module.name}` of `{self._project_id}` is held by {holder} on this machine"
        if module.port is not None:
            message += f": project.yaml asks for {port}, so stop that, or ask for another port, and retry the job"
            raise PipelineError("PORT_HELD", Disposition.OPERATOR, message, module=module.name, port=str(port))
        told = self._client.report_port_in_use(self._project_id, module.name, port, detail=f"{holder} holds it")
        return f"{message}; the service gave the module port {told.allocation.port} instead"

    def _start(self, module: Module, resource: AllocatedResource) -> subprocess.Popen[bytes]:
        own = {"HOST": part_of(resource, "HOST"), "PORT": part_of(resource, "PORT")}
        return processes.start(module.command, self._source, self._environment | own, self._mark, self._log(module))

    def _probe(self, module: Module, resource: AllocatedResource, process: subprocess.Popen[bytes]) -> Running:
        host, port = resource["server_address"], resource["port"]
        until = time.monotonic() + module.start_timeout_s
        while (fault := self._fault(module, resource)) is not None:
            if process.poll() is not None or time.monotonic() >= until:
                break
            probes.sleep()
        self._check_alive(module, process)
        if fault is not None:
            where = f"at {host}:{port} within {module.start_timeout_s:g} s"
            raise self._failed("PROBE_FAILED", module, f"did not answer {where} ({fault})")
        return Running(pid=process.pid, address=host, port=port, log=str(self._log(module)))

    def _fault(self, module: Module, resource: AllocatedResource) -> str | None:
        """Tries once; gives what is wrong, or None where the module is well."""
        host, port, protocol = resource["server_address"], resource["port"], resource["protocol"]
        if protocol == "UDP":
            # A datagram is answered by no rule that is common to all: that a process of ours has the port has to do.
            return None if processes.hold(self._mark, port, protocol) else "none of its processes has the port"
        fault = probes.answers(host, port, module)
        # Someone else who took the port in the meantime may answer as well.
        if fault is None and not processes.hold(self._mark, port, protocol):
            return f"{probes.holder(port)} answers, which is none of the project's"
        return fault

    def _check_alive(self, module: Module, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            raise self._failed("PROCESS_ENDED", module, f"ended with exit code {process.returncode}")

    def _failed(self, reason: str, module: Module, what: str) -> PipelineError:
        log = self._log(module)
        told = self._masked(log.read_text(encoding="utf-8", errors="replace"))
        told = "\n".join(told.splitlines()[-_LAST_LINES:])
        message = (
            f"module `{module.name}` of `{self._project_id}` {what}; everything was stopped. {log} ends with:\n{told}"
        )
        return PipelineError(reason, Disposition.CALLER, message, module=module.name, log=str(log))

    def _masked(self, text: str) -> str:
        """Takes the secrets out of a whole text: of one that has lines of its own, a part would not be known."""
        # The longest first: of one that has another in it, the rest would stay.
        for secret in sorted(self._secrets.values(), key=len, reverse=True):
            if secret:
                text = text.replace(secret, "…")
        return text

    def _log(self, module: Module) -> Path:
        return self._folder / f"{file_name(module.name)}.log"
