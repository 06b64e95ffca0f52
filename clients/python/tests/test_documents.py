"""The documents, whose every command runs and prints what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import Reader, environment_without_network
from live_service import ROOT, Service, clean_environment, live_service


@pytest.fixture
def sample_service(binary: Path) -> Iterator[Service]:
    """What `make run` starts: a service with the sample inventory."""
    with live_service(binary, "--inventory", str(ROOT / "examples" / "servers.toml")) as service:
        yield service


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder like a clone, in which a reader may leave things."""
    (tmp_path / "clients").symlink_to(ROOT / "clients")
    return tmp_path


def read(document: str, service: Service, clone: Path, python: str) -> int:
    environment = environment_without_network(Path(sysconfig.get_path("purelib")), clean_environment())
    reader = Reader(clone, environment, python, {"127.0.0.1:50051": service.address})
    return reader.follow(ROOT / document)


def test_the_tour_runs(sample_service: Service, clone: Path):
    assert read("docs/callers/python.md", sample_service, clone, ".venv/bin/python") > 15


def test_the_readme_runs(sample_service: Service, clone: Path, monkeypatch: pytest.MonkeyPatch):
    # Its `pip` is that of the reader's environment.
    subprocess.run([sys.executable, "-m", "venv", clone / "venv"], check=True)
    monkeypatch.setenv("PATH", f"{clone / 'venv' / 'bin'}:{os.environ['PATH']}")
    assert read("clients/python/README.md", sample_service, clone, "venv/bin/python") == 6
