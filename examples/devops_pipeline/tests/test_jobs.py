"""Jobs and what the worker does with them, beside the paths that the acceptance tests go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import EXAMPLE, HELLO, Pipeline, eventually
from live_service import PATIENCE_S, Service

from devops_pipeline.errors import PipelineError, report_of
from devops_pipeline.jobs import MOST_STARTS, Jobs
from resource_allocator_client import Disposition


def write(pipeline: Pipeline, name: str, text: str, age_s: float = 60) -> None:
    path = pipeline.jobs.folder / f"{name}.json"
    path.write_text(text)
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_job_can_be_written_by_hand(pipeline: Pipeline, here: str, project):
    shop = project()
    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    write(pipeline, "mine", json.dumps({"project": str(shop)}))
    pipeline.worker("--once").finish()
    try:
        assert pipeline.job("mine")["status"] == "done"
    finally:
        pipeline.command("stop", shop.name)


def test_what_is_no_job_fails_and_holds_nothing_up(pipeline: Pipeline):
    for name, text in [("a", "{"), ("b", "[]"), ("c", "{}"), ("d", '{"project": "/no/such/folder"}')]:
        write(pipeline, name, text)
    pipeline.worker("--once").finish()
    reports = {name: pipeline.job(name)["report"] for name in "abcd"}
    assert [reports[name]["reason"] for name in "abcd"] == ["INVALID_JOB"] * 3 + ["INVALID_PROJECT"]
    assert "/no/such/folder" in reports["d"]["message"]


def test_a_file_that_somebody_is_writing_is_left_alone(pipeline: Pipeline):
    write(pipeline, "half", '{"project": "/sr', age_s=0)
    assert pipeline.jobs.all() == []
    write(pipeline, "half", '{"project": "/sr')
    assert [job.name for job in pipeline.jobs.all()] == ["half"]


def test_a_job_that_ends_its_worker_again_and_again_is_given_up(pipeline: Pipeline, here: str, project):
    shop = project()
    write(pipeline, "deadly", json.dumps({"project": str(shop), "status": "queued", "starts": MOST_STARTS}))
    pipeline.worker("--once").finish()
    job = pipeline.job("deadly")
    assert (job["status"], job["report"]["reason"]) == ("failed", "WORKER_ENDED")
    assert not pipeline.ports(shop.name)


def test_a_missing_secret_parks_the_job_until_the_operator_retries_it(pipeline: Pipeline, here: str, project):
    shop = project()
    name = pipeline.submit(shop)
    worker = pipeline.worker()
    job = pipeline.until(name, "parked")
    assert (job["report"]["reason"], job["report"]["disposition"]) == ("MISSING_VALUES", "OPERATOR")
    assert "BOT_TOKEN" in job["report"]["message"]
    assert job["nodes"] == ["ResourceAllocator", "EnvAnalyzer"]
    assert not pipeline.processes(shop.name)

    pipeline.give_secrets(shop.name, BOT_TOKEN="token")
    assert pipeline.command("retry").split() == [name]
    pipeline.until(name, "done")
    worker.stop()


def test_a_service_that_is_away_parks_the_job_until_a_later_time(own_pipeline: Pipeline, own_service: Service):
    own_service.stop()
    name = own_pipeline.submit(HELLO)
    own_pipeline.worker("--once").finish()
    job = own_pipeline.job(name)
    assert (job["status"], job["report"]["reason"], job["report"]["disposition"]) == (
        "parked",
        "UNREACHABLE",
        "TECHNICAL",
    )
    assert job["again_at"] > time.time()

    # Its time comes, and the service is back.
    own_service.start()
    worker = own_pipeline.worker()
    eventually("it is tried again", lambda: (own_pipeline.job(name).get("report") or {}).get("reason") == "NO_SERVERS")
    worker.stop()


def test_the_kind_of_act_decides_and_not_the_reason():
    for disposition in Disposition:
        report = report_of(PipelineError("ANYTHING", disposition, "words", figure="7"))
        assert report == {
            "reason": "ANYTHING",
            "disposition": disposition.value,
            "message": "words",
            "metadata": {"figure": "7"},
            "told_by_stream": False,
        }


def test_a_job_is_one_workers_at_a_time(pipeline: Pipeline, project):
    job = pipeline.jobs.submit(project())
    other = Jobs(pipeline.work)
    with pipeline.jobs.claimed(job) as ours:
        assert ours is not None
        with other.claimed(job) as theirs:
            assert theirs is None
    with other.claimed(job) as theirs:
        assert theirs is not None


def test_stopping_a_project_ends_its_jobs_and_no_others(pipeline: Pipeline, project):
    shop, other = project(), project("other")
    queued, parked, done, others = (pipeline.jobs.submit(folder) for folder in (shop, shop, shop, other))
    parked.parked(report_of(PipelineError("ANYTHING", Disposition.WAIT, "words")), 60)
    done.done()
    write(pipeline, "nonsense", "{}")
    said = pipeline.command("stop", shop.name)
    assert said.splitlines() == [f"stopped job {queued.name}", f"stopped job {parked.name}"]
    for job in (queued, parked):
        content = pipeline.job(job.name)
        assert (content["status"], content["report"]["reason"]) == ("failed", "STOPPED")
        assert content.get("again_at") is None
    assert [pipeline.job(job.name)["status"] for job in (done, others)] == ["done", "queued"]


def test_stopping_waits_for_a_worker_that_has_a_job_of_the_project(pipeline: Pipeline, project):
    shop = project()
    name = pipeline.submit(shop)
    (job,) = pipeline.jobs.all()
    stop = [sys.executable, "-m", "devops_pipeline", "--work", pipeline.work, "stop", shop.name]
    with pipeline.jobs.claimed(job) as ours:
        assert ours is not None
        process = subprocess.Popen(stop, cwd=EXAMPLE, env=pipeline.environment, stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        # The worker waits for the project no more than it needs, and puts the job aside.
        with pipeline.jobs.project_locked(shop.name):
            pass
        ours.parked(report_of(PipelineError("ANYTHING", Disposition.WAIT, "words")), 0)
    assert process.wait(PATIENCE_S) == 0
    assert pipeline.job(name)["report"]["reason"] == "STOPPED"


def test_without_an_endpoint_the_worker_says_what_to_set_l02(pipeline: Pipeline):
    pipeline.environment.pop("RESOURCE_ALLOCATOR_ENDPOINT")
    worker = pipeline.worker("--once")
    assert worker.process.wait() == 2
    worker._reader.join()
    assert "RESOURCE_ALLOCATOR_ENDPOINT" in "".join(worker.said)
