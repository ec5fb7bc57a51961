#!/usr/bin/env python3
"""A worker of task idx-autoencoder that computes with PyTorch, on a GPU where there is one: the full-size auto-encoders in minutes.

It takes the place of hfopt-worker: tests/bench/acceleration --task mnist-ae --data DIR --worker-binary tests/bench/accelerate/torch_worker.py
needs the Python package hfopt on PYTHONPATH. theta lies as in client/models/mlp.h, whose evaluation at the end holds for it too."""

import argparse
import gzip
import os
import pathlib
import signal

import numpy as np
import torch

import hfopt.torch
from hfopt import losses

KINDS = (("train-images-idx3-ubyte",), ("t10k-images-idx3-ubyte", "test-images-idx3-ubyte"))


def images(folder, names, device):
    for name in names:
        for path, read in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
            if path.exists():
                with read(path, "rb") as file:
                    content = file.read()
                count, rows, columns = np.frombuffer(content, ">i4", 3, 4)
                pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, rows * columns)
                return torch.from_numpy(pixels.copy()).to(device).float() / 255
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


class Autoencoder(torch.nn.Module):
    """Sigmoid layers but for the code, which is linear, and the outputs, which are logits."""

    def __init__(self, widths, device):
        super().__init__()
        self.code = len(widths) // 2 - 1
        self.layers = torch.nn.ParameterList()
        for inputs, outputs in zip(widths, widths[1:]):
            self.layers += [torch.nn.Parameter(torch.zeros(inputs, outputs, device=device)),  # W column after column
                            torch.nn.Parameter(torch.zeros(outputs, device=device))]

    def forward(self, x):
        last = len(self.layers) // 2 - 1
        for l in range(last + 1):
            x = torch.addmm(self.layers[2 * l + 1], x, self.layers[2 * l])
            if l not in (self.code, last):
                x = torch.sigmoid(x)
        return x

    def initialize(self):
        """15 connections into each unit, of a standard normal distribution (Martens 2010, sec. 5)."""
        with torch.no_grad():
            for weights in list(self.layers)[::2]:
                inputs, outputs = weights.shape
                rows = torch.stack([torch.randperm(inputs)[:min(15, inputs)] for _ in range(outputs)], 1)
                values = torch.zeros(inputs, outputs).scatter_(0, rows, torch.randn(rows.shape))
                weights.copy_(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--task", choices=["idx-autoencoder"], required=True)
    parser.add_argument("--layers", required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--data-seed", type=int, default=1)
    arguments, _ = parser.parse_known_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    training, held_out = (images(arguments.data, names, device) for names in KINDS)
    module = Autoencoder([int(width) for width in arguments.layers.split("-")], device)
    model = hfopt.torch.TorchModel(module, losses.binary_cross_entropy(), (training, training), (held_out, held_out),
                                   batch_size=20000, shuffle=arguments.data_seed, initialize=Autoencoder.initialize)
    worker = hfopt.Worker(model, arguments.run, arguments.worker_id)
    signal.signal(signal.SIGTERM, lambda *_: worker.leave())
    worker.run(arguments.server)


if __name__ == "__main__":
    main()
