"""What the tours share: the real binary on a private Postgres in a folder of its own, and stubs made from proto/."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Far above what anything takes: a bound for a hang, not an expectation.
PATIENCE_S = 120


@pytest.fixture(scope="session")
def binary() -> Path:
    """The service's program, which scripts/test has built; RESOURCE_ALLOCATOR_BINARY names another one."""
    named = os.environ.get("RESOURCE_ALLOCATOR_BINARY")
    if named:
        return Path(named)
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--offline", "--format-version", "1"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    path = Path(json.loads(metadata.stdout)["target_directory"], "debug", "resource-allocator")
    assert path.exists(), f"{path} is missing: run cargo build --bin resource-allocator"
    return path


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated stubs, as README.md makes it; it can be imported from."""
    folder = tmp_path_factory.mktemp("stubs")
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", *map(str, protos)]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    return folder


@dataclass
class Service:
    """A service that listens."""

    address: str


@pytest.fixture
def service(binary: Path):
    """The service as a new user starts it, but for its folder and its port. It must end well."""
    # Root's Postgres runs as another user, who must be able to enter the folder.
    folder = Path(tempfile.mkdtemp(prefix="ra-tour-", dir="/tmp"))
    folder.chmod(0o755)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "RESOURCE_ALLOCATOR_POSTGRES_BIN"
        or not name.startswith(("RESOURCE_ALLOCATOR_", "PG", "DATABASE_URL", "RUST_LOG"))
    }
    process = subprocess.Popen(
        [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder / "data"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # One that never gets ready is ended, and with it the wait for its line.
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        said = []
        address = None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on ([0-9.]+:[0-9]+)", line):
                address = found[1]
                break
        watchdog.cancel()
        assert address, "the service did not start:\n" + "".join(said)
        # Read on, so that the pipe never fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Service(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
