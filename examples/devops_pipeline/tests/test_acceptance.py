"""From where the user starts: a worker takes a job for hello-world-bot. The real service, real processes, real ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import grpc
import psutil
import pytest
from conftest import EXAMPLE, HELLO, PORTS, Pipeline, eventually, get, register
from live_service import PATIENCE_S, Service

from devops_pipeline.graph import build_graph
from devops_pipeline.jobs import MOST_TRIES_AGAIN
from resource_allocator_client.v1 import resource_allocator_pb2 as api
from resource_allocator_client.v1 import server_inventory_pb2 as inventory
from resource_allocator_client.v1 import types_pb2 as types
from resource_allocator_client.v1.server_inventory_pb2_grpc import ServerInventoryStub

ALL_NODES = ["ResourceAllocator", "EnvAnalyzer", "SecretResolver", "Deployer"]


def answers(pipeline: Pipeline, project_id: str, token: str) -> None:
    """Every module answers on the port that was allocated to it, and they find each other."""
    ports = pipeline.ports(project_id)
    status, body = get("127.0.0.1", ports["backend"], "/message", Authorization=f"Bearer {token}")
    assert (status, json.loads(body)) == (200, {"message": "Hello, world"})
    assert get("127.0.0.1", ports["backend"], "/message")[0] == 401
    assert get("127.0.0.1", ports["frontend"], "/") == (200, "<h1>Hello, world</h1>")


def test_a_job_for_hello_world_bot_ends_with_its_modules_answering_on_their_ports_l40(own_pipeline: Pipeline):
    server = register(own_pipeline.service, "this-machine")
    own_pipeline.give_secrets("hello-world-bot", BOT_TOKEN="a token of ours")
    worker = own_pipeline.worker()
    name = own_pipeline.command("submit", str(HELLO)).strip()
    job = own_pipeline.until(name, "done")
    assert job["nodes"] == ALL_NODES
    first = server.port_range.start
    assert own_pipeline.ports("hello-world-bot") == {"backend": first, "frontend": first + 1}
    assert set(job["allocated_resources"]) == {f"this-machine:{first}", f"this-machine:{first + 1}"}
    answers(own_pipeline, "hello-world-bot", "a token of ours")

    # What was allocated was so before anything ran.
    with own_pipeline.client.watch(project_id="hello-world-bot", from_beginning=True) as watch:
        completed = next(event for event in watch if event.WhichOneof("detail") == "completed")
    for module in job["deployment"].values():
        assert psutil.Process(module["pid"]).create_time() > completed.event_time.ToDatetime().timestamp() - 1
    worker.stop()
    # What it deployed outlives it.
    answers(own_pipeline, "hello-world-bot", "a token of ours")
    assert own_pipeline.command("stop", "hello-world-bot").count("stopped process") == 2


def test_the_graph_begins_with_the_allocator_and_has_no_way_around_it(pipeline: Pipeline):
    drawn = build_graph(pipeline.client, pipeline.work).get_graph()
    edges = [(edge.source, edge.target) for edge in drawn.edges]
    path = ["__start__", *ALL_NODES, "__end__"]
    assert sorted(edges) == sorted(pairwise(path))
    assert not any(edge.conditional for edge in drawn.edges)


def test_no_suitable_server_is_told_with_reason_and_disposition_and_nothing_else_runs(own_pipeline: Pipeline):
    own_pipeline.give_secrets("hello-world-bot", BOT_TOKEN="token")
    worker = own_pipeline.worker()
    name = own_pipeline.submit(HELLO)
    job = own_pipeline.until(name, "parked")
    assert (job["report"]["reason"], job["report"]["disposition"]) == ("NO_SERVERS", "OPERATOR")
    assert job["report"]["message"]
    assert job["nodes"] == []
    assert not own_pipeline.processes("hello-world-bot")
    assert not (own_pipeline.work / "deployments").exists()
    assert len(own_pipeline.client.list()) == 0
    shown = own_pipeline.command("jobs")
    assert f"{name}: parked" in shown
    assert "NO_SERVERS (OPERATOR): " in shown

    # The operator acts, and the stream tells of it.
    register(own_pipeline.service, "this-machine")
    own_pipeline.until(name, "done")
    answers(own_pipeline, "hello-world-bot", "token")
    worker.stop()


def test_a_project_that_fits_nowhere_is_parked_with_the_figures(pipeline: Pipeline, here: str, project):
    shop = project(resources={"ram_mb": 999_999})
    name = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    report = pipeline.job(name)["report"]
    assert (report["reason"], report["disposition"]) == ("REQUEST_EXCEEDS_FLEET", "OPERATOR")
    assert report["metadata"]["asked.ram_mb"] == "999999"


def test_a_request_that_is_wrong_fails(pipeline: Pipeline, here: str, project):
    shop = project(server_selector={"test": "nobody's"})
    name = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    job = pipeline.job(name)
    assert job["status"] == "failed"
    assert (job["report"]["reason"], job["report"]["disposition"]) == ("NO_MATCHING_SERVER", "CALLER")


def test_two_runs_have_one_allocation_and_the_second_replaces_the_processes(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    first = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    allocated = list(pipeline.client.list(project_id=shop.name))
    ran = {process.pid for process in pipeline.processes(shop.name)}

    second = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    assert list(pipeline.client.list(project_id=shop.name)) == allocated
    assert pipeline.job(second)["allocated_resources"] == pipeline.job(first)["allocated_resources"]
    runs = {process.pid for process in pipeline.processes(shop.name)}
    assert len(runs) == 2
    assert not runs & ran
    answers(pipeline, shop.name, "token")


def test_two_workers_at_once_have_one_allocation_and_one_set_of_processes(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    names = [pipeline.submit(shop) for _ in range(4)]
    workers = [pipeline.worker("--once") for _ in range(2)]
    for worker in workers:
        worker.finish()
    jobs = [pipeline.job(name) for name in names]
    assert [job["status"] for job in jobs] == ["done"] * 4
    assert all(job["allocated_resources"] == jobs[0]["allocated_resources"] for job in jobs)
    assert len(pipeline.client.list(project_id=shop.name)) == 2
    assert len(pipeline.processes(shop.name)) == 2
    # Each job was one worker's.
    said = "".join(line for worker in workers for line in worker.said)
    assert [said.count(f"{name}: deployed") for name in names] == [1] * 4
    answers(pipeline, shop.name, "token")


def test_a_worker_that_is_killed_between_nodes_loses_nothing(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    # EnvAnalyzer waits for the text of a pipe that nobody writes to.
    example = (shop / ".env.example").read_text()
    (shop / ".env.example").unlink()
    os.mkfifo(shop / ".env.example")
    name = pipeline.submit(shop)
    worker = pipeline.worker()
    eventually("the first node is done", lambda: pipeline.job(name).get("nodes") == ["ResourceAllocator"])
    allocated = list(pipeline.client.list(project_id=shop.name))
    assert len(allocated) == 2
    worker.kill()
    assert pipeline.job(name)["status"] == "queued"

    (shop / ".env.example").unlink()
    (shop / ".env.example").write_text(example)
    pipeline.worker("--once").finish()
    assert pipeline.job(name)["status"] == "done"
    assert list(pipeline.client.list(project_id=shop.name)) == allocated
    answers(pipeline, shop.name, "token")


def test_a_worker_that_is_killed_in_the_deployer_leaves_no_second_set_of_processes(
    pipeline: Pipeline, here: str, project
):
    # The backend does not answer its probe before there is a file.
    late = (HELLO / "backend.py").read_text().replace('"/health":', '"/health" and os.path.exists("well"):')
    shop = project(files={"backend.py": late})
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    name = pipeline.submit(shop)
    worker = pipeline.worker()
    orphans = eventually("both run", lambda: (found := pipeline.processes(shop.name)) and len(found) == 2 and found)
    ports = pipeline.ports(shop.name)
    worker.kill()
    assert all(process.is_running() for process in orphans)

    (shop / "well").touch()
    pipeline.worker("--once").finish()
    assert pipeline.job(name)["status"] == "done"
    assert pipeline.ports(shop.name) == ports
    runs = pipeline.processes(shop.name)
    assert len(runs) == 2
    assert not {process.pid for process in runs} & {process.pid for process in orphans}
    answers(pipeline, shop.name, "token")


def test_a_full_fleet_parks_the_job_and_a_release_resumes_it(pipeline: Pipeline, here: str, project, tag: str):
    pipeline.client.ensure(f"{tag}-holder", ram_mb=8100, server_selector={"test": tag})
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    worker = pipeline.worker()
    name = pipeline.submit(shop)
    job = pipeline.until(name, "parked")
    assert (job["report"]["reason"], job["report"]["disposition"]) == ("INSUFFICIENT_CAPACITY", "WAIT")
    assert job["report"]["metadata"]["nearest.short.ram_mb"] == "36"
    assert not pipeline.processes(shop.name)

    pipeline.client.release(f"{tag}-holder")
    pipeline.until(name, "done")
    answers(pipeline, shop.name, "token")
    worker.stop()


def test_a_change_of_the_inventory_resumes_it_too(pipeline: Pipeline, here: str, project, tag: str):
    pipeline.client.ensure(f"{tag}-holder", ram_mb=8100, server_selector={"test": tag})
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    pipeline.worker()
    name = pipeline.submit(shop)
    pipeline.until(name, "parked")
    register(pipeline.service, f"second-{tag}", labels={"test": tag})
    job = pipeline.until(name, "done")
    assert all(key.startswith(f"second-{tag}:") for key in job["allocated_resources"])


def test_what_came_free_while_no_worker_ran_is_noticed_at_the_start(pipeline: Pipeline, here: str, project, tag: str):
    pipeline.client.ensure(f"{tag}-holder", ram_mb=8100, server_selector={"test": tag})
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    name = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    assert pipeline.job(name)["status"] == "parked"
    pipeline.client.release(f"{tag}-holder")
    pipeline.worker()
    pipeline.until(name, "done")


def test_the_worker_outlives_the_service(own_pipeline: Pipeline):
    register(own_pipeline.service, "this-machine")
    own_pipeline.client.ensure("holder", ram_mb=8100)
    own_pipeline.give_secrets("hello-world-bot", BOT_TOKEN="token")
    worker = own_pipeline.worker()
    name = own_pipeline.submit(HELLO)
    own_pipeline.until(name, "parked")
    own_pipeline.service.stop()
    own_pipeline.service.start()
    own_pipeline.client.release("holder")
    own_pipeline.until(name, "done")
    worker.stop()


def test_a_port_that_a_stranger_holds_is_replaced_and_the_deploy_goes_on_l18(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    held = pipeline.client.ensure(shop.name, ["backend"], server_handle=here).allocations[0].port
    name = pipeline.submit(shop)
    with socket.create_server(("127.0.0.1", held)):
        pipeline.worker("--once").finish()
        assert pipeline.job(name)["status"] == "done"
        assert held not in pipeline.ports(shop.name).values()
        answers(pipeline, shop.name, "token")
    # Why, is in the log.
    with pipeline.client.watch(project_id=shop.name, from_beginning=True) as watch:
        set_aside = next(event for event in watch if event.WhichOneof("detail") == "port_set_aside").port_set_aside
    assert set_aside.allocation.port == held
    assert f"process {os.getpid()} (" in set_aside.detail


def test_ports_that_are_held_one_after_the_other_are_not_all_set_aside(
    pipeline: Pipeline, shared_service: Service, project, tag: str
):
    server = register(shared_service, f"here-{tag}", labels={"test": tag})
    backend = {"name": "backend", "command": ["python3", "backend.py"], "health": "/health"}
    shop = project(files={".env.example": "BOT_TOKEN=\nGREETING=Hello\n"}, modules=[backend])
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    name = pipeline.submit(shop)
    with ExitStack() as strangers:
        for port in range(server.port_range.start, server.port_range.end + 1):
            strangers.enter_context(socket.create_server(("127.0.0.1", port)))
        pipeline.worker("--once").finish()
    job = pipeline.job(name)
    assert (job["status"], job["report"]["reason"], job["report"]["disposition"]) == ("parked", "PORT_HELD", "OPERATOR")
    assert f"{MOST_TRIES_AGAIN} runs in a row" in job["report"]["message"]
    # The last one was told too, and the module has the next.
    assert MOST_TRIES_AGAIN < PORTS
    assert pipeline.ports(shop.name) == {"backend": server.port_range.start + MOST_TRIES_AGAIN}

    # The strangers are gone, and someone says so.
    assert pipeline.command("retry").split() == [name]
    pipeline.worker("--once").finish()
    job = pipeline.job(name)
    assert (job["status"], job["tries_again"]) == ("done", 0)


def test_all_ports_that_are_held_are_replaced_in_one_run(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    held = [
        one.port for one in pipeline.client.ensure(shop.name, ["backend", "frontend"], server_handle=here).allocations
    ]
    name = pipeline.submit(shop)
    with ExitStack() as strangers:
        for port in held:
            strangers.enter_context(socket.create_server(("127.0.0.1", port)))
        worker = pipeline.worker("--once")
        worker.finish()
    assert pipeline.job(name)["status"] == "done"
    assert not set(held) & set(pipeline.ports(shop.name).values())
    assert sum(": parked: " in line for line in worker.said) == 1


@pytest.fixture
def guarded() -> list[str]:
    """A worker that ends at once when it would reach beyond this machine, or loads a model's library."""
    return [sys.executable, str(Path(__file__).with_name("guard.py"))]


