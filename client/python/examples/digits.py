#!/usr/bin/python3
"""A classifier of handwritten digits, 64-32-10 with tanh, as hfopt wants a model: loss, gradient and Gauss-Newton
product, each a sum over examples, in NumPy alone. The same model as task "digits" of hfopt-worker, so workers of both
kinds can serve one run.

    digits.py --data client/models/digits                                       # trains it, with a private server
    digits.py --data client/models/digits --server 127.0.0.1:7447 --run digits  # works for a run of that server
"""
import argparse
import pathlib
import signal

import numpy as np

import hfopt

LAYERS = (64, 32, 10)
SEED = 1  # of the examples' order


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class DigitsModel:
    """theta holds for each layer the weights, input after input, then the biases. Computes in theta's type. In
    formulas: x inputs, h = tanh(x W1 + b1), z = h W2 + b2, p = softmax(z), t one-hot labels, loss = -sum log p[label];
    one row for each example."""

    num_parameters = sum((i + 1) * o for i, o in zip(LAYERS, LAYERS[1:]))

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        images, labels = np.load(folder / "images.npy").reshape(-1, 64) / 16, np.load(folder / "labels.npy")
        order = hfopt.shuffled_indices(SEED, 1400), 1400 + hfopt.shuffled_indices(SEED + 1, len(images) - 1400)
        self.data = [(images[o], labels[o]) for o in order]  # training, held out
        self.num_examples = tuple(len(o) for o in order)
        self.signature = (f"mlp {'-'.join(map(str, LAYERS))} tanh, softmax cross-entropy, l2 0, digits images, "
                          f"{self.num_examples[0]} + {self.num_examples[1]} of 64 pixels, seed {SEED}")

    def initial_parameters(self, seed, dtype):
        """Uniform in +-sqrt(6 / (inputs + outputs)), biases 0 (Glorot & Bengio 2010)."""
        generator, layers = hfopt.SplitMix64(seed), []
        for i, o in zip(LAYERS, LAYERS[1:]):
            bound = (6 / (i + o))**0.5
            layers.append((np.array([bound * (2 * generator.uniform() - 1) for _ in range(i * o)]), np.zeros(o)))
        return self._join(layers).astype(dtype)

    def weight(self, held_out, indices):
        return len(indices)

    def loss(self, theta, held_out, indices):
        """Loss sum, weight, named sums."""
        _, _, p, labels, loss = self._forward(theta, held_out, indices)
        return loss, len(indices), {"errors": float(np.count_nonzero(p.argmax(axis=1) != labels))}

    def gradient(self, theta, held_out, indices, squares=False):
        """Loss sum, weight, gradient sum and, if asked for, the sum of the examples' squared gradients."""
        x, h, p, labels, loss = self._forward(theta, held_out, indices)
        p[np.arange(len(labels)), labels] -= 1  # dloss/dz = p - t
        dh = p @ self._split(theta)[1][0].T * (1 - h * h)
        gradient = self._join([(x.T @ dh, dh.sum(axis=0)), (h.T @ p, p.sum(axis=0))])
        if not squares:
            return loss, len(indices), gradient, None
        # An example's weight gradient is an outer product, whose square is the outer product of squares.
        x, h, dh, p = x * x, h * h, dh * dh, p * p
        return loss, len(indices), gradient, self._join([(x.T @ dh, dh.sum(axis=0)), (h.T @ p, p.sum(axis=0))])

    def linearize(self, theta, held_out, indices):
        """The function v -> G v, with the activations at theta kept for all products (Schraudolph 2002)."""
        x, h, p, _, _ = self._forward(theta, held_out, indices)
        w2 = self._split(theta)[1][0]
        slope = 1 - h * h

        def product(v):
            (v1, c1), (v2, c2) = self._split(v)
            rh = (x @ v1 + c1) * slope  # R{h}: the derivative of h in direction v
            rz = rh @ w2 + h @ v2 + c2
            d = p * (rz - (p * rz).sum(axis=1, keepdims=True))  # H R{z}, H = diag(p) - p p'
            dh = d @ w2.T * slope
            return self._join([(x.T @ dh, dh.sum(axis=0)), (h.T @ d, d.sum(axis=0))])

        return product

    def _forward(self, theta, held_out, indices):
        (w1, b1), (w2, b2) = self._split(theta)
        inputs, labels = self.data[held_out]
        x, labels = inputs[indices].astype(theta.dtype), labels[indices]
        h = np.tanh(x @ w1 + b1)
        p = softmax(h @ w2 + b2)
        return x, h, p, labels, -float(np.log(p[np.arange(len(labels)), labels]).sum(dtype=np.float64))

    @staticmethod
    def _split(theta):
        layers, at = [], 0
        for i, o in zip(LAYERS, LAYERS[1:]):
            layers.append((theta[at:at + i * o].reshape(i, o), theta[at + i * o:at + (i + 1) * o]))
            at += (i + 1) * o
        return layers

    @staticmethod
    def _join(layers):
        return np.concatenate([part.ravel() for layer in layers for part in layer])


def main():
    parser = argparse.ArgumentParser(
        description="A small classifier of handwritten digits: trains it, or serves a run with it.")
    parser.add_argument("--data", required=True, help="folder with images.npy and labels.npy")
    parser.add_argument("--run", help="id of the run to work for; by default one of its own, on a private server")
    parser.add_argument("--server", default="127.0.0.1:7447", help="address of the hfopt-server of that run")
    parser.add_argument("--worker-id", help="one for each worker of a run; the same when it is started again")
    flags = parser.parse_args()
    model = DigitsModel(flags.data)
    if not flags.run:
        print(hfopt.fit(model, max_iterations=20))
        return
    worker = hfopt.Worker(model, flags.run, flags.worker_id, log=lambda line: print(line, flush=True))
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: worker.leave())
    print(worker.run(flags.server), flush=True)


if __name__ == "__main__":
    main()
