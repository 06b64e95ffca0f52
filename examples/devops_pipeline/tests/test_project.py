"""A project's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HELLO
from nodes import refused

from devops_pipeline.project import read_project, spec_of
from resource_allocator_client import Disposition


def test_the_shipped_project_is_one():
    project = read_project(HELLO)
    assert project.project_id == "hello-world-bot"
    spec = spec_of(project)
    assert [module["name"] for module in spec["modules"]] == ["backend", "frontend"]
    assert spec["resources"] == {"ram_mb": 128, "disk_mb": 64}
    assert "server_handle" not in spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modules": []}, "modules"),
        ({"project_id": None}, "project_id"),
        ({"modules": [{"name": "a", "command": []}]}, "modules.0.command"),
        ({"modules": [{"name": "a", "command": ["x"], "health": "health"}]}, "a path begins with /"),
        ({"modules": [{"name": "a", "command": ["x"]}] * 2}, "one name: a"),
        ({"modules": [{"name": one, "command": ["x"]} for one in ("a-b", "a.b")]}, "one name: A_B"),
        ({"resources": {"ram": 1}}, "resources.ram"),
        ({"sever_selector": {}}, "sever_selector"),
    ],
)
def test_what_is_wrong_with_one_is_told(tmp_path: Path, changes: dict[str, Any], says: str):
    content = yaml.safe_load((HELLO / "project.yaml").read_text()) | changes
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(content))
    failed = refused("INVALID_PROJECT", Disposition.CALLER, read_project, tmp_path)
    assert says in failed.message


def test_one_that_is_missing_or_broken_is_told_too(tmp_path: Path):
    assert "there is no" in refused("INVALID_PROJECT", Disposition.CALLER, read_project, tmp_path).message
    (tmp_path / "project.yaml").write_text("modules: [")
    assert "cannot read" in refused("INVALID_PROJECT", Disposition.CALLER, read_project, tmp_path).message
