"""hfopt.torch: derivatives of many kinds of modules against finite differences and a dense J'HJ, data sets,
refusals."""

import json
import os
import pathlib
import shutil
import unittest

import numpy as np

import gauss_newton as check

torch = check.require("torch", "apt-get install python3-torch, or pip install torch", __name__)
import digits
import hfopt.losses as losses
import hfopt.torch
from hfopt import _adapter

SOURCE = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"])
INDICES = np.array([3, 0, 7, 7, 5, 1])
METHODS = ("double-backward", "func") if hasattr(torch, "func") else ("double-backward",)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def labels(classes, *shape):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def mlp(inputs=4, outputs=3):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(inputs, 5), torch.nn.Tanh(), torch.nn.Linear(5, outputs))


class Tied(torch.nn.Module):
    """An autoencoder whose decoder is the encoder's transpose, and one layer used twice."""

    def __init__(self):
        super().__init__()
        self.encoder, self.inner, self.decoder = (
            torch.nn.Linear(4, 3),
            torch.nn.Linear(3, 3),
            torch.nn.Linear(4, 3, bias=False),
        )
        self.decoder.weight = self.encoder.weight
        self.again = self.inner

    def forward(self, x):
        return self.inner(torch.tanh(self.again(torch.tanh(self.encoder(x))))) @ self.decoder.weight


class Words(torch.nn.Module):
    """Embedding, recurrent layer and classes for each frame; of two inputs by name, the second a mask."""

    def __init__(self):
        super().__init__()
        self.embedding, self.recurrent, self.out = (
            torch.nn.Embedding(6, 3),
            torch.nn.LSTM(3, 4, batch_first=True),
            torch.nn.Linear(4, 3),
        )

    def forward(self, words, mask):
        return self.out(self.recurrent(self.embedding(words) * mask[..., None])[0])


class Transformer(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x).mean(dim=1)


