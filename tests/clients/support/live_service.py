"""The real binary on a private Postgres in a folder of its own, for whoever tests a caller written in Python."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Far above what anything takes: a bound for a hang, not an expectation.
PATIENCE_S = 120


def find_binary() -> Path:
    """The service's program, which scripts/test has built; RESOURCE_ALLOCATOR_BINARY names another one."""
    named = os.environ.get("RESOURCE_ALLOCATOR_BINARY")
    if named:
        return Path(named)
    command = ["cargo", "metadata", "--no-deps", "--offline", "--format-version", "1"]
    metadata = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    path = Path(json.loads(metadata.stdout)["target_directory"], "debug", "resource-allocator")
    assert path.exists(), f"{path} is missing: run cargo build --bin resource-allocator"
    return path


def clean_environment() -> dict[str, str]:
    """The environment without what would tell the service, or a caller of it, where things are."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "RESOURCE_ALLOCATOR_POSTGRES_BIN"
        or not name.startswith(("RESOURCE_ALLOCATOR_", "PG", "DATABASE_URL", "RUST_LOG"))
    }


class Service:
    """A service that listens. It keeps its folder and its port when it is started again."""

    def __init__(self, binary: Path, folder: Path, *arguments: str) -> None:
        self.address = "127.0.0.1:0"
        self.data_dir = folder / "data"
        self._command = [binary, "serve", "--data-dir", self.data_dir, *arguments]
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        """What callers name it by."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Starts it as a new user does, but for its folder and its port, and waits until it listens."""
        process = self._process = subprocess.Popen(
            [*self._command, "--listen", self.address],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # One that never gets ready is ended, and with it the wait for its line.
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        said = []
        found = None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on ([0-9.]+:[0-9]+)", line):
                break
        watchdog.cancel()
        assert found, "the service did not start:\n" + "".join(said)
        self.address = found[1]
        # Read on, so that the pipe never fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()

    def stop(self) -> None:
        """Ends it, which must go well."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE_S) == 0

    def kill(self) -> None:
        """Ends it without a word, where it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process.poll() is None


@contextmanager
def live_service(binary: Path, *arguments: str) -> Iterator[Service]:
    """A service that is stopped, well, at the end; `arguments` are further ones of `serve`."""
    # Root's Postgres runs as another user, who must be able to enter the folder.
    folder = Path(tempfile.mkdtemp(prefix="ra-tour-", dir="/tmp"))
    folder.chmod(0o755)
    service = None
    try:
        service = Service(binary, folder, *arguments)
        yield service
        if service.runs:
            service.stop()
    finally:
        if service is not None:
            service.kill()
        shutil.rmtree(folder, ignore_errors=True)
