"""Tools that people reach for, against the live service: a probe, a load, psql, a page in a browser.

scripts/test brings what Go and npm bring; where these are missing, what needs them is left out, by name.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from conftest import PATIENCE_S, ROOT, Service, live_service

ALLOCATOR = "resourceallocator.v1.ResourceAllocator"
INVENTORY = "resourceallocator.v1.ServerInventory"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT
    )


def program_of(builder: str, name: str) -> str:
    """A program that scripts/test has had built; without the builder, the test is left out."""
    program = shutil.which(name)
    if program is None and shutil.which(builder) is None:
        pytest.skip(f"{name} needs {builder}, which is not on this machine")
    assert program, f"{name} is missing: scripts/setup-checks {name} brings it"
    return program


@pytest.fixture
def register(stubs, service: Service) -> Iterator[Callable[..., object]]:
    """Registers a server: 8 GB of RAM unless told otherwise."""
    from resourceallocator.v1 import server_inventory_pb2, server_inventory_pb2_grpc, types_pb2

    with grpc.insecure_channel(service.address) as channel:
        inventory = server_inventory_pb2_grpc.ServerInventoryStub(channel)

        def register(handle: str, ram_mb: int = 8192):
            capacity = types_pb2.Resources(ram_mb=ram_mb, disk_mb=10_000_000, cpu_millis=4000)
            server = types_pb2.Server(handle=handle, address="192.0.2.11", capacity=capacity)
            request = server_inventory_pb2.RegisterServerRequest(server=server)
            return inventory.RegisterServer(request, timeout=PATIENCE_S)

        yield register


@pytest.fixture
def allocator(stubs, service: Service):
    from resourceallocator.v1 import resource_allocator_pb2_grpc

    with grpc.insecure_channel(service.address) as channel:
        yield resource_allocator_pb2_grpc.ResourceAllocatorStub(channel)


@pytest.fixture
def psql(service: Service) -> Callable[[str], list[str]]:
    """Types a statement into psql, as `make run` shows how to, and reads the rows."""
    program = shutil.which("psql")
    if program is None:
        pytest.skip("psql is not on this machine")
    # The server's own pid file says where its socket is: the port on line 4, the socket's folder on line 5.
    lines = (service.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    place = f"host={lines[4]} port={lines[3]} user=resource_allocator dbname=resource_allocator"

    def psql(statement: str) -> list[str]:
        done = run(
            program, place, "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "-c", statement
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return psql


def test_a_probe_asks_the_health_of_each_service(service: Service):
    probe = program_of("go", "grpc-health-probe")
    for name in ["", ALLOCATOR, INVENTORY]:
        done = run(probe, f"-addr={service.address}", f"-service={name}")
        assert (done.returncode, "SERVING" in done.stderr) == (0, True), done.stderr
    # Its exit codes: 2 is no connection, 3 is a call that failed.
    assert run(probe, f"-addr={service.address}", "-service=resourceallocator.v1.Unknown").returncode == 3
    service.stop()
    assert run(probe, f"-addr={service.address}", "-connect-timeout=1s").returncode == 2


def test_a_load_of_many_callers_gets_what_one_would(service: Service, register, psql):
    ghz = program_of("go", "ghz")
    calls = 600
    for handle in ["web-1", "web-2", "web-3"]:
        register(handle, ram_mb=1_000_000)
    flags = ["--insecure", "--concurrency=50", f"--total={calls}", "--connections=5", "--format=json"]

    def load(method: str, data: str) -> dict:
        done = run(ghz, *flags, f"--call={ALLOCATOR}.{method}", f"--data={data}", service.address)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["statusCodeDistribution"]

    assert load("EnsureAllocation", '{"project_id": "load-{{.RequestNumber}}"}') == {"OK": calls}
    # The same again changes nothing, and the same project many times at once is placed once (L46).
    assert load("EnsureAllocation", '{"project_id": "load-{{.RequestNumber}}"}') == {"OK": calls}
    assert load("EnsureAllocation", '{"project_id": "popular"}') == {"OK": calls}
    assert load("GetPlacement", '{"project_id": "popular"}') == {"OK": calls}
    held = "SELECT count(*), count(DISTINCT (server_handle, port)), count(DISTINCT project_id) FROM port_allocations"
    assert psql(held) == [f"{calls + 1}|{calls + 1}|{calls + 1}"]
    sums = "SELECT sum(reserved_ram_mb), sum(placement_count) FROM servers"
    assert psql(sums) == [f"{512 * (calls + 1)}|{calls + 1}"]
    # A refusal is one to a load too.
    assert load("EnsureAllocation", '{"project_id": "large", "resources": {"ram_mb": 9999999}}') == {
        "FailedPrecondition": calls
    }


def test_operators_read_and_change_the_inventory_with_psql(stubs, psql, register, allocator):
    from resourceallocator.v1 import resource_allocator_pb2 as api

    register("web-1", ram_mb=16_384)
    register("web-2")
    query = "SELECT handle, status, capacity_ram_mb FROM servers WHERE status IN ('ready','in_use') ORDER BY handle"
    assert psql(query) == ["web-1|ready|16384", "web-2|ready|8192"]
    allocator.EnsureAllocation(api.EnsureAllocationRequest(project_id="shop"), timeout=PATIENCE_S)
    assert psql(query) == ["web-1|in_use|16384", "web-2|ready|8192"]
    ports = "SELECT project_id, module, server_handle, port FROM port_allocations WHERE project_id IS NOT NULL"
    assert psql(ports) == ["shop|backend|web-1|8000"]

    assert psql("UPDATE servers SET status = 'maintenance' WHERE handle = 'web-2'") == ["UPDATE 1"]
    # The next request sees it.
    found = allocator.FindServer(api.FindServerRequest(explain=True, max_candidates=5), timeout=PATIENCE_S)
    assert [candidate.server.handle for candidate in found.candidates] == ["web-1"]
    assert [(rejection.server_handle, rejection.reason) for rejection in found.rejections] == [("web-2", "STATUS")]
    assert psql(query) == ["web-1|in_use|16384"]


def test_what_the_readme_types_into_psql_works(psql, register):
    register("web-1")
    register("web-2")
    [block] = re.findall(r"### With psql\n.*?```sql\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    servers, ports, changed = [sorted(psql(statement)) for statement in block.splitlines()]
    assert servers == ["web-1|ready|8192", "web-2|ready|8192"]
    assert ports == []
    assert changed == ["UPDATE 1"]


@pytest.fixture(scope="session")
def page() -> Path:
    """The page's script, built."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on this machine")
    buf = shutil.which("buf") or ROOT / ".tools" / "bin" / "buf"
    made = run(buf, "generate", "--template", "clients/node/buf.gen.yaml")
    assert made.returncode == 0, made.stderr
    built = run("npm", "--prefix", "clients/node", "run", "--silent", "build")
    assert built.returncode == 0, built.stdout
    return ROOT / "clients" / "node" / "dist" / "src" / "browser.js"