class Frozen(torch.nn.Module):
    """Frozen batch norm and dropout, a frozen layer, an unused parameter."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        self.fixed, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.norm.running_mean.copy_(torch.arange(4.0))
        self.norm.running_var.copy_(1 + torch.arange(4.0))
        self.fixed.requires_grad_(False)
        self.eval()

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.fixed(self.norm(x)))))


def convnet():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(2),
        torch.nn.GroupNorm(1, 2),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    )


def oscillator(u, batch):
    """Residuals of u'' + u = 0 by autograd's own way of derivatives, and an initial value."""
    t = batch["t"].clone().requires_grad_()
    y = u(t)
    (first,) = torch.autograd.grad(y.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
    return (second + y)[:, 0], 3 * (u(batch["zero"]) - 1)[:, 0]


def transport(u, batch):
    value, along = hfopt.torch.derivative_along(u, batch, torch.ones_like(batch))
    return torch.cat([along, value], dim=1)


# name -> module, loss, data, whether torch.func can do it
CASES = {
    "mlp": (mlp, losses.cross_entropy(), (random(8, 4), labels(3, 8))),
    "squared error": (mlp, losses.squared_error(), (random(8, 4), random(8, 3))),
    "bernoulli": (mlp, losses.binary_cross_entropy(), (random(8, 4), labels(2, 8, 3).double())),
    "convnet": (convnet, losses.cross_entropy(), (random(8, 1, 6, 6), labels(3, 8))),
    "tied": (Tied, losses.squared_error(), (random(8, 4), random(8, 4))),
    "words": (Words, losses.cross_entropy(), ({"words": labels(6, 8, 5), "mask": labels(2, 8, 5)}, labels(3, 8, 5))),
    "transformer": (Transformer, losses.squared_error(), (random(8, 3, 4), random(8, 4))),
    "frozen": (Frozen, losses.cross_entropy(), (random(8, 4), labels(2, 8))),
    "oscillator": (lambda: mlp(1, 1), losses.residuals(oscillator), {"t": random(8, 1), "zero": torch.zeros(8, 1)}),
    "transport": (lambda: mlp(2, 1), losses.residuals(transport), random(8, 2)),
    "ctc": (
        mlp,
        losses.ctc(),
        (random(8, 6, 4), (1 + labels(2, 8, 2), torch.tensor([6, 5] * 4), torch.tensor([2, 1] * 4))),
    ),
}
ONLY_DOUBLE_BACKWARD = {
    "oscillator",
    "words",
}  # torch.func does not see through torch.autograd.grad, nor into every recurrent layer


def make(name, **options):
    torch.manual_seed(1)
    module, loss, data = CASES[name]
    return hfopt.torch.as_model(module(), loss, data, data, shuffle=None, **options)


class DerivativesTest(unittest.TestCase):

    def each(self):
        for name in CASES:
            with self.subTest(name):
                model = make(name)
                yield name, model, model.initial_parameters(1, np.float64)

    def test_gradient_is_the_derivative_of_the_loss(self):
        for _, model, theta in self.each():
            check.check_gradient(self, model, theta, INDICES)

    def test_product_is_dense_gauss_newton(self):
        """J by central differences of the outputs of the module with theta loaded, H by second differences of the
        loss."""
        for name, model, theta in self.each():
            module, loss, data = CASES[name][0]().double(), CASES[name][1], CASES[name][2]
            if name == "frozen":
                module.fixed.load_state_dict(model._module.fixed.state_dict())
            batch = losses.unflatten(data, [x[torch.from_numpy(INDICES)] for x in losses.flatten(data)])
            batch = losses.unflatten(batch, [x.double() if x.is_floating_point() else x for x in losses.flatten(batch)])

            def outputs(vector):
                hfopt.torch.load(module, vector)
                if loss.function:
                    return np.concatenate(
                        [r.detach().numpy().ravel() for r in losses.flatten(loss.function(module, batch))]
                    )
                with torch.no_grad():
                    return (module(**batch[0]) if isinstance(batch[0], dict) else module(batch[0])).numpy()

            jacobian, z = check.numerical_jacobian(outputs, theta), outputs(theta)
            if loss.function:
                hessian = np.eye(z.size)
            elif name == "ctc":
                hessian = np.zeros((z.size, z.size))
                frames = (len(INDICES), z.shape[1])
                for i, t in np.ndindex(*frames):
                    if t < batch[1][1][i]:
                        p, at = np.exp(z[i, t]) / np.exp(z[i, t]).sum(), (i * frames[1] + t) * 3
                        hessian[at : at + 3, at : at + 3] = np.diag(p) - np.outer(p, p)
            else:
                value = lambda x: loss.terms(x.reshape(z.shape), batch[1])[0].sum()
                hessian = torch.autograd.functional.hessian(value, torch.from_numpy(z.ravel())).numpy()
            dense = jacobian.T @ hessian @ jacobian
            for method in METHODS if name not in ONLY_DOUBLE_BACKWARD else METHODS[:1]:
                product = make(name, product=method, batch_size=4).linearize(theta, False, INDICES)
                np.testing.assert_allclose(
                    check.dense_product(product, len(theta)), dense, rtol=1e-6, atol=1e-7 * np.abs(dense).max()
                )

    def test_sums_squared_gradients_of_examples(self):
        for name, model, theta in self.each():
            check.check_squares(self, model, theta, INDICES)
            if METHODS[-1] == "func" and name in ("mlp", "convnet", "tied", "transport"):
                self.assertEqual(model._squares.__name__, "_squares_vectorised")

    def test_is_pure(self):
        for name in CASES:
            for dtype in np.float32, np.float64:
                with self.subTest(name, dtype=dtype):
                    model = make(name)
                    check.check_pure(self, model, model.initial_parameters(1, dtype), INDICES)

    def test_the_batch_size_changes_rounding_alone(self):
        for name, model, theta in self.each():
            check.check_batching(self, lambda **options: make(name, **options), theta, INDICES)

    def test_keeping_activations_changes_no_bit(self):
        for name, model, theta in self.each():
            a, b = (
                make(name, batch_size=3, max_kept_bytes=size).linearize(theta, False, INDICES)(theta)
                for size in (1 << 30, 0)
            )
            np.testing.assert_array_equal(a, b)
        self.assertGreater(make("mlp")._bytes_per_element, 0)

    def test_nothing_of_nothing(self):
        for _, model, theta in self.each():
            check.check_empty(self, model, theta)

    def test_float32_is_float64_to_rounding(self):
        for _, model, theta in self.each():
            single = theta.astype(np.float32)
            a, b = (model.gradient(t, False, INDICES, False)[2] for t in (single, single.astype(np.float64)))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
            a, b = (model.linearize(t, False, INDICES)(t) for t in (single, single.astype(np.float64)))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())

    def test_regularization_is_of_the_mean_loss(self):
        plain, regular = make("words"), make("words", regularization=0.25)
        theta = plain.initial_parameters(1, np.float64)
        loss, weight, gradient, _ = plain.gradient(theta, False, INDICES, True)
        self.assertEqual(weight, 5 * len(INDICES))
        answer = regular.gradient(theta, False, INDICES, True)
        self.assertAlmostEqual(answer[0], loss + weight * 0.125 * theta @ theta)
        np.testing.assert_allclose(answer[2], gradient + weight * 0.25 * theta)
        np.testing.assert_allclose(
            regular.linearize(theta, False, INDICES)(theta),
            plain.linearize(theta, False, INDICES)(theta) + weight * 0.25 * theta,
        )
        check.check_gradient(self, regular, theta, INDICES)
        check.check_squares(self, regular, theta, INDICES)

    def test_agrees_with_the_digits_example(self):
        """The worker example's model, written by hand: theta layer by layer, weights input after input, where PyTorch
        has output after output."""
        example = digits.DigitsModel(SOURCE / "client/models/digits")
        data = [(torch.from_numpy(x), torch.from_numpy(np.asarray(t)).long()) for x, t in example.data]
        module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).double()
        model = hfopt.torch.as_model(module, torch.nn.CrossEntropyLoss(), *data, shuffle=None)
        theta = example.initial_parameters(1, np.float64)

        def reorder(vector, transposed):
            layers, at = [], 0
            for i, o in (64, 32), (32, 10):
                shape = (o, i) if transposed else (i, o)
                layers += [vector[at : at + i * o].reshape(shape).T.ravel(), vector[at + i * o : at + i * o + o]]
                at += i * o + o
            return np.concatenate(layers)

        indices, v = np.arange(100, 300), np.random.default_rng(1).standard_normal(len(theta))
        for held_out in False, True:
            ours, theirs = (
                m.gradient(t, held_out, indices, True) for m, t in ((model, reorder(theta, False)), (example, theta))
            )
            self.assertAlmostEqual(ours[0], theirs[0])
            for a, b in zip(ours[2:], theirs[2:]):
                np.testing.assert_allclose(reorder(a, True), b, rtol=1e-9, atol=1e-12)
            self.assertEqual(
                model.loss(reorder(theta, False), held_out, indices)[2], example.loss(theta, held_out, indices)[2]
            )
            np.testing.assert_allclose(
                reorder(model.linearize(reorder(theta, False), held_out, indices)(reorder(v, False)), True),
                example.linearize(theta, held_out, indices)(v),
                rtol=1e-9,
                atol=1e-12,
            )


