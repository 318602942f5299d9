"""Load a model as a process of its own, draw one step of it, and print what that took as JSON.

usage: loading_memory.py MODEL DTYPE
"""

import json
import resource
import sys
import time

import torch

from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load


def peak() -> float:
    """Most memory that this process has had so far, in GiB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


before = peak()
components = load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
loaded = {"seconds": time.process_time(), "before": before, "peak": peak()}
networks = [components.unet, components.vae, *components.text_encoders]
size = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values()) / 2**30
stage = Stage(steps=1)
plain = {"avoidance": Avoidance.off(), "similarity": {"rule": None}, "width": 64, "height": 64}
request = GenerationRequest(prompt="a lighthouse", draft=stage, final=stage, **plain)
(result,) = Engine(components, dtype=components.unet.dtype).generate(request)
print(json.dumps(loaded | {"weights": size, "drawn": result.image is not None, "peak_drawing": peak()}))
