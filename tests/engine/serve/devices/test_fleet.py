"""`twig serve --devices` as processes: spread, cancelled, killed, started again, ended."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from servers import process, wait_for

pytestmark = pytest.mark.serving

PROMPT = "a red star on a green field"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_checkpoint):
    """A server over two engines on the CPU."""
    folder = tmp_path_factory.mktemp("fleet")
    config = folder / "serve.yaml"
    config.write_text(
        f"model: {{path: {tiny_checkpoint}, slots: 4, rows: 4}}\nrecords: {{folder: {folder / 'records'}}}\n"
        "drawing: {steps: 1, rule: refuse if ssim > 1, preset: gentle}\ndrain: {grace: 0, deadline: 20}\n"
        "bounds: {steps: 100}\n"
    )
    with process(config, "--devices", "cpu,cpu") as server:
        wait_for(lambda: states(server) == {"ready"}, seconds=300)
        yield server


def states(server):
    return set(httpx2.get(f"{server.url}/readyz").json()["devices"].values())


def samples(server, name):
    """Values of a metric by device."""
    page = httpx2.get(f"{server.url}/metrics").text
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {sample.labels["device"]: sample.value for sample in found if sample.name == name}


def workers(server):
    """Processes that the front started, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(server.started.pid):
                words = (path.parent / "cmdline").read_bytes().split(b"\0")
                found |= {word.decode()[-6]: int(path.parent.name) for word in words if word.endswith(b".sock")}
    return found


def test_devices_share_requests_and_a_lost_one_comes_back(fleet):
    client = fleet.client(timeout=300)
    answers = [client.images.generate(prompt=f"{PROMPT} {number}") for number in range(6)]
    assert {answer.data[0].twig["verdict"] for answer in answers} == {"accepted"}
    assert all(value > 0 for value in samples(fleet, "twig_unet_rows_total").values()), "both drew"
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=1, extra_body={"twig": {"steps": 4}})
    assert [event.type for event in events][-1] == "image_generation.completed"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt=PROMPT, extra_body={"colour": "red"})
    assert refused.value.code == "unknown_parameter"
    assert httpx2.get(f"{fleet.url}/internal/load").status_code == 404
    assert client.models.list().data[0].id == "twig"

    # A client that leaves is noticed behind the front too.
    with client.images.generate(
        prompt=PROMPT, stream=True, partial_images=3, extra_body={"twig": {"steps": 100}}
    ) as stream:
        next(iter(stream))
        assert sum(samples(fleet, "twig_queued_rows").values()) > 0
    wait_for(lambda: sum(samples(fleet, "twig_queued_rows").values()) == 0)

    lost = []

    def ask():
        with pytest.raises(openai.InternalServerError) as error:
            client.images.generate(prompt=PROMPT, extra_body={"twig": {"steps": 100}})
        lost.append(error.value)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: sum(samples(fleet, "twig_queued_rows").values()) > 0)
    (busy,) = (device for device, rows in samples(fleet, "twig_queued_rows").items() if rows)
    os.kill(workers(fleet)[busy[0]], signal.SIGKILL)
    asking.join(120)
    assert lost[0].code == "device_lost"
    assert lost[0].response.headers["x-should-retry"] == "true"
    assert client.images.generate(prompt=PROMPT).data[0].twig["verdict"] == "accepted", "the other goes on"
    wait_for(lambda: states(fleet) == {"ready"}, seconds=300)
    assert samples(fleet, "twig_device_restarts")[busy] == 1

    running = list(workers(fleet).values())
    assert len(running) == 2
    fleet.started.send_signal(signal.SIGTERM)
    fleet.started.wait(60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
