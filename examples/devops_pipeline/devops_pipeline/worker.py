"""The worker: takes jobs, runs each through the graph, and does with a refusal what its disposition says.

WAIT is parked and tried again when the stream tells that there may be room. OPERATOR is parked too: someone has to act, and where
they act on the inventory the stream tells of it. TECHNICAL is tried again after a while. CALLER fails. A worker that may not follow
the stream goes by time alone.

Several workers may share a folder. One that is killed leaves its job as it was, and the next worker runs it again: what was
allocated is found by the service, what was started by the Deployer.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resource_allocator_client import Disposition, ResourceAllocator, ResourceAllocatorError

from .errors import PipelineError, TryAgain, report_of
from .graph import build_graph
from .jobs import MOST_STARTS, MOST_TRIES_AGAIN, PARKED, QUEUED, Job, Jobs
from .project import read_project, spec_of
from .signs import Signs

# How often the folder is looked at.
LOOK_S = 0.5
# A job that waits for room is tried as often as this without a sign: reports of usage make room too, and are not in the log.
TRY_S = 60.0
# One that waits for a change of the inventory is tried as often as this: not every worker may follow the stream that tells of it.
TRY_INVENTORY_S = 600.0
# After a technical failure that names no time of its own.
PAUSE_S = 10.0

_log = logging.getLogger("devops_pipeline")


class Worker:
    """Works off the jobs of a folder."""

    def __init__(self, client: ResourceAllocator, work: Path) -> None:
        """Takes the client, and the folder that workers share."""
        self._jobs = Jobs(work)
        self._graph = build_graph(client, work)
        self._signs = Signs(client)
        self._ended = threading.Event()

    def stop(self) -> None:
        """Ends it after the job that it has, if any; a signal's handler may call it."""
        self._ended.set()

    def run(self) -> None:
        """Works until it is stopped."""
        seen = -1
        _log.info("working off the jobs in %s", self._jobs.folder)
        with self._signs:
            while not self._ended.is_set():
                # Read before the jobs are: a sign that comes while one is tried is one that came after its refusal.
                if (count := self._signs.count) != seen:
                    seen = count
                    self._queue_parked(lambda job: job.report is not None and job.report["told_by_stream"])
                self._queue_parked(lambda job: job.is_due)
                if not self._run_queued():
                    self._signs.wait(LOOK_S)

    def run_once(self) -> None:
        """Works off what is queued and what has its time come, and no more."""
        ran = True
        while ran:
            self._queue_parked(lambda job: job.is_due)
            ran = self._run_queued()

    def _queue_parked(self, deserves_a_try: Callable[[Job], bool]) -> None:
        for job in self._jobs.all():
            if job.status == PARKED and deserves_a_try(job):
                with self._jobs.claimed(job) as claimed:
                    # Another worker may have been here first.
                    if claimed is not None and claimed.status == PARKED and deserves_a_try(claimed):
                        _log.info("%s: trying again", claimed.name)
                        claimed.queue()

    def _run_queued(self) -> bool:
        """Runs every job that is queued now; says whether there was one."""
        ran = False
        for job in self._jobs.all():
            if self._ended.is_set():
                break
            if job.status == QUEUED:
                with self._jobs.claimed(job) as claimed:
                    if claimed is not None and claimed.status == QUEUED:
                        self._run(claimed)
                        ran = True
        return ran

    def _run(self, job: Job) -> None:
        try:
            self._deploy(job)
        except (ResourceAllocatorError, PipelineError) as error:
            self._put_aside(job, error)
        except Exception as error:
            # A fault of the pipeline's own must not end the worker, nor be tried for ever.
            _log.error("%s: %s", job.name, traceback.format_exc())
            fault = PipelineError(
                "INTERNAL", Disposition.CALLER, f"the pipeline failed: {type(error).__name__}: {error}"
            )
            self._put_aside(job, fault)

    def _deploy(self, job: Job) -> None:
        if int(job.content.get("starts", 0)) >= MOST_STARTS:
            message = f"the worker ended {MOST_STARTS} times while it had this job; retry it once that is understood"
            raise PipelineError("WORKER_ENDED", Disposition.CALLER, message)
        folder = job.content.get("project")
        if not isinstance(folder, str):
            raise PipelineError(
                "INVALID_JOB", Disposition.CALLER, f'{job.path} is no job; one is {{"project": FOLDER}}'
            )
        project = read_project(Path(folder))
        state: dict[str, Any] = {
            "project_id": project.project_id,
            "project_spec": spec_of(project),
            "project_folder": folder,
        }
        with self._jobs.project_locked(project.project_id):
            job.begin()
            for update in self._graph.stream(state, stream_mode="updates"):
                for node, result in update.items():
                    state |= result
                    job.reached(node)
                    _log.info("%s: %s done%s", job.name, node, _summary(state) if node == "ResourceAllocator" else "")
            job.done(allocated_resources=state["allocated_resources"], deployment=state["deployment"])
        _log.info("%s: deployed", job.name)

    def _put_aside(self, job: Job, error: ResourceAllocatorError | PipelineError) -> None:
        # A fault of the service in between does not begin them anew.
        tries_again = job.tries_again if error.disposition is Disposition.TECHNICAL else 0
        if isinstance(error, TryAgain):
            tries_again += 1
            if tries_again >= MOST_TRIES_AGAIN:
                error, tries_again = error.given_up(tries_again), 0
        report = report_of(error)
        if error.disposition is Disposition.CALLER:
            _log.error("%s: failed: %s", job.name, error)
            job.failed(report)
            return
        advised = getattr(error, "retry_after", None)
        again_after = {
            Disposition.WAIT: TRY_S,
            Disposition.TECHNICAL: advised.total_seconds() if advised is not None else PAUSE_S,
            Disposition.OPERATOR: TRY_INVENTORY_S if report["told_by_stream"] else None,
        }[error.disposition]
        _log.warning("%s: parked: %s", job.name, error)
        job.parked(report, again_after, tries_again)


def _summary(state: dict[str, Any]) -> str:
    ports = ", ".join(f"{resource['module']} {key}" for key, resource in state["allocated_resources"].items())
    return f": {state['placement']['outcome']}: {ports}"
