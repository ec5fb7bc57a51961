"""Models of functions on flat NumPy arrays: PDE-constrained and other scientific problems, least squares of
residuals."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from .model import Array
from .training import Callback, Result, fit

Products = Callable[[Array], Array]  # v -> G v, both of the shape (n,)


class FunctionModel:
    """The `hfopt.Model` that `as_model` makes."""

    has_second_moment = False
    element_types: Tuple[str, ...]

    def __init__(self, loss: Callable[..., Any], grad: Callable[..., Any], gnvp: Optional[Callable[..., Any]],
                 linearize: Optional[Callable[..., Products]], x0: Any, num_examples: Optional[Tuple[int, int]],
                 signature: str, element_types: Sequence[str]):
        self._loss, self._grad, self._gnvp, self._linearize = loss, grad, gnvp, linearize
        self._x0 = np.array(x0, dtype=np.float64)
        if self._x0.ndim != 1 or not self._x0.size:
            raise ValueError(f"x0 has the shape {self._x0.shape}; it must be one vector")
        self._per_example = num_examples is not None
        self.num_parameters = int(self._x0.size)
        self.num_examples = (1, 1) if num_examples is None else (int(num_examples[0]), int(num_examples[1]))
        self.signature, self.element_types = signature, tuple(element_types)

    def loss(self, theta: Array, held_out: bool, indices: Array) -> Tuple[float, float, Dict[str, float]]:
        return float(self._loss(theta, *self._which(held_out, indices))), len(indices), {}

    def gradient(self, theta: Array, held_out: bool, indices: Array,
                 squares: bool = False) -> Tuple[float, float, Array, None]:
        if squares:
            raise ValueError("functions on flat arrays have no second moment; set preconditioner.diagonal to none")
        which = self._which(held_out, indices)
        return float(self._loss(theta, *which)), len(indices), self._own(self._grad(theta, *which), "grad", theta), None

    def linearize(self, theta: Array, held_out: bool, indices: Array) -> Products:
        which = self._which(held_out, indices)
        if self._linearize is not None:
            products = self._linearize(theta, *which)
            return lambda v: self._own(products(v), "linearize(...)", theta)
        gnvp = self._gnvp
        assert gnvp is not None
        return lambda v: self._own(gnvp(theta, v, *which), "gnvp", theta)

    def initial_parameters(self, seed: int, dtype: Any) -> Array:
        return self._x0.astype(dtype)

    def weight(self, held_out: bool, indices: Array) -> float:
        """The number of examples."""
        return len(indices)

    def _which(self, held_out: bool, indices: Array) -> Tuple[Any, ...]:
        return (held_out, indices) if self._per_example else ()

    def _own(self, vector: Any, what: str, theta: Array) -> Array:
        """A copy, in theta's element type, as functions may use their buffers again."""
        result = np.array(vector, dtype=theta.dtype)
        if result.shape != (self.num_parameters,):
            raise ValueError(f"{what} answered the shape {result.shape}; x0 has {(self.num_parameters,)}")
        return result


def as_model(loss: Callable[..., Any], grad: Callable[..., Any], gnvp: Optional[Callable[..., Any]] = None, *, x0: Any,
             linearize: Optional[Callable[..., Products]] = None, num_examples: Optional[Tuple[int, int]] = None,
             signature: str = "functions", element_types: Sequence[str] = ("float64",)) -> FunctionModel:
    """An `hfopt.Model` of functions on flat arrays; x and v have n = len(x0) elements, and x is read-only.

        loss(x) -> float, grad(x) -> n numbers, gnvp(x, v) -> n numbers: the Gauss-Newton product J'HJ v
        linearize(x) -> function v -> J'HJ v, in the place of gnvp: it can keep a factorisation or a forward solution
        for many products

    The data are one example, which counts in training and held out: the losses of `fit` are those of `loss`, and the
    presets to use are "deterministic" and its relatives.

    With `num_examples=(training, held_out)` all functions take two more arguments, `held_out` and `indices`, and answer
    *sums* over those examples: loss(x, held_out, indices), gnvp(x, v, held_out, indices). Growing samples and shards
    work then.

    element_types: what the functions compute in; x comes in the one that the run has.
    """
    if (gnvp is None) == (linearize is None):
        raise TypeError("as_model needs gnvp or linearize, one of the two")
    return FunctionModel(loss, grad, gnvp, linearize, x0, num_examples, signature, element_types)


