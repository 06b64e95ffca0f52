"""What a client shows of itself, and whom it believes, against a service that asks for it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import Service, live_service

from resource_allocator_client import AsyncResourceAllocator, ResourceAllocator
from resource_allocator_client._channel import find_credentials
from resource_allocator_client.errors import CallerRefusal, ResourceAllocatorError, TechnicalFailure

VARIABLES = ("TOKEN", "TOKEN_FILE", "TLS_CA", "CLIENT_CERTIFICATE", "CLIENT_KEY")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(f"RESOURCE_ALLOCATOR_{variable}", raising=False)


def new_token(binary: Path, folder: Path, name: str, role: str, *more: str) -> str:
    """Makes a token, and adds it to the file of those that may call."""
    command = [binary, "token", "new", "--name", name, "--role", role, *more]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    with (folder / "credentials.toml").open("a", encoding="utf-8") as file:
        file.write(made.stderr)
    return made.stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate of its own for the service, which is its own authority."""
    folder = tmp_path_factory.mktemp("credentials")
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=service"
    named = "-addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout service.key -out service.pem"
    subprocess.run([*made.split(), *named.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tokens(binary: Path, folder: Path) -> dict[str, str]:
    return {
        "viewer": new_token(binary, folder, "viewer", "viewer"),
        "worker": new_token(binary, folder, "worker", "worker", "--project", "shop-"),
    }


@pytest.fixture(scope="module")
def guarded(binary: Path, folder: Path, tokens: dict[str, str]) -> Iterator[Service]:
    assert tokens
    with live_service(
        binary,
        "--tls-certificate",
        folder / "service.pem",
        "--tls-key",
        folder / "service.key",
        "--auth-tokens",
        folder / "credentials.toml",
    ) as service:
        yield service


@pytest.fixture
def endpoint(guarded: Service) -> str:
    return f"https://{guarded.address}"


def test_a_token_over_tls_is_let_in_as_far_as_its_role(endpoint: str, folder: Path, tokens: dict[str, str]):
    authority = folder / "service.pem"
    with ResourceAllocator(endpoint, tls_ca=authority, token=tokens["viewer"]) as client:
        assert client.list(project_id="shop-1").allocations == ()
        with pytest.raises(CallerRefusal) as refused:
            client.ensure("shop-1")
        assert refused.value.reason == "FORBIDDEN"
        with client.watch(project_id="shop-1"):
            pass
    with ResourceAllocator(endpoint, tls_ca=authority, token=tokens["worker"]) as client:
        for project_id, reason in [("shop-1", "NO_SERVERS"), ("other", "FORBIDDEN")]:
            with pytest.raises(ResourceAllocatorError) as refused:
                client.ensure(project_id)
            assert refused.value.reason == reason
    for token in [None, "ra_unknown"]:
        with ResourceAllocator(endpoint, tls_ca=authority, token=token) as client:
            with pytest.raises(CallerRefusal) as refused:
                client.list(project_id="shop-1")
            assert refused.value.reason == "UNAUTHENTICATED"


def test_the_environment_names_what_is_shown(
    endpoint: str, folder: Path, tokens: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RESOURCE_ALLOCATOR_TLS_CA", str(folder / "service.pem"))
    monkeypatch.setenv("RESOURCE_ALLOCATOR_TOKEN", tokens["viewer"])
    with ResourceAllocator(endpoint) as client:
        assert client.list(project_id="shop-1").allocations == ()

    async def by_file() -> None:
        async with AsyncResourceAllocator(endpoint) as client:
            listed = await client.list(project_id="shop-1")
            assert listed.allocations == ()

    monkeypatch.setenv("RESOURCE_ALLOCATOR_TOKEN", "ra_unknown")
    (tmp_path / "token").write_text(tokens["worker"] + "\n", encoding="ascii")
    monkeypatch.setenv("RESOURCE_ALLOCATOR_TOKEN_FILE", str(tmp_path / "token"))
    asyncio.run(by_file())


def test_a_service_of_another_authority_is_not_believed(endpoint: str, tokens: dict[str, str]):
    with (
        ResourceAllocator(endpoint, token=tokens["viewer"], timeout=2) as client,
        pytest.raises(TechnicalFailure),
    ):
        client.list(project_id="shop-1")


def test_halves_and_what_is_no_token_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="belong together"):
        ResourceAllocator("https://localhost:1", tls_certificate="a.pem")
    with pytest.raises(ValueError, match="characters") as refused:
        ResourceAllocator("https://localhost:1", token="hunter2\n")
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("RESOURCE_ALLOCATOR_CLIENT_KEY", "a.key")
    with pytest.raises(ValueError, match="belong together"):
        ResourceAllocator("https://localhost:1")
    monkeypatch.delenv("RESOURCE_ALLOCATOR_CLIENT_KEY")
    assert "hunter2" not in repr(find_credentials("hunter2", None, None, None))


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:1",
        "127.8.0.1:1",
        "http://localhost:1",
        "http://[::1]:1",
        "unix:/run/allocator.sock",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
        "https://allocator.example.net:1",
    ],
)
def test_a_token_goes_where_nobody_else_can_read_it(endpoint: str):
    ResourceAllocator(endpoint, token="ra_secret").close()


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://allocator.example.net:1",
        "192.0.2.1:1",
        "http://[2001:db8::1]:1",
        "http://localhost.example.net:1",
        "http://127.0.0.1.example.net:1",
        "dns:///allocator:1",
        "dns://127.0.0.1/allocator:1",
        "ipv4:127.0.0.1:1,192.0.2.1:1",
    ],
)
def test_a_token_does_not_travel_in_clear_text_unless_told_to(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="clear text") as refused:
        ResourceAllocator(endpoint, token="ra_secret")
    assert "ra_secret" not in str(refused.value)
    ResourceAllocator(endpoint, token="ra_secret", insecure=True).close()
    # Without a token there is nothing to read.
    ResourceAllocator(endpoint).close()
    monkeypatch.setenv("RESOURCE_ALLOCATOR_TOKEN", "ra_secret")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="clear text"):
            AsyncResourceAllocator(endpoint)
        await AsyncResourceAllocator(endpoint, insecure=True).close()

    asyncio.run(scenario())
