"""The calls that block, against the real service."""

from __future__ import annotations

import threading

import pytest
from conftest import Fleet
from live_service import PATIENCE_S, Service

from resource_allocator_client import Disposition, ModuleSpec, Protocol, ResourceAllocator, ensure_request
from resource_allocator_client.errors import (
    DeadlinePassed,
    InsufficientCapacity,
    InvalidRequest,
    ModuleNotFound,
    NoServers,
    PlacedElsewhere,
    PortTaken,
    ProjectNotFound,
    RequestExceedsFleet,
    ServerNotFound,
    Unreachable,
)
from resource_allocator_client.v1 import types_pb2 as types


def ports(answer) -> dict[str, int]:
    return {allocation.module: allocation.port for allocation in answer.allocations}


def test_a_project_is_placed_once_and_a_repeat_answers_the_same(client: ResourceAllocator, fleet: Fleet, tag: str):
    web = fleet.register()
    created = client.ensure(tag, server_selector=fleet.selector)
    assert created.outcome == types.ENSURE_OUTCOME_CREATED
    assert (created.placement.server_handle, created.placement.server_address) == (web, "192.0.2.11")
    assert ports(created) == {"backend": 8000}

    repeated = client.ensure(tag)
    assert repeated.outcome == types.ENSURE_OUTCOME_UNCHANGED
    assert repeated.allocations == created.allocations

    metrics = ModuleSpec(name="metrics", port=9100, protocol=Protocol.PROTOCOL_UDP)
    extended = client.ensure(tag, ["frontend", metrics], ram_mb=1024)
    assert extended.outcome == types.ENSURE_OUTCOME_EXTENDED
    assert ports(extended) == {"backend": 8000, "frontend": 8001, "metrics": 9100}
    assert extended.placement.reserved.ram_mb == 1024

    assert client.get(tag).allocations == extended.allocations
    assert list(client.list(project_id=tag)) == list(extended.allocations)
    assert [found.module for found in client.list(server_handle=web, module="metrics")] == ["metrics"]

    assert [gone.module for gone in client.release(tag, ["metrics"]).released] == ["metrics"]
    released = client.release(tag)
    assert released.placement_removed
    assert [gone.port for gone in released.released] == [8000, 8001]
    assert not client.release(tag).released
    with pytest.raises(ProjectNotFound) as unknown:
        client.get(tag)
    assert unknown.value.metadata["project_id"] == tag


def test_every_page_of_a_list_is_read(client: ResourceAllocator, fleet: Fleet, tag: str):
    web = fleet.register(ram_mb=100_000)
    modules = [f"m{number}" for number in range(60)]
    for number in range(17):
        client.ensure(f"{tag}-{number:02}", modules, server_selector=fleet.selector)
    listing = client.list(server_handle=web)
    # More than the largest page of a thousand.
    assert len(listing) == 17 * 60
    assert len({allocation.port for allocation in listing}) == len(listing)
    assert listing.resume_token


def test_what_would_happen_is_told_and_nothing_is_written(client: ResourceAllocator, fleet: Fleet, tag: str):
    large, small = fleet.register("large"), fleet.register("small", ram_mb=1024)
    would = client.ensure(tag, server_selector=fleet.selector, validate_only=True)
    assert would.placement.server_handle == large
    found = client.find(server_selector=fleet.selector, max_candidates=5)
    assert [candidate.server.handle for candidate in found.candidates] == [large, small]
    packed = client.find(server_selector=fleet.selector, strategy="BINPACK")
    assert [candidate.server.handle for candidate in packed.candidates] == [small]
    explained = client.find(server_selector=fleet.selector, ram_mb=99_999, explain=True)
    assert not explained.candidates
    assert explained.rejected_by_reason["SIZE"] == 2
    with pytest.raises(ProjectNotFound):
        client.get(tag)


def test_refusals_are_typed_and_keep_their_figures(client: ResourceAllocator, fleet: Fleet, tag: str):
    web = fleet.register()
    with pytest.raises(RequestExceedsFleet) as refused:
        client.ensure(tag, ram_mb=99_999, server_selector=fleet.selector)
    refusal = refused.value
    assert refusal.disposition is Disposition.OPERATOR
    assert refusal.metadata["asked.ram_mb"] == "99999"
    assert refusal.request_id
    assert str(refusal).startswith("REQUEST_EXCEEDS_FLEET (OPERATOR): ")
    assert refusal.retry_after is None

    client.ensure(f"{tag}-large", ram_mb=8000, server_selector=fleet.selector)
    with pytest.raises(InsufficientCapacity) as full:
        client.ensure(tag, ram_mb=1000, server_selector=fleet.selector)
    assert full.value.disposition is Disposition.WAIT
    assert full.value.metadata["nearest.short.ram_mb"] == "808"
    assert full.value.retry_after.total_seconds() > 0

    with pytest.raises(PlacedElsewhere):
        client.ensure(f"{tag}-large", server_handle=fleet.register("other"))
    with pytest.raises(PortTaken) as taken:
        client.ensure(f"{tag}-small", [ModuleSpec(name="web", port=8000)], ram_mb=64, server_handle=web)
    assert taken.value.metadata["cause"] == "ALLOCATED"
    with pytest.raises(ServerNotFound):
        client.ensure(tag, server_handle=f"none-{tag}")


def test_all_bad_fields_are_told_at_once(client: ResourceAllocator):
    with pytest.raises(InvalidRequest) as refused:
        client.ensure("no blanks", [ModuleSpec(name="web", port=70_000)])
    assert refused.value.disposition is Disposition.CALLER
    assert [bad.field for bad in refused.value.field_violations] == ["project_id", "modules[0].port"]


