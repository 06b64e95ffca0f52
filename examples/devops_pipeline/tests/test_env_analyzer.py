"""EnvAnalyzer: what it reads, and what it does not believe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from nodes import refused

from devops_pipeline.env_analyzer import analyze as node
from resource_allocator_client import Disposition

MODULES = [{"name": "backend"}, {"name": "mail-queue"}]


def analyze(folder: Path, **files: str) -> dict[str, Any]:
    for name, text in files.items():
        (folder / {"example": ".env.example", "compose": "compose.yaml"}[name]).write_text(text)
    return node({"project_folder": str(folder), "project_spec": {"modules": MODULES}})["variables"]


def test_a_name_says_where_its_value_comes_from(tmp_path: Path):
    names = "BACKEND_PORT BACKEND_URL MAIL_QUEUE_ADDRESS PORT HOST SMTP_HOST DATABASE_URL API_KEY DB_PASSWORD GREETING"
    found = analyze(tmp_path, example="".join(f"{name}=x\n" for name in names.split()))
    assert {name: variable["kind"] for name, variable in found.items()} == {
        "BACKEND_PORT": "allocation",
        "BACKEND_URL": "allocation",
        "MAIL_QUEUE_ADDRESS": "allocation",
        "PORT": "own",
        "HOST": "own",
        "SMTP_HOST": "external",
        "DATABASE_URL": "external",
        "API_KEY": "secret",
        "DB_PASSWORD": "secret",
        "GREETING": "setting",
    }
    assert (found["MAIL_QUEUE_ADDRESS"]["module"], found["MAIL_QUEUE_ADDRESS"]["part"]) == ("mail-queue", "ADDRESS")


SECRETS = """
    PGPASSWORD DB_PASS DBPASS MYSQL_PWD OPENAI_APIKEY OPENAI_API_KEY AUTHTOKEN REDIS_AUTH db_password API_KEYS ENCRYPTION_KEY_2
    AWS_SECRET_ACCESS_KEY ACCESSKEY GCP_CREDENTIALS GCP_CREDS SENTRY_DSN KEY_PASSPHRASE CLIENTSECRET HTPASSWD HTTP-AUTH DB_PASS1
"""
SETTINGS = "AUTHOR AUTHORS OAUTH_SCOPES MONKEY KEYBOARD PASSENGERS PASSIVE_MODE LOG_LEVEL GREETING"


@pytest.mark.parametrize(("names", "kind"), [(SECRETS, "secret"), (SETTINGS, "setting")])
def test_a_secret_is_known_by_its_name_however_that_is_written(tmp_path: Path, names: str, kind: str):
    found = analyze(tmp_path, example="".join(f"{name}=changeme\n" for name in names.split()))
    assert {name: variable["kind"] for name, variable in found.items()} == dict.fromkeys(names.split(), kind)


def test_an_example_is_read_as_dotenv_has_it(tmp_path: Path):
    text = "# a comment\nexport GREETING=\"Hello, $NAME\"\nEMPTY=\nBARE\nQUOTED='a # b'\n"
    found = analyze(tmp_path, example=text)
    assert {name: variable.get("proposal") for name, variable in found.items()} == {
        "GREETING": "Hello, $NAME",
        "EMPTY": None,
        "BARE": None,
        "QUOTED": "a # b",
    }


def test_a_compose_file_is_read_too(tmp_path: Path):
    compose = """
        services:
          backend:
            image: ${REGISTRY:-registry}/backend:${TAG:?which one}
            ports: ["${BACKEND_PORT}:8000", {target: 9000, published: "${METRICS_PORT:-9000}"}]
            environment: {GREETING: , FIXED: "yes", DEEP: "${OUTER:-${INNER}}", PRICE: "$$5"}
          mail-queue:
            expose: ["25"]
            environment: [API_KEY, "FIXED=$BARE"]
    """
    found = analyze(tmp_path, compose=compose, example="REGISTRY=mine\n")
    assert {name: variable.get("proposal") for name, variable in found.items()} == {
        # The first file that proposes something is believed.
        "REGISTRY": "mine",
        "TAG": None,
        "BACKEND_PORT": None,
        "METRICS_PORT": "9000",
        "GREETING": None,
        "OUTER": None,
        "INNER": None,
        "API_KEY": None,
        "BARE": None,
    }
    assert found["TAG"]["source"] == "compose.yaml"


@pytest.mark.parametrize("port", ["8000:8000", "127.0.0.1:8000:80/tcp", {"target": 80, "published": 8000}])
def test_a_port_that_a_compose_file_fixes_is_refused_l02(tmp_path: Path, port: Any):
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump({"services": {"backend": {"ports": [port]}}}))
    state = {"project_folder": str(tmp_path), "project_spec": {"modules": MODULES}}
    failed = refused("FIXED_PORT", Disposition.CALLER, node, state)
    assert "8000" in failed.message
    assert "${BACKEND_PORT}" in failed.message


def test_a_published_service_must_be_a_module(tmp_path: Path):
    (tmp_path / "compose.yaml").write_text("services: {admin: {ports: ['${ADMIN_PORT}:80']}}")
    state = {"project_folder": str(tmp_path), "project_spec": {"modules": MODULES}}
    assert "`admin`" in refused("UNKNOWN_MODULE", Disposition.CALLER, node, state).message


@pytest.mark.parametrize(
    ("file", "text"),
    [(".env.example", "A='open\n"), ("compose.yaml", "services: ["), ("compose.yaml", "[]")],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, file: str, text: str):
    (tmp_path / file).write_text(text)
    state = {"project_folder": str(tmp_path), "project_spec": {"modules": MODULES}}
    assert file in refused("UNREADABLE_FILE", Disposition.CALLER, node, state).message


def test_a_project_may_need_nothing(tmp_path: Path):
    assert analyze(tmp_path) == {}
