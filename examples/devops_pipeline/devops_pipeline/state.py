"""The state that the nodes hand on."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import SecretStr

from resource_allocator_client.langgraph import AllocationState


class Variable(TypedDict, total=False):
    """A variable that the project needs, and where its value comes from."""

    # `allocation`: the address or the port of a module. `own`: those of the module whose process it is.
    # `external`: where something is that is no module of the project. `secret`, `setting`: what their names say.
    kind: Literal["allocation", "own", "external", "secret", "setting"]
    # The module and which of its values, for `allocation`; for `own` the value alone.
    module: str
    part: Literal["PORT", "HOST", "ADDRESS", "URL"]
    # What the project's files propose. Only a `setting` takes it.
    proposal: str
    # The file that names it.
    source: str


class Running(TypedDict):
    """A process that was deployed and answered its probe."""

    pid: int
    address: str
    port: int
    log: str


class PipelineState(AllocationState, total=False):
    """What is known of a deploy so far. `project_spec` is what the project's file says, as `project.read_project` gives it."""

    project_folder: str
    # EnvAnalyzer's.
    variables: dict[str, Variable]
    # SecretResolver's. Secrets are apart, and in a type that does not print them.
    environment: dict[str, str]
    secrets: dict[str, SecretStr]
    # Deployer's, by module.
    deployment: dict[str, Running]
