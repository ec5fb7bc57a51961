"""The worker of hfopt_transport_bench in Python: a model whose products cost nothing. Arguments: ADDRESS N shared|grpc
[WORKERS]"""
import sys

import numpy as np

import hfopt


class FreeModel:
    num_examples = (64, 64)
    signature = "free"
    element_types = ("float32",)
    has_second_moment = has_initial_parameters = False

    def __init__(self, n):
        self.num_parameters = n
        self.product = np.zeros(n, np.float32)

    def loss(self, *_):
        raise NotImplementedError("not asked for")

    gradient = loss

    def weight(self, held_out, indices):
        return len(indices)

    def linearize(self, theta, held_out, indices):
        def product(v):
            # Proves that the direction has come, and its product. One buffer, as answers are asked for one by one here.
            self.product[0], self.product[-1] = v[0], v[-1]
            return self.product
        return product


hfopt.keep_freed_pages()  # as the C++ worker does
address, n, way = sys.argv[1:4]
worker = hfopt.Worker(FreeModel(int(n)), "transport", "w-0", shards=[0], shared_memory=way == "shared", give_up_after=5)
worker.run(address)
