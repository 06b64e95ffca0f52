"""Runs what a document shows: its blocks of shell and of Python, in order, and compares what they print.

Shell blocks share a folder and an environment, Python blocks share one interpreter, which is started by the first of them. A
block of plain text is what the block before it prints.
"""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_service import PATIENCE_S

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Reads one block a line, as JSON, runs it, and tells what it printed in the same way.
_INTERPRETER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    out = io.StringIO()
    failed = None
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(json.loads(line), "<document>", "exec"), names)
        except BaseException:
            failed = traceback.format_exc()
    print(json.dumps([out.getvalue(), failed]), flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    # Where it begins.
    line: int


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of a document, in order."""
    text = document.read_text()
    for found in _BLOCK.finditer(text):
        yield Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)


class Reader:
    """Someone who types what a document shows."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        python: str,
        replace: dict[str, str],
        shown: dict[str, list[Path]] | None = None,
    ) -> None:
        self._folder = folder
        self._environment = environment
        # The program that runs the blocks of Python, from the folder.
        self._python = python
        # What the reader has in place of what the document shows, such as another port.
        self._replace = replace
        # Blocks of other languages show a part of one of these files.
        self._shown = shown or {}
        self._interpreter: subprocess.Popen[str] | None = None

    def follow(self, document: Path) -> int:
        """Runs a document to its end, and says how many blocks that were."""
        ran = 0
        printed = ""
        try:
            for block in blocks(document):
                text = block.text
                for shown, real in self._replace.items():
                    text = text.replace(shown, real)
                where = f"{document.name}:{block.line}"
                if block.language == "text":
                    assert printed == text, f"{where}: it prints\n{printed}"
                elif block.language == "sh":
                    printed = self._run_shell(text, where)
                elif block.language == "python":
                    printed = self._run_python(text, where)
                elif block.language in self._shown:
                    files = self._shown[block.language]
                    assert any(block.text.strip() in file.read_text() for file in files), f"{where}: {files} hold no such code"
                else:
                    raise AssertionError(f"{where}: nothing runs a block of {block.language}")
                ran += 1
        finally:
            if self._interpreter is not None:
                self._interpreter.kill()
                self._interpreter.wait()
        return ran

    def _run_shell(self, text: str, where: str) -> str:
        note = self._folder / ".environment"
        script = f"set -euo pipefail\n{text}\nenv -0 >'{note}'"
        command = ["bash", "-c", script]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{where}: {done.stderr}\n{done.stdout}"
        pairs = (pair.split("=", 1) for pair in note.read_text().split("\0") if pair)
        self._environment = dict(pairs)
        note.unlink()
        return done.stdout

    def _run_python(self, text: str, where: str) -> str:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [self._python, "-c", _INTERPRETER],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        watchdog = threading.Timer(PATIENCE_S, self._interpreter.kill)
        watchdog.start()
        try:
            self._interpreter.stdin.write(json.dumps(text) + "\n")
            self._interpreter.stdin.flush()
            answer = self._interpreter.stdout.readline()
        finally:
            watchdog.cancel()
        assert answer, f"{where}: the interpreter ended"
        printed, failed = json.loads(answer)
        assert failed is None, f"{where}: {failed}"
        return printed


def environment_without_network(site_packages: Path, environment: dict[str, str]) -> dict[str, str]:
    """Lets a document's `pip install` find what the project's own environment has, and build with it.

    So only what the document installs from the clone is new, and the test needs no network.
    """
    return environment | {
        "PYTHONPATH": os.fspath(site_packages),
        # Pip reads this the other way round: "no" says that there is to be no isolation.
        "PIP_NO_BUILD_ISOLATION": "no",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
