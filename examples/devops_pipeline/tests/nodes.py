"""What the tests of single nodes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from devops_pipeline.errors import PipelineError
from resource_allocator_client import Disposition


def allocated(port: int, module: str = "backend", address: str = "127.0.0.1", protocol: str = "TCP") -> dict[str, Any]:
    """What the first node puts into the state, as far as the others read it."""
    return {f"here:{port}": {"module": module, "server_address": address, "port": port, "protocol": protocol}}


def refused(reason: str, disposition: Disposition, node: Callable[[Any], object], state: object) -> PipelineError:
    """Runs a node that must fail, and gives its error."""
    with pytest.raises(PipelineError) as failed:
        node(state)
    assert (failed.value.reason, failed.value.disposition) == (reason, disposition)
    return failed.value
