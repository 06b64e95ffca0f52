"""README.md: what it has a reader type does what it says. Each part is read with a service that has just been started."""

import os
import re
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from conftest import PATIENCE_S, ROOT, live_service
from documents import Block, Line, Reader, blocks, environment_without_network, is_what_is_shown, lines
from live_service import clean_environment

README = ROOT / "README.md"
# Each part, and what the reader types before each of its lines, where it needs more than what `make run` starts.
TYPED = {
    "A tour of five minutes": "",
    "With Python": "",
    "With plain HTTP": "ra ensure hello-world-bot",
    "With node_exporter": "",
    # Each of its lines is for another day.
    "Keeping a fleet": "ra servers set web-1 status=ready && ra ensure hello-world-bot",
    "Running it": "",
}
# test_grpcurl.py types the one; the other brings what is missing, and starts all this.
NOT_READ_HERE = {"With grpcurl", "Two commands"}
# Lines that build or start the service, or name what the reader alone knows.
NOT_TYPED = re.compile(r"…|\bcargo install\b|\bserve --listen\b|example\.com")


def part(heading: str) -> list[Block]:
    return [block for block in blocks(README) if block.heading == heading]


@contextmanager
def node_exporter() -> Iterator[str]:
    """A node_exporter on a port of its own, and where it listens."""
    tools = Path(os.environ.get("RESOURCE_ALLOCATOR_TOOLS", ROOT / ".tools"))
    path = f"{tools / 'bin'}:{os.environ['PATH']}"
    program = shutil.which("prometheus-node-exporter", path=path) or shutil.which("node_exporter", path=path)
    if program is None:
        pytest.skip("node_exporter is not on this machine")
    command = [program, "--web.listen-address=127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        found = None
        for line in process.stderr:
            if found := re.search(r"Listening on.* address=(127\.0\.0\.1:[1-9]\d*)", line):
                break
        watchdog.cancel()
        assert found, "node_exporter did not start"
        # Read on, so that the pipe never fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


@contextmanager
def reader(binary: Path, folder: Path, replace: dict[str, str]) -> Iterator[Reader]:
    """Someone in a clone, in which they may leave things, who has started what `make run` starts."""
    for name in ["clients", "examples"]:
        (folder / name).symlink_to(ROOT / name)
    for program in [folder / "target/debug/resource-allocator", folder / "bin/resource-allocator", folder / "bin/ra"]:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.symlink_to(binary)
    # A page that is refused is a failure.
    (folder / ".curlrc").write_text("fail\n")
    with live_service(binary, "--inventory", str(ROOT / "examples" / "servers.toml")) as service:
        environment = environment_without_network(Path(sysconfig.get_path("purelib")), clean_environment())
        environment |= {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CURL_HOME": str(folder),
            "RESOURCE_ALLOCATOR_ENDPOINT": service.endpoint,
            "RESOURCE_ALLOCATOR_DATA_DIR": str(service.data_dir),
        }
        yield Reader(folder, environment, "python3", {"127.0.0.1:50051": service.address} | replace)


def test_every_part_is_read():
    assert {block.heading for block in blocks(README) if block.language == "sh"} == {*TYPED, *NOT_READ_HERE}


@pytest.mark.parametrize("heading", TYPED)
def test_each_line_does_what_it_says(heading: str, binary: Path, tmp_path: Path):
    if heading == "With plain HTTP" and shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    exporter = node_exporter() if heading == "With node_exporter" else nullcontext("")
    with exporter as listens, reader(binary, tmp_path, {"127.0.0.1:9100": listens}) as someone:
        printed = ""
        for block in part(heading):
            if block.language == "text":
                assert is_what_is_shown(printed, block.text), f"it prints\n{printed}"
                continue
            typed = [line for line in lines(block) if not NOT_TYPED.search(line.command)]
            assert typed, f"nothing is typed of {block}"
            for line in typed:
                someone.type(Line(TYPED[heading], ""))
                printed = someone.type(line)
