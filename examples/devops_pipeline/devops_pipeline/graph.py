"""The graph: START → ResourceAllocator → EnvAnalyzer → SecretResolver → Deployer → END. No node calls a model.

A project has its server and its ports before anything else is looked at, and a node that fails ends the graph: what comes after it
does not run. There is no branch around the first node, and nothing is remembered between runs: what is allocated is the
service's to know, so a run that was killed is simply run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langgraph.graph import END, START, StateGraph

from resource_allocator_client import ResourceAllocator
from resource_allocator_client.langgraph import resource_allocator_node

from .deployer import deployer_node
from .env_analyzer import analyze
from .secret_resolver import secret_resolver_node
from .state import PipelineState


def build_graph(client: ResourceAllocator, work: Path) -> Any:
    """Builds the graph; `work` is the folder in which secrets, environments and logs are."""
    graph = StateGraph(PipelineState)
    nodes = {
        "ResourceAllocator": resource_allocator_node(client),
        "EnvAnalyzer": analyze,
        "SecretResolver": secret_resolver_node(work),
        "Deployer": deployer_node(client, work),
    }
    before = START
    for name, node in nodes.items():
        graph.add_node(name, node)  # type: ignore[call-overload]
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return graph.compile()