def test_an_empty_inventory_needs_an_operator(own_service: Service):
    with ResourceAllocator(own_service.endpoint) as client, pytest.raises(NoServers) as refused:
        client.ensure("shop")
    assert refused.value.disposition is Disposition.OPERATOR


def test_lists_that_are_not_what_they_seem_are_refused(client: ResourceAllocator, tag: str):
    with pytest.raises(TypeError, match="web"):
        client.ensure(tag, "web")
    with pytest.raises(TypeError, match="web"):
        client.release(tag, "web")
    # An empty list would give back the whole project.
    with pytest.raises(ValueError, match="empty"):
        client.release(tag, [])
    with pytest.raises(ValueError, match="LARGEST"):
        client.find(strategy="LARGEST")


def test_a_project_moves_with_all_that_it_holds_and_once(client: ResourceAllocator, fleet: Fleet, tag: str):
    first = fleet.register("first")
    client.ensure(tag, ["backend", "frontend"], server_selector=fleet.selector)
    second = fleet.register("second")
    would = client.relocate(tag, from_server_handle=first, validate_only=True)
    assert (would.moved, would.placement.server_handle) == (True, second)
    assert client.get(tag).placement.server_handle == first
    assert client.relocate(tag, from_server_handle=first).moved
    again = client.relocate(tag, from_server_handle=first)
    assert (again.moved, again.placement.server_handle) == (False, second)
    assert ports(again) == {"backend": 8000, "frontend": 8001}


def test_a_port_that_a_stranger_holds_is_replaced_and_once(client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    client.ensure(tag, server_selector=fleet.selector)
    replaced = client.report_port_in_use(tag, "backend", 8000, detail="nginx listens there")
    assert (replaced.replaced, replaced.allocation.port) == (True, 8001)
    again = client.report_port_in_use(tag, "backend", 8000)
    assert (again.replaced, again.allocation.port) == (False, 8001)
    assert ports(client.ensure(tag)) == {"backend": 8001}
    with pytest.raises(ModuleNotFound) as unknown:
        client.report_port_in_use(tag, "frontend", 8000)
    assert unknown.value.metadata["modules"] == "backend"


def test_many_projects_with_one_call_each_have_an_answer_of_their_own(client, fleet: Fleet, tag: str):
    fleet.register(ram_mb=1000 * 4)
    requests = [
        ensure_request(f"{tag}-{n}", ram_mb=ram, server_selector=fleet.selector) for n, ram in enumerate([64, 9999, 64])
    ]
    requests.append(ensure_request("no blanks"))
    placed, too_large, again, malformed = client.ensure_many(requests)
    assert ports(placed) == {"backend": 8000}
    assert ports(again) == {"backend": 8001}
    assert isinstance(too_large, RequestExceedsFleet)
    assert too_large.metadata["asked.ram_mb"] == "9999"
    assert [bad.field for bad in malformed.field_violations] == ["project_id"]
    assert client.ensure_many([]) == ()
    # More than one call takes.
    many = [ensure_request(f"{tag}-0")] * 1001
    assert [answer.outcome for answer in client.ensure_many(many)] == [types.ENSURE_OUTCOME_UNCHANGED] * 1001


def test_a_lease_is_renewed_kept_and_ended(client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    leased = client.ensure(tag, server_selector=fleet.selector, ttl=60).placement.expire_time
    assert leased.seconds > 0
    assert client.ensure(tag).placement.expire_time == leased
    assert client.ensure(tag, ttl=3600).placement.expire_time.seconds > leased.seconds + 3000
    assert not client.ensure(tag, ttl=0).placement.HasField("expire_time")
    with pytest.raises(InvalidRequest):
        client.ensure(tag, ttl=0.5)
    waited = client.wait(f"{tag}-waiting", server_selector=fleet.selector, wait_for=60, ttl=60)
    assert waited.placement.HasField("expire_time")


def test_many_callers_at_once_get_one_placement(client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    answers = []

    def ensure() -> None:
        answers.append(client.ensure(tag, ["backend", "frontend"], server_selector=fleet.selector))

    threads = [threading.Thread(target=ensure) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(answers) == 16
    assert all(answer.allocations == answers[0].allocations for answer in answers)
    assert [answer.outcome for answer in answers].count(types.ENSURE_OUTCOME_CREATED) == 1


def test_a_call_outlives_a_restart_of_the_service(own_service: Service):
    with ResourceAllocator(own_service.endpoint, timeout=PATIENCE_S) as client:
        fleet = Fleet(own_service, "restart")
        fleet.register()
        fleet.close()
        created = client.ensure("shop")
        own_service.stop()
        starting = threading.Thread(target=own_service.start)
        starting.start()
        try:
            repeated = client.ensure("shop")
        finally:
            starting.join(PATIENCE_S)
        assert repeated.allocations == created.allocations


def test_a_service_that_is_not_there_is_told_with_its_place(own_service: Service):
    own_service.stop()
    with ResourceAllocator(own_service.endpoint) as client, pytest.raises(Unreachable) as failed:
        client.list()
    assert failed.value.disposition is Disposition.TECHNICAL
    assert own_service.endpoint in failed.value.message


def test_a_deadline_that_passes_is_a_failure_that_may_be_repeated(client: ResourceAllocator, tag: str):
    with pytest.raises(DeadlinePassed) as failed:
        client.list(project_id=tag, timeout=0.000_001)
    assert failed.value.disposition is Disposition.TECHNICAL
