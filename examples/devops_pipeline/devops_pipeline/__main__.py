"""The command line: `worker`, `submit`, `jobs`, `retry`, `stop`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from resource_allocator_client import Disposition, ResourceAllocator

from . import processes
from .errors import PipelineError, report_of
from .jobs import FAILED, PARKED, Jobs


def main() -> int:
    """Runs one command, and gives its exit code."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    work: Path = arguments.work
    try:
        return int(arguments.run(work, arguments))
    except ValueError as error:
        # A setting that is missing or makes no sense, such as the endpoint.
        print(f"devops_pipeline: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devops_pipeline", description=__doc__)
    work = Path(os.environ.get("DEVOPS_PIPELINE_WORK", ".devops-pipeline"))
    parser.add_argument("--work", type=Path, default=work, help="the folder that workers share (%(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    worker = commands.add_parser("worker", help="work off jobs; RESOURCE_ALLOCATOR_ENDPOINT names the service")
    worker.add_argument("--once", action="store_true", help="work off what is queued, and end")
    worker.set_defaults(run=_worker)

    submit = commands.add_parser("submit", help="add a job for a project's folder")
    submit.add_argument("project", type=Path)
    submit.set_defaults(run=_submit)

    jobs = commands.add_parser("jobs", help="show the jobs, and why those that stand still do")
    jobs.set_defaults(run=_jobs)

    retry = commands.add_parser("retry", help="queue what is parked or failed again")
    retry.add_argument("job", nargs="*", help="names of jobs; none means all that are parked")
    retry.set_defaults(run=_retry)

    stop = commands.add_parser("stop", help="stop a project's processes and jobs; its place and ports stay its own")
    stop.add_argument("project_id")
    stop.add_argument("--release", action="store_true", help="give its place and its ports back as well")
    stop.set_defaults(run=_stop)
    return parser


def _worker(work: Path, arguments: argparse.Namespace) -> int:
    # The other commands have no use for LangGraph, which takes a second to load.
    from .worker import Worker

    with ResourceAllocator() as client:
        worker = Worker(client, work)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.stop())
        if arguments.once:
            worker.run_once()
        else:
            worker.run()
    return 0


def _submit(work: Path, arguments: argparse.Namespace) -> int:
    print(Jobs(work).submit(arguments.project).name)
    return 0


def _jobs(work: Path, arguments: argparse.Namespace) -> int:
    for job in Jobs(work).all():
        print(f"{job.name}: {job.status}")
        if job.report is not None:
            print(f"  {job.report['reason']} ({job.report['disposition']}): {job.report['message']}")
    return 0


def _retry(work: Path, arguments: argparse.Namespace) -> int:
    jobs = Jobs(work)
    for job in jobs.all():
        wanted = job.name in arguments.job if arguments.job else job.status == PARKED
        if wanted and job.status in (PARKED, FAILED):
            with jobs.claimed(job) as claimed:
                if claimed is not None:
                    claimed.queue()
                    print(claimed.name)
    return 0


def _stop(work: Path, arguments: argparse.Namespace) -> int:
    """Reads nothing from the service and asks it for nothing, unless told to give back: a stop must never place a project."""
    project_id: str = arguments.project_id
    message = f"`{project_id}` was stopped before this job was done; retry the job where it shall run again"
    stopped = report_of(PipelineError("STOPPED", Disposition.CALLER, message))
    with Jobs(work).project_stopped(project_id) as jobs:
        # First of all: what is given back tells every worker that there is room, also for this project.
        for job in jobs:
            job.failed(stopped)
            print(f"stopped job {job.name}")
        for number in processes.stop(processes.mark_of(work, project_id)):
            print(f"stopped process {number}")
        if arguments.release:
            with ResourceAllocator() as client:
                for allocation in client.release(project_id).released:
                    print(f"gave back {allocation.module} {allocation.server_handle}:{allocation.port}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
