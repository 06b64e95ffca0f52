"""The pages for callers: every command runs and prints what they say, the code is the programs', and no refusal is missing."""

import os
import re
import shutil
from pathlib import Path

import pytest

from documents import Reader
from live_service import ROOT, clean_environment, live_service

PAGES = ROOT / "docs" / "callers"
# What each page shows code of, by the language of its blocks, and the programs that must be on the machine.
GO, NODE = ROOT / "clients" / "go", ROOT / "clients" / "node"
JAVA, RUST = ROOT / "clients" / "java", ROOT / "clients" / "rust"
SHOWN = {
    "go.md": ({"go": [GO / "tour" / "main.go"]}, ["go"]),
    "typescript.md": ({"ts": [NODE / "src" / "tour.ts"]}, ["npm"]),
    "java.md": ({"java": [JAVA / "src/main/java/resourceallocator/clients/Tour.java"]}, ["mvn"]),
    "rust.md": ({"rust": [RUST / "build.rs", RUST / "src/bin/tour.rs"]}, ["cargo"]),
    "retries.md": ({"json": [GO / "tour" / "main.go"]}, []),
    "refusals.md": ({}, []),
    "polling.md": ({}, ["curl"]),
    "tools.md": ({}, ["go", "curl"]),
}
# The Python client's own tests run it; the first page is links alone.
READ_ELSEWHERE = {"python.md", "README.md"}


def test_every_page_is_read():
    assert {page.name for page in PAGES.glob("*.md")} == set(SHOWN) | READ_ELSEWHERE


@pytest.mark.parametrize("page", SHOWN)
def test_a_page_shows_what_is_so(page: str, binary: Path):
    shown, programs = SHOWN[page]
    if page == "tools.md" and os.environ.get("SKIP_GRPCURL"):
        pytest.skip("SKIP_GRPCURL is set")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{page} needs {', '.join(missing)}, which is not on this machine")
    with live_service(binary, "--inventory", str(ROOT / "examples" / "servers.toml")) as service:
        reader = Reader(ROOT, clean_environment(), "python3", {"127.0.0.1:50051": service.address}, shown)
        assert reader.follow(PAGES / page) >= 1


def test_links_lead_somewhere():
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (PAGES / target).exists(), f"{page.name}: {target}"


def test_no_refusal_is_missing():
    contract = (ROOT / "proto" / "resourceallocator" / "v1" / "error_reason.proto").read_text()
    # Each value's comment begins with its codes and its disposition.
    comment, expected = [], {}
    for line in map(str.strip, contract.splitlines()):
        if line.startswith("//"):
            comment.append(line)
            continue
        if value := re.match(r"ERROR_REASON_(\w+) = [1-9]", line):
            code, disposition = re.match(r"// ([A-Z_]+(?: or [A-Z_]+)?), ([A-Z]+)[.,]", comment[0]).groups()
            expected[value[1]] = (code, disposition)
        comment = []
    assert len(expected) == contract.count("\n  ERROR_REASON_") - 1, "each but UNSPECIFIED"
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([A-Z]+) \| ([^|]+) \|$", (PAGES / "refusals.md").read_text(), re.MULTILINE
    )
    written = {reason: (code, disposition) for reason, code, disposition, _ in rows}
    assert written == expected
    assert all(what_to_do.strip() for *_, what_to_do in rows)
