"""What the tours share: the real binary, and stubs made from proto/."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from live_service import PATIENCE_S, ROOT, Service, find_binary, live_service

__all__ = ["PATIENCE_S", "ROOT", "Service", "live_service"]


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_binary()


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stubs that are made from proto/, as callers make their own; it can be imported from."""
    folder = tmp_path_factory.mktemp("stubs")
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", *map(str, protos)]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture
def service(binary: Path) -> Iterator[Service]:
    """The service as a new user starts it, but for its folder and its port. It must end well."""
    with live_service(binary) as service:
        yield service
