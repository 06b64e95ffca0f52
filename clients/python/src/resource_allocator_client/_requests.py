"""Requests of the contract, from what callers write in Python. Both clients build theirs here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Literal, TypeAlias

from google.protobuf.duration_pb2 import Duration

from .v1 import resource_allocator_pb2 as api
from .v1 import types_pb2 as types

# A module: its name, or its name with a port or a protocol that it must have.
Module: TypeAlias = str | types.ModuleSpec
# Which of the servers that fit is chosen; None leaves it to the service.
Strategy: TypeAlias = Literal["SPREAD", "BINPACK"]

# The largest page that the service gives, and the largest batch that it takes.
PAGE_SIZE = 1000
BATCH_SIZE = 1000


def ensure(
    project_id: str,
    modules: Iterable[Module] = (),
    *,
    cpu_millis: int | None = None,
    ram_mb: int | None = None,
    disk_mb: int | None = None,
    server_handle: str | None = None,
    server_selector: Mapping[str, str] | None = None,
    start_port: int | None = None,
    strategy: Strategy | None = None,
    validate_only: bool = False,
    ttl: float | None = None,
) -> api.EnsureAllocationRequest:
    """Builds the request of EnsureAllocation; what is None is left unset."""
    return api.EnsureAllocationRequest(
        project_id=project_id,
        modules=_modules(modules),
        resources=_resources(cpu_millis, ram_mb, disk_mb),
        server_handle=server_handle,
        server_selector=server_selector,
        start_port=start_port,
        strategy=_strategy(strategy),
        validate_only=validate_only,
        # Unset keeps the lease that stands, nothing ends it.
        ttl=None if ttl is None else _duration(ttl),
    )


def batch(requests: Sequence[api.EnsureAllocationRequest]) -> api.BatchEnsureAllocationsRequest:
    """Builds the request of BatchEnsureAllocations."""
    return api.BatchEnsureAllocationsRequest(requests=requests)


def waiting(request: api.EnsureAllocationRequest, seconds: float) -> api.EnsureAllocationRequest:
    """Gives the same request with a time to wait in line for capacity."""
    copy = api.EnsureAllocationRequest()
    copy.CopyFrom(request)
    # A time of nothing would mean not to wait; what is left is always worth a look.
    copy.wait_for_capacity.CopyFrom(_duration(max(seconds, 0.001)))
    return copy


def find(
    modules: Iterable[Module] = (),
    *,
    cpu_millis: int | None = None,
    ram_mb: int | None = None,
    disk_mb: int | None = None,
    server_selector: Mapping[str, str] | None = None,
    start_port: int | None = None,
    strategy: Strategy | None = None,
    max_candidates: int = 0,
    explain: bool = False,
) -> api.FindServerRequest:
    """Builds the request of FindServer; what is None is left unset."""
    return api.FindServerRequest(
        resources=_resources(cpu_millis, ram_mb, disk_mb),
        server_selector=server_selector,
        modules=_modules(modules),
        start_port=start_port,
        strategy=_strategy(strategy),
        max_candidates=max_candidates,
        explain=explain,
    )


def release(project_id: str, modules: Iterable[str] | None) -> api.ReleaseAllocationRequest:
    """Builds the request of ReleaseAllocation; None means the whole project."""
    names = None if modules is None else _names(modules)
    # The contract takes an empty list for all: one that merely came out empty must not give everything back.
    if names is not None and not names:
        raise ValueError("modules is empty: name those to give back, or leave it out to give back the whole project")
    return api.ReleaseAllocationRequest(project_id=project_id, modules=names)


def relocate(
    project_id: str,
    *,
    from_server_handle: str,
    server_handle: str | None,
    strategy: Strategy | None,
    validate_only: bool,
) -> api.RelocateProjectRequest:
    """Builds the request of RelocateProject."""
    return api.RelocateProjectRequest(
        project_id=project_id,
        from_server_handle=from_server_handle,
        server_handle=server_handle,
        strategy=_strategy(strategy),
        validate_only=validate_only,
    )


def port_in_use(
    project_id: str, module: str, port: int, detail: str, start_port: int | None
) -> api.ReportPortInUseRequest:
    """Builds the request of ReportPortInUse."""
    return api.ReportPortInUseRequest(
        project_id=project_id, module=module, port=port, detail=detail, start_port=start_port
    )


def page(
    project_id: str | None, server_handle: str | None, module: str | None, page_token: str
) -> api.ListAllocationsRequest:
    """Builds the request for a page of ListAllocations."""
    return api.ListAllocationsRequest(
        project_id=project_id,
        server_handle=server_handle,
        module=module,
        page_size=PAGE_SIZE,
        page_token=page_token,
    )


def line(project_id: str | None, page_token: str) -> api.ListWaitingRequest:
    """Builds the request for a page of ListWaiting."""
    return api.ListWaitingRequest(project_id=project_id, page_size=PAGE_SIZE, page_token=page_token)


def watch(
    project_id: str | None, server_handle: str | None, resume_token: str, from_beginning: bool
) -> api.WatchAllocationsRequest:
    """Builds the request of WatchAllocations."""
    return api.WatchAllocationsRequest(
        project_id=project_id,
        server_handle=server_handle,
        resume_token=resume_token,
        from_beginning=from_beginning,
    )


def _modules(modules: Iterable[Module]) -> list[types.ModuleSpec]:
    _refuse_text(modules)
    return [types.ModuleSpec(name=module) if isinstance(module, str) else module for module in modules]


def _names(modules: Iterable[str]) -> list[str]:
    _refuse_text(modules)
    return list(modules)


def _refuse_text(modules: Iterable[object]) -> None:
    # A text is a sequence of texts too: "web" would be the modules w, e and b.
    if isinstance(modules, (str, bytes)):
        raise TypeError(f"modules is a list of names, not the single text {modules!r}")


def _resources(cpu_millis: int | None, ram_mb: int | None, disk_mb: int | None) -> types.Resources:
    return types.Resources(cpu_millis=cpu_millis, ram_mb=ram_mb, disk_mb=disk_mb)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _strategy(strategy: Strategy | None) -> types.PlacementStrategy.ValueType:
    if strategy is None:
        return types.PLACEMENT_STRATEGY_UNSPECIFIED
    try:
        return types.PlacementStrategy.Value(f"PLACEMENT_STRATEGY_{strategy}")
    except ValueError:
        raise ValueError(f"{strategy!r} is not a strategy: SPREAD or BINPACK") from None
