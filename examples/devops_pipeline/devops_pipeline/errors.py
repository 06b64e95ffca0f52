"""Why a deploy stopped: the service's refusals and the pipeline's own failures, told in the same way.

A job's outcome follows the disposition alone, whoever found the fault: WAIT is parked until there may be room, TECHNICAL until
some time has passed, OPERATOR until someone acted, and CALLER fails.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from resource_allocator_client import Disposition, ResourceAllocatorError


class PipelineError(Exception):
    """A failure that the pipeline found."""

    # Whether it is the inventory that someone has to act on, so that the service's stream tells when they did.
    of_inventory = False

    def __init__(self, reason: str, disposition: Disposition, message: str, **metadata: str) -> None:
        """Takes what is told: the reason in capitals, what kind of act is needed, and the message for people."""
        super().__init__(message)
        self.reason = reason
        self.disposition = disposition
        self.message = message
        self.metadata = metadata

    def __str__(self) -> str:
        """Tells reason and disposition before the message, as the service's refusals do."""
        return f"{self.reason} ({self.disposition}): {self.message}"


class InventoryError(PipelineError):
    """A failure that a change of the inventory mends."""

    of_inventory = True


class TryAgain(PipelineError):
    """A failure that the next run does not have, because something was put right."""

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        """Takes what is told; another try is due at once."""
        super().__init__(reason, Disposition.TECHNICAL, message, **metadata)
        self.retry_after = timedelta(0)

    def given_up(self, tries: int) -> PipelineError:
        """Gives what it comes to when the runs do not end: someone has to see why what was put right did not help."""
        message = f"{self.message}. {tries} runs in a row ended so: see to the machine, and retry the job"
        return PipelineError(self.reason, Disposition.OPERATOR, message, **self.metadata)


class Report(TypedDict):
    """What a job's file says of why the deploy stopped."""

    reason: str
    disposition: str
    message: str
    metadata: dict[str, str]
    # Whether the service's stream tells when another try may do better.
    told_by_stream: bool


def report_of(error: ResourceAllocatorError | PipelineError) -> Report:
    """Gives an error as a job's file keeps it."""
    return Report(
        reason=error.reason,
        disposition=error.disposition.value,
        message=error.message,
        metadata=dict(error.metadata),
        told_by_stream=isinstance(error, ResourceAllocatorError) or error.of_inventory,
    )
