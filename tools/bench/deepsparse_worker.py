"""DeepSparse as a process that is asked and answers, like `lit_compress.runtimes.worker`.

Runs in an environment of its own (`pip install deepsparse==1.8.0`, Python 3.11 at most), so it imports nothing of this
package: `python deepsparse_worker.py model.onnx THREADS`, then a JSON object a line.
"""

import json
import sys
import time

import numpy as np
from deepsparse import Engine


def main() -> None:
    """Answer `time` requests until the input ends."""
    path, threads = sys.argv[1], int(sys.argv[2])
    engines = {}
    for line in sys.stdin:
        asked = json.loads(line)
        shape = (asked["rows"], asked["tokens"])
        if shape not in engines:
            engines.clear()  # a compiled engine takes the memory of its model
            names = ["input_ids", "attention_mask", "token_type_ids"]
            engines[shape] = Engine(
                path, batch_size=shape[0], num_cores=threads, input_shapes=[list(shape)] * len(names)
            )
        ids = np.random.default_rng(list(shape)).integers(0, asked["vocabulary"], shape, dtype=np.int64)
        inputs = [ids, np.ones_like(ids), np.zeros_like(ids)]
        seconds = []
        for call in range(asked["warmup"] + asked["calls"]):
            started = time.perf_counter()
            outputs = engines[shape].run(inputs)
            if call >= asked["warmup"]:
                seconds.append(time.perf_counter() - started)
        answer = {"seconds": seconds, "logits": outputs[0].tolist() if asked["calls"] == 0 else None}
        print("answer " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
