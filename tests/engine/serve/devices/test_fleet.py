"""`twig serve --devices` as processes of several models, with keys: spread, cancelled, killed, started again, ended."""

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
from twig.engine.serve.keys import LOCAL, Keys

pytestmark = pytest.mark.serving

PROMPT = "a red star on a green field"


class Fleet:
    """A server over two engines on the CPU, of two models each. keys: by whose they are."""

    def __init__(self, server, keys):
        self.server, self.keys = server, keys

    def client(self, whose="ann", **options):
        return self.server.client(api_key=self.keys[whose], **options)

    @property
    def states(self):
        return set(httpx2.get(f"{self.server.url}/readyz").json()["devices"].values())

    def samples(self, name, model="star"):
        """Values of a metric by device, and of a model where they are counted by it."""
        page = httpx2.get(f"{self.server.url}/metrics", headers={"authorization": f"Bearer {self.keys['ann']}"}).text
        found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        wanted = [each for each in found if each.name == name and each.labels.get("model", model) == model]
        return {sample.labels["device"]: sample.value for sample in wanted}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_checkpoint, tiny_xl_checkpoint):
    folder = tmp_path_factory.mktemp("fleet")
    config, keys = folder / "serve.yaml", Keys(folder / "keys.json")
    config.write_text(
        f"model: {{name: star, path: {tiny_checkpoint}, slots: 4, rows: 4}}\n"
        f"models: [{{name: turbo, path: {tiny_xl_checkpoint}, drawing: {{steps: 2, guidance: 1}}}}]\n"
        f"records: {{folder: {folder / 'records'}}}\nlisten: {{keys: {keys.path}}}\n"
        "drawing: {steps: 1, rule: refuse if ssim > 1, preset: gentle}\ndrain: {grace: 0, deadline: 20}\n"
        "bounds: {steps: 100}\n"
    )
    held = {"ann": keys.add("ann", roles=tuple(LOCAL.roles)), "one": keys.add("one", concurrent=1)}
    with process(config, "--devices", "cpu,cpu") as server:
        started = Fleet(server, held)
        wait_for(lambda: started.states == {"ready"}, seconds=300)
        yield started


def workers(fleet):
    """Processes that the front started, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(fleet.server.started.pid):
                words = (path.parent / "cmdline").read_bytes().split(b"\0")
                found |= {word.decode()[-6]: int(path.parent.name) for word in words if word.endswith(b".sock")}
    return found


def test_devices_on_the_processor_share_its_cores(fleet):
    told = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in workers(fleet).values()]
    threads = {each.partition(b"=")[2] for one in told for each in one if each.startswith(b"OMP_NUM_THREADS=")}
    expected = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert (len(told), threads) == (2, {expected.encode()})


def test_devices_share_requests_of_each_model_and_a_keys_limits(fleet):
    client = fleet.client(timeout=300)
    for model in ("star", "turbo"):
        answers = [client.images.generate(prompt=f"{PROMPT} {number}", model=model) for number in range(6)]
        assert {answer.data[0].twig["verdict"] for answer in answers} == {"accepted"}
        assert all(value > 0 for value in fleet.samples("twig_unet_rows_total", model).values()), "both drew"
    assert [model.id for model in client.models.list().data] == ["star", "turbo"]

    one, busy = fleet.client("one"), {"twig": {"steps": 100}}
    with one.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=busy) as stream:
        next(iter(stream))
        for number in range(6):  # whichever device they are for
            with pytest.raises(openai.RateLimitError) as refused:
                one.images.generate(prompt=f"{PROMPT} {number}", model="turbo")
            assert refused.value.code == "too_many_requests"
    wait_for(lambda: sum(fleet.samples("twig_queued_rows").values()) == 0)
    one.images.generate(prompt=PROMPT)


def test_streams_pass_through_and_a_lost_device_comes_back(fleet):
    client = fleet.client(timeout=300)
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=1, extra_body={"twig": {"steps": 4}})
    assert [event.type for event in events][-1] == "image_generation.completed"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt=PROMPT, extra_body={"colour": "red"})
    assert refused.value.code == "unknown_parameter"
    assert fleet.server.status("/internal/load") == 404

    # A client that leaves is noticed behind the front too.
    with client.images.generate(
        prompt=PROMPT, stream=True, partial_images=3, extra_body={"twig": {"steps": 100}}
    ) as stream:
        next(iter(stream))
        assert sum(fleet.samples("twig_queued_rows").values()) > 0
    wait_for(lambda: sum(fleet.samples("twig_queued_rows").values()) == 0)

    lost = []

    def ask():
        with pytest.raises(openai.InternalServerError) as error:
            client.images.generate(prompt=PROMPT, extra_body={"twig": {"steps": 100}})
        lost.append(error.value)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: sum(fleet.samples("twig_queued_rows").values()) > 0)
    (busy,) = (device for device, rows in fleet.samples("twig_queued_rows").items() if rows)
    os.kill(workers(fleet)[busy[0]], signal.SIGKILL)
    asking.join(120)
    assert lost[0].code == "device_lost"
    assert lost[0].response.headers["x-should-retry"] == "true"
    assert client.images.generate(prompt=PROMPT).data[0].twig["verdict"] == "accepted", "the other goes on"
    wait_for(lambda: fleet.states == {"ready"}, seconds=300)
    assert fleet.samples("twig_device_restarts")[busy] == 1

    running = list(workers(fleet).values())
    assert len(running) == 2
    fleet.server.started.send_signal(signal.SIGTERM)
    fleet.server.started.wait(60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
