"""SecretResolver: every value from its source, and nothing from an example that is not one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from nodes import allocated, refused

from devops_pipeline.secret_resolver import operators_values, render, secret_resolver_node
from resource_allocator_client import Disposition


@pytest.fixture
def state() -> dict[str, Any]:
    variables = {
        "BACKEND_URL": {
            "kind": "allocation",
            "module": "backend",
            "part": "URL",
            "proposal": "http://localhost:8000",
        },
        "PORT": {"kind": "own", "part": "PORT"},
        "GREETING": {"kind": "setting", "proposal": "Hello"},
        "API_KEY": {"kind": "secret", "proposal": "changeme"},
        "SESSION_SECRET": {"kind": "secret"},
    }
    for variable in variables.values():
        variable["source"] = ".env.example"
    return {
        "project_id": "org/shop",
        "project_spec": {"generate": ["SESSION_SECRET"]},
        "variables": variables,
        "allocated_resources": allocated(9100, address="2001:db8::1"),
    }


def give(work: Path, text: str, mode: int = 0o600) -> Path:
    path = operators_values(work, "org/shop")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_every_variable_has_the_value_of_its_source(tmp_path: Path, state):
    give(tmp_path, "API_KEY=ours\n")
    resolved = secret_resolver_node(tmp_path)(state)
    assert resolved["environment"] == {"BACKEND_URL": "http://[2001:db8::1]:9100", "GREETING": "Hello"}
    assert resolved["secrets"]["API_KEY"].get_secret_value() == "ours"
    made_up = resolved["secrets"]["SESSION_SECRET"].get_secret_value()
    assert len(made_up) > 30
    # It stays the same, in a file that only its owner reads, and nothing prints it.
    assert secret_resolver_node(tmp_path)(state)["secrets"]["SESSION_SECRET"].get_secret_value() == made_up
    (kept,) = (tmp_path / "generated").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    assert "ours" not in repr(resolved)
    assert made_up not in repr(resolved)


def test_all_that_is_missing_is_told_at_once_with_where_it_belongs(tmp_path: Path, state):
    state["variables"]["DATABASE_URL"] = {"kind": "external", "source": "compose.yaml", "proposal": "db:5432"}
    state["variables"]["REGION"] = {"kind": "setting", "source": "compose.yaml"}
    failed = refused("MISSING_VALUES", Disposition.OPERATOR, secret_resolver_node(tmp_path), state)
    for told in ["API_KEY (.env.example)", "DATABASE_URL (compose.yaml)", "REGION", "org%2Fshop.env", "org/shop"]:
        assert told in failed.message
    assert "SESSION_SECRET" not in failed.message
    # Nothing is made up for a deploy that does not come about.
    assert not (tmp_path / "generated").exists()


def test_what_the_operator_gives_wins_over_what_a_file_proposes(tmp_path: Path, state):
    give(tmp_path, "API_KEY=ours\nGREETING=Servus\nSESSION_SECRET=theirs\n")
    resolved = secret_resolver_node(tmp_path)(state)
    assert {name: value.get_secret_value() for name, value in resolved["secrets"].items()} == {
        "API_KEY": "ours",
        "GREETING": "Servus",
        "SESSION_SECRET": "theirs",
    }
    assert resolved["environment"] == {"BACKEND_URL": "http://[2001:db8::1]:9100"}


def test_nobody_overrides_an_allocation_l02(tmp_path: Path, state):
    give(tmp_path, "API_KEY=ours\nBACKEND_URL=http://localhost:8000\nPORT=8000\n")
    failed = refused("OVERRIDES_ALLOCATION", Disposition.OPERATOR, secret_resolver_node(tmp_path), state)
    assert "BACKEND_URL, PORT" in failed.message


def test_secrets_that_others_may_read_are_refused(tmp_path: Path, state):
    path = give(tmp_path, "API_KEY=ours\n", mode=0o644)
    failed = refused("SECRETS_EXPOSED", Disposition.OPERATOR, secret_resolver_node(tmp_path), state)
    assert f"chmod 600 {path}" in failed.message


def test_a_module_without_an_allocation_is_an_error_l02(tmp_path: Path, state):
    give(tmp_path, "API_KEY=ours\n")
    with pytest.raises(LookupError, match="backend"):
        secret_resolver_node(tmp_path)(state | {"allocated_resources": allocated(9100, module="other")})


def test_a_file_of_values_is_read_as_it_was_written(tmp_path: Path):
    values = {"A": "plain", "B": 'it\'s \\ $HOME # "quoted"', "C": "-----BEGIN\nkey\n-----END", "D": "ü €", "E": ""}
    (tmp_path / ".env").write_text(render(values))
    assert dotenv_values(tmp_path / ".env", interpolate=False) == values
