"""Jobs: one file each in the worker's folder, which says what to deploy and what became of it.

    {"project": "/srv/projects/hello-world-bot"}

is a whole one. A file is changed only by who holds its lock, and the system takes the lock back when its holder ends. So a job
whose worker was killed is found as it was, and another worker takes it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PipelineError, Report
from .files import file_name, locked, write_whole
from .project import read_project

QUEUED, PARKED, DONE, FAILED = "queued", "parked", "done", "failed"
# A job that ended its worker as often as this is not tried again: it would end the next one.
MOST_STARTS = 5
# A job of which as many runs in a row put something right, and yet did not come through, waits for someone to see why.
MOST_TRIES_AGAIN = 5
# A file that cannot be read is not judged before it has been left alone for this long.
SETTLED_S = 2.0


@dataclass
class Job:
    """A job, and the content of its file."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """Names the job in logs and commands."""
        return self.path.stem

    @property
    def status(self) -> str:
        """Says whether it is queued, parked, done or failed."""
        return str(self.content.get("status", QUEUED))

    @property
    def project_id(self) -> str | None:
        """Says which project it deploys; None where its project cannot be read, and so cannot be deployed either."""
        folder = self.content.get("project")
        try:
            return read_project(Path(folder)).project_id if isinstance(folder, str) else None
        except PipelineError:
            return None

    @property
    def report(self) -> Report | None:
        """Says why it is parked or failed."""
        return self.content.get("report")

    def queue(self) -> None:
        """Puts it in line again; what it was parked for is kept in sight until it is tried."""
        self._write(status=QUEUED, starts=0, again_at=None)

    def begin(self) -> None:
        """Notes that it is tried, before anything happens."""
        self._write(starts=int(self.content.get("starts", 0)) + 1, nodes=[])

    def reached(self, node: str) -> None:
        """Notes that a node did its work."""
        self._write(nodes=[*self.content.get("nodes", ()), node])

    def done(self, **result: Any) -> None:
        """Ends it well."""
        self._write(status=DONE, starts=0, report=None, again_at=None, tries_again=0, **result)

    def failed(self, report: Report) -> None:
        """Ends it."""
        self._write(status=FAILED, report=report, again_at=None, tries_again=0)

    def parked(self, report: Report, again_after_s: float | None, tries_again: int = 0) -> None:
        """Sets it aside, until a time where there is one."""
        again_at = None if again_after_s is None else time.time() + again_after_s
        self._write(status=PARKED, starts=0, report=report, again_at=again_at, tries_again=tries_again)

    @property
    def tries_again(self) -> int:
        """Says how many runs in a row put something right and asked for another run."""
        return int(self.content.get("tries_again", 0))

    @property
    def is_due(self) -> bool:
        """Says whether it was set aside until a time that is over."""
        again_at = self.content.get("again_at")
        return self.status == PARKED and again_at is not None and time.time() >= again_at

    def _write(self, **changes: Any) -> None:
        self.content |= changes
        write_whole(self.path, json.dumps(self.content, indent=2) + "\n")


class Jobs:
    """The jobs of a folder."""

    def __init__(self, work: Path) -> None:
        """Takes the worker's folder."""
        self.folder = work / "jobs"
        self._locks = work / "locks"
        self.folder.mkdir(parents=True, exist_ok=True)

    def submit(self, project: Path) -> Job:
        """Adds a job for a project's folder."""
        # Names sort by age.
        name = f"{time.time_ns()}-{os.getpid()}-{project.name}"
        job = Job(self.folder / f"{name}.json", {"project": str(project.resolve())})
        job.queue()
        return job

    def all(self) -> list[Job]:
        """Reads every job, the oldest first."""
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return [job for job in found if job is not None]

    @contextmanager
    def claimed(self, job: Job, *, wait: bool = False) -> Iterator[Job | None]:
        """Holds a job, as it is now; None where it is gone, or another worker has it and that is not waited for."""
        with locked(self._locks / f"job-{job.path.stem}.lock", wait=wait) as ours:
            yield self._read(job.path) if ours else None

    @contextmanager
    def project_stopped(self, project_id: str) -> Iterator[list[Job]]:
        """Holds a project and those of its jobs that are not over, which are for the caller to end.

        The jobs come before the project, as a worker takes them: one that has a job may be about to wait for the project, or about
        to put the job aside, and would start afterwards what was stopped.
        """
        with ExitStack() as held:
            jobs = [
                held.enter_context(self.claimed(job, wait=True))
                for job in self.all()
                if job.status in (QUEUED, PARKED) and job.project_id == project_id
            ]
            held.enter_context(self.project_locked(project_id))
            yield [job for job in jobs if job is not None and job.status in (QUEUED, PARKED)]

    @contextmanager
    def project_locked(self, project_id: str) -> Iterator[None]:
        """Waits until no other worker has to do with the project: two deploys of one would stop each other's processes."""
        with locked(self._locks / f"project-{file_name(project_id)}.lock", wait=True):
            yield

    def _read(self, path: Path) -> Job | None:
        try:
            changed = path.stat().st_mtime
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            if time.time() - changed < SETTLED_S:
                # Somebody is writing it.
                return None
            content = None
        # A file that is no job is one that fails, in the open.
        return Job(path, content if isinstance(content, dict) else {"project": None})
