"""Load a model as a process of its own, and print as JSON the processor time and memory that it took, in GiB.

usage: loading_memory.py MODEL DTYPE
"""

import json
import sys
import time

import torch
from process_memory import memory

from twig.engine.models.checkpoint import load

before, began = memory("VmHWM"), time.process_time()
components = load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
took = {"seconds": time.process_time() - began, "before": before, "peak": memory("VmHWM"), "own": memory("RssAnon")}
networks = [components.unet, components.vae, *components.text_encoders]
size = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values()) / 2**30
print(json.dumps(took | {"weights": size}))
