"""A LangGraph node that places a project before anything is deployed.

    from langgraph.graph import END, START, StateGraph
    from resource_allocator_client.langgraph import AllocationState, resource_allocator_node

    graph = StateGraph(AllocationState)
    graph.add_node("ResourceAllocator", resource_allocator_node())
    graph.add_edge(START, "ResourceAllocator")

The node reads `project_id` and `project_spec` and writes `placement` and `allocated_resources`. It calls no model, and repeats
change nothing, so a graph that is run again goes on with the same server and ports. A refusal leaves the node as the exception
that it is (`resource_allocator_client.errors`): the graph stops there, and whoever runs it still knows the disposition.

All that is put into the state is plain JSON, so that any checkpointer takes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from ._requests import Module, Strategy
from .aio_client import AsyncResourceAllocator
from .client import ResourceAllocator
from .v1 import resource_allocator_pb2 as api
from .v1 import types_pb2 as types

# What the node reads of a module.
_MODULE_KEYS = ("name", "port", "protocol")
# How much another key must be like one of these to be taken for a slip, which would be a port that the module is not given: `prot`
# is, `command` and `health`, which are other nodes' business, are not.
_NEAR = 0.75


class _ModuleName(TypedDict):
    name: str


class ModuleSpec(_ModuleName, total=False):
    """A module of a project: its name, and what it must have. Other keys are other nodes' business, unless they look like these."""

    # This port or a refusal.
    port: int
    protocol: Literal["TCP", "UDP"]


class ResourceSpec(TypedDict, total=False):
    """What a project needs at least; what is left out takes the service's default."""

    cpu_millis: int
    ram_mb: int
    disk_mb: int


class ProjectSpec(TypedDict, total=False):
    """What the node reads of a project's specification. Other keys are other nodes' business."""

    # Names, or modules with more than a name. Left out: `backend` for a project that is not placed yet.
    modules: Sequence[str | ModuleSpec]
    resources: ResourceSpec
    # Pin: this server or a refusal.
    server_handle: str
    # Labels that the server must carry.
    server_selector: Mapping[str, str]
    start_port: int
    strategy: Strategy
    # The placement ends by itself after this many seconds, unless the graph runs again.
    ttl_s: float


class PlacementInfo(TypedDict):
    """Where the project may run. It says nothing of whether it runs."""

    server_handle: str
    server_address: str
    # Whether the server admits work now. What is placed stays placed when it does not: what to do then is the graph's decision.
    server_admissible: bool
    # CREATED, EXTENDED or UNCHANGED.
    outcome: str


class AllocatedResource(TypedDict):
    """One port of one module."""

    id: str
    project_id: str
    module: str
    server_handle: str
    server_address: str
    port: int
    protocol: str


class AllocationState(TypedDict, total=False):
    """The part of a graph's state that the node has to do with; a graph's own state may have more."""

    project_id: str
    project_spec: ProjectSpec
    placement: PlacementInfo
    # By `server_handle:port`; a port of UDP has `/udp` behind it, for it may be the number of one of TCP too.
    allocated_resources: dict[str, AllocatedResource]


