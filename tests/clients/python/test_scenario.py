"""What tests/conformance/scenario.yaml covers; scripts/test-clients plays it in every language."""

import re

import yaml

from live_service import ROOT


def test_every_method_of_the_contract_is_played():
    methods = set()
    for contract in (ROOT / "proto" / "resourceallocator" / "v1").glob("*.proto"):
        text = contract.read_text()
        for service in re.finditer(r"^service (\w+) \{(.*?)^\}", text, re.DOTALL | re.MULTILINE):
            methods |= {f"{service[1]}/{name}" for name in re.findall(r"^  rpc (\w+)\(", service[2], re.MULTILINE)}
    assert len(methods) > 10
    scenario = yaml.safe_load((ROOT / "tests" / "conformance" / "scenario.yaml").read_text())
    played = {(step.get("call") or step["stream"]).removeprefix("resourceallocator.v1.") for step in scenario["steps"]}
    assert methods - played == set()


def test_steps_have_names_of_their_own():
    for file in ["scenario.yaml", "must_fail.yaml"]:
        steps = yaml.safe_load((ROOT / "tests" / "conformance" / file).read_text())["steps"]
        names = [step["name"] for step in steps]
        assert len(names) == len(set(names))
