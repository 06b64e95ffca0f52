"""README.md, whose every command runs and prints what it says."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
from conftest import EXAMPLE, HELLO, free_ports
from documents import Reader, environment_without_network
from live_service import ROOT, clean_environment, live_service

from devops_pipeline import processes


def test_the_tour_runs(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = EXAMPLE / "README.md"
    (command,) = re.findall(r"```sh in another terminal\n(.*)\n", readme.read_text())
    assert command.endswith(" --inventory examples/devops_pipeline/inventory.toml")
    # The same service on ports that are free here.
    first = free_ports()
    inventory = tmp_path / "inventory.toml"
    inventory.write_text((EXAMPLE / "inventory.toml").read_text().replace("18000-18999", f"{first}-{first + 7}"))
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ["clients", "examples"]:
        (clone / name).symlink_to(ROOT / name)
    environment = environment_without_network(Path(sysconfig.get_path("purelib")), clean_environment())
    with live_service(binary, "--inventory", str(inventory)) as service:
        replace = {"127.0.0.1:50051": service.address, "18000": str(first), "18001": str(first + 1)}
        reader = Reader(clone, environment, ".venv/bin/python", replace)
        try:
            assert reader.follow(readme) == 10
        finally:
            processes.stop(processes.mark_of(clone / ".devops-pipeline", HELLO.name))
