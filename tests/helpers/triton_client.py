"""A client of Triton over gRPC, run by the Python that has its library: prints each event, and leaves early if told to.

Words: address, a body as JSON, and how many events are read before it leaves, 0 for all.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as grpc


def main(address, body, most):
    """Ask, and print what is answered."""
    client, answers = grpc.InferenceServerClient(address), queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    asked = grpc.InferInput("request", [1], "BYTES")
    asked.set_data_from_numpy(np.array([body.encode()], dtype=np.object_))
    client.async_stream_infer("twig", [asked], enable_empty_final_response=True)
    for number in range(1, 1000):
        result, error = answers.get(timeout=120)
        if error is not None:
            print("error", error.message(), flush=True)
            break
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
        print(result.as_numpy("event")[0].decode(), flush=True)
        if number == int(most):
            break
    client.stop_stream(cancel_requests=int(most) > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
