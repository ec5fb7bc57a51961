"""PyTorch modules as models of hfopt: exact Gauss-Newton products for any nn.Module.

    model = hfopt.torch.as_model(module, hfopt.losses.cross_entropy(), (images, labels), (new_images, new_labels))
    result = hfopt.fit(model)
    hfopt.torch.load(module, result.parameters)

Works with PyTorch 1.13 (the distribution's) and 2, on CPU and CUDA.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
import torch.utils.data

from .. import _adapter, losses
from ..samples import shuffled_indices
from .worker_group import WorkerGroup

__all__ = ["TorchModel", "WorkerGroup", "as_model", "derivative_along", "flat", "load"]

Tensors = List[torch.Tensor]
Array = _adapter.Array

# Modules that couple the examples of a batch, or draw random numbers, in training mode.
_BATCH_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (torch.nn.modules.dropout._DropoutNd,)
_SQUARES_BYTES = 1 << 28  # of per-example gradients at a time


def flat(module: torch.nn.Module, dtype: Any = None) -> Array:
    """The trainable parameters as the optimizer's vector, shape (n,): in the order of module.parameters(), those with
    requires_grad, each in C order, tied ones once (as torch.nn.utils.parameters_to_vector)."""
    parts = [p.detach().cpu().reshape(-1) for p in module.parameters() if p.requires_grad]
    vector = _array(torch.cat(parts))
    return vector.astype(dtype) if dtype else vector


def load(module: torch.nn.Module, theta: Array) -> torch.nn.Module:
    """Writes theta, shape (n,) in the order of `flat`, into the module's parameters, and returns the module."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    n = sum(p.numel() for p in parameters)
    if np.shape(theta) != (n,):
        raise ValueError(f"theta has shape {np.shape(theta)}, and the module {n} trainable parameters")
    with torch.no_grad():
        for parameter, part in zip(
            parameters, np.split(np.asarray(theta), np.cumsum([p.numel() for p in parameters])[:-1])
        ):
            parameter.copy_(torch.tensor(part).reshape(parameter.shape))
    return module


