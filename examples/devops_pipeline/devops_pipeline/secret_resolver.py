"""SecretResolver: gives every variable its value, or says of every one that is missing where it belongs.

Addresses and ports come from the allocations, by module. What the operator keeps for the project wins over what the project
proposes. Secrets are the operator's, or made up here where the project allows it, and then kept, so that the next deploy has the
same.
"""

from __future__ import annotations

import secrets as random_secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from resource_allocator_client import Disposition
from resource_allocator_client.langgraph import AllocatedResource, resource_of

from .errors import PipelineError
from .files import file_name, write_whole
from .state import PipelineState, Variable


def operators_values(work: Path, project_id: str) -> Path:
    """Gives where the operator keeps a project's secrets and settings, as NAME=value."""
    return work / "secrets" / f"{file_name(project_id)}.env"


def secret_resolver_node(work: Path) -> Callable[[PipelineState], dict[str, Any]]:
    """Makes the node; `work` is the worker's folder."""

    def resolve(state: PipelineState) -> dict[str, Any]:
        return _resolve(work, state)

    return resolve


def _resolve(work: Path, state: PipelineState) -> dict[str, Any]:
    project_id = state["project_id"]
    theirs = operators_values(work, project_id)
    given = _read_private(theirs)
    generated = _Generated(
        work / "generated" / f"{file_name(project_id)}.env", state["project_spec"].get("generate", ())
    )
    environment: dict[str, str] = {}
    secrets: dict[str, SecretStr] = {}
    missing: list[str] = []
    _refuse_overrides(theirs, given, state["variables"])
    for name, variable in state["variables"].items():
        kind = variable["kind"]
        if kind == "allocation":
            resource = resource_of(state["allocated_resources"], variable["module"])
            environment[name] = part_of(resource, variable["part"])
        elif kind == "own":
            # Each process has its own: the Deployer's.
            continue
        elif name in given:
            # What the operator gives is kept from view, whatever its name says.
            secrets[name] = SecretStr(given[name])
        elif generated.may_have(name):
            secrets[name] = SecretStr(generated.value(name))
        elif kind == "setting" and "proposal" in variable:
            environment[name] = variable["proposal"]
        else:
            missing.append(_tell(name, variable))
    if missing:
        message = f"`{project_id}` needs {'; '.join(missing)}. Put them into {theirs} as NAME=value, and retry the job"
        raise PipelineError("MISSING_VALUES", Disposition.OPERATOR, message, file=str(theirs))
    generated.keep()
    return {"environment": environment, "secrets": secrets}


def part_of(resource: AllocatedResource, part: str) -> str:
    """Gives one of an allocation's values."""
    host, port = resource["server_address"], resource["port"]
    # An IPv6 address stands in brackets before a port.
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return {"PORT": str(port), "HOST": host, "ADDRESS": where, "URL": f"http://{where}"}[part]


def _refuse_overrides(theirs: Path, given: Mapping[str, str], variables: Mapping[str, Variable]) -> None:
    ours = sorted(name for name in given if name in variables and variables[name]["kind"] in ("allocation", "own"))
    if ours:
        message = f"{theirs} sets {', '.join(ours)}, which the allocations give: take it out, and retry the job"
        raise PipelineError("OVERRIDES_ALLOCATION", Disposition.OPERATOR, message, file=str(theirs))


def _tell(name: str, variable: Variable) -> str:
    source = variable["source"]
    if variable["kind"] == "external":
        return f"{name} ({source}), which is where something is and no module of the project, so no example is taken for it"
    if variable["kind"] == "secret":
        return f"{name} ({source}), a secret, so no example is taken for it"
    return f"{name} ({source})"


def _read_private(path: Path) -> dict[str, str]:
    """Reads values that only their owner may read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return {}
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"{path} holds secrets and others may read it: run chmod 600 {path}, and retry the job"
        raise PipelineError("SECRETS_EXPOSED", Disposition.OPERATOR, message, file=str(path))
    return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}


class _Generated:
    """Secrets that were made up here."""

    def __init__(self, path: Path, allowed: Any) -> None:
        self._path = path
        self._allowed = set(allowed)
        self._values = _read_private(path)
        self._changed = False

    def may_have(self, name: str) -> bool:
        return name in self._allowed

    def value(self, name: str) -> str:
        if name not in self._values:
            self._values[name] = random_secrets.token_urlsafe(32)
            self._changed = True
        return self._values[name]

    def keep(self) -> None:
        """Before they are used, so that a crash does not lose what a database was set up with."""
        if self._changed:
            write_whole(self._path, render(self._values))


def render(values: Mapping[str, str]) -> str:
    """Gives variables as a file that dotenv reads."""
    return "".join(f"{name}='{_escape(value)}'\n" for name, value in sorted(values.items()))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