def least_squares_model(fun: Callable[..., Any], x0: Any, jac: Any, *, args: Tuple[Any, ...] = (),
                        kwargs: Optional[Mapping[str, Any]] = None) -> FunctionModel:
    """The `hfopt.Model` that `least_squares` trains, with the loss |fun(x)|^2 / 2, for `hfopt.check` and
    `hfopt.serve`; the arguments are those of `least_squares`."""
    return _Residuals(fun, jac, args, dict(kwargs or {}), x0).model()


@dataclass
class LeastSquaresResult(Result):
    """A Result under the names of scipy.optimize.OptimizeResult as well."""
    fun: Any = None  # residuals at x
    nfev: int = 0  # calls of fun
    njev: int = 0  # points at which the Jacobian, or its products, were taken

    @property
    def x(self) -> Array:
        """The solution; the same as `parameters`."""
        return self.parameters

    @property
    def cost(self) -> float:
        """|fun|^2 / 2 at x."""
        return 0.5 * float(np.dot(self.fun, self.fun))

    @property
    def success(self) -> bool:
        """Whether it ended by its own mathematics, not by a budget or by force."""
        return self.reason in ("converged", "held_out_stalled", "target_reached")

    @property
    def message(self) -> str:
        """Why it ended, in words; the same as `detail`."""
        return self.detail

    __repr__ = Result.__repr__


def least_squares(fun: Callable[..., Any], x0: Any, jac: Any = None, *, args: Tuple[Any, ...] = (),
                  kwargs: Optional[Mapping[str, Any]] = None, gtol: float = 1e-8, ftol: float = 1e-15,
                  max_iterations: Optional[int] = 200, target_cost: Optional[float] = None,
                  max_seconds: Optional[float] = None, dtype: Any = "float64", preset: str = "deterministic",
                  options: Optional[Mapping[str, Any]] = None, callbacks: Sequence[Callback] = (),
                  progress: bool = False, **where: Any) -> LeastSquaresResult:
    """Minimises |fun(x)|^2 / 2 over x, in the manner of scipy.optimize.least_squares: by truncated Gauss-Newton, which
    needs the Jacobian J of the residuals only as products J v and J'u.

    fun      fun(x, *args, **kwargs) -> residuals, m numbers; x has the n elements of x0
    jac      the Jacobian, m x n, in one of these forms:
               a function of the arguments of fun that answers a dense array, a scipy.sparse matrix, or a
               LinearOperator (matvec, rmatvec);
               a pair (jvp, vjp): jvp(x, v, ...) -> J v, m numbers, and vjp(x, u, ...) -> J'u, n numbers;
               "2-point": dense, by forward differences with n more calls of fun. For small problems and only at half
               the digits: asked for by name, never by default.
    gtol     ends when |J'fun| <= gtol
    ftol     ends when the cost fell by less than ftol, relative to itself, in five iterations in a row. The default
             means that rounding lets it fall no more: where the problem is ill-conditioned, the last digits of the cost
             are many digits of x
    target_cost, max_iterations, max_seconds end it too
    dtype    "float64", or "float32" for vectors of half the size: residuals are taken in float64 all the same
    preset, options, callbacks, progress   as in `fit`
    where    `directory`, `resume`, `server`, `run`, `worker_id`, `shards` (1) as in `fit`

    There are no bounds and no robust losses: for those use SciPy. Raises ValueError for residuals or a Jacobian of a
    wrong shape, and for complex residuals.
    """
    problem = _Residuals(fun, jac, args, dict(kwargs or {}), x0)
    model = problem.model()
    ends = {
        "stop.gradient_tolerance": gtol, "stop.patience": 5 if ftol > 0 else 0, "stop.min_improvement": ftol,
        **(options or {})
    }
    result = fit(model, preset=preset, options=ends, dtype=dtype, max_iterations=max_iterations,
                 target_loss=target_cost, max_seconds=max_seconds, callbacks=callbacks, progress=progress, **where)
    residuals = problem.residuals(result.parameters)
    return LeastSquaresResult(**vars(result), fun=residuals, nfev=problem.nfev, njev=problem.njev)


