"""The same tour with grpcurl, which knows nothing but what the service tells of itself by reflection.

scripts/test brings grpcurl. Without it these tests fail: SKIP_GRPCURL=1 says by name that they are to be left out.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import PATIENCE_S, ROOT, Service, live_service

ALLOCATOR = "resourceallocator.v1.ResourceAllocator"
INVENTORY = "resourceallocator.v1.ServerInventory"
HEALTH = "grpc.health.v1.Health"

pytestmark = pytest.mark.skipif(bool(os.environ.get("SKIP_GRPCURL")), reason="SKIP_GRPCURL is set")


@pytest.fixture(scope="session")
def grpcurl() -> str:
    program = shutil.which("grpcurl")
    assert program, "grpcurl is missing: scripts/setup-checks grpcurl brings it, SKIP_GRPCURL=1 does without"
    return program


@pytest.fixture
def run(grpcurl: str, service: Service) -> Callable[..., subprocess.CompletedProcess]:
    """Runs grpcurl: flags, then what follows the address."""

    def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        command = [grpcurl, "-plaintext", *flags, service.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

    return run


@pytest.fixture
def call(run) -> Callable[[str, dict], dict]:
    """Calls a method, which must answer."""

    def call(method: str, request: dict) -> dict:
        done = run(method, flags=("-d", json.dumps(request)))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture
def register(call) -> Callable[..., dict]:
    def register(handle: str, ram_mb: int = 8192, **fields) -> dict:
        capacity = {"ram_mb": ram_mb, "disk_mb": 100_000}
        server = {"handle": handle, "address": "192.0.2.11", "capacity": capacity, **fields}
        return call(f"{INVENTORY}/RegisterServer", {"server": server})

    return register


def documents(stream) -> Iterator[dict]:
    """The JSON documents that a program prints one after the other."""
    decoder, text = json.JSONDecoder(), ""
    for line in stream:
        text += line
        # A document of grpcurl's ends with a brace at the start of a line.
        if line.startswith("}"):
            document, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            yield document


def test_the_service_tells_what_it_is(run):
    listed = run("list")
    assert listed.returncode == 0, listed.stderr
    assert {ALLOCATOR, INVENTORY, HEALTH} <= set(listed.stdout.split())
    described = run("describe", f"{ALLOCATOR}.EnsureAllocation")
    assert "rpc EnsureAllocation" in described.stdout, described.stderr
    health = run(f"{HEALTH}/Check")
    assert json.loads(health.stdout) == {"status": "SERVING"}


def test_every_method_of_both_services_describes_itself(run):
    for service in [ALLOCATOR, INVENTORY]:
        methods = run("list", service).stdout.split()
        assert len(methods) > 5, methods
        for method in methods:
            described = run("describe", method)
            assert f"rpc {method.rpartition('.')[2]} (" in described.stdout, described.stderr
            [request] = re.findall(r"rpc \w+ \( \.([\w.]+) \)", described.stdout)
            assert run("describe", request).returncode == 0


def test_every_method_of_the_inventory_is_called(call, register):
    created = register("right")["server"]
    assert call(f"{INVENTORY}/GetServer", {"handle": "right"})["server"]["etag"] == created["etag"]
    assert [server["handle"] for server in call(f"{INVENTORY}/ListServers", {})["servers"]] == ["right"]
    # In the JSON that grpcurl reads, a mask is an object.
    change = {
        "server": {"handle": "right", "status": "SERVER_STATUS_MAINTENANCE"},
        "update_mask": {"paths": ["status"]},
    }
    assert call(f"{INVENTORY}/UpdateServer", change)["server"]["status"] == "SERVER_STATUS_MAINTENANCE"
    report = {"handle": "right", "usage": {"ram_mb": 300, "listening_ports": [22]}}
    assert call(f"{INVENTORY}/ReportUsage", report)["server"]["observed"]["usage"]["listeningPorts"] == [22]
    source = {"source": "cloud", "servers": [{"handle": "c-1", "address": "192.0.2.41", "capacity": {"ram_mb": 1}}]}
    assert call(f"{INVENTORY}/SyncServers", source)["created"] == 1
    assert call(f"{INVENTORY}/DeleteServer", {"handle": "right"}) == {}


def test_what_the_readme_shows_works(grpcurl, service, register):
    register("right")
    readme = (ROOT / "README.md").read_text()
    [block] = re.findall(r"### With grpcurl\n.*?```sh\n(.*?)```", readme, re.DOTALL)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 4
    for name, *arguments in commands:
        assert name == "grpcurl"
        arguments = [argument.replace("127.0.0.1:50051", service.address) for argument in arguments]
        done = subprocess.run([grpcurl, *arguments], capture_output=True, text=True, timeout=PATIENCE_S)
        # A watch ends when its time is over.
        ended = "DeadlineExceeded" in done.stderr if "-max-time" in arguments else done.returncode == 0
        assert ended, (arguments, done.stderr)
        assert done.stdout, (arguments, done.stderr)


def test_the_deploy_that_failed_gets_its_server_and_its_ports(call, register, grpcurl, service):
    register("resting", ram_mb=32768, status="SERVER_STATUS_MAINTENANCE")
    register("right")
    register("small", ram_mb=256)

    created = call(f"{ALLOCATOR}/EnsureAllocation", {"project_id": "hello-world-bot"})
    assert created["outcome"] == "ENSURE_OUTCOME_CREATED"
    assert created["placement"]["serverHandle"] == "right"
    assert [(a["module"], a["port"]) for a in created["allocations"]] == [("backend", 8000)]

    repeated = call(f"{ALLOCATOR}/EnsureAllocation", {"project_id": "hello-world-bot"})
    assert repeated["outcome"] == "ENSURE_OUTCOME_UNCHANGED"
    assert repeated["allocations"] == created["allocations"]

    modules = [{"name": "backend"}, {"name": "frontend"}]
    extended = call(f"{ALLOCATOR}/EnsureAllocation", {"project_id": "hello-world-bot", "modules": modules})
    assert extended["outcome"] == "ENSURE_OUTCOME_EXTENDED"
    assert [(a["module"], a["port"]) for a in extended["allocations"]] == [("backend", 8000), ("frontend", 8001)]

    assert call(f"{ALLOCATOR}/ListAllocations", {})["allocations"] == extended["allocations"]
    placed = call(f"{ALLOCATOR}/GetPlacement", {"project_id": "hello-world-bot"})
    assert placed["allocations"] == extended["allocations"]
    [candidate] = call(f"{ALLOCATOR}/FindServer", {"explain": True})["candidates"]
    assert candidate["server"]["handle"] == "right"
    released = call(f"{ALLOCATOR}/ReleaseAllocation", {"project_id": "hello-world-bot"})
    assert released["placementRemoved"] is True
    assert "allocations" not in call(f"{ALLOCATOR}/ListAllocations", {})

    command = [
        grpcurl,
        "-plaintext",
        "-d",
        '{"from_beginning": true}',
        service.address,
        f"{ALLOCATOR}/WatchAllocations",
    ]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(PATIENCE_S, watch.kill)
    watchdog.start()
    try:
        events = []
        for message in documents(watch.stdout):
            if "event" in message:
                events.append(message["event"])
                if "released" in message["event"]:
                    break
    finally:
        watchdog.cancel()
        watch.kill()
        watch.wait()
    assert [int(event["sequence"]) for event in events] == list(range(1, 12))
    assert events[3]["projectId"] == "hello-world-bot"
    assert "completed" in events[9]


def test_a_refusal_is_shown_with_its_reason(run, register):
    register("right")
    request = json.dumps({"project_id": "shop", "resources": {"ram_mb": 99_999}})
    refused = run(f"{ALLOCATOR}/EnsureAllocation", flags=("-d", request))
    assert refused.returncode != 0
    # Releases of grpcurl differ in the blanks.
    told = refused.stderr.replace(" ", "")
    for word in [
        "Code:FailedPrecondition",
        "google.rpc.ErrorInfo",
        "REQUEST_EXCEEDS_FLEET",
        '"disposition":"OPERATOR"',
    ]:
        assert word in told, refused.stderr


def test_a_service_with_tls_and_tokens_is_called_with_both(grpcurl, binary, tmp_path):
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=service"
    named = "-addext subjectAltName=IP:127.0.0.1 -keyout service.key -out service.pem"
    subprocess.run([*made.split(), *named.split()], cwd=tmp_path, check=True, capture_output=True)
    command = [binary, "token", "new", "--name", "tour", "--role", "viewer"]
    token = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / "credentials.toml").write_text(token.stderr)
    files = {"certificate": "service.pem", "key": "service.key"}
    flags = [word for flag, name in files.items() for word in (f"--tls-{flag}", str(tmp_path / name))]
    with live_service(binary, *flags, "--auth-tokens", str(tmp_path / "credentials.toml")) as service:

        def run(*arguments: str) -> subprocess.CompletedProcess:
            command = [grpcurl, "-cacert", str(tmp_path / "service.pem"), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

        # What there is, is told to those alone that are known.
        bearer = ("-H", f"authorization: Bearer {token.stdout.strip()}")
        listed = run(*bearer, service.address, "list")
        assert ALLOCATOR in listed.stdout, listed.stderr
        assert "Unauthenticated" in run(service.address, "list").stderr
        read = run(*bearer, service.address, f"{INVENTORY}/ListServers")
        assert read.returncode == 0, read.stderr
        refused = run(*bearer, "-d", '{"handle": "right"}', service.address, f"{INVENTORY}/DeleteServer")
        assert "PermissionDenied" in refused.stderr
        assert "FORBIDDEN" in refused.stderr
