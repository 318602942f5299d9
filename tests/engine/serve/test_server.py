"""The server as a process: from a fresh start to a picture, and from SIGTERM to an end that loses nothing."""

import base64
import io
import os
import signal
import threading

import httpx2
import openai
import pytest
from PIL import Image

from servers import process, wait_for

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
            options = {"twig": {"steps": 30, "always": True}}
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
    assert not any("star" in str(line) for line in server.log)


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
