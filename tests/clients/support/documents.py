"""Runs what a document shows: its blocks of shell and of Python, in order, and compares what they print.

Shell blocks share a folder and an environment, Python blocks share one interpreter, which is started by the first of them. A
block of plain text is what the block before it prints, at another time.
"""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_service import PATIENCE_S

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
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
    # What it stands under.
    heading: str


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of a document, in order."""
    text = document.read_text()
    for found in _BLOCK.finditer(text):
        before = text[: found.start()]
        # A comment of a block of shell looks like a heading.
        headings = _HEADING.findall(_BLOCK.sub("", before))
        yield Block(found[1], found[2], before.count("\n") + 1, headings[-1] if headings else "")


@dataclass(frozen=True)
class Line:
    """A command of a block of shell, and the comment behind it."""

    command: str
    comment: str


def lines(block: Block) -> Iterator[Line]:
    """The commands of a block of shell; what a backslash continues is one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command, _, comment = line.partition(" # ")
        yield Line(command.strip(), comment.strip())


def is_what_is_shown(printed: str, shown: str) -> bool:
    """Whether a program printed what a document shows, at whatever time."""
    return _TIME.sub("", printed) == _TIME.sub("", shown)


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
                text = self._real(block.text)
                where = f"{document.name}:{block.line}"
                if block.language == "text":
                    assert is_what_is_shown(printed, text), f"{where}: it prints\n{printed}"
                elif block.language == "sh":
                    printed = self._run_shell(text, where)
                elif block.language == "python":
                    printed = self._run_python(text, where)
                elif block.language in self._shown:
                    files = self._shown[block.language]
                    assert any(block.text.strip() in file.read_text() for file in files), (
                        f"{where}: {files} hold no such code"
                    )
                else:
                    raise AssertionError(f"{where}: nothing runs a block of {block.language}")
                ran += 1
        finally:
            if self._interpreter is not None:
                self._interpreter.kill()
                self._interpreter.wait()
        return ran

    def type(self, line: Line) -> str:
        """Types a command alone, which does what its comment says, and tells what it printed.

        "exit code 4" at the comment's end is how it ends, and "Ctrl-C" what ends it. It prints an outcome that stands before a
        colon, and a reason that stands after one.
        """
        command = self._real(line.command)
        if "Ctrl-C" in line.comment:
            done = self._run_until_ctrl_c(command)
            # Its own exit code, not the signal's.
            expected = {0, 1}
        else:
            done = self._run_bash(command)
            ended = re.search(r"exit code (\d+)$", line.comment)
            expected = {int(ended[1]) if ended else 0}
        said = done.stdout + done.stderr
        assert done.returncode in expected, f"{command}: {done.returncode}\n{said}"
        for word in re.findall(r"\b[A-Z_]{5,}(?=:)|(?<=: )[A-Z_]{5,}\b", line.comment):
            assert word in said, f"{command}: prints no {word}\n{said}"
        return done.stdout

    def _real(self, text: str) -> str:
        for shown, real in self._replace.items():
            text = text.replace(shown, real)
        return text

    def _run_shell(self, text: str, where: str) -> str:
        done = self._run_bash(f"set -euo pipefail\n{text}")
        assert done.returncode == 0, f"{where}: {done.stderr}\n{done.stdout}"
        return done.stdout

    def _run_bash(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end; the next one has the environment that it leaves."""
        note = self._folder / ".environment"
        command = ["bash", "-c", f"trap \"env -0 >'{note}'\" EXIT\n{script}"]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        pairs = (pair.split("=", 1) for pair in note.read_text().split("\0") if pair)
        self._environment = dict(pairs)
        note.unlink()
        return done

    def _run_until_ctrl_c(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a script until it has printed something, on whichever output, and then ends it."""
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal sends its signal to all that the line has started.
            start_new_session=True,
        )
        watchdog = threading.Timer(PATIENCE_S, os.killpg, [process.pid, signal.SIGKILL])
        watchdog.start()
        try:
            first = process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)
            rest = process.stdout.read()
            return subprocess.CompletedProcess(process.args, process.wait(), first + rest, "")
        finally:
            watchdog.cancel()

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
