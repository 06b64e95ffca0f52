"""The package as others get it: built, unpacked, and beside stubs of their own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from live_service import PATIENCE_S, ROOT

from resource_allocator_client import Allocation, AllocationEvent, __version__

PACKAGE = ROOT / "clients" / "python"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install ./clients/python` adds to site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the tests need no network: the tests' environment has the builder.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, PACKAGE], check=True, timeout=PATIENCE_S)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"resource_allocator_client-{__version__}-py3-none-any.whl"
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(code: str, *paths: Path) -> str:
    """Runs code in a fresh interpreter that finds nothing of the source tree."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=paths[0], env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_name_at_the_top_level_and_the_types_with_it(site: Path):
    assert {path.name for path in site.iterdir()} == {
        "resource_allocator_client",
        f"resource_allocator_client-{__version__}.dist-info",
    }
    assert (site / "resource_allocator_client" / "py.typed").exists()
    assert (site / "resource_allocator_client" / "v1" / "types_pb2.pyi").exists()
    assert run("import resource_allocator_client as c; print(c.__file__, c.__version__)", site) == (
        f"{site}/resource_allocator_client/__init__.py {__version__}"
    )


def test_the_extra_is_not_needed_for_the_calls(site: Path):
    told = run(
        "import sys, resource_allocator_client.client, resource_allocator_client.aio_client\n"
        "print([name for name in sys.modules if name.startswith(('langgraph', 'langchain'))])",
        site,
    )
    assert told == "[]"


def test_it_lives_beside_stubs_that_its_user_generated(site: Path, tmp_path: Path):
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    subprocess.run([*command, f"--python_out={tmp_path}", *map(str, protos)], check=True, timeout=PATIENCE_S)
    told = run(
        "from resourceallocator.v1 import types_pb2 as theirs\n"
        "from resource_allocator_client.v1 import types_pb2 as ours\n"
        "print(ours.Allocation.FromString(theirs.Allocation(port=8000).SerializeToString()).port)",
        site,
        tmp_path,
    )
    assert told == "8000"


def test_messages_travel_between_processes():
    event = AllocationEvent(sequence=7, project_id="shop")
    assert pickle.loads(pickle.dumps(event)) == event
    assert pickle.loads(pickle.dumps(Allocation(port=8000))).port == 8000