class _Residuals:
    """Losses, gradients and products of residuals, with what was computed at the last point kept."""

    def __init__(self, fun: Callable[..., Any], jac: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], x0: Any):
        if jac is None:
            raise TypeError(
                "least_squares needs jac: a function that answers the Jacobian (dense, sparse or a LinearOperator), or "
                "a pair (jvp, vjp); jac=\"2-point\" takes forward differences, at the cost of accuracy and of n calls "
                "of fun")
        if isinstance(jac, str) and jac != "2-point":
            raise ValueError(f"jac is \"{jac}\"; allowed: a function, a pair (jvp, vjp), or \"2-point\"")
        is_pair = isinstance(jac, (tuple, list)) and len(jac) == 2 and all(map(callable, jac))
        if not (isinstance(jac, str) or callable(jac) or is_pair):
            raise TypeError(
                f"jac is {type(jac).__name__}; allowed: a function of x that answers the Jacobian there (for a "
                "constant A: lambda x: A), a pair of functions (jvp, vjp), or \"2-point\"")
        if not callable(fun):
            raise TypeError(
                f"fun is {type(fun).__name__}; give a function of x that answers the residuals there: "
                "lambda x: A @ x - b")
        self._fun, self._jac, self._args, self._kwargs = fun, jac, args, kwargs
        self._x0 = np.array(x0, dtype=np.float64)
        self._n = self._x0.size
        self._at: Optional[Tuple[bytes, Array]] = None  # the last point and the residuals there
        self._m: Optional[int] = None
        self.nfev = self.njev = 0

    def model(self) -> FunctionModel:
        return as_model(self.loss, self.grad, linearize=self.linearize, x0=self._x0,
                        element_types=("float64", "float32"),
                        signature=f"least squares of {self.count(self._x0)} residuals")

    def residuals(self, x: Array) -> Array:
        key = x.tobytes()
        if self._at is None or self._at[0] != key:
            self._at = key, self._evaluate(x)
        return self._at[1]

    def count(self, x: Array) -> int:
        return len(self.residuals(x))

    def loss(self, x: Array) -> float:
        r = self.residuals(x)
        return 0.5 * float(np.dot(r, r))

    def grad(self, x: Array) -> Array:
        return self.linearized(x)[1](self.residuals(x))

    def linearize(self, x: Array) -> Products:
        forward, back = self.linearized(x)
        return lambda v: back(forward(v))

    def _evaluate(self, x: Array) -> Array:
        self.nfev += 1
        # float64 unless fun is exact in float32: dot products of residuals are the loss.
        answer = np.asarray(self._fun(x, *self._args, **self._kwargs))
        if np.iscomplexobj(answer):
            raise ValueError(f"fun answered {answer.dtype}; residuals must be real: np.concatenate([r.real, r.imag]) "
                             "has the same sum of squares")
        r: Array = answer.astype(np.float64)
        if r.ndim != 1 or not r.size or self._m not in (None, len(r)):
            raise ValueError(
                f"fun answered the shape {r.shape}; it must be one vector, not empty, of the same length for all x")
        self._m = len(r)
        return r

    def linearized(self, x: Array) -> Tuple[Products, Products]:
        """v -> J v and u -> J'u at x."""
        self.njev += 1
        if isinstance(self._jac, (tuple, list)):
            jvp, vjp = self._jac
            return (lambda v: self._checked(jvp(x, v, *self._args, **self._kwargs), self._m, "jvp"),
                    lambda u: self._checked(vjp(x, u, *self._args, **self._kwargs), self._n, "vjp"))
        if isinstance(self._jac, str):
            J: Any = self._forward_differences(x)
        else:
            J = self._jac(x, *self._args, **self._kwargs)
        if not hasattr(J, "shape"):
            J = np.asarray(J)
        if tuple(J.shape) != (self.count(x), self._n):
            raise ValueError(
                f"jac answered the shape {tuple(J.shape)}; {self.count(x)} residuals of {self._n} parameters need "
                f"{(self.count(x), self._n)}")
        if hasattr(J, "matvec"):
            return J.matvec, J.rmatvec
        transposed = J.T
        return lambda v: J @ v, lambda u: transposed @ u

    def _forward_differences(self, x: Array) -> Array:
        x, r = x.astype(np.float64), self.residuals(x)
        J = np.empty((len(r), self._n))
        for i in range(self._n):
            # sqrt(eps) |x_i| balances truncation and rounding (Nocedal & Wright 2006, sec. 8.1).
            h = np.sqrt(np.finfo(np.float64).eps) * max(1.0, abs(float(x[i]))) * (1 if x[i] >= 0 else -1)
            moved = x.copy()
            moved[i] += h
            J[:, i] = (self._evaluate(moved) - r) / (moved[i] - x[i])
        return J

    @staticmethod
    def _checked(vector: Any, size: Optional[int], what: str) -> Array:
        array: Array = np.asarray(vector)
        if array.shape != (size,):
            raise ValueError(f"{what} answered the shape {array.shape}; it must be ({size},)")
        return array