@pytest.mark.parametrize("allowed", [True, False])
def test_a_page_calls_by_grpc_web_where_its_origin_is_named(allowed: bool, page: Path, binary: Path, stubs):
    from resourceallocator.v1 import resource_allocator_pb2 as api
    from resourceallocator.v1 import resource_allocator_pb2_grpc

    origin = "http://console.example.test"
    named = ["--cors-origin", origin if allowed else "http://other.example.test"]
    with live_service(binary, "--inventory", str(ROOT / "examples" / "servers.toml"), *named) as service:
        done = run("node", page, origin, RESOURCE_ALLOCATOR_ENDPOINT=service.endpoint)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        with grpc.insecure_channel(service.address) as channel:
            allocator = resource_allocator_pb2_grpc.ResourceAllocatorStub(channel)
            listed = allocator.ListAllocations(api.ListAllocationsRequest(), timeout=PATIENCE_S).allocations
    if allowed:
        assert told["placed"] == [{"module": "backend", "port": 8000}]
        # The details of a refusal are in headers that a page sees only where it is told that it may.
        assert told["refused"]["reason"] == "INVALID_REQUEST"
        assert told["watched"] == 1
        assert [row["project_id"] for row in told["json"]["body"]] == ["page"]
        assert [allocation.project_id for allocation in listed] == ["page"]
    else:
        assert all("Cross-Origin" in call["failed"] for call in told.values()), told
        assert not listed