def derivative_along(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, direction: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """function(x) and its derivative in `direction` (of the shape of x), in one forward pass, differentiable: for
    residuals of differential equations. Of first order it costs half of what torch.autograd.grad does; nest it for
    higher orders (PyTorch 2)."""
    if hasattr(torch, "func"):
        value, tangent = torch.func.jvp(function, (x,), (direction,))
        return value, tangent
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        return value, torch.zeros_like(value) if tangent is None else tangent


class TorchModel(_adapter.Adapter):
    """A module and its data as hfopt wants a model: loss, gradient and Gauss-Newton product, each a sum over examples.

    The module is copied: what happens to it later does not matter here. It must treat each example of a batch by itself
    and draw no random numbers; so batch norm and dropout have to be frozen by module.eval(), and what is not is refused
    (ValueError).

    Args:
      loss: one of hfopt.losses; or torch.nn.CrossEntropyLoss, MSELoss or BCEWithLogitsLoss; or a function (outputs,
        targets) -> losses of shape (examples,), together with output_curvature (hfopt.losses.custom).
      train_data, heldout_data: a tuple (inputs, targets) of tensors or arrays, each of them also a tuple or dict of
        such; a TensorDataset; any dataset of examples with __len__ and __getitem__ (a list is one), made into batches
        as DataLoader does; a DataLoader, of which the dataset, the indices of a SubsetRandomSampler and collate_fn are
        taken, and nothing else (ValueError for samplers that leave out or repeat examples). Of a batch the last element
        is the targets and those before are the inputs; a tuple of inputs is called as module(*inputs), a dict as
        module(**inputs). The first axis of all outputs is the examples. A residual function gets whole batches. Not
        copied: they must not change.
      unpack: batch -> (inputs, targets), for batches of another form.
      batch_size: examples in one forward pass; the memory in use grows with it, and with max_kept_bytes.
      device: where to compute; default: where the module is.
      dtype: torch.float32 or float64, that of the initial parameters, and of `fit`, if the caller names none; default:
        float64 if all trainable parameters are, else float32. What is computed has the type of theta: parameters,
        buffers and floating-point data are cast to it.
      regularization: adds regularization / 2 |theta|^2 to the mean loss.
      shuffle: seed of the examples' fixed order (samples are windows of it, so sorted data must be shuffled), the same
        on all workers; None: as they are.
      initialize: called on a copy of the module under torch.manual_seed(seed), for initial parameters that depend on a
        seed; default: those that the module has now, whatever the seed.
      max_kept_bytes: activations that a linearization may keep for all its products (an estimate); those of further
        batches are computed anew in each product.
      product: "double-backward" differentiates the backward pass, which is quickest where activations are kept, and
        works with a residual function that calls torch.autograd.grad; "func" is torch.func.jvp and vjp, makes a forward
        pass in each product, and needs PyTorch 2; "auto" takes the first, and the second for operations whose backward
        pass has no derivative.
      signature: of model and data, equal on all workers of a run; default: made of the classes of the module and
        its parts, the parameters' names and shapes, frozen values, loss and some of the data.

    theta and v: shape (num_parameters,), float32 or float64, read only. Everything is a pure function of the arguments:
    equal ones give equal bits on the same machine and number of threads. On CUDA that takes PyTorch's deterministic
    algorithms, which are switched on around each call and need the environment variable
    CUBLAS_WORKSPACE_CONFIG=:4096:8; an operation that has none raises PyTorch's error that names it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Any,
        train_data: Any,
        heldout_data: Any,
        *,
        batch_size: int = 512,
        device: Union[str, torch.device, None] = None,
        dtype: Optional[torch.dtype] = None,
        output_curvature: Union[Callable[..., Any], str, None] = None,
        regularization: float = 0.0,
        unpack: Optional[Callable[[Any], Tuple[Any, Any]]] = None,
        shuffle: Optional[int] = 1,
        initialize: Optional[Callable[[torch.nn.Module], Any]] = None,
        max_kept_bytes: int = 2 << 30,
        product: str = "auto",
        signature: Optional[str] = None,
    ):
        # The module that torch.compile wraps, if it does: compiled code has no second derivatives.
        module = getattr(module, "_orig_mod", module)
        _check_module(module)
        if product not in ("auto", "double-backward", "func"):
            raise ValueError(f'product is {product!r}; give "auto", "double-backward" or "func"')
        if product == "func" and not hasattr(torch, "func"):
            raise ValueError(f'product="func" needs PyTorch 2, and this is {torch.__version__}')
        if regularization < 0:
            raise ValueError(f"regularization is {regularization}; give 0 or more")
        trainable = [p for p in module.parameters() if p.requires_grad]
        self._module = copy.deepcopy(module)
        self._device = torch.device(device) if device is not None else trainable[0].device
        self._dtype = dtype or (torch.float64 if all(p.dtype == torch.float64 for p in trainable) else torch.float32)
        self.element_types = ("float64", "float32") if self._dtype == torch.float64 else ("float32", "float64")
        self._shapes = [p.shape for p in trainable]
        self._sizes = [p.numel() for p in trainable]
        self._loss, self._regularization, self._initialize = (
            losses.as_loss(loss, output_curvature),
            float(regularization),
            initialize,
        )
        self._batch_size = _adapter.check_positive("batch_size", batch_size)
        self._max_kept_bytes = max_kept_bytes
        self._data = [
            _Data(name, data, unpack or (None if self._loss.function is None else _whole), seed)
            for name, data, seed in zip(
                ("train_data", "heldout_data"),
                (train_data, heldout_data),
                (None, None) if shuffle is None else (shuffle, shuffle + 1),
            )
        ]
        self._networks: Dict[torch.dtype, _Network] = {}
        self._product, self._bytes_per_element = product, 0.0
        self._squares: Optional[Callable[..., torch.Tensor]] = None
        self.num_parameters = sum(self._sizes)
        self.num_examples = (len(self._data[0]), len(self._data[1]))
        if self._device.type == "cuda" and not torch.cuda.is_initialized():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._probe()
        self.signature = signature if signature is not None else self._describe()

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where a request is computed."""
        return self._device

    # The protocol of a model.

    def initial_parameters(self, seed: int, dtype: Any = None) -> Array:
        module, dtype = self._module, dtype or _numpy(self._dtype)
        if self._initialize:
            module = copy.deepcopy(module)
            with torch.random.fork_rng(devices=_cuda(self._device)):
                torch.manual_seed(seed)
                self._initialize(module)
        return flat(module, dtype)

    def loss(self, theta: Array, held_out: bool, indices: Array) -> Tuple[float, float, Dict[str, float]]:
        """Loss sum, weight, metric sums."""
        theta = self._check(theta)
        with self._evaluation():
            sums, network, parameters = (
                _adapter.Sums(_total),
                self._network(theta),
                self._parameters(theta, leaves=False),
            )
            for batch in self._batches(theta, held_out, indices):
                sums.add(self._loss.terms(*self._outputs(network, parameters, batch)))
            loss, weight, metrics = sums.values()
        return self._regularized_loss(loss, theta, weight), weight, metrics

    def gradient(
        self, theta: Array, held_out: bool, indices: Array, squares: bool = False
    ) -> Tuple[float, float, Array, Optional[Array]]:
        """Loss sum, weight, gradient sum and, if asked for, the sum of the examples' squared gradients, the
        regularizer's part included."""
        theta = self._check(theta)
        with self._evaluation():
            sums, network, parameters = _adapter.Sums(_total), self._network(theta), self._parameters(theta)
            total, moment = (
                torch.zeros(self.num_parameters, dtype=parameters[0].dtype, device=self._device) for _ in range(2)
            )
            for batch in self._batches(theta, held_out, indices):
                terms = self._loss.terms(*self._outputs(network, parameters, batch))
                sums.add(terms)
                total += self._join(torch.autograd.grad(terms[0].sum(), parameters, allow_unused=True))
                if squares:
                    moment += self._squared_gradients(theta, network, parameters, held_out, batch, terms[1].detach())
            loss, weight, _ = sums.values()
        gradient = self._regularized(_array(total), theta, weight)
        return self._regularized_loss(loss, theta, weight), weight, gradient, _array(moment) if squares else None

    def linearize(self, theta: Array, held_out: bool, indices: Array) -> _adapter.Linearization:
        """The function v -> G v = sum J' H J v + weight * regularization * v, with what it needs at theta kept for all
        products; its attribute `weight` is that of the examples."""
        theta = self._check(np.array(theta))
        with self._evaluation():
            network, parameters = self._network(theta), self._parameters(theta)
            linearized = self._double_backward if self._product == "double-backward" else self._func
            sums, kept_bytes = _adapter.Sums(_total), 0.0
            parts: List[Tuple[Optional[_Linearized], Array]] = []
            for batch in self._batches(theta, held_out, indices):
                kept_bytes += self._bytes_per_element * batch.elements
                if kept_bytes <= self._max_kept_bytes:
                    kept = linearized(network, parameters, batch)
                    sums.add(self._loss.terms(kept.outputs, kept.targets))
                    parts.append((kept, batch.indices))
                else:  # computed anew in each product; the same operations, hence the same bits
                    sums.add(self._loss.terms(*self._outputs(network, self._parameters(theta, leaves=False), batch)))
                    parts.append((None, batch.indices))
            weight = sums.values()[1]

        def product(v: Array) -> Array:
            v = self._check(v, theta.dtype)
            with self._evaluation():
                directions = self._parameters(v, leaves=False)
                total = torch.zeros(self.num_parameters, dtype=directions[0].dtype, device=self._device)
                for kept_part, chosen in parts:
                    part = kept_part or linearized(network, parameters, self._batch(theta, held_out, chosen))
                    total += self._product_of(part, directions)
            return self._regularized(_array(total), v, weight)

        return _adapter.Linearization(product, weight)

    # Linearized outputs of one batch. v: a tensor for each parameter; u: one for each tensor of the outputs.

    def _double_backward(self, network: "_Network", parameters: Tensors, batch: "_Batch") -> "_Linearized":
        """J v is the derivative of J' w, which is linear in w, along v; both graphs are kept, so no pass is made
        twice."""
        outputs, targets = self._outputs(network, parameters, batch)
        z = losses.flatten(outputs)
        w = [torch.zeros_like(x, requires_grad=True) for x in z]
        transposed = torch.autograd.grad(z, parameters, w, create_graph=True, allow_unused=True)
        used = [i for i, t in enumerate(transposed) if t is not None and t.requires_grad]

        def push(v: Tensors) -> Tensors:
            tangents = torch.autograd.grad(
                [transposed[i] for i in used], w, [v[i] for i in used], retain_graph=True, allow_unused=True
            )
            return [torch.zeros_like(x) if t is None else t for x, t in zip(w, tangents)]

        pull = lambda u: torch.autograd.grad(z, parameters, u, retain_graph=True, allow_unused=True)
        return _Linearized(losses.unflatten(outputs, [x.detach() for x in z]), targets, push, pull)

    def _func(self, network: "_Network", parameters: Tensors, batch: "_Batch") -> "_Linearized":
        primals, found = tuple(p.detach() for p in parameters), [None, None]

        def forward(*p: torch.Tensor) -> Tuple[torch.Tensor, ...]:
            found[:] = self._outputs(network, list(p), batch)
            return tuple(losses.flatten(found[0]))

        z, pull = torch.func.vjp(forward, *primals)
        outputs, targets = losses.unflatten(found[0], z), found[1]
        return _Linearized(
            outputs, targets, lambda v: list(torch.func.jvp(forward, primals, tuple(v))[1]), lambda u: pull(tuple(u))
        )

    def _product_of(self, linearized: "_Linearized", v: Tensors) -> torch.Tensor:
        """J' H J v."""
        tangents = losses.unflatten(linearized.outputs, linearized.push(v))
        with torch.no_grad():
            curvature = losses.flatten(self._loss.curvature(linearized.outputs, linearized.targets, tangents))
        return self._join(linearized.pull(curvature))

    # Squared gradients of the examples of a batch.

    def _squared_gradients(
        self,
        theta: Array,
        network: "_Network",
        parameters: Tensors,
        held_out: bool,
        batch: "_Batch",
        weights: torch.Tensor,
    ) -> torch.Tensor:
        if self._squares is None:
            self._squares = self._choose_squares(theta, network, parameters, held_out, batch, weights)
        return self._squares(theta, network, parameters, held_out, batch, weights)

    def _choose_squares(
        self,
        theta: Array,
        network: "_Network",
        parameters: Tensors,
        held_out: bool,
        batch: "_Batch",
        weights: torch.Tensor,
    ) -> Callable[..., torch.Tensor]:
        """Vectorised over examples if that can be done and is right: not where a function branches on values, or an
        operation has no rule."""
        if not hasattr(torch, "func"):
            return self._squares_one_by_one
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                few = self._batch(theta, held_out, batch.indices[:2])
                a, b = (
                    squares(theta, network, parameters, held_out, few, weights[:2])
                    for squares in (self._squares_vectorised, self._squares_one_by_one)
                )
            return (
                self._squares_vectorised
                if torch.allclose(a, b, rtol=1e-3, atol=1e-6 * float(b.abs().max()))
                else self._squares_one_by_one
            )
        except Exception:  # of any operation in the module
            return self._squares_one_by_one

    def _squares_one_by_one(
        self,
        theta: Array,
        network: "_Network",
        parameters: Tensors,
        held_out: bool,
        batch: "_Batch",
        weights: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros(self.num_parameters, dtype=parameters[0].dtype, device=self._device)
        for i, weight in zip(batch.indices, weights):
            one = self._batch(theta, held_out, np.array([i]))
            terms = self._loss.terms(*self._outputs(network, parameters, one))
            gradient = self._join(torch.autograd.grad(terms[0].sum(), parameters, allow_unused=True))
            total += (
                gradient + self._regularization * weight * torch.cat([p.detach().reshape(-1) for p in parameters])
            ).square()
        return total

    def _squares_vectorised(
        self,
        theta: Array,
        network: "_Network",
        parameters: Tensors,
        held_out: bool,
        batch: "_Batch",
        weights: torch.Tensor,
    ) -> torch.Tensor:
        primals = tuple(p.detach() for p in parameters)
        outputs, targets = self._outputs(network, list(primals), batch)
        leaves = [z.detach().requires_grad_() for z in losses.flatten(outputs)]
        output_gradients = torch.autograd.grad(
            self._loss.terms(losses.unflatten(outputs, leaves), targets)[0].sum(), leaves
        )
        regular = self._regularization * torch.cat([p.reshape(-1) for p in primals])
        tensors = losses.flatten(batch.content)

        def squares(example: Tensors, gradients: Tensors, weight: torch.Tensor) -> torch.Tensor:
            one = _Batch(losses.unflatten(batch.content, [x.unsqueeze(0) for x in example]), batch.indices)
            forward = lambda *p: tuple(losses.flatten(self._outputs(network, list(p), one)[0]))
            _, pullback = torch.func.vjp(forward, *primals)
            return (
                torch.cat([g.reshape(-1) for g in pullback(tuple(g.unsqueeze(0) for g in gradients))])
                + weight * regular
            ).square()

        total = torch.zeros(self.num_parameters, dtype=primals[0].dtype, device=self._device)
        step = max(1, _SQUARES_BYTES // (self.num_parameters * total.element_size()))
        for i in range(0, len(weights), step):
            part = slice(i, i + step)
            total += torch.func.vmap(squares)(
                [x[part] for x in tensors], [g[part] for g in output_gradients], weights[part]
            ).sum(0)
        return total

    # Pieces.

    def _outputs(self, network: "_Network", parameters: Tensors, batch: "_Batch") -> Tuple[Any, Any]:
        """Outputs and targets."""
        if self._loss.function is not None:
            return self._loss.function(lambda *inputs, **named: network(parameters, inputs, named), batch.content), None
        inputs, targets = batch.content
        if isinstance(inputs, dict):
            return network(parameters, (), inputs), targets
        return network(parameters, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}), targets

    def _network(self, theta: Array) -> "_Network":
        dtype = _torch(theta.dtype)
        if dtype not in self._networks:
            self._networks[dtype] = _Network(self._module, self._device, dtype)
        return self._networks[dtype]

    def _parameters(self, theta: Array, leaves: bool = True) -> Tensors:
        """The parts of theta in the parameters' shapes."""
        vector = torch.tensor(theta, device=self._device)
        return [part.view(shape).requires_grad_(leaves) for part, shape in zip(vector.split(self._sizes), self._shapes)]

    def _join(self, parts: Any) -> torch.Tensor:
        some = next((p for p in parts if p is not None), None)
        if some is None:
            return torch.zeros(self.num_parameters, device=self._device)
        return torch.cat([some.new_zeros(size) if p is None else p.reshape(-1) for p, size in zip(parts, self._sizes)])

    def _batches(self, theta: Array, held_out: bool, indices: Array) -> Iterator["_Batch"]:
        indices = _adapter.check_indices(indices, self.num_examples[held_out])
        return (self._batch(theta, held_out, part) for part in _adapter.micro_batches(indices, self._batch_size))

    def _batch(self, theta: Array, held_out: bool, indices: Array) -> "_Batch":
        return _Batch(_move(self._data[held_out].batch(indices), self._device, _torch(theta.dtype)), indices)

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Settings under which equal arguments give equal bits and every operation has derivatives, put back
        afterwards."""
        with contextlib.ExitStack() as stack:
            attention: Any = getattr(torch.nn, "attention", None)
            if hasattr(attention, "sdpa_kernel"):  # the fused kernels have no second derivatives
                stack.enter_context(attention.sdpa_kernel([attention.SDPBackend.MATH]))
            if self._device.type == "cuda":
                stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
                torch.use_deterministic_algorithms(True)
                # cuDNN's recurrent layers have no second derivatives; PyTorch's own do.
                recurrent = any(isinstance(m, torch.nn.RNNBase) for m in self._module.modules())
                stack.enter_context(
                    torch.backends.cudnn.flags(
                        enabled=not recurrent, benchmark=False, deterministic=True, allow_tf32=False
                    )
                )
            stack.enter_context(torch.enable_grad())
            yield

    # What is found out at the beginning.

    def _probe(self) -> None:
        """Refuses a module that is random or couples examples; finds out which products its operations allow and what
        activations cost."""
        few = np.arange(min(2, self.num_examples[0]))
        theta = flat(self._module, _numpy(self._dtype))
        network, parameters = self._network(theta), self._parameters(theta)
        before = [b.clone() for b in network.module.buffers()]
        sums = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=_cuda(self._device)):
                torch.manual_seed(seed)
                sums.append(self.loss(theta, False, few)[0])
        name = type(self._module).__name__
        if not np.array_equal(sums[0], sums[1], equal_nan=True):
            raise ValueError(
                f"{name} draws random numbers: its loss on the first examples is {sums[0]:.9g} and then "
                f"{sums[1]:.9g}. Call module.eval(), or remove what is random; hfopt compares losses at different "
                "parameters and needs a function"
            )
        if not all(torch.equal(a, b) for a, b in zip(before, network.module.buffers())):
            raise ValueError(f"{name} changes its buffers when it is called; call module.eval()")
        alone = sum(self.loss(theta, False, few[i : i + 1])[0] for i in few)
        if np.isfinite(sums[0]) and abs(alone - sums[0]) > 1e-3 * abs(alone) + 1e-6:
            raise ValueError(
                f"{name} couples the examples of a batch: the first two have the loss {alone:.9g} one by one and "
                f"{sums[0]:.9g} together. Sums over examples then depend on how they are batched; freeze batch "
                "statistics (module.eval()), or normalise each example by itself (GroupNorm, LayerNorm)"
            )
        with self._evaluation():
            batch = self._batch(theta, False, few)
            self._product = self._choose_product(network, parameters, batch)
            graph = self._double_backward if self._product == "double-backward" else self._outputs
            self._bytes_per_element = (
                _saved_bytes(lambda: graph(network, parameters, batch), parameters) / batch.elements
            )

    def _choose_product(self, network: "_Network", parameters: Tensors, batch: "_Batch") -> str:
        errors = []
        for name, build in ("double-backward", self._double_backward), ("func", self._func):
            if self._product in ("auto", name) and (name != "func" or hasattr(torch, "func")):
                try:
                    _check_adjoint(build(network, parameters, batch), parameters)
                    return name
                except Exception as error:  # of any operation in the module
                    errors.append((name, error))
        raise ValueError(
            f"{type(self._module).__name__} has no Gauss-Newton product: "
            + "; ".join(f"{name}: {error}" for name, error in errors)
        ) from errors[0][1]

    def _describe(self) -> str:
        parameters = {id(p) for p in self._module.parameters() if p.requires_grad}
        named = [(name, p) for name, p in self._module.named_parameters()]
        parts = [f"{name}:{type(m).__qualname__}" for name, m in self._module.named_modules()]
        parts += [f"{name}{tuple(p.shape)}" for name, p in named if id(p) in parameters]
        frozen = [p for name, p in named if id(p) not in parameters] + list(self._module.buffers())
        first = [
            x
            for data in self._data
            for x in losses.flatten(data.batch(np.arange(min(2, len(data)))))
            if isinstance(x, torch.Tensor)
        ]
        code = _adapter.digest(
            [np.frombuffer(" ".join(parts).encode(), np.uint8)] + [_array(x) for x in frozen + first]
        )
        return (
            f"torch {type(self._module).__name__}, {self.num_parameters} parameters, {_adapter.describe(self._loss)}, "
            f"l2 {self._regularization:g}, {self.num_examples[0]} + {self.num_examples[1]} examples, {code}"
        )


class _Network:
    """A module as a function of its trainable parameters, in one type, on one device."""

    def __init__(self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype):
        place = {id(p): i for i, p in enumerate(p for p in module.parameters() if p.requires_grad)}
        slots = [
            (path, name, place[id(p)])
            for path, m in module.named_modules()
            for name, p in m._parameters.items()
            if id(p) in place
        ]
        self.module = copy.deepcopy(module).to(device=device, dtype=dtype)
        modules = dict(self.module.named_modules())
        self.slots = [(modules[path], name, i) for path, name, i in slots]
        for m, name, _ in self.slots:
            del m._parameters[name]  # a plain attribute takes its place, as in functorch.make_functional

    def __call__(self, parameters: Tensors, inputs: Tuple[Any, ...], named: Dict[str, Any]) -> Any:
        for module, name, i in self.slots:
            setattr(module, name, parameters[i])
        return self.module(*inputs, **named)


class _Linearized:
    """Outputs of a batch, and J v and J' u there."""

    def __init__(self, outputs: Any, targets: Any, push: Callable[[Tensors], Tensors], pull: Callable[[Tensors], Any]):
        self.outputs, self.targets, self.push, self.pull = outputs, targets, push, pull


class _Batch:
    """The content of some examples' batch, on the device: (inputs, targets), or all of it for a residual function."""

    def __init__(self, content: Any, indices: Array):
        self.content, self.indices = content, indices

    @property
    def elements(self) -> int:
        return max(1, sum(int(x.numel()) for x in losses.flatten(self.content) if isinstance(x, torch.Tensor)))


class _Data:
    """Batches of a data set in its fixed order, as (inputs, targets) or as `unpack` makes them."""

    def __init__(self, name: str, data: Any, unpack: Optional[Callable[[Any], Any]], seed: Optional[int]):
        _adapter.check_data(name, data)
        if unpack is None:
            _check_lists(name, data)
        collate: Callable[[Any], Any] = torch.utils.data.default_collate
        self.fetch: Callable[[Array], Any]
        if isinstance(data, torch.utils.data.DataLoader):
            if data.batch_sampler is None and not isinstance(data.dataset, torch.utils.data.IterableDataset):
                raise ValueError(
                    f"{name} is a DataLoader(batch_size=None), whose dataset has whole batches as elements; give one "
                    "of examples"
                )
            data, collate = _sampled(name, data), data.collate_fn
        if isinstance(data, torch.utils.data.TensorDataset) and collate is torch.utils.data.default_collate:
            data = data.tensors
        if isinstance(data, torch.utils.data.IterableDataset) or not (
            hasattr(data, "__getitem__") and hasattr(data, "__len__")
        ):
            raise TypeError(
                f"{name} is {type(data).__name__}, which can only be iterated; the optimizer asks for examples by "
                "number: give tensors, or a dataset with __len__ and __getitem__ (list(dataset) makes one if it fits "
                "into memory)"
            )
        if isinstance(data, (torch.Tensor, np.ndarray, dict)) or (
            isinstance(data, tuple) and data and _is_arrays(data)
        ):
            tensors = [torch.as_tensor(x) for x in losses.flatten(data)]
            sizes = sorted({len(x) for x in tensors})
            if len(sizes) != 1:
                raise ValueError(
                    f"{name}: tensors of {' and '.join(map(str, sizes))} examples; all need the same first axis"
                )
            self.length = sizes[0]
            self.fetch = lambda i: losses.unflatten(data, [x[torch.from_numpy(i).to(x.device)] for x in tensors])
        else:
            self.length = len(data)
            self.fetch = lambda i: collate([data[int(j)] for j in i])
        if not self.length:
            raise ValueError(f"{name} is empty")
        self.name, self.unpack = name, unpack or self._split
        self.order = np.arange(self.length) if seed is None else shuffled_indices(seed, self.length)

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Array) -> Any:
        return self.unpack(self.fetch(self.order[indices]))

    def _split(self, batch: Any) -> Tuple[Any, Any]:
        if isinstance(batch, (tuple, list)) and len(batch) >= 2:
            return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
        raise TypeError(
            f"{self.name}: a batch is a {type(batch).__name__}; give pairs (inputs, targets), or unpack=, a function "
            "that makes a pair of it"
        )


def _sampled(name: str, loader: Any) -> Any:
    """The examples that a DataLoader visits, each once in every epoch; in which order does not matter."""
    known, dataset, batches = torch.utils.data, loader.dataset, loader.batch_sampler
    if isinstance(dataset, known.IterableDataset):
        return dataset  # which has no sampler, and is refused for what it is
    sampler = batches.sampler if type(batches) is known.BatchSampler else batches
    if type(sampler) is known.SubsetRandomSampler:
        return known.Subset(dataset, list(sampler.indices))
    in_order = type(sampler) is known.SequentialSampler
    shuffled = type(sampler) is known.RandomSampler and not sampler.replacement
    if not (in_order or shuffled) or len(sampler) != len(dataset):
        raise ValueError(
            f"{name} is a DataLoader with a {type(sampler).__name__}, which does not visit each of the {len(dataset)} "
            "examples once; the optimizer chooses examples itself: give the dataset, or "
            "torch.utils.data.Subset(dataset, indices) for a part of it"
        )
    return dataset


def _whole(batch: Any) -> Any:
    return batch


def _check_lists(name: str, data: Any) -> None:
    """TypeError for [inputs, targets], which would be two examples, and for lists of arrays in place of arrays."""
    arrays = (torch.Tensor, np.ndarray)
    if isinstance(data, list) and data and all(isinstance(x, arrays) for x in data):
        raise TypeError(
            f"{name} is a list of {len(data)} arrays; give a tuple (inputs, targets) of arrays, or a list of pairs "
            "(input, target), one for each example"
        )
    if isinstance(data, tuple) and len(data) == 2 and not _is_arrays(data):
        if any(isinstance(x, list) and x and all(isinstance(y, arrays) for y in x) for x in data):
            raise TypeError(
                f"{name} holds a list of arrays; give arrays, whose first axis is the examples: torch.stack(x)"
            )


def _is_arrays(data: Any) -> bool:
    return all(isinstance(x, (torch.Tensor, np.ndarray)) and x.ndim for x in losses.flatten(data))


def _check_module(module: torch.nn.Module) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module is {type(module).__name__}; give a torch.nn.Module")
    for name, m in module.named_modules():
        if isinstance(m, _BATCH_NORMS) and (m.training or m.running_mean is None):
            raise ValueError(
                f"{name or 'module'} ({type(m).__name__}) normalises by the statistics of each batch, which couples "
                "its examples: sums over examples then depend on how they are batched. "
                + (
                    "It keeps no running statistics; use GroupNorm or LayerNorm"
                    if m.running_mean is None
                    else "Call module.eval(), which freezes its running statistics, or use GroupNorm"
                )
            )
        if isinstance(m, _DROPOUTS) and m.training and m.p > 0:
            raise ValueError(
                f"{name or 'module'} ({type(m).__name__}, p = {m.p}) is in training mode: a random loss cannot be "
                "minimised by comparing losses. Call module.eval(), and regularise by regularization= instead"
            )
        if getattr(m, "sparse", False) and isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
            raise ValueError(
                f"{name or 'module'} ({type(m).__name__}) has sparse gradients; construct it with sparse=False"
            )
    for name, p in module.named_parameters():
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet; call the module once on a batch")
        if p.requires_grad and not p.dtype.is_floating_point:
            raise ValueError(f"{name} is {p.dtype}; trainable parameters have to be real floating-point numbers")
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"{type(module).__name__} has no trainable parameters (none with requires_grad)")


