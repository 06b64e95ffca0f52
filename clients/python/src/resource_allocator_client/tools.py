"""The service's calls as LangChain tools, so that an agent in another graph uses the one allocator too.

    from resource_allocator_client.tools import allocator_tools

    tools = allocator_tools(ResourceAllocator())

A refusal is the tool's answer, with its reason, its disposition and the whole message, so that the agent can act on it. With
`tell_refusals=False` it is raised instead, as the exception that it is. Needs the extra `langgraph`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import Field

from .client import ResourceAllocator
from .errors import ResourceAllocatorError
from .langgraph import resource_from
from .v1 import resource_allocator_pb2 as api
from .v1 import types_pb2 as types

# More would crowd everything else out of an agent's context; the answer says that there is more.
MOST_ALLOCATIONS = 200

ProjectId = Annotated[str, Field(description="The project's id, such as hello-world-bot.")]
ModuleName = Annotated[str, Field(description="The name of the project's module that needs the port, such as backend.")]
ProtocolName = Annotated[
    Literal["TCP", "UDP"] | None, Field(description="The port's protocol. Left out: TCP, or what the module has.")
]
RamMb = Annotated[int | None, Field(description="Memory that the project needs, in MB. Left out: 512, or what it has.")]
DiskMb = Annotated[int | None, Field(description="Disk that the project needs, in MB. Left out: 1024, or what it has.")]
CpuMillis = Annotated[
    int | None, Field(description="CPU that the project needs, in thousandths of a core. Left out: 0, or what it has.")
]
Labels = Annotated[dict[str, str] | None, Field(description="Labels that the server must carry, all of them.")]
Handle = Annotated[str | None, Field(description="The handle of the one server that may be used. Left out: any.")]


class RefusedToolException(ToolException):
    """A call that was refused; `refusal` keeps all that the service told."""

    def __init__(self, refusal: ResourceAllocatorError) -> None:
        """Takes the refusal."""
        super().__init__(str(refusal))
        self.refusal = refusal


def allocator_tools(client: ResourceAllocator, *, tell_refusals: bool = True) -> list[BaseTool]:
    """Makes the tools: find_server, next_port, allocate_port, list_allocations, release."""
    calls = _Calls(client)
    return [
        _tool(call, tell_refusals)
        for call in (calls.find_server, calls.next_port, calls.allocate_port, calls.list_allocations, calls.release)
    ]


class _Calls:
    """What each tool does. The docstrings are what an agent reads."""

    def __init__(self, client: ResourceAllocator) -> None:
        self._client = client

    def find_server(
        self,
        ram_mb: RamMb = None,
        disk_mb: DiskMb = None,
        cpu_millis: CpuMillis = None,
        labels: Labels = None,
        modules: Annotated[list[str] | None, Field(description="The modules that need a port. Left out: one.")] = None,
    ) -> dict[str, Any]:
        """Tell which servers a new project with these needs would be placed on now, best first, and why others would not do.

        Reserves nothing: another project may take the room in the meantime.
        """
        found = self._client.find(
            modules or (),
            ram_mb=ram_mb,
            disk_mb=disk_mb,
            cpu_millis=cpu_millis,
            server_selector=labels,
            max_candidates=10,
            explain=True,
        )
        return {
            "candidates": [_candidate(candidate) for candidate in found.candidates],
            "rejections": [
                {"server_handle": one.server_handle, "reason": one.reason, "detail": one.detail}
                for one in found.rejections[:MOST_ALLOCATIONS]
            ],
            "rejected_by_reason": dict(found.rejected_by_reason),
        }

    def next_port(
        self,
        project_id: ProjectId,
        module: ModuleName,
        protocol: ProtocolName = None,
        server_handle: Handle = None,
        start_port: Annotated[int | None, Field(description="The lowest port to consider. Left out: 8000.")] = None,
    ) -> dict[str, Any]:
        """Tell which server and port a module would get if it asked now; `already_allocated` when it has that port.

        A dry run that reserves nothing: to have the port, call allocate_port with it.
        """
        answer = self._client.ensure(
            project_id,
            [_module(module, None, protocol)],
            server_handle=server_handle,
            start_port=start_port,
            validate_only=True,
        )
        unchanged = answer.outcome == types.ENSURE_OUTCOME_UNCHANGED
        return {**resource_from(_of(answer, module)), "already_allocated": unchanged}

    def allocate_port(
        self,
        project_id: ProjectId,
        module: ModuleName,
        port: Annotated[int, Field(description="The port: this one or a refusal.", ge=1, le=65535)],
        protocol: ProtocolName = None,
        server_handle: Handle = None,
        ram_mb: RamMb = None,
        disk_mb: DiskMb = None,
        cpu_millis: CpuMillis = None,
        labels: Labels = None,
    ) -> dict[str, Any]:
        """Reserve this port for a module of a project, and place the project on a server where it is not placed yet.

        A project stays on its server. Repeating the call changes nothing. The labels count on first placement alone.
        """
        answer = self._client.ensure(
            project_id,
            [_module(module, port, protocol)],
            server_handle=server_handle,
            ram_mb=ram_mb,
            disk_mb=disk_mb,
            cpu_millis=cpu_millis,
            server_selector=labels,
        )
        outcome = types.EnsureOutcome.Name(answer.outcome).removeprefix("ENSURE_OUTCOME_")
        return {**resource_from(_of(answer, module)), "outcome": outcome}

    def list_allocations(
        self,
        project_id: Annotated[str | None, Field(description="Only this project's. Left out: every project's.")] = None,
        server_handle: Annotated[str | None, Field(description="Only this server's. Left out: every server's.")] = None,
        module: Annotated[str | None, Field(description="Only modules of this name. Left out: every module.")] = None,
    ) -> dict[str, Any]:
        """List the ports that are allocated, by project, server or module. Changes nothing.

        A port that is allocated may be used by its module; it says nothing of whether the module runs.
        """
        listing = self._client.list(project_id=project_id, server_handle=server_handle, module=module)
        return {
            "allocations": [resource_from(allocation) for allocation in listing.allocations[:MOST_ALLOCATIONS]],
            "total": len(listing),
        }

    def release(
        self,
        project_id: ProjectId,
        modules: Annotated[list[str] | None, Field(description="The modules whose ports are given back.")] = None,
        whole_project: Annotated[bool, Field(description="Give back every port of the project and its place.")] = False,
    ) -> dict[str, Any]:
        """Give back the ports of some modules of a project, or the whole project with whole_project=true.

        Stop what runs on them first. Name the modules or set whole_project, not both.
        """
        if bool(modules) == whole_project:
            raise ToolException("name the modules to give back, or set whole_project to give back the whole project")
        answer = self._client.release(project_id, modules if modules else None)
        return {
            "released": [resource_from(allocation) for allocation in answer.released],
            "placement_removed": answer.placement_removed,
        }


def _tool(call: Callable[..., dict[str, Any]], tell_refusals: bool) -> BaseTool:
    @functools.wraps(call)
    def refusing(*args: Any, **needs: Any) -> dict[str, Any]:
        try:
            return call(*args, **needs)
        except ResourceAllocatorError as refusal:
            raise RefusedToolException(refusal) from refusal

    if tell_refusals:
        return StructuredTool.from_function(refusing, handle_tool_error=_tell)
    return StructuredTool.from_function(call)


def _tell(error: ToolException) -> str:
    if not isinstance(error, RefusedToolException):
        return str(error)
    advice = ""
    if error.refusal.retry_after is not None:
        advice = f" Try again after {error.refusal.retry_after.total_seconds():g} s."
    return f"refused: {error.refusal}{advice}"


def _module(name: str, port: int | None, protocol: str | None) -> types.ModuleSpec:
    known = types.Protocol.Value(f"PROTOCOL_{protocol or 'UNSPECIFIED'}")
    return types.ModuleSpec(name=name, port=port, protocol=known)


def _of(answer: api.EnsureAllocationResponse, module: str) -> types.Allocation:
    for allocation in answer.allocations:
        if allocation.module == module:
            return allocation
    raise LookupError(f"the service answered without module `{module}`")


def _candidate(candidate: api.Candidate) -> dict[str, Any]:
    free = candidate.free
    return {
        "server_handle": candidate.server.handle,
        "server_address": candidate.server.address,
        "labels": dict(candidate.server.labels),
        "free": {"ram_mb": free.ram_mb, "disk_mb": free.disk_mb, "cpu_millis": free.cpu_millis},
    }
