"""The Dockerfile and the Kubernetes manifest: by linters, and against what the server does."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from twig import __version__
from twig.engine.serve import config as operators

DEPLOY = Path(operators.__file__).parent / "deploy"
RESOURCES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def resource(kind):
    return next(each for each in RESOURCES if each["kind"] == kind)


@pytest.fixture
def pod():
    return resource("StatefulSet")["spec"]["template"]["spec"]


@pytest.mark.parametrize("one", RESOURCES, ids=lambda one: one["kind"])
def test_every_resource_is_what_its_kind_allows(one):
    kubernetes_validate.validate(one, "1.31", strict=True)
    assert one["metadata"]["name"] == "twig"


def test_the_operators_file_is_one_and_fits_in_the_pods_last_seconds(pod, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(resource("ConfigMap")["data"]["serve.yaml"])
    config = operators.ServeConfig.load(path)
    (container,) = pod["containers"]
    slept = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert slept + config.drain.grace + config.drain.deadline < pod["terminationGracePeriodSeconds"]
    assert container["ports"][0]["containerPort"] == config.listen.port
    written = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert any(config.records.folder.is_relative_to(mount) for mount in written)
    assert config.listen.keys.parent == Path(container["env"][0]["value"]).parent


def test_probes_ask_what_the_server_answers(pod):
    from twig.engine.serve.health import router

    (container,) = pod["containers"]
    paths = {route.path for route in router.routes}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def test_images_are_of_this_version(pod):
    images = {each["image"] for each in (*pod["containers"], *pod["initContainers"])}
    assert images == {f"twig:{__version__}"}


def test_the_dockerfile_has_no_known_fault():
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [linter, "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_serves_by_words_that_the_command_has():
    from twig.engine.cli.main import run

    (words,) = re.findall(r"^CMD \[(.*)\]$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert '"serve", "--config"' in words
    assert run(["serve", "--config", "/nowhere/serve.yaml"]) == 2