def _check_adjoint(linearized: _Linearized, parameters: Tensors) -> None:
    """u' (J v) = (J' u)' v for some u and v. A backward pass that cannot be differentiated may drop terms of J v
    without a word (torch.autograd.function.once_differentiable)."""
    generator = torch.Generator().manual_seed(1)

    def draw(tensors: Tensors) -> Tensors:
        return [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in tensors]

    def dot(a: Any, b: Any) -> float:
        return float(sum((x.detach().double() * y.detach().double()).sum() for x, y in zip(a, b) if x is not None))

    outputs = losses.flatten(linearized.outputs)
    u, v = draw(outputs), draw(parameters)
    tangents, gradients = linearized.push(v), linearized.pull(u)
    forward, backward = dot(u, tangents), dot(gradients, v)
    size = dot(u, u) ** 0.5 * dot(tangents, tangents) ** 0.5 + dot(v, v) ** 0.5 * dot(gradients, gradients) ** 0.5
    if abs(forward - backward) > 1e-3 * size:
        raise ValueError(
            f"an operation's backward pass cannot be differentiated: u' (J v) is {forward:.6g} and (J' u)' v is "
            f"{backward:.6g}"
        )


def _saved_bytes(build: Callable[[], Any], parameters: Tensors) -> int:
    """What autograd keeps for the graphs that `build` makes, the parameters themselves excepted."""
    own = {p.data_ptr() for p in parameters}
    saved: Dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in own:
            saved[x.data_ptr()] = max(saved.get(x.data_ptr(), 0), x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = build()  # alive until all is counted, so that no address is used twice
    del kept
    return sum(saved.values())


def _move(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:

    def move(x: Any) -> Any:
        return (
            x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype) if isinstance(x, torch.Tensor) else x
        )

    return losses.unflatten(tree, [move(x) for x in losses.flatten(tree)])


def _cuda(device: torch.device) -> List[torch.device]:
    return [device] if device.type == "cuda" else []


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16
    return array


def _total(terms: torch.Tensor) -> torch.Tensor:
    return terms.detach().sum(dtype=torch.float64)


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def _torch(dtype: Any) -> torch.dtype:
    return torch.float64 if np.dtype(dtype) == np.float64 else torch.float32


as_model = TorchModel  # the usual name: the arguments are those of TorchModel