class DataTest(unittest.TestCase):
    X, Y = random(9, 4), labels(3, 9)

    def loss(self, data, **options):
        model = hfopt.torch.as_model(mlp(), torch.nn.CrossEntropyLoss(), data, data, **options)
        return model.loss(model.initial_parameters(1, np.float64), False, np.array([2, 5, 0]))

    def test_all_kinds_of_data_are_the_same_examples(self):

        class Map(torch.utils.data.Dataset):
            __len__ = lambda self: 9
            __getitem__ = lambda self, i: (DataTest.X[i], int(DataTest.Y[i]))

        expected = self.loss((self.X, self.Y))
        tensors = torch.utils.data.TensorDataset(self.X, self.Y)
        for data in (
            (self.X.numpy(), self.Y.numpy()),
            tensors,
            Map(),
            torch.utils.data.DataLoader(Map(), batch_size=2, shuffle=True),
            torch.utils.data.DataLoader(tensors),
            [(x, y) for x, y in zip(self.X, self.Y)],
            torch.utils.data.Subset(Map(), range(9)),
        ):
            np.testing.assert_allclose(self.loss(data)[0], expected[0], rtol=1e-12)
            self.assertEqual(self.loss(data)[1:], expected[1:])

    def test_takes_the_collate_function_of_a_loader(self):
        collate = lambda examples: (torch.stack([x for x, _ in examples]), torch.tensor([int(y) for _, y in examples]))
        pairs = [(x, str(int(y))) for x, y in zip(self.X, self.Y)]
        self.assertEqual(self.loss(torch.utils.data.DataLoader(pairs, collate_fn=collate)), self.loss((self.X, self.Y)))

    def test_takes_the_examples_that_a_loader_visits(self):
        u = torch.utils.data
        tensors, chosen = u.TensorDataset(self.X, self.Y), [4, 1, 7]
        every = self.loss((self.X, self.Y))
        for options in (
            {"sampler": u.SequentialSampler(tensors)},
            {"sampler": u.RandomSampler(tensors)},
            {"sampler": u.RandomSampler(tensors, num_samples=9)},
            {"batch_sampler": u.BatchSampler(u.RandomSampler(tensors), 2, False)},
        ):
            self.assertEqual(self.loss(u.DataLoader(tensors, **options)), every)
        model = hfopt.torch.as_model(
            mlp(), losses.cross_entropy(), u.DataLoader(tensors, sampler=u.SubsetRandomSampler(chosen)), tensors
        )
        self.assertEqual(model.num_examples, (3, 9))
        expected = hfopt.torch.as_model(mlp(), losses.cross_entropy(), (self.X[chosen], self.Y[chosen]), tensors)
        theta = model.initial_parameters(1)
        self.assertEqual(model.loss(theta, False, np.arange(3)), expected.loss(theta, False, np.arange(3)))

    def test_refuses_samplers_that_leave_out_or_repeat_examples(self):
        u = torch.utils.data
        tensors = u.TensorDataset(self.X, self.Y)
        for options, name in (
            ({"sampler": u.WeightedRandomSampler([1.0] * 9, 9)}, "WeightedRandomSampler"),
            ({"sampler": u.RandomSampler(tensors, replacement=True)}, "RandomSampler"),
            ({"sampler": u.RandomSampler(tensors, replacement=True, num_samples=5)}, "RandomSampler"),
            ({"sampler": u.SequentialSampler(range(5))}, "SequentialSampler"),
            ({"sampler": [0, 1]}, "list"),
            ({"batch_sampler": [[0, 1], [2]]}, "list"),
        ):
            with self.subTest(options), self.assertRaisesRegex(
                ValueError, rf"train_data is a DataLoader with a {name}, .* 9 examples once;.*data\.Subset\(dataset"
            ):
                self.loss(u.DataLoader(tensors, **options))

    def test_a_list_is_a_dataset_of_examples(self):
        pairs = list(zip(self.X, random(9, 4)))
        theta = hfopt.torch.flat(mlp(4, 4), np.float64)
        model = hfopt.torch.as_model(mlp(4, 4), losses.squared_error(), pairs, pairs, shuffle=None)
        expected = sum(((mlp(4, 4).double()(x) - y) ** 2).sum() / 2 for x, y in pairs[2:4])
        self.assertAlmostEqual(model.loss(theta, False, np.array([2, 3]))[0], float(expected))

    def test_does_not_forget_the_collate_function_of_tensors(self):
        collate = lambda examples: (torch.stack([2 * x for x, _ in examples]), torch.stack([y for _, y in examples]))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.X, self.Y), collate_fn=collate)
        self.assertEqual(self.loss(loader), self.loss((2 * self.X, self.Y)))

    def test_unpacks_batches_of_other_forms(self):
        data = {"x": self.X, "y": self.Y}
        self.assertEqual(self.loss(data, unpack=lambda batch: (batch["x"], batch["y"])), self.loss((self.X, self.Y)))
        with self.assertRaisesRegex(TypeError, "train_data: a batch is a dict; give pairs"):
            self.loss(data)

    def test_calls_modules_of_several_inputs(self):

        class Sum(torch.nn.Linear):
            forward = lambda self, a, b: super(Sum, self).forward(a + b)

        a, b, y = random(9, 4), random(9, 2)[:, :1], labels(3, 9)
        options = {"shuffle": None}
        torch.manual_seed(1)
        module = Sum(4, 3)
        models = [
            hfopt.torch.as_model(module, losses.cross_entropy(), d, d)
            for d in (((a, b), y), torch.utils.data.TensorDataset(a, b, y), ({"b": b, "a": a}, y))
        ]
        theta = models[0].initial_parameters(1)
        self.assertEqual(len({m.loss(theta, False, np.arange(9))[0] for m in models}), 1)

    def test_shuffles_as_published(self):
        vectors = json.loads((SOURCE / "proto/testdata/shuffle.json").read_text())
        for case in vectors["shuffle"]:
            self.assertEqual(hfopt.shuffled_indices(int(case["seed"]), case["n"]).tolist(), case["order"])
        model, order = hfopt.torch.as_model(
            mlp(), losses.cross_entropy(), (self.X, self.Y), (self.X, self.Y)
        ), hfopt.shuffled_indices(1, 9)
        plain = hfopt.torch.as_model(mlp(), losses.cross_entropy(), (self.X, self.Y), (self.X, self.Y), shuffle=None)
        theta = plain.initial_parameters(1)
        for i in range(9):
            self.assertEqual(model.loss(theta, False, np.array([i])), plain.loss(theta, False, order[i : i + 1]))

    def test_refuses_what_can_only_be_iterated(self):

        class Stream(torch.utils.data.IterableDataset):
            __iter__ = lambda self: iter(())

        for data in Stream(), torch.utils.data.DataLoader(Stream()), iter([1]):
            with self.assertRaisesRegex(TypeError, "train_data is .*, which can only be iterated.*list"):
                self.loss(data)

    def test_says_what_is_no_data_and_no_argument(self):
        fit = lambda *data, **arguments: hfopt.fit(mlp(), losses.cross_entropy(), *data, **arguments)
        with self.assertRaisesRegex(TypeError, "heldout_data is missing; steps are tried on held-out data"):
            fit((self.X, self.Y))
        with self.assertRaisesRegex(TypeError, "train_data holds a list of numbers; give arrays"):
            fit((self.X.tolist(), self.Y.tolist()), (self.X, self.Y))
        for data, message in (([self.X, self.Y], r"train_data is a list of 2 arrays; give a tuple \(inputs, targets\)"),
                              ((list(self.X), list(self.Y)), "train_data holds a list of arrays; give arrays, whose")):
            with self.assertRaisesRegex(TypeError, message):
                fit(data, (self.X, self.Y))
        with self.assertRaisesRegex(TypeError, "there is no argument batchsize; do you mean batch_size?"):
            fit((self.X, self.Y), (self.X, self.Y), batchsize=4)

    def test_a_criterion_may_be_given_by_its_class(self):
        data = (self.X, self.Y)
        a, b = (hfopt.torch.as_model(mlp(), loss, data, data) for loss in (torch.nn.CrossEntropyLoss,
                                                                           torch.nn.CrossEntropyLoss()))
        theta = a.initial_parameters(1)
        self.assertEqual(a.loss(theta, False, np.arange(9)), b.loss(theta, False, np.arange(9)))

    def test_ctrl_c_leaves_the_best_parameters_in_the_module(self):
        module, seen = mlp(), []

        def interrupt(report, run):
            seen.append(run.parameters("best"))
            raise KeyboardInterrupt

        with self.assertRaises(hfopt.Interrupted) as stopped:
            hfopt.fit(module, losses.cross_entropy(), (self.X, self.Y), (self.X, self.Y), progress=False,
                      callbacks=[interrupt], max_iterations=20)
        self.addCleanup(shutil.rmtree, stopped.exception.directory)
        np.testing.assert_array_equal(hfopt.torch.flat(module), stopped.exception.result.parameters)
        self.assertFalse(np.array_equal(hfopt.torch.flat(module), hfopt.torch.flat(mlp())))

    def test_refuses_what_does_not_fit(self):
        with self.assertRaisesRegex(ValueError, "train_data: tensors of 4 and 9 examples"):
            self.loss((self.X, self.Y[:4]))
        with self.assertRaisesRegex(ValueError, r"train_data is a DataLoader\(batch_size=None\)"):
            self.loss(torch.utils.data.DataLoader([(self.X, self.Y)], batch_size=None))
        with self.assertRaisesRegex(ValueError, "train_data is empty"):
            self.loss((self.X[:0], self.Y[:0]))
        model = hfopt.torch.as_model(mlp(), losses.cross_entropy(), (self.X, self.Y), (self.X, self.Y))
        theta = model.initial_parameters(1)
        with self.assertRaisesRegex(IndexError, "examples 0 .. 9 of 9"):
            model.loss(theta, False, np.array([0, 9]))
        with self.assertRaisesRegex(ValueError, r"a vector of shape \(5,\) for a model of 43 trainable parameters"):
            model.loss(theta[:5], False, np.array([0]))
        with self.assertRaisesRegex(TypeError, "a vector of float16; give float32 or float64"):
            model.loss(theta.astype(np.float16), False, np.array([0]))
        with self.assertRaisesRegex(TypeError, "a vector of float64; give float32"):
            model.linearize(theta, False, np.array([0]))(theta.astype(np.float64))


