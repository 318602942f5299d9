"""Draw on compiled networks as a process of its own; print as JSON the processor time and GiB that it took.

usage: compiled_memory.py MODEL CONTROLNET SEGMENTER STORE REQUESTS SIDE
"""

import json
import os
import sys
import time

from process_memory import memory, most_own

model, controlnet, segmenter, store, count, side = sys.argv[1:]
os.environ["TWIG_ARTIFACTS"] = store

from small_requests import request  # noqa: E402

from twig import Engine  # noqa: E402

with most_own() as own:
    engine = Engine.from_pretrained(model, controlnet=controlnet, segmenter=segmenter, backend="openvino")
    asked = [
        request(f"a lighthouse in storm {n}", width=int(side), height=int(side), seed=n) for n in range(int(count))
    ]
    drawn = [result.image.size for result in engine.generate(asked)]
held = engine.stats().programs["held"]
print(
    json.dumps({"seconds": time.process_time(), "peak": memory("VmHWM"), "own": own[0], "drawn": drawn, "held": held})
)
