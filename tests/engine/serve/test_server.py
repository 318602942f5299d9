"""The server as a process: from a fresh start to a picture, and from SIGTERM to an end that loses nothing."""

import base64
import hashlib
import io
import os
import signal
import threading

import httpx2
import openai
import pytest
from PIL import Image

from servers import process, wait_for
from twig.engine.records.audit import LOG_NAME, AuditLog

pytestmark = pytest.mark.serving


def config(folder, more=""):
    path = folder / "twig.yaml"
    path.write_text(f"records: {{folder: kept}}\n{more}")
    return path


def test_a_fresh_start_draws_a_picture_and_sigterm_finishes_what_runs(tmp_path):
    drain = "drain: {grace: 1.5, deadline: 60}\ndrawing: {rule: 'refuse if ssim > 1'}"
    with process(config(tmp_path, drain)) as server:
        (item,) = server.client().images.generate(prompt="a red star on a green field").data
        assert Image.open(io.BytesIO(base64.b64decode(item.b64_json))).size == (64, 64)
        answers = []

        def ask(prompt):
            options = {"twig": {"steps": 12, "always": True}}
            answers.append(server.client().images.generate(prompt=prompt, extra_body=options).data[0].twig["verdict"])

        running = threading.Thread(target=ask, args=["a red star"])
        running.start()
        wait_for(lambda: "twig_queued_rows 0.0" not in metrics(server))
        os.kill(server.started.pid, signal.SIGTERM)
        wait_for(lambda: server.status("/readyz") == 503)
        assert server.status("/livez") == 200
        late = threading.Thread(target=ask, args=["a blue house"])
        late.start()  # in the grace a balancer may still send some
        for thread in (running, late):
            thread.join()
        assert server.started.wait(30) == 0
        assert server.status("/livez") == 0
    assert answers == ["accepted", "accepted"]
    assert not any("red star" in str(line) for line in server.log)


def test_what_is_not_finished_within_the_deadline_is_told_so(tmp_path):
    with process(config(tmp_path, "drain: {grace: 0, deadline: 1}\nbounds: {steps: 150}")) as server:
        errors = []

        def ask():
            options = {"twig": {"steps": 150, "always": True}}
            try:
                server.client().images.generate(prompt="a red star", extra_body=options)
            except openai.APIStatusError as error:
                errors.append((error.status_code, error.code, error.response.headers["x-should-retry"]))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: "twig_queued_rows 0.0" not in metrics(server))
        os.kill(server.started.pid, signal.SIGTERM)
        assert server.started.wait(30) == 0
        asking.join()
    assert errors == [(503, "cancelled", "true")]


def metrics(server):
    return httpx2.get(f"{server.url}/metrics").text


def test_a_kill_loses_no_job_and_answers_none_twice(tmp_path):
    settings = config(tmp_path, "jobs: {lease: 1}\ndrawing: {steps: 3, rule: 'refuse if ssim > 1'}")
    with process(settings) as server:
        ids = [ask_for_job(server, seed) for seed in range(4)]
        wait_for(lambda: any(status(server, id) == "done" for id in ids), seconds=60)
        server.started.kill()
        server.started.wait()
        answered = set(answers(tmp_path))
    with process(settings) as server:
        wait_for(lambda: all(status(server, id) == "done" for id in ids), seconds=120)
        told = [httpx2.get(f"{server.url}/v1/twig/jobs/{id}").json()["response"] for id in ids]
        assert [each["body"]["data"][0]["twig"]["seed"] for each in told] == list(range(4))
        kept = answers(tmp_path)
        assert answered <= set(kept)
        assert len(kept) == 4
    assert AuditLog(tmp_path / "kept" / LOG_NAME).verify().findings == ()


def ask_for_job(server, seed):
    body = {"prompt": "a red star", "twig": {"background": True, "seed": seed}}
    return httpx2.post(f"{server.url}/v1/images/generations", json=body).json()["id"]


def status(server, id):
    return httpx2.get(f"{server.url}/v1/twig/jobs/{id}").json()["status"]


def answers(folder):
    """Answers that are kept, each with the digest of what it says."""
    kept = (folder / "kept" / "jobs").glob("*-answer")
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in kept]
