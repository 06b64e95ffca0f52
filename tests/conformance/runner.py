"""Plays tests/conformance/scenario.yaml in Python: on grpcio and the stubs that grpc_tools generates from proto/.

Usage: runner.py SCENARIO        RESOURCE_ALLOCATOR_ENDPOINT names the service, which must have been started anew
"""

import json
import os
import sys

import grpc
import yaml
from google.protobuf import json_format, symbol_database
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from resourceallocator.v1 import (
    resource_allocator_pb2,
    resource_allocator_pb2_grpc,
    server_inventory_pb2,
    server_inventory_pb2_grpc,
)

DEADLINE_S = 30
STUBS = {
    "grpc.health.v1.Health": (health_pb2, health_pb2_grpc),
    "resourceallocator.v1.ResourceAllocator": (resource_allocator_pb2, resource_allocator_pb2_grpc),
    "resourceallocator.v1.ServerInventory": (server_inventory_pb2, server_inventory_pb2_grpc),
}


class Unexpected(Exception):
    """What came is not what the step says."""


class Runner:
    def __init__(self, channel: grpc.Channel) -> None:
        self.stubs = {}
        self.requests = {}
        for service, (messages, stubs) in STUBS.items():
            name = service.rpartition(".")[2]
            self.stubs[service] = getattr(stubs, f"{name}Stub")(channel)
            for method in messages.DESCRIPTOR.services_by_name[name].methods:
                request = symbol_database.Default().GetSymbol(method.input_type.full_name)
                self.requests[f"{service}/{method.name}"] = request
        self.captured = {}

    def play(self, step: dict) -> None:
        path = step.get("call") or step["stream"]
        service, _, method = path.partition("/")
        request = json_format.ParseDict(self.resolve(step.get("request", {})), self.requests[path]())
        headers = list(step.get("headers", {}).items())
        call = getattr(self.stubs[service], method)
        try:
            answer = call(request, metadata=headers, timeout=DEADLINE_S)
            if "stream" in step:
                self.read(answer, step.get("messages", [{}]))
            else:
                self.match("answer", step.get("answer", {}), as_json(answer))
        except grpc.RpcError as error:
            if "refused" not in step:
                raise Unexpected(f"refused: {error.code().name}: {error.details()}") from error
            self.match("refused", expected_refusal(step["refused"]), refusal(error))
            return
        if "refused" in step:
            raise Unexpected("it was not refused")

    def read(self, stream, patterns: list) -> None:
        """Each pattern is for the next message, bookmarks left out where the pattern has none."""
        for number, pattern in enumerate(patterns):
            message = as_json(next(stream))
            while "bookmark" in message and "bookmark" not in pattern:
                message = as_json(next(stream))
            self.match(f"messages[{number}]", pattern, message)
        stream.cancel()

    def resolve(self, value):
        """A request with what was remembered in place of its references."""
        if isinstance(value, dict):
            if "$ref" in value:
                return self.captured[value["$ref"]]
            return {key: self.resolve(field) for key, field in value.items()}
        if isinstance(value, list):
            return [self.resolve(element) for element in value]
        return value

    def match(self, path: str, pattern, value) -> None:
        """Raises where a value, None for none, is not what the pattern says."""
        operators = isinstance(pattern, dict) and any(key.startswith("$") for key in pattern)
        if operators:
            for operator, operand in pattern.items():
                self.apply(path, operator, operand, value)
        elif isinstance(pattern, dict):
            if not isinstance(value, dict):
                raise Unexpected(f"{path} is {value!r}, not an object")
            for key, field in pattern.items():
                self.match(f"{path}.{key}", field, value.get(key))
        elif isinstance(pattern, list):
            if not isinstance(value, list) or len(value) != len(pattern):
                raise Unexpected(f"{path} is {value!r}, not a list of {len(pattern)}")
            for index, (one, element) in enumerate(zip(pattern, value, strict=True)):
                self.match(f"{path}[{index}]", one, element)
        elif value != pattern or isinstance(value, bool) != isinstance(pattern, bool):
            raise Unexpected(f"{path} is {value!r}, not {pattern!r}")

    def apply(self, path: str, operator: str, operand, value) -> None:
        match operator:
            case "$any" if value is None:
                raise Unexpected(f"{path} is absent")
            case "$absent" if value is not None:
                raise Unexpected(f"{path} is {value!r}, not absent")
            case "$any" | "$absent":
                pass
            case "$capture" if value is None:
                raise Unexpected(f"{path} is absent")
            case "$capture":
                self.captured[operand] = value
            case "$ref":
                self.match(path, self.captured[operand], value)
            case "$not" if self.matches(path, operand, value):
                raise Unexpected(f"{path} is {value!r}, which it must not be")
            case "$size" if not isinstance(value, list) or len(value) != operand:
                raise Unexpected(f"{path} is {value!r}, not a list of {operand}")
            case "$contains" if not any(self.matches(path, operand, element) for element in value or []):
                raise Unexpected(f"{path} is {value!r}, with nothing like {operand!r}")
            case "$not" | "$size" | "$contains":
                pass
            case _:
                raise Unexpected(f"{path}: no runner knows {operator}")

    def matches(self, path: str, pattern, value) -> bool:
        try:
            self.match(path, pattern, value)
        except Unexpected:
            return False
        return True


def as_json(message) -> dict:
    return json.loads(json_format.MessageToJson(message))


def refusal(error: grpc.RpcError) -> dict:
    """A refusal as the scenario tells it."""
    told = {"code": error.code().name, "retry": False}
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            told |= {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
        elif detail.Unpack(bad):
            told["fields"] = [violation.field for violation in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            told["retry"] = True
    return told


def expected_refusal(pattern: dict) -> dict:
    """Whatever has a reason is of our domain."""
    return pattern | ({"domain": "resourceallocator"} if "reason" in pattern else {})


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        steps = yaml.safe_load(file)["steps"]
    endpoint = os.environ["RESOURCE_ALLOCATOR_ENDPOINT"].removeprefix("http://")
    passed = failed = 0
    with grpc.insecure_channel(endpoint) as channel:
        runner = Runner(channel)
        for step in steps:
            try:
                runner.play(step)
                passed += 1
            except Exception as problem:  # whatever it is, the other steps are played
                failed += 1
                print(f"FAILED {step['name']}: {type(problem).__name__}: {problem}")
    print(f"python: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