def test_no_model_is_called(pipeline: Pipeline, here: str, project: Callable[..., Path], guarded: list[str]):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    name = pipeline.submit(shop)
    pipeline.worker("--once", program=guarded).finish()
    assert pipeline.job(name)["status"] == "done"
    answers(pipeline, shop.name, "token")


def test_the_guard_guards(guarded: list[str]):
    for reach in ["import socket; socket.create_connection(('192.0.2.1', 443), 1)", "import openai"]:
        done = subprocess.run(
            [guarded[0], guarded[1], "-c", reach], cwd=EXAMPLE, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 97, done.stderr


def set_status(pipeline: Pipeline, handle: str, status: types.ServerStatus.ValueType) -> None:
    request = inventory.UpdateServerRequest(server=types.Server(handle=handle, status=status))
    request.update_mask.paths.append("status")
    with grpc.insecure_channel(pipeline.service.address) as channel:
        ServerInventoryStub(channel).UpdateServer(request, timeout=PATIENCE_S)


def test_a_server_in_maintenance_takes_no_deploy_of_what_it_holds(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    pipeline.submit(shop)
    pipeline.worker("--once").finish()
    ran = {process.pid for process in pipeline.processes(shop.name)}

    set_status(pipeline, here, types.SERVER_STATUS_MAINTENANCE)
    name = pipeline.submit(shop)
    pipeline.worker("--once").finish()
    job = pipeline.job(name)
    assert (job["status"], job["report"]["reason"]) == ("parked", "SERVER_NOT_ADMISSIBLE")
    # What runs is left alone.
    assert {process.pid for process in pipeline.processes(shop.name)} == ran
    set_status(pipeline, here, types.SERVER_STATUS_READY)
    pipeline.worker()
    pipeline.until(name, "done")


def test_stopping_asks_the_service_for_nothing_l04(pipeline: Pipeline, here: str, project, tag: str):
    shop = project()
    # Never deployed: there is nothing to stop, and nothing comes to be.
    pipeline.command("stop", shop.name)
    assert not pipeline.ports(shop.name)

    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    pipeline.submit(shop)
    pipeline.worker("--once").finish()
    ports = pipeline.ports(shop.name)
    assert pipeline.command("stop", shop.name).count("stopped process") == 2
    assert not pipeline.processes(shop.name)
    # Its place stays its own, until it is given back.
    assert pipeline.ports(shop.name) == ports
    assert pipeline.command("stop", "--release", shop.name).count("gave back") == 2
    assert isinstance(pipeline.client.release(shop.name), api.ReleaseAllocationResponse)
    assert not pipeline.ports(shop.name)


def test_what_is_stopped_and_given_back_is_not_started_by_the_room_that_it_leaves(
    pipeline: Pipeline, here: str, project, tag: str
):
    shop, other = project(), project("other")
    for folder in (shop, other):
        pipeline.give_secrets(folder.name, BOT_TOKEN="token")
    worker = pipeline.worker()
    pipeline.until(pipeline.submit(shop), "done")
    # It is to be deployed again, and waits for its server, while another one could have it.
    set_status(pipeline, here, types.SERVER_STATUS_MAINTENANCE)
    name = pipeline.submit(shop)
    assert pipeline.until(name, "parked")["report"]["reason"] == "SERVER_NOT_ADMISSIBLE"
    register(pipeline.service, f"second-{tag}", labels={"test": tag})

    said = pipeline.command("stop", "--release", shop.name)
    assert f"stopped job {name}" in said
    assert said.count("gave back") == 2
    job = pipeline.job(name)
    assert (job["status"], job["report"]["reason"]) == ("failed", "STOPPED")
    # The worker goes on, and has seen the release by then.
    pipeline.until(pipeline.submit(other), "done")
    assert not pipeline.ports(shop.name)
    assert not pipeline.processes(shop.name)

    # Whoever wants it back says so.
    assert pipeline.command("retry", name).split() == [name]
    pipeline.until(name, "done")
    worker.stop()
