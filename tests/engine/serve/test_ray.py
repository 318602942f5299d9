"""Ray Serve and Ray Data on a real cluster of this machine."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import httpx2
import openai
import pytest
import yaml

from descendants import descendants
from servers import wait_for
from twig.engine.serve import config as operators
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.offline.batch import opened

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
serve = pytest.importorskip("ray.serve", reason="the extra `ray` is not installed")

pytestmark = pytest.mark.serving

PROMPT = "a red star on a green field"
PORT = 18265


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this process's own; its proxy may take long to start, for other tests keep both cores busy."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    handled = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    yield
    serve.shutdown()
    ray.shutdown()
    signal.signal(signal.SIGTERM, handled)  # which it took from tests that this process runs after these


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_checkpoint, tiny_xl_checkpoint):
    """An operator's file for two tiny models."""
    folder = tmp_path_factory.mktemp("ray")
    path = folder / "serve.yaml"
    path.write_text(
        f"model: {{path: {tiny_checkpoint}, device: cpu, slots: 4, rows: 4}}\n"
        f"models: [{{name: turbo, path: {tiny_xl_checkpoint}, device: cpu, slots: 4, rows: 4}}]\n"
        f"records: {{folder: {folder / 'kept'}, prompts: true}}\n"
        "drawing: {steps: 1, rule: refuse if ssim > 1, preset: gentle}\ndrain: {grace: 0, deadline: 10}\n"
        "bounds: {steps: 100}\njobs: {lease: 2, running: 2}\n"
    )
    return path


def test_replicas_stream_let_go_and_lose_no_job(cluster, config):
    """Two replicas; one is killed while both draw jobs."""
    from twig.engine.serve.ray import Options, app

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(app(Options(config=config, least=2, most=2)))
    url = f"http://127.0.0.1:{PORT}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=4, timeout=300)
    wait_for(lambda: httpx2.get(f"{url}/readyz").status_code == 200, seconds=120)
    options = {"twig": {"steps": 4}}
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=1, extra_body=options)
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    told = {"twig": {"manifest": True}}
    drawn = [client.images.generate(prompt=PROMPT, model=name, extra_body=told) for name in ("twig", "turbo")]
    first, other = (answer.data[0].twig["manifest"]["model"]["hashes"] for answer in drawn)
    assert first != other, "a body names the model that draws"
    with pytest.raises(openai.BadRequestError, match="there is no such field"):
        client.images.generate(prompt=PROMPT, extra_body={"colour": "red"})

    left = {"prompt": "left behind", "stream": True, "partial_images": 3, "extra_body": {"twig": {"steps": 100}}}
    with client.images.generate(**left) as stream:
        next(iter(stream))

    def ask(number):
        body = {"prompt": f"{PROMPT} {number}", "twig": {"background": True, "steps": 40, "seed": number}}
        return httpx2.post(f"{url}/v1/images/generations", json=body, timeout=60).raise_for_status().json()["id"]

    jobs = [ask(number) for number in range(8)]
    replicas = descendants(b"ray::ServeReplica")
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    ended = {}

    def all_ended():
        for id in set(jobs) - ended.keys():
            try:
                told = httpx2.get(f"{url}/v1/twig/jobs/{id}", timeout=30)
            except httpx2.TransportError:
                continue
            if told.status_code == 200 and told.json()["status"] == "done":
                ended[id] = told.json()["response"]
        return len(ended) == len(jobs)

    wait_for(all_ended, seconds=400)
    told = [answer["body"]["data"][0]["twig"] for answer in ended.values()]
    assert [answer["status_code"] for answer in ended.values()] == [200] * len(jobs)
    assert sorted(each["seed"] for each in told) == list(range(8))
    assert len({each["record"] for each in told}) == len(jobs)
    log = (config.parent / "kept" / "audit.jsonl").read_text()
    assert PROMPT in log
    assert "left behind" not in log, "what a client left was not drawn to its end"
    serve.delete("default")
    wait_for(lambda: not descendants(b"ray::ServeReplica"), seconds=60)


def test_replicas_follow_the_rows_that_are_queued():
    from twig.engine.serve.ray import QUEUED, RATE, Wanted

    def wanted(rows, rates, seconds=10):
        context = SimpleNamespace(
            aggregated_metrics={QUEUED: dict(enumerate(rows)), RATE: dict(enumerate(rates))},
            target_num_replicas=2,
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=4,
        )
        return Wanted(seconds)(context)[0]

    assert wanted([0, 0], [0, 0]) == 2, "nothing was measured"
    assert wanted([900, 300], [50, 30]) == 3, "1200 rows, of which a replica draws 400 in 10 s"
    assert wanted([0, 0], [50, 30]) == 1
    assert wanted([10**6, 0], [50, 30]) == 4


def test_the_file_that_deploys_it_is_one():
    from ray.serve.schema import ServeDeploySchema

    from twig.engine.serve.ray import Options

    values = yaml.safe_load((Path(operators.__file__).parent / "deploy" / "ray.yaml").read_text())
    (deployed,) = ServeDeploySchema.model_validate(values).applications
    assert deployed.import_path == "twig.engine.serve.ray:app"
    assert Options(**deployed.args).most == 8


def test_a_batch_over_a_cluster_outlives_a_worker(cluster, config, tmp_path):
    """A worker is killed while it draws; each line is answered once, and no record is made twice."""
    from twig.engine.serve.offline.cluster import spread

    count, requests = 64, tmp_path / "requests.jsonl"
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/images/generations",
         "body": {"prompt": f"{PROMPT} {number}"}}
        for number in range(count)
    ]  # fmt: skip
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")
    killed = []
    with opened(requests, tmp_path / "out") as batch:
        for _ in spread(batch, ServeConfig.load(config), workers=2):
            if not killed and (workers := descendants(b"ray::FlatMap") or descendants(b"ray::MapWorker")):
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)
        assert (batch.results, batch.errors) == (count, 1)
    assert killed
    answers = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(line["custom_id"] for line in lines)
    records = {answer["response"]["body"]["data"][0]["twig"]["record"] for answer in answers}
    assert {path.stem for path in (tmp_path / "out").glob("twig-*.json")} == records
    assert len(records) == count