class ModuleTest(unittest.TestCase):

    def model(self, module, x=random(9, 4), y=labels(3, 9), loss=losses.cross_entropy(), **options):
        return hfopt.torch.as_model(module, loss, (x, y), (x, y), **options)

    def test_refuses_what_couples_examples_or_is_random(self):
        for layer, message in (
            (torch.nn.BatchNorm1d(4), r"0 \(BatchNorm1d\) normalises by the statistics of each batch.*module.eval\(\)"),
            (torch.nn.BatchNorm1d(4, track_running_stats=False).eval(), "keeps no running statistics; use GroupNorm"),
            (torch.nn.Dropout(0.5), r"0 \(Dropout, p = 0.5\) is in training mode.*module.eval\(\)"),
            (torch.nn.LazyLinear(4), "0.weight has no shape yet"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.model(torch.nn.Sequential(layer, torch.nn.Linear(4, 3)))

    def test_finds_what_no_list_of_modules_knows(self):

        class Module(torch.nn.Linear):

            def __init__(self, function):
                super().__init__(4, 3)
                self.function = function
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                return super().forward(self.function(self, x))

        def count(module, x):
            module.calls += 1
            return x

        for function, message in (
            (lambda m, x: x - x.mean(dim=0), "Module couples the examples of a batch: the first two have the loss"),
            (lambda m, x: x + torch.rand_like(x), r"Module draws random numbers: its loss .* Call module.eval\(\)"),
            (count, "Module changes its buffers when it is called"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.model(Module(function))

    def test_takes_frozen_batch_norm_and_dropout(self):
        module = Frozen()
        model = self.model(module, y=labels(2, 9))
        self.assertEqual(model.num_parameters, 4 + 4 + 2 * 4 + 2 + 2)  # without the frozen layer
        self.assertIn("18 parameters" if model.num_parameters == 18 else "20 parameters", model.signature)

    def test_does_not_notice_what_becomes_of_the_module(self):
        module = mlp()
        model = self.model(module)
        theta = model.initial_parameters(1)
        before = model.loss(theta, False, np.arange(9))
        with torch.no_grad():
            module[0].weight.zero_()
        module[1] = torch.nn.Dropout(0.9)
        self.assertEqual(model.loss(theta, False, np.arange(9)), before)
        np.testing.assert_array_equal(model.initial_parameters(2), theta)

    def test_the_flat_order_is_that_of_pytorch(self):
        module = Tied()
        theta = hfopt.torch.flat(module)
        np.testing.assert_array_equal(theta, torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
        self.assertEqual(len(theta), 12 + 3 + 9 + 3)
        other = hfopt.torch.load(Tied(), theta)
        np.testing.assert_array_equal(hfopt.torch.flat(other, np.float64), theta)
        self.assertIs(other.decoder.weight, other.encoder.weight)
        with self.assertRaisesRegex(ValueError, r"theta has shape \(3,\), and the module 27 trainable parameters"):
            hfopt.torch.load(module, theta[:3])

    def test_initializes_by_seed_without_touching_the_global_generator(self):
        reset = lambda module: module.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        model, state = self.model(mlp(), initialize=reset), torch.get_rng_state()
        a, b, c = (model.initial_parameters(seed, np.float64) for seed in (1, 1, 2))
        np.testing.assert_array_equal(a, b)
        self.assertGreater(np.abs(a - c).max(), 0.01)
        self.assertTrue(torch.equal(state, torch.get_rng_state()))

    def test_the_signature_tells_models_and_data_apart_and_nothing_else(self):
        x, y = random(9, 4), labels(3, 9)
        torch.manual_seed(5)
        same = [
            self.model(m).signature
            for m in (mlp(), torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
        ]
        self.assertEqual(same[0], same[1])
        frozen = mlp()
        frozen[0].requires_grad_(False)
        moved = mlp()
        moved[0].requires_grad_(False)
        moved[0].bias.data += 1
        others = [
            self.model(frozen),
            self.model(moved),
            self.model(mlp(), 2 * x),
            self.model(mlp(), x[:8], y[:8]),
            self.model(mlp(4, 4)),
            self.model(mlp(), regularization=0.1),
            self.model(mlp(), loss=losses.cross_entropy(ignore_index=0)),
            self.model(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))),
        ]
        self.assertEqual(len({m.signature for m in others} | set(same)), len(others) + 1)
        self.assertEqual(self.model(mlp(), signature="mine").signature, "mine")

    def test_falls_back_where_an_operation_has_no_second_derivative(self):

        class Once(torch.autograd.Function):
            """tanh whose backward pass cannot be differentiated, but which knows its forward derivative."""

            generate_vmap_rule = True

            @staticmethod
            def forward(x):
                return torch.tanh(x)

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(output)
                ctx.save_for_forward(output)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, gradient):
                (y,) = ctx.saved_tensors
                return gradient * (1 - y * y)

            @staticmethod
            def jvp(ctx, tangent):
                (y,) = ctx.saved_tensors
                return tangent * (1 - y * y)

        if not hasattr(torch, "func"):
            self.skipTest(f"PyTorch {torch.__version__} has no torch.func to fall back to")

        class Layer(torch.nn.Module):
            forward = lambda self, x: Once.apply(x)

        module = mlp()
        expected = self.model(module)
        module[1] = Layer()
        model = self.model(module)
        self.assertEqual((expected._product, model._product), ("double-backward", "func"))
        theta = model.initial_parameters(1, np.float64)
        np.testing.assert_allclose(
            model.linearize(theta, False, INDICES)(theta), expected.linearize(theta, False, INDICES)(theta), rtol=1e-10
        )

    def test_names_the_reasons_when_there_is_no_product(self):

        class Layer(torch.nn.Module):
            forward = lambda self, x: x.detach()

        with self.assertRaisesRegex(
            ValueError, "Sequential has no Gauss-Newton product: double-backward: .*does not require grad"
        ):
            self.model(torch.nn.Sequential(torch.nn.Linear(4, 3), Layer()), product="double-backward")

    def test_a_module_of_float64_trains_in_float64(self):
        data = random(9, 4), labels(3, 9)
        mixed = mlp()
        mixed[2].double()
        for module, options, fit_options, expected in (
            (mlp().double(), {}, {}, np.float64),
            (mlp().double(), {}, {"dtype": "float32"}, np.float32),
            (mlp().double(), {"dtype": torch.float32}, {}, np.float32),
            (mlp(), {}, {}, np.float32),
            (mlp(), {"dtype": torch.float64}, {}, np.float64),
            (mixed, {}, {}, np.float32),
        ):
            model = hfopt.torch.as_model(module, losses.cross_entropy(), data, data, **options)
            result = hfopt.fit(model, max_iterations=1, progress=False, **fit_options)
            self.assertEqual(result.parameters.dtype, expected, (options, fit_options))

    def test_takes_modules_and_data_of_half_precision(self):
        for dtype in torch.bfloat16, torch.float16:
            module = mlp().to(dtype)
            module.register_buffer("fixed", torch.ones(2, dtype=dtype))
            model = self.model(module, x=random(9, 4).to(dtype))
            theta = model.initial_parameters(1)
            self.assertEqual(theta.dtype, np.float32)
            np.testing.assert_array_equal(theta, hfopt.torch.flat(module.float()))
            theta = hfopt.fit(model, max_iterations=1, progress=False).parameters
            hfopt.torch.load(module.to(dtype), theta)
            np.testing.assert_allclose(hfopt.torch.flat(module, np.float32), theta, rtol=2**-8, atol=1e-6)

    def test_refuses_options_with_reasons(self):
        for options, message in (
            ({"product": "fast"}, "product is 'fast'; give"),
            ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
            ({"regularization": -1}, "regularization is -1; give 0 or more"),
            ({"loss": torch.nn.L1Loss()}, "L1Loss with these options has no counterpart"),
            ({"loss": lambda z, t: z}, "a loss of your own needs output_curvature"),
            ({"output_curvature": "hessian"}, "brings its own curvature"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.model(mlp(), **options)
        with self.assertRaisesRegex(TypeError, "module is function; give a torch.nn.Module"):
            self.model(lambda x: x)
        if not hasattr(torch, "func"):
            with self.assertRaisesRegex(ValueError, 'product="func" needs PyTorch 2, and this is 1'):
                self.model(mlp(), product="func")


if __name__ == "__main__":
    unittest.main()
