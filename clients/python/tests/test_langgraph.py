"""The LangGraph node and the LangChain tools, in real graphs against the real service."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypedDict

import pytest
from conftest import Fleet
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from live_service import PATIENCE_S, Service

from resource_allocator_client import AsyncResourceAllocator, ResourceAllocator
from resource_allocator_client.errors import InsufficientCapacity, RequestExceedsFleet, ServerNotFound
from resource_allocator_client.langgraph import (
    AllocationState,
    async_resource_allocator_node,
    resource_allocator_node,
    resource_of,
)
from resource_allocator_client.tools import allocator_tools


class State(AllocationState, TypedDict, total=False):
    deployed: list[str]


def deploy(state: State) -> dict[str, Any]:
    """A node after ours, which must find everything by module."""
    backend = resource_of(state["allocated_resources"], "backend")
    return {"deployed": [f"{backend['server_address']}:{backend['port']}"]}


def graph_with(node: Any, **compile_with: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("ResourceAllocator", node)
    graph.add_node("Deployer", deploy)
    graph.add_edge(START, "ResourceAllocator")
    graph.add_edge("ResourceAllocator", "Deployer")
    graph.add_edge("Deployer", END)
    return graph.compile(**compile_with)


@pytest.fixture
def state(fleet: Fleet, tag: str) -> dict[str, Any]:
    spec = {
        "modules": ["backend", {"name": "dns", "port": 8000, "protocol": "UDP", "command": "another node's business"}],
        "resources": {"ram_mb": 256},
        "server_selector": fleet.selector,
        "framework": "another node's business",
    }
    return {"project_id": tag, "project_spec": spec}


def test_the_node_places_before_what_follows_and_repeats_change_nothing(client, fleet: Fleet, state, tag: str):
    web = fleet.register()
    graph = graph_with(resource_allocator_node(client), checkpointer=InMemorySaver())
    done = graph.invoke(state, {"configurable": {"thread_id": "1"}})
    assert done["placement"] == {
        "server_handle": web,
        "server_address": "192.0.2.11",
        "server_admissible": True,
        "outcome": "CREATED",
    }
    # One number of two protocols is two ports.
    assert set(done["allocated_resources"]) == {f"{web}:8000", f"{web}:8000/udp"}
    assert done["allocated_resources"][f"{web}:8000"]["module"] == "backend"
    assert done["deployed"] == ["192.0.2.11:8000"]
    assert json.loads(json.dumps(done["allocated_resources"])) == done["allocated_resources"]

    again = graph.invoke(state, {"configurable": {"thread_id": "2"}})
    assert again["placement"]["outcome"] == "UNCHANGED"
    assert again["allocated_resources"] == done["allocated_resources"]


def test_the_node_runs_in_asyncio_too(shared_service: Service, fleet: Fleet, state):
    fleet.register()

    async def scenario() -> dict[str, Any]:
        async with AsyncResourceAllocator(shared_service.endpoint, timeout=PATIENCE_S) as client:
            first = await graph_with(async_resource_allocator_node(client)).ainvoke(state)
        # The node that blocks runs in a thread of the graph's.
        with ResourceAllocator(shared_service.endpoint) as blocking:
            second = await graph_with(resource_allocator_node(blocking)).ainvoke(state)
        assert second["allocated_resources"] == first["allocated_resources"]
        return first

    assert asyncio.run(scenario())["deployed"] == ["192.0.2.11:8000"]


def test_without_a_client_the_environment_names_the_service(shared_service: Service, fleet: Fleet, state, monkeypatch):
    fleet.register()
    monkeypatch.delenv("RESOURCE_ALLOCATOR_ENDPOINT", raising=False)
    with pytest.raises(ValueError, match="RESOURCE_ALLOCATOR_ENDPOINT"):
        graph_with(resource_allocator_node()).invoke(state)
    monkeypatch.setenv("RESOURCE_ALLOCATOR_ENDPOINT", shared_service.endpoint)
    assert graph_with(resource_allocator_node()).invoke(state)["deployed"]
    assert asyncio.run(graph_with(async_resource_allocator_node()).ainvoke(state))["deployed"]


def test_a_refusal_stops_the_graph_and_stays_typed_l10(client, fleet: Fleet, state):
    fleet.register()
    state["project_spec"]["resources"]["ram_mb"] = 99_999
    reached: list[Any] = []
    graph = graph_with(resource_allocator_node(client))
    with pytest.raises(RequestExceedsFleet) as refused:
        reached.extend(graph.stream(state, stream_mode="updates"))
    assert refused.value.metadata["asked.ram_mb"] == "99999"
    assert reached == []


def test_a_graph_may_lease_its_place(client: ResourceAllocator, fleet: Fleet, state, tag: str):
    fleet.register()
    state["project_spec"]["ttl_s"] = 60
    graph_with(resource_allocator_node(client)).invoke(state)
    assert client.get(tag).placement.HasField("expire_time")


def test_the_node_waits_where_it_is_told_to(client, fleet: Fleet, state, tag: str):
    fleet.register(ram_mb=256)
    client.ensure(f"{tag}-holder", ram_mb=200, server_selector=fleet.selector)
    # Without, it is told at once.
    with pytest.raises(InsufficientCapacity):
        graph_with(resource_allocator_node(client)).invoke(state)
    with pytest.raises(Exception, match="WAIT_TIMED_OUT"):
        graph_with(resource_allocator_node(client, wait_for=0.5)).invoke(state)


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"project_id": None}, "project_id"),
        ({"project_spec": None}, "project_spec"),
        ({"project_spec": {"modules": [{"port": 1}]}}, "name"),
        ({"project_spec": {"modules": [{"name": "web", "protocol": "SCTP"}]}}, "SCTP"),
        ({"project_spec": {"resources": {"ram": 512}}}, "ram"),
        ({"project_spec": {"modules": "web"}}, "list of modules, not 'web'"),
        ({"project_spec": {"modules": b"web"}}, "list of modules, not b'web'"),
        ({"project_spec": {"modules": {"web": {"port": 1}}}}, "list of modules"),
        ({"project_spec": {"modules": None}}, "list of modules"),
        ({"project_spec": {"modules": [{"name": "web", "prot": 1}]}}, "`web` has an unknown key `prot`.*`port`"),
        ({"project_spec": {"modules": [{"name": "web", "Port": 1}]}}, "`Port`.*`port`"),
        ({"project_spec": {"modules": [{"name": "web", "Protocol": "UDP"}]}}, "`Protocol`.*`protocol`"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(client, state, update, says: str):
    with pytest.raises(ValueError, match=says):
        graph_with(resource_allocator_node(client)).invoke(state | update)


def test_a_module_without_an_allocation_is_an_error_and_has_no_default_l02():
    with pytest.raises(LookupError, match=r"frontend.*backend"):
        resource_of({"web-1:8000": {"module": "backend"}}, "frontend")
    with pytest.raises(LookupError, match="none"):
        resource_of({}, "frontend")


@pytest.fixture
def call(client: ResourceAllocator):
    """Calls a tool as an agent's graph does, and gives its answer: JSON, or the text of a refusal."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(allocator_tools(client)))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    agent = graph.compile()

    def call(name: str, **arguments: Any) -> Any:
        wish = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "1"}])
        answer = agent.invoke({"messages": [wish]})["messages"][-1]
        return json.loads(answer.content) if answer.status == "success" else answer.content

    return call


