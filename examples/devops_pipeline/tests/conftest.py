"""What the pipeline's tests share: the real service, a server that is this machine, a worker's folder, and real workers."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from live_service import PATIENCE_S, ROOT, Service, clean_environment, find_binary, live_service

from devops_pipeline import processes
from devops_pipeline.jobs import Jobs
from resource_allocator_client import ResourceAllocator
from resource_allocator_client.v1 import server_inventory_pb2 as inventory
from resource_allocator_client.v1 import types_pb2 as types
from resource_allocator_client.v1.server_inventory_pb2_grpc import ServerInventoryStub

EXAMPLE = ROOT / "examples" / "devops_pipeline"
HELLO = EXAMPLE / "projects" / "hello-world-bot"
# How many ports a test's server has.
PORTS = 8


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_binary()


@pytest.fixture(scope="session")
def shared_service(binary: Path) -> Iterator[Service]:
    with live_service(binary) as service:
        yield service


@pytest.fixture
def own_service(binary: Path) -> Iterator[Service]:
    """A service with an empty inventory, for what the shipped project does on it."""
    with live_service(binary) as service:
        yield service


def free_ports() -> int:
    """The first of as many ports in a row that nobody on this machine has, below those that the system gives to clients."""
    while True:
        first = 10_000 + uuid.uuid4().int % 20_000
        try:
            for port in range(first, first + PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def register(
    service: Service, handle: str, ram_mb: int = 8192, address: str = "127.0.0.1", **fields: Any
) -> types.Server:
    """Registers a server that is this machine, unless told otherwise."""
    first = free_ports()
    server = types.Server(
        handle=handle,
        address=address,
        capacity=types.Resources(ram_mb=ram_mb, disk_mb=100_000, cpu_millis=4000),
        port_range=types.PortRange(start=first, end=first + PORTS - 1),
        **fields,
    )
    with grpc.insecure_channel(service.address) as channel:
        request = inventory.RegisterServerRequest(server=server)
        return ServerInventoryStub(channel).RegisterServer(request, timeout=PATIENCE_S).server


def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """Waits for something that comes by itself, and gives it."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, f"it never came: {what}"
        time.sleep(0.05)
    return found


def get(address: str, port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Worker:
    """A worker, as an operator starts it."""

    def __init__(self, pipeline: Pipeline, *arguments: str, program: list[str] | None = None) -> None:
        command = program or [sys.executable, "-m", "devops_pipeline"]
        self.process = subprocess.Popen(
            [*command, "--work", pipeline.work, "worker", *arguments],
            cwd=EXAMPLE,
            env=pipeline.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.finish()

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process.wait(PATIENCE_S) == 0, "".join(self.said)
        self._reader.join(PATIENCE_S)

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self.process.kill()
        self.process.wait()


class Pipeline:
    """A folder that workers share, and the service that they ask."""

    def __init__(self, service: Service, work: Path) -> None:
        self.service = service
        self.work = work
        paths = [str(EXAMPLE), str(ROOT / "clients" / "python" / "src")]
        self.environment = clean_environment() | {
            "RESOURCE_ALLOCATOR_ENDPOINT": service.endpoint,
            "PYTHONPATH": os.pathsep.join(paths),
        }
        self.client = ResourceAllocator(service.endpoint, timeout=PATIENCE_S)
        self.jobs = Jobs(work)
        self._workers: list[Worker] = []
        self._projects: set[str] = set()

    def give_secrets(self, project_id: str, **values: str) -> None:
        path = self.work / "secrets" / f"{project_id}.env"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        path.chmod(0o600)

    def worker(self, *arguments: str, program: list[str] | None = None) -> Worker:
        worker = Worker(self, *arguments, program=program)
        self._workers.append(worker)
        return worker

    def submit(self, project: Path) -> str:
        self._projects.add(yaml.safe_load((project / "project.yaml").read_text())["project_id"])
        return self.jobs.submit(project).name

    def command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "devops_pipeline", "--work", self.work, *arguments]
        done = subprocess.run(
            command, cwd=EXAMPLE, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, name: str) -> dict[str, Any]:
        return json.loads((self.work / "jobs" / f"{name}.json").read_text())

    def until(self, name: str, status: str) -> dict[str, Any]:
        """Waits until a job has a status, and gives its content."""

        def reached() -> dict[str, Any] | None:
            job = self.job(name)
            others = {"done", "failed"} - {status}
            assert job["status"] not in others, job.get("report")
            return job if job["status"] == status else None

        return eventually(f"{name} is {status}", reached)

    def processes(self, project_id: str) -> list[Any]:
        return processes.find(processes.mark_of(self.work, project_id))

    def ports(self, project_id: str) -> dict[str, int]:
        return {allocation.module: allocation.port for allocation in self.client.list(project_id=project_id)}

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        for project_id in self._projects:
            processes.stop(processes.mark_of(self.work, project_id))
        self.client.close()


@pytest.fixture
def pipeline(shared_service: Service, tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(shared_service, tmp_path / "work")
    yield pipeline
    pipeline.close()


@pytest.fixture
def own_pipeline(own_service: Service, tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(own_service, tmp_path / "work")
    yield pipeline
    pipeline.close()


@pytest.fixture
def tag() -> str:
    """Names what is this test's own."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def here(shared_service: Service, tag: str) -> str:
    """A server of this test's own that is this machine; `project` selects it."""
    return register(shared_service, f"here-{tag}", labels={"test": tag}).handle


@pytest.fixture
def project(tmp_path: Path, tag: str) -> Callable[..., Path]:
    """Copies hello-world-bot under an id of the test's own, which is also the folder's name, and changes its file."""

    def project(name: str = "shop", files: dict[str, str] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "projects" / f"{name}-{tag}"
        shutil.copytree(HELLO, folder)
        content = yaml.safe_load((folder / "project.yaml").read_text())
        content |= {"project_id": folder.name, "server_selector": {"test": tag}} | changes
        (folder / "project.yaml").write_text(yaml.safe_dump(content))
        for path, text in (files or {}).items():
            (folder / path).write_text(text)
        return folder

    return project
