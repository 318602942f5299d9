"""The model repository in a real Triton Inference Server, the one for CPUs that a wheel on PyPI carries."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from filelock import FileLock

from servers import wait_for
from twig.engine.cli.main import run

pytestmark = pytest.mark.serving

CACHE = Path.home() / ".cache" / "twig-tests" / "triton-0.7.0"
WHEELS = ("nvidia-pytriton==0.7.0", "tritonclient[grpc]", "numpy<2")  # what this server's stub was built with
PROMPT = "a red star on a green field"
CLIENT = Path(__file__).parents[2] / "helpers" / "triton_client.py"


@pytest.fixture(scope="module")
def environment():
    """Folder of packages of an environment that has the server, made once and kept."""
    shared, version = sysconfig.get_config_var("Py_ENABLE_SHARED"), f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not shared:
        pytest.skip("Triton's Python backend needs a shared libpython, which this Python was built without")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    packages = CACHE / "lib" / f"python{version}" / "site-packages"
    with FileLock(CACHE.with_suffix(".lock")):
        if not (CACHE / "done").exists():
            shutil.rmtree(CACHE, ignore_errors=True)
            venv.create(CACHE, with_pip=True)
            command = [CACHE / "bin" / "pip", "install", "--no-compile", "--disable-pip-version-check", *WHEELS]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"the server cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            server = packages / "pytriton" / "tritonserver"
            stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
            shutil.copy(stub, server / "backends" / "python")
            numpy = CACHE / "numpy"  # alone, to go before the one that Twig was installed with
            numpy.mkdir()
            for path in packages.glob("numpy*"):
                (numpy / path.name).symlink_to(path)
            (CACHE / "done").touch()
    return packages


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Triton:
    """A server that runs, of two models. records: the folder that they write to."""

    def __init__(self, environment, folder, model, further):
        self.records, self.environment = folder / "records", environment
        (folder / "serve.yaml").write_text(
            f"model: {{path: {model}, device: cpu}}\nrecords: {{folder: {self.records}, prompts: true}}\n"
            f"models: [{{name: turbo, path: {further}, device: cpu}}]\n"
            "drawing: {steps: 1, rule: refuse if ssim > 1, preset: gentle}\ndrain: {deadline: 30}\n"
        )
        assert run(["export", "--to", "triton-repository", "--config", f"{folder / 'serve.yaml'}",
                    "--out", f"{folder / 'repository'}"]) == 0  # fmt: skip
        model = folder / "repository" / "twig" / "1" / "model.py"
        model.write_text(f"import sys\n\nsys.path.insert(0, {str(CACHE / 'numpy')!r})\n{model.read_text()}")
        self.http, self.grpc, metrics = (free_port() for _ in range(3))
        server, libraries = environment / "pytriton" / "tritonserver", environment / "nvidia_pytriton.libs"
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [server / "bin" / "tritonserver", f"--model-repository={folder / 'repository'}",
             f"--backend-directory={server / 'backends'}", f"--http-port={self.http}", f"--grpc-port={self.grpc}",
             f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
             "--disable-auto-complete-config"],
            env={**os.environ, "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{libraries}"},
            stderr=self.log, stdout=self.log,
        )  # fmt: skip
        try:
            wait_for(lambda: self.ready or self.process.poll() is not None, seconds=600)
            assert self.ready, (folder / "log.txt").read_text()
        except AssertionError:
            self.process.kill()
            raise

    @property
    def ready(self):
        with suppress(httpx2.TransportError):
            return httpx2.get(f"http://127.0.0.1:{self.http}/v2/health/ready").status_code == 200
        return False

    def over_http(self, most=0, **body):
        """Events of a request over HTTP; the connection is closed after `most`."""
        events, url = [], f"http://127.0.0.1:{self.http}/v2/models/twig/generate_stream"
        with httpx2.stream("POST", url, json={"request": json.dumps(body)}, timeout=120) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    told = json.loads(line.removeprefix("data:"))
                    events.append(json.loads(told["event"]) if "event" in told else told)
                if most and len(events) == most:
                    break
        return events

    def over_grpc(self, most=0, **body):
        """Events of a request over gRPC; it is cancelled after `most`."""
        python = CACHE / "bin" / "python"
        words = [python, CLIENT, f"127.0.0.1:{self.grpc}", json.dumps(body), str(most)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=True)
        told = done.stdout.splitlines()
        return [{"error": line[6:]} if line.startswith("error ") else json.loads(line) for line in told]

    def stop(self):
        """End it as Kubernetes would; return what lies in its audit log."""
        self.process.terminate()
        self.process.wait(60)
        return [json.loads(line) for line in (self.records / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def triton(environment, tmp_path_factory, tiny_checkpoint, tiny_xl_checkpoint):
    """A server of tiny models."""
    started = Triton(environment, tmp_path_factory.mktemp("triton"), tiny_checkpoint, tiny_xl_checkpoint)
    yield started
    started.process.kill()
    started.process.wait()
    started.log.close()


def test_a_real_server_draws_streams_refuses_and_lets_go(triton):
    (whole,) = triton.over_http(prompt=PROMPT, n=2, twig={"seed": 5})
    assert "data" in whole, whole
    assert [item["twig"]["verdict"] for item in whole["data"]] == ["accepted", "accepted"]
    drawn = [triton.over_http(prompt="by turbo", model=name, twig={"manifest": True}) for name in ("twig", "turbo")]
    first, other = (answer[0]["data"][0]["twig"]["manifest"]["model"]["hashes"] for answer in drawn)
    assert first != other, "a body names the model that draws"
    (strange,) = triton.over_http(prompt=PROMPT, model="none such")
    assert "model_not_found" in strange["error"]
    events = triton.over_grpc(prompt=PROMPT, stream=True, partial_images=1, twig={"seed": 5, "steps": 4})
    assert [event["type"] for event in events] == ["image_generation.partial_image", "image_generation.completed"]

    for ask in (triton.over_http, triton.over_grpc):
        (told,) = ask(prompt=PROMPT, twig={"rule": "refuse if ssim > -1", "retries": 0})
        refused = json.loads(told["error"][told["error"].index("{") :])
        assert (refused["code"], refused["twig"]["verdict"]) == ("moderation_blocked", "refused")
        (told,) = ask(prompt=PROMPT, colour="red")
        assert "there is no such field" in told["error"]
        left = ask(1, prompt=f"left by {ask.__name__}", stream=True, partial_images=3, twig={"steps": 50})
        assert left[0]["type"] == "image_generation.partial_image"

    (last,) = triton.over_http(prompt="the last")
    assert last["data"][0]["twig"]["verdict"] == "accepted"
    recorded = {line["prompt"]: line["verdict"] for line in triton.stop()}
    assert recorded == {PROMPT: "refused", "by turbo": "accepted", "the last": "accepted"}, (
        "what clients left was not drawn to its end"
    )