def resource_allocator_node(
    client: ResourceAllocator | None = None, *, wait_for: float | None = None
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Makes the node.

    Without a client each run makes its own, of the service that RESOURCE_ALLOCATOR_ENDPOINT names. With `wait_for`, the node
    waits as many seconds for capacity; without, a graph that cannot go on now is told so at once.
    """

    def allocate(state: Mapping[str, Any]) -> dict[str, Any]:
        project_id, modules, needs = read_state(state)
        if client is not None:
            return update_of(_ensure(client, project_id, modules, needs, wait_for))
        with ResourceAllocator() as own:
            return update_of(_ensure(own, project_id, modules, needs, wait_for))

    return allocate


def async_resource_allocator_node(
    client: AsyncResourceAllocator | None = None, *, wait_for: float | None = None
) -> Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]:
    """Makes the node for a graph that runs in asyncio (`ainvoke`, `astream`); see `resource_allocator_node`."""

    async def allocate(state: Mapping[str, Any]) -> dict[str, Any]:
        project_id, modules, needs = read_state(state)
        if client is not None:
            return update_of(await _ensure_async(client, project_id, modules, needs, wait_for))
        async with AsyncResourceAllocator() as own:
            return update_of(await _ensure_async(own, project_id, modules, needs, wait_for))

    return allocate


def resource_of(allocated_resources: Mapping[str, AllocatedResource], module: str) -> AllocatedResource:
    """Gives the port of a module, by its name. A module without one is an error: there is no default for a port or an address."""
    for resource in allocated_resources.values():
        if resource["module"] == module:
            return resource
    held = ", ".join(sorted(resource["module"] for resource in allocated_resources.values())) or "none"
    raise LookupError(f"module `{module}` has no allocation; modules that have one: {held}")


def resource_from(allocation: types.Allocation) -> AllocatedResource:
    """Gives an allocation as plain JSON."""
    return AllocatedResource(
        id=allocation.id,
        project_id=allocation.project_id,
        module=allocation.module,
        server_handle=allocation.server_handle,
        server_address=allocation.server_address,
        port=allocation.port,
        protocol=types.Protocol.Name(allocation.protocol).removeprefix("PROTOCOL_"),
    )


def read_state(state: Mapping[str, Any]) -> tuple[str, list[Module], dict[str, Any]]:
    """Reads the project, its modules and its other needs out of a state, and refuses what it cannot read."""
    project_id = state.get("project_id")
    if not isinstance(project_id, str):
        raise ValueError("the graph's state has no `project_id`")
    spec = state.get("project_spec")
    if not isinstance(spec, Mapping):
        raise ValueError(f"the graph's state has no `project_spec` for `{project_id}`; an empty one will do")
    needs = {key: spec[key] for key in ("server_handle", "server_selector", "start_port", "strategy") if key in spec}
    if "ttl_s" in spec:
        needs["ttl"] = spec["ttl_s"]
    resources = spec.get("resources", {})
    if unknown := set(resources) - {"cpu_millis", "ram_mb", "disk_mb"}:
        # A need that is misspelt would be a need that is not reserved.
        raise ValueError(f"project_spec.resources of `{project_id}` has unknown keys: {', '.join(sorted(unknown))}")
    modules = spec.get("modules", ())
    # A text is a sequence of texts too, and so are the keys of a mapping: "web" would be the modules w, e and b.
    if isinstance(modules, (str, bytes, Mapping)) or not isinstance(modules, Iterable):
        raise ValueError(f"project_spec.modules of `{project_id}` is a list of modules, not {modules!r}")
    return project_id, [_module(module) for module in modules], needs | dict(resources)


def update_of(answer: api.EnsureAllocationResponse) -> dict[str, Any]:
    """Gives an answer as the update of a graph's state."""
    placement = PlacementInfo(
        server_handle=answer.placement.server_handle,
        server_address=answer.placement.server_address,
        server_admissible=answer.placement.server_admissible,
        outcome=types.EnsureOutcome.Name(answer.outcome).removeprefix("ENSURE_OUTCOME_"),
    )
    resources = (resource_from(allocation) for allocation in answer.allocations)
    return {"placement": placement, "allocated_resources": {_key(resource): resource for resource in resources}}


def _key(resource: AllocatedResource) -> str:
    suffix = "" if resource["protocol"] == "TCP" else f"/{resource['protocol'].lower()}"
    return f"{resource['server_handle']}:{resource['port']}{suffix}"


def _module(module: str | Mapping[str, Any]) -> Module:
    if isinstance(module, str):
        return module
    if not isinstance(module, Mapping) or not isinstance(module.get("name"), str):
        raise ValueError(f"a module of project_spec is a name, or has one under `name`: {module!r}")
    for key in module:
        if key not in _MODULE_KEYS and (meant := difflib.get_close_matches(str(key).lower(), _MODULE_KEYS, 1, _NEAR)):
            raise ValueError(f"module `{module['name']}` has an unknown key `{key}`; is `{meant[0]}` meant?")
    # Left out, it stays unset, which keeps what stands; a default of ours could contradict it.
    protocol = types.PROTOCOL_UNSPECIFIED
    if "protocol" in module:
        if module["protocol"] not in ("TCP", "UDP"):
            raise ValueError(f"module `{module['name']}`: {module['protocol']!r} is not a protocol: TCP or UDP")
        protocol = types.Protocol.Value(f"PROTOCOL_{module['protocol']}")
    return types.ModuleSpec(name=module["name"], port=module.get("port"), protocol=protocol)


def _ensure(
    client: ResourceAllocator, project_id: str, modules: list[Module], needs: dict[str, Any], wait_for: float | None
) -> api.EnsureAllocationResponse:
    if wait_for is None:
        return client.ensure(project_id, modules, **needs)
    return client.wait(project_id, modules, wait_for=wait_for, **needs)


async def _ensure_async(
    client: AsyncResourceAllocator,
    project_id: str,
    modules: list[Module],
    needs: dict[str, Any],
    wait_for: float | None,
) -> api.EnsureAllocationResponse:
    if wait_for is None:
        return await client.ensure(project_id, modules, **needs)
    return await client.wait(project_id, modules, wait_for=wait_for, **needs)
