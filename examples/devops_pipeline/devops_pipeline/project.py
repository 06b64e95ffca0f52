"""A project's own file, `project.yaml`: what it consists of, what it needs, and how its processes are started and probed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from resource_allocator_client import Disposition

from .errors import PipelineError

FILE = "project.yaml"


class _Strict(BaseModel):
    # A key that nobody reads would be a wish that nobody fulfils.
    model_config = ConfigDict(extra="forbid")


class Module(_Strict):
    """A part of the project with a process and a port of its own."""

    name: str
    # The program and its arguments, run in the project's folder.
    command: list[str] = Field(min_length=1)
    # The path that answers over HTTP when the module is well; without it, a connection must come about.
    health: str | None = None
    # How long the module may take until it answers.
    start_timeout_s: float = Field(default=30, gt=0)
    # This port or a refusal.
    port: int | None = None
    protocol: str | None = None

    @field_validator("health")
    @classmethod
    def _is_path(cls, health: str | None) -> str | None:
        if health is not None and not health.startswith("/"):
            raise ValueError("a path begins with /")
        return health


class Resources(_Strict):
    """What the project needs at least."""

    cpu_millis: int | None = None
    ram_mb: int | None = None
    disk_mb: int | None = None


class Project(_Strict):
    """A project."""

    project_id: str
    modules: list[Module] = Field(min_length=1)
    resources: Resources = Resources()
    server_handle: str | None = None
    server_selector: dict[str, str] | None = None
    start_port: int | None = None
    strategy: str | None = None
    # Secrets that the pipeline may make up itself, once, and keep.
    generate: list[str] = []

    @field_validator("modules")
    @classmethod
    def _names_differ(cls, modules: list[Module]) -> list[Module]:
        names = [module.name for module in modules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"modules with one name: {', '.join(sorted(twice))}")
        prefixes = [variable_prefix(name) for name in names]
        if twice := {prefix for prefix in prefixes if prefixes.count(prefix) > 1}:
            raise ValueError(f"modules whose variables would have one name: {', '.join(sorted(twice))}")
        return modules


def variable_prefix(module: str) -> str:
    """Gives what the names of a module's variables begin with: BACKEND for `backend`, MAIL_QUEUE for `mail-queue`."""
    return re.sub(r"[^A-Z0-9]", "_", module.upper())


def read_project(folder: Path) -> Project:
    """Reads a project's file; everything that is wrong with it is told at once."""
    path = folder / FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _invalid(f"there is no {path}", path) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _invalid(f"cannot read {path}: {error}", path) from error
    try:
        return Project.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors())
        raise _invalid(f"{path}: {faults}", path) from error


def spec_of(project: Project) -> dict[str, Any]:
    """Gives the project as the state's `project_spec`; what the project leaves out is left out."""
    return project.model_dump(exclude_none=True, exclude={"project_id"})


def _invalid(message: str, path: Path) -> PipelineError:
    return PipelineError("INVALID_PROJECT", Disposition.CALLER, message, path=str(path))
