"""EnvAnalyzer: reads what variables a project needs out of its `.env.example` and its compose file.

It decides where each value has to come from by the variable's name, and takes no address and no port from a file: what a file
proposes there is an example from someone's desk, and a deploy that believed it would run on the wrong port.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from dotenv.parser import parse_stream

from resource_allocator_client import Disposition

from .errors import PipelineError
from .project import variable_prefix
from .state import PipelineState, Variable

EXAMPLE = ".env.example"
COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")

_Part = Literal["PORT", "HOST", "ADDRESS", "URL"]
_PARTS: tuple[_Part, ...] = ("PORT", "HOST", "ADDRESS", "URL")
# What says that the value is a secret, wherever it stands in a name: PGPASSWORD, AUTHTOKEN. That takes some for a secret that
# are none, such as MAX_TOKENS, whose value then is the operator's to give. The other way round, what a file shows as an example
# would become a password.
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY")
# What says so as a word, or as the end of one: DB_PASS, DBPASS, MYSQL_PWD, REDIS_AUTH, but not AUTHOR, MONKEY or PASSENGERS.
_SECRET_WORD = re.compile(r"(.*PASS|.*PWD|AUTH|KEYS?|CREDS?|DSN)[0-9]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Compose's own: ${NAME}, ${NAME:-proposal}, ${NAME:?message}, $NAME; two dollars are one.
_INTERPOLATION = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?::?(?P<kind>[-?+])(?P<word>[^}]*))?\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))"
)


def analyze(state: PipelineState) -> dict[str, Any]:
    """The node."""
    folder = Path(state["project_folder"])
    specs = state["project_spec"]["modules"]
    modules = [spec if isinstance(spec, str) else spec["name"] for spec in specs]
    found: dict[str, Variable] = {}
    for name, proposal, source in [*_of_example(folder), *_of_compose(folder, modules)]:
        # The first file that proposes a value is believed.
        known = found.setdefault(name, _classify(name, modules) | Variable(source=source))
        if proposal is not None and "proposal" not in known:
            known["proposal"] = proposal
    return {"variables": found}


def _classify(name: str, modules: list[str]) -> Variable:
    for module in modules:
        for part in _PARTS:
            if name == f"{variable_prefix(module)}_{part}":
                return Variable(kind="allocation", module=module, part=part)
    if name in ("PORT", "HOST"):
        return Variable(kind="own", part=cast("_Part", name))
    words = re.split(r"[^A-Z0-9]+", name.upper())
    # A URL may hold a password, so it is looked at for where it is first: either way its example is not taken.
    if words[-1] in _PARTS:
        return Variable(kind="external")
    if _SECRET.search(name.upper()) or any(map(_SECRET_WORD.fullmatch, words)):
        return Variable(kind="secret")
    return Variable(kind="setting")


def _of_example(folder: Path) -> Iterator[tuple[str, str | None, str]]:
    try:
        text = (folder / EXAMPLE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(folder / EXAMPLE, str(error)) from error
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise _unreadable(folder / EXAMPLE, f"line {binding.original.line}: {binding.original.string.strip()}")
        if binding.key is not None:
            # Nothing behind the sign proposes nothing.
            yield binding.key, binding.value or None, EXAMPLE


def _of_compose(folder: Path, modules: list[str]) -> Iterator[tuple[str, str | None, str]]:
    for file in COMPOSE:
        path = folder / file
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _unreadable(path, str(error)) from error
        services = content.get("services") if isinstance(content, Mapping) else None
        if not isinstance(services, Mapping):
            raise _unreadable(path, "it has no services")
        for name, service in services.items():
            _check_ports(path, str(name), service if isinstance(service, Mapping) else {}, modules)
            yield from ((*found, file) for found in _passed_through(service))
        yield from ((*found, file) for found in _interpolated(content))
        # Compose reads the first that it finds, too.
        return


def _passed_through(service: Any) -> Iterator[tuple[str, str | None]]:
    """A variable of a service without a value is taken from the environment."""
    environment = service.get("environment", ()) if isinstance(service, Mapping) else ()
    if isinstance(environment, Mapping):
        names = [str(name) for name, value in environment.items() if value is None]
    else:
        names = [str(entry) for entry in environment if "=" not in str(entry)]
    yield from ((name, None) for name in names if _NAME.fullmatch(name))


def _interpolated(node: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _interpolated(value)
    elif isinstance(node, list):
        for value in node:
            yield from _interpolated(value)
    elif isinstance(node, str):
        for found in _INTERPOLATION.finditer(node):
            if found["dollar"]:
                continue
            word = found["word"] or ""
            proposal = word if found["kind"] == "-" and "$" not in word else None
            yield found["braced"] or found["bare"], proposal or None
            # A proposal may name another variable, whose brace the pattern took for the end.
            yield from _interpolated(f"{word}}}" if "${" in word else word)


def _check_ports(path: Path, service: str, content: Mapping[str, Any], modules: list[str]) -> None:
    """Refuses a port of this machine that a compose file fixes, or that belongs to no module."""
    for port in content.get("ports", ()):
        if isinstance(port, Mapping):
            published = str(port.get("published", ""))
        else:
            # [ADDRESS:]PUBLISHED:TARGET[/PROTOCOL], or a target alone. A colon within ${…} is none of these.
            parts = re.sub(r"\$\{[^}]*\}", "$", str(port)).split(":")
            published = parts[-2] if len(parts) > 1 else ""
        if published and "$" not in published:
            wanted = f"${{{variable_prefix(service)}_PORT}}"
            message = f"{path} publishes `{service}` on the fixed port {published}: write {wanted}, for the allocator gives ports"
            raise PipelineError("FIXED_PORT", Disposition.CALLER, message, service=service, port=published)
        if published and service not in modules:
            message = (
                f"{path} publishes a port of `{service}`, which is no module of the project: add it to project.yaml"
            )
            raise PipelineError("UNKNOWN_MODULE", Disposition.CALLER, message, service=service)


def _unreadable(path: Path, why: str) -> PipelineError:
    return PipelineError("UNREADABLE_FILE", Disposition.CALLER, f"cannot read {path}: {why}", path=str(path))
