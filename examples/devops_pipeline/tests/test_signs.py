"""Signs: what becomes of the stream, and of jobs that wait for it, where the service refuses it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import pytest
from conftest import HELLO, Pipeline, eventually
from live_service import live_service

from devops_pipeline import signs
from devops_pipeline.signs import Signs
from devops_pipeline.worker import TRY_INVENTORY_S
from resource_allocator_client import Disposition, ResourceAllocatorError
from resource_allocator_client.errors import error_of


class Refusing:
    """A client whose every watch is refused."""

    def __init__(self, reason: str, disposition: Disposition) -> None:
        self.asked = 0
        self._reason = reason
        self._disposition = disposition

    def watch(self, **_: Any) -> Refusing:
        self.asked += 1
        return self

    def __enter__(self) -> None:
        raise self.refusal()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None: ...

    def refusal(self) -> ResourceAllocatorError:
        code = grpc.StatusCode.UNKNOWN
        return error_of("words", reason=self._reason, disposition=self._disposition, code=code)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "PAUSE_S", 0.01)


@pytest.mark.parametrize("reason", ["FORBIDDEN", "UNAUTHENTICATED", "NOT_IMPLEMENTED", "A_REASON_OF_LATER"])
def test_a_refusal_of_the_caller_is_told_once_and_not_provoked_again(reason: str, caplog: pytest.LogCaptureFixture):
    client = Refusing(reason, Disposition.CALLER)
    with Signs(client) as followed:
        # What happened before may have made room.
        eventually("a sign", lambda: followed.count == 1)
        time.sleep(0.2)
    assert client.asked == 1
    assert [reason in record.getMessage() for record in caplog.records if record.name == "devops_pipeline"] == [True]


@pytest.mark.parametrize(
    ("reason", "disposition"),
    [
        ("SEQUENCE_COMPACTED", Disposition.CALLER),
        ("LOG_RESTARTED", Disposition.CALLER),
        ("UNREACHABLE", Disposition.TECHNICAL),
    ],
)
def test_a_stream_that_cannot_be_resumed_is_begun_anew(reason: str, disposition: Disposition):
    client = Refusing(reason, disposition)
    with Signs(client):
        eventually("it is asked again", lambda: client.asked > 2)


@pytest.fixture
def held_to_a_project(binary: Path, tmp_path: Path) -> Iterator[Pipeline]:
    """A worker's folder and environment, with a token that is held to one project, for a service without servers."""
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=service"
    named = "-addext subjectAltName=IP:127.0.0.1 -keyout service.key -out service.pem"
    subprocess.run([*made.split(), *named.split()], cwd=tmp_path, check=True, capture_output=True)
    command = [binary, "token", "new", "--name", "worker", "--role", "worker", "--project", HELLO.name]
    token = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / "credentials.toml").write_text(token.stderr)
    arguments = ["--tls-certificate", "service.pem", "--tls-key", "service.key", "--auth-tokens", "credentials.toml"]
    in_folder = [one if one.startswith("--") else str(tmp_path / one) for one in arguments]
    with live_service(binary, *in_folder) as service:
        pipeline = Pipeline(service, tmp_path / "work")
        pipeline.environment |= {
            "RESOURCE_ALLOCATOR_ENDPOINT": f"https://{service.address}",
            "RESOURCE_ALLOCATOR_TLS_CA": str(tmp_path / "service.pem"),
            "RESOURCE_ALLOCATOR_TOKEN": token.stdout.strip(),
        }
        yield pipeline
        pipeline.close()


def test_a_worker_that_is_held_to_projects_goes_by_time(held_to_a_project: Pipeline):
    pipeline = held_to_a_project
    worker = pipeline.worker()
    eventually("the refusal is told", lambda: any("FORBIDDEN" in line for line in worker.said))
    name = pipeline.submit(HELLO)
    job = pipeline.until(name, "parked")
    assert (job["report"]["reason"], job["report"]["told_by_stream"]) == ("NO_SERVERS", True)
    assert 0 < job["again_at"] - time.time() <= TRY_INVENTORY_S

    # The time comes, and it is parked until the next.
    (pipeline.jobs.folder / f"{name}.json").write_text(json.dumps(job | {"again_at": time.time()}))
    eventually("it is tried again", lambda: (pipeline.job(name)["again_at"] or 0) > time.time() + TRY_INVENTORY_S / 2)
    worker.stop()
    assert sum("FORBIDDEN" in line for line in worker.said) == 1