def test_an_agent_uses_the_one_allocator(call, client: ResourceAllocator, fleet: Fleet, tag: str):
    web = fleet.register()
    found = call("find_server", ram_mb=512, labels=fleet.selector)
    assert [candidate["server_handle"] for candidate in found["candidates"]] == [web]
    assert found["candidates"][0]["free"]["ram_mb"] == 8192

    # A dry run, twice the same.
    would = call("next_port", project_id=tag, module="backend", server_handle=web)
    assert (would["port"], would["server_handle"], would["already_allocated"]) == (8000, web, False)
    assert call("next_port", project_id=tag, module="backend", server_handle=web) == would
    assert call("list_allocations", project_id=tag) == {"allocations": [], "total": 0}

    got = call("allocate_port", project_id=tag, module="backend", port=8000, server_handle=web)
    assert (got["port"], got["outcome"]) == (8000, "CREATED")
    assert call("allocate_port", project_id=tag, module="backend", port=8000)["outcome"] == "UNCHANGED"
    assert call("next_port", project_id=tag, module="backend")["already_allocated"] is True
    # What the agent has, a pipeline's node finds.
    assert client.ensure(tag).allocations[0].id == got["id"]

    call("allocate_port", project_id=tag, module="dns", port=8000, protocol="UDP")
    listed = call("list_allocations", server_handle=web)
    assert [one["module"] for one in listed["allocations"]] == ["backend", "dns"]
    assert [one["module"] for one in call("release", project_id=tag, modules=["dns"])["released"]] == ["dns"]
    assert call("release", project_id=tag, whole_project=True)["placement_removed"] is True


def test_a_refusal_is_an_answer_that_an_agent_can_act_on(call, client: ResourceAllocator, fleet: Fleet, tag: str):
    web = fleet.register(ram_mb=1024)
    client.ensure(f"{tag}-other", ram_mb=1000, server_selector=fleet.selector)
    told = call("allocate_port", project_id=tag, module="backend", port=9000, server_handle=web)
    assert "refused: INSUFFICIENT_CAPACITY (WAIT): " in told
    assert "Try again after" in told
    told = call("allocate_port", project_id=f"{tag}-other", module="web", port=8000)
    assert "PORT_TAKEN (CALLER)" in told
    found = call("find_server", ram_mb=99_999, labels=fleet.selector)
    assert found["candidates"] == []
    assert {one["server_handle"]: one["reason"] for one in found["rejections"]}[web] == "SIZE"


def test_nothing_is_given_back_that_was_not_named(call, client: ResourceAllocator, fleet: Fleet, tag: str):
    fleet.register()
    client.ensure(tag, server_selector=fleet.selector)
    for ambiguous in [{}, {"modules": []}, {"modules": ["backend"], "whole_project": True}]:
        assert "name the modules" in call("release", project_id=tag, **ambiguous)
    assert len(client.list(project_id=tag)) == 1


def test_refusals_can_be_raised_instead(client: ResourceAllocator, tag: str):
    tools = {tool.name: tool for tool in allocator_tools(client, tell_refusals=False)}
    assert list(tools) == ["find_server", "next_port", "allocate_port", "list_allocations", "release"]
    with pytest.raises(ServerNotFound):
        tools["next_port"].invoke({"project_id": tag, "module": "web", "server_handle": f"none-{tag}"})


def test_every_argument_is_described_to_the_agent(client: ResourceAllocator):
    for tool in allocator_tools(client):
        assert tool.description
        for name, about in tool.get_input_jsonschema()["properties"].items():
            assert about.get("description"), f"{tool.name}.{name}"
