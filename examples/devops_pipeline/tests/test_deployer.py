"""Deployer: real processes on real ports, all of them or none."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports, get
from dotenv import dotenv_values
from nodes import allocated, refused
from pydantic import SecretStr

from devops_pipeline import processes
from devops_pipeline.deployer import deployer_node, deployment_folder
from resource_allocator_client import Disposition, ResourceAllocator

PROGRAMS = Path(__file__).with_name("programs")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    processes.stop(processes.mark_of(tmp_path / "work", "shop"))


@pytest.fixture
def client() -> Iterator[ResourceAllocator]:
    """Of no service: what a deploy needs of it, the first node has got."""
    with ResourceAllocator("127.0.0.1:1") as client:
        yield client


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    """What the nodes before it hand on for a project with one module, which works."""
    return {
        "project_id": "shop",
        "project_folder": str(tmp_path),
        "project_spec": {"modules": [module()]},
        "placement": {"server_handle": "here", "server_address": "127.0.0.1", "server_admissible": True},
        "allocated_resources": allocated(free_ports()),
        "environment": {"GREETING": "Hello"},
        "secrets": {"API_KEY": SecretStr("do-not-tell")},
    }


def module(program: str = "server.py", *arguments: str, name: str = "backend", **more: Any) -> dict[str, Any]:
    return {"name": name, "command": ["python3", str(PROGRAMS / program), *arguments], **more}


def with_modules(state: dict[str, Any], *modules: dict[str, Any]) -> dict[str, Any]:
    """The same project with other modules, a port for each."""
    first = free_ports()
    resources: dict[str, Any] = {}
    for number, one in enumerate(modules):
        resources |= allocated(first + number, module=one["name"])
    return state | {"project_spec": {"modules": list(modules)}, "allocated_resources": resources}


def port_of(state: dict[str, Any]) -> int:
    (resource,) = state["allocated_resources"].values()
    return resource["port"]


def count(work: Path) -> int:
    return len(processes.find(processes.mark_of(work, "shop")))


def test_processes_run_in_the_rendered_environment_and_no_more(
    client: ResourceAllocator, work: Path, state, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RESOURCE_ALLOCATOR_ENDPOINT", "the worker's own")
    state = with_modules(state, module("server.py", "--keep-environment"))
    (running,) = deployer_node(client, work)(state)["deployment"].values()
    assert get(running["address"], running["port"], "/")[0] == 200
    seen = json.loads(Path(state["project_folder"], "seen.json").read_text())
    assert (seen["GREETING"], seen["API_KEY"], seen["PORT"]) == ("Hello", "do-not-tell", str(running["port"]))
    assert "RESOURCE_ALLOCATOR_ENDPOINT" not in seen
    written = deployment_folder(work, "shop") / ".env"
    assert dotenv_values(written) == {"GREETING": "Hello", "API_KEY": "do-not-tell"}
    assert written.stat().st_mode & 0o077 == 0


def test_a_module_that_does_not_answer_stops_them_all(client: ResourceAllocator, work: Path, state):
    state = with_modules(state, module(), module("deaf.py", name="deaf", start_timeout_s=0.5))
    failed = refused("PROBE_FAILED", Disposition.CALLER, deployer_node(client, work), state)
    assert "`deaf`" in failed.message
    assert count(work) == 0


def test_a_health_page_that_is_not_well_is_no_answer(client: ResourceAllocator, work: Path, state):
    state = with_modules(state, module(health="/nothing-here", start_timeout_s=5))
    failed = refused("PROBE_FAILED", Disposition.CALLER, deployer_node(client, work), state)
    assert "/nothing-here answers 404" in failed.message


def test_a_process_that_ends_is_told_with_its_last_lines_but_not_its_secrets(
    client: ResourceAllocator, work: Path, state
):
    state = with_modules(state, module("failing.py"))
    failed = refused("PROCESS_ENDED", Disposition.CALLER, deployer_node(client, work), state)
    assert "exit code 3" in failed.message
    assert "cannot use …" in failed.message
    assert "do-not-tell" not in failed.message


def test_what_is_told_of_a_log_has_no_part_of_a_secret(client: ResourceAllocator, work: Path, state):
    # One secret has lines, of which the first are cut off with what is before them; another has one of the others in it.
    lines = "\n".join(f"line {number} of the key" for number in range(30))
    state["secrets"] |= {"USER_PART": SecretStr("admin"), "LOGIN": SecretStr("admin:hunter2"), "KEY": SecretStr(lines)}
    tells = "import os; print(os.environ['KEY']); print('as', os.environ['LOGIN']); raise SystemExit(3)"
    state = with_modules(state, {"name": "backend", "command": ["python3", "-c", tells]})
    message = refused("PROCESS_ENDED", Disposition.CALLER, deployer_node(client, work), state).message
    assert message.endswith("ends with:\n…\nas …")


def test_a_program_that_is_not_there_is_told_and_the_others_are_stopped(client: ResourceAllocator, work: Path, state):
    state = with_modules(state, module(), {"name": "gone", "command": ["no-such-program"]})
    assert "no-such-program" in refused("CANNOT_START", Disposition.CALLER, deployer_node(client, work), state).message
    assert count(work) == 0


def test_another_machines_server_is_not_deployed_here(client: ResourceAllocator, work: Path, state):
    state["placement"] |= {"server_handle": "web-7", "server_address": "192.0.2.7"}
    failed = refused("NOT_THIS_MACHINE", Disposition.OPERATOR, deployer_node(client, work), state)
    assert "web-7" in failed.message
    assert "192.0.2.7" in failed.message
    assert count(work) == 0


def test_a_port_that_the_project_insists_on_and_a_stranger_holds_is_told_with_its_holder(
    client: ResourceAllocator, work: Path, state
):
    state["project_spec"]["modules"] = [module(port=port_of(state))]
    with socket.create_server(("127.0.0.1", port_of(state))):
        failed = refused("PORT_HELD", Disposition.OPERATOR, deployer_node(client, work), state)
    assert f"port {port_of(state)}" in failed.message
    assert f"process {os.getpid()} (" in failed.message
    assert count(work) == 0


def test_a_name_that_is_another_machines_too_makes_no_port_look_held(
    client: ResourceAllocator, work: Path, state, monkeypatch: pytest.MonkeyPatch
):
    of_this_machine = socket.getaddrinfo("127.0.0.1", port_of(state), type=socket.SOCK_STREAM)
    of_another = socket.getaddrinfo("192.0.2.7", port_of(state), type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: of_this_machine + of_another)
    failed = refused("CANNOT_LISTEN", Disposition.OPERATOR, deployer_node(client, work), state)
    assert f"port {port_of(state)} at 127.0.0.1" in failed.message
    assert os.strerror(errno.EADDRNOTAVAIL) in failed.message


def test_a_port_that_the_worker_may_not_have_is_not_one_that_is_held(
    client: ResourceAllocator, work: Path, state, monkeypatch: pytest.MonkeyPatch
):
    bind = socket.socket.bind

    def bind_as_anyone(self: socket.socket, address: tuple[str, int]) -> None:
        # Root, as which tests may run, may have every port.
        if address[1] == port_of(state):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", bind_as_anyone)
    failed = refused("CANNOT_LISTEN", Disposition.OPERATOR, deployer_node(client, work), state)
    assert os.strerror(errno.EACCES) in failed.message
    assert failed.metadata["port"] == str(port_of(state))
    assert count(work) == 0


def test_an_answer_of_a_stranger_does_not_count(client: ResourceAllocator, work: Path, state):
    state["project_spec"]["modules"] = [module("outsider.py", start_timeout_s=10)]
    try:
        failed = refused("PROBE_FAILED", Disposition.CALLER, deployer_node(client, work), state)
    finally:
        os.kill(int(Path(state["project_folder"], "stranger").read_text()), signal.SIGKILL)
    assert "none of the project's" in failed.message


def test_a_process_that_does_not_want_to_end_is_killed(
    client: ResourceAllocator, work: Path, state, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    state = with_modules(state, module("server.py", "--stubborn"))
    deployer_node(client, work)(state)
    assert len(processes.stop(processes.mark_of(work, "shop"))) == 1
    assert count(work) == 0


def test_a_udp_module_counts_once_it_has_its_port(client: ResourceAllocator, work: Path, state):
    (resource,) = state["allocated_resources"].values()
    resource["protocol"] = "UDP"
    state["project_spec"]["modules"] = [module("datagrams.py")]
    assert deployer_node(client, work)(state)["deployment"]["backend"]["port"] == port_of(state)
    state["project_spec"]["modules"] = [module("deaf.py", start_timeout_s=0.5)]
    refused("PROBE_FAILED", Disposition.CALLER, deployer_node(client, work), state)


def test_each_module_has_its_own_port_whatever_their_order_l03(client: ResourceAllocator, work: Path, state):
    state = with_modules(state, module(name="web"), module(name="api"))
    state["allocated_resources"] = dict(reversed(state["allocated_resources"].items()))
    deployment = deployer_node(client, work)(state)["deployment"]
    assert {name: running["port"] for name, running in deployment.items()} == {
        resource["module"]: resource["port"] for resource in state["allocated_resources"].values()
    }
