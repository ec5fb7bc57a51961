"""Checks a model against itself: core/derivative_check.h in Python, on a model rather than through a server."""
from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from .jacobian_check import Pair, is_block_diagonal, is_fisher, range_error
from .model import Array, Model, element_types, has_initial_parameters, has_second_moment, is_model, weight_of
from .samples import SplitMix64

Product = Callable[[Array], Array]


@dataclass(frozen=True)
class Check:
    """One line of a report."""
    name: str
    error: float  # relative; the worst over the probes
    limit: float
    meaning: str  # what is compared; what a failure usually means

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


class CheckReport(List[Check]):
    """The checks in a list; printed, a table."""

    @property
    def passed(self) -> bool:
        """Whether all checks did."""
        return all(check.passed for check in self)

    @property
    def failed(self) -> List[str]:
        """Names of the checks that failed."""
        return [check.name for check in self if not check.passed]

    def raise_if_failed(self) -> None:
        """AssertionError with the table, for tests."""
        if not self.passed:
            raise AssertionError(f"{len(self.failed)} of {len(self)} checks failed\n{self}")

    def _rows(self) -> List[Tuple[str, str, str, str, str]]:
        return [(c.name, "passed" if c.passed else "FAILED", f"{c.error:.1e}", f"{c.limit:.0e}", c.meaning)
                for c in self]

    def __repr__(self) -> str:
        rows = [("CHECK", "RESULT", "ERROR", "LIMIT", "WHAT IS COMPARED; WHAT A FAILURE MEANS"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        def line(name: str, result: str, error: str, limit: str, meaning: str) -> str:
            return "  ".join((name.ljust(widths[0]), result.ljust(widths[1]), error.rjust(widths[2]),
                              limit.rjust(widths[3]), meaning))

        return "\n".join(line(*row) for row in rows)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        def line(row: Tuple[str, ...]) -> str:
            return "".join(f"<td style=\"text-align:left\">{html.escape(cell)}</td>" for cell in row)

        rows = "".join(f"<tr>{line(row)}</tr>" for row in self._rows())
        titles = ("check", "result", "error", "limit", "what is compared; what a failure means")
        return f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{rows}</table>"


class _Worst:
    """The worst relative error seen; NaN is infinitely bad."""

    def __init__(self, name: str, limit: float, meaning: str):
        self.name, self.limit, self.meaning, self.error = name, limit, meaning, 0.0

    def see(self, error: float) -> None:
        self.error = max(self.error, math.inf if math.isnan(error) else float(error))


def check(model: Model, theta: Any = None, *, dtype: Any = None, examples: int = 256, probes: int = 3, seed: int = 1,
          held_out: bool = False) -> CheckReport:
    """Checks a model against itself at theta, n numbers, by default its initial parameters for the seed.

    On the first `examples` examples of the training data, or with `held_out` of the held-out data, computed in `dtype`
    ("float32" or "float64"; by default float64 if the model has it: limits are tighter): the gradient against central
    differences of the loss along `probes` directions of random signs; the Gauss-Newton product for symmetry, linearity
    and positive semidefiniteness; every answer for determinism, asked twice; sums and weights for consistency over two
    halves; squares of gradients against single examples.

    Whether the product is J'HJ, and not another symmetric positive semidefinite operator, is looked at near theta, on
    pairs of single examples and on two halves. "range": the gradients lie in the range of the products, as they do when
    both have one J; it says nothing, and is 0, where the examples do not differ, for models of more than 20 outputs or
    of as many as parameters, and where the loss may be linear in the outputs (Huber's, a hinge). "blocks": the product
    couples layers. "fisher": it is not the sum of g g' of single examples, with which J'HJ agrees only where the loss
    is -log of the outputs; take those before the softmax or sigmoid for the model's then.

    A product that is off by a factor, or that lacks a term of the loss, may pass. `hfopt conformance` looks at that.

    Raises TypeError for what is no hfopt.Model (a module and its data are made one by hfopt.torch.as_model or
    hfopt.jax.as_model), ValueError where theta or an answer has the wrong shape and for no examples or probes; what the
    model raises passes through.
    """
    if not is_model(model):
        raise TypeError(f"check: {type(model).__name__} is no hfopt.Model; make one of it and its data with "
                        "hfopt.torch.as_model, hfopt.jax.as_model or hfopt.numpy.as_model, as fit does")
    for name, value in ("examples", examples), ("probes", probes):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1, or nothing would be checked")
    if dtype is None:
        dtype = "float64" if "float64" in element_types(model) else "float32"
    dtype = np.dtype(dtype)
    if theta is None:
        if not has_initial_parameters(model):
            raise ValueError("the model has no initial parameters; give theta")
        theta = model.initial_parameters(seed, dtype.type)
    theta = np.array(theta, dtype=dtype)
    if theta.shape != (model.num_parameters,):
        raise ValueError(f"theta has the shape {theta.shape}; the model needs ({model.num_parameters},)")
    theta.flags.writeable = False
    available = model.num_examples[held_out]
    if not available:
        raise ValueError(f"the model has no {'held-out' if held_out else 'training'} examples")
    with np.errstate(all="ignore"):
        return _Checker(model, theta, held_out, np.arange(min(examples, available)), seed).run(probes)


class _Checker:
    def __init__(self, model: Model, theta: Array, held_out: bool, indices: Array, seed: int):
        self.model, self.theta, self.held_out, self.indices = model, theta, held_out, indices
        self._signs = SplitMix64(seed)
        single = theta.dtype.itemsize == 4

        def limit(in_single: float, in_double: float) -> float:
            return in_single if single else in_double

        # The limits are what correct models of both precisions stay well below, and mistakes of a factor or a missing
        # term do not.
        checks = [
            _Worst("loss", limit(1e-4, 1e-9),
                   "loss answered with the gradient against the loss alone; computed from other data or formulas"),
            _Worst("gradient", limit(2e-2, 1e-5),
                   "u'g against central differences of the loss; wrong, or a mean where a sum is due"),
            _Worst("symmetry", limit(1e-3, 1e-8), "u'Gv against v'Gu; not J'HJ (a transposed layer, a missing term)"),
            _Worst("semidefinite", limit(1e-4, 1e-10),
                   "most negative p'Gp over the largest met; the Hessian's product, or a wrong sign"),
            _Worst("linearity", limit(1e-3, 1e-8),
                   "G(2u + v) against 2Gu + Gv; depends on earlier calls, or is a finite difference"),
            _Worst("determinism", 0,
                   "1 when asking twice gives other bits; dropout, running averages, or sums in changing order"),
            _Worst("samples", limit(1e-3, 1e-8),
                   "sums and weights of the examples against those of two halves; means instead of sums"),
            _Worst("shapes", 0, "1 when a vector has another shape or element type than theta"),
            _Worst("purity", 0,
                   "1 when the model changed an array that was passed to it, or one it had answered before"),
            # Right networks have 2e-7 and 4e-16 at most; mistakes 0.06, an activation' that is off by 1% 1e-3 or more.
            _Worst("range", limit(1e-2, 1e-4),
                   "single gradients from the range of products; another J (a wrong activation', a scaled layer)"),
            _Worst("blocks", 0,
                   "1 when products do not couple first and last parameters, and the loss does; block-diagonal"),
            _Worst("fisher", 0, "1 when the product is that of the sum of g g'; the empirical Fisher matrix"),
            _Worst("squares", limit(1e-3, 1e-8), "sum of squared gradients against those of single examples")]
        self.checks: Dict[str, _Worst] = {c.name: c for c in checks}
        if not has_second_moment(model):
            del self.checks["squares"]

    def run(self, probes: int) -> CheckReport:
        theta, indices = self.theta, self.indices
        loss, weight, _ = self.model.loss(theta, self.held_out, indices)
        again, _, _ = self.model.loss(theta, self.held_out, indices)
        g_loss, g_weight, g = self._gradient(indices)
        first = g.copy()
        loss_again, _, g_again = self._gradient(indices)
        self._see("purity", not _same(g, first))
        self._see("loss", _difference(g_loss, loss, abs(loss)))
        self._see("samples", _difference(g_weight, weight, abs(weight)))
        self._see("determinism", not (_same(g_again, first) and loss_again == g_loss and again == loss))
        G, product_weight = self._product(indices)
        if product_weight is not None:
            self._see("samples", _difference(product_weight, weight, abs(weight)))
        for _ in range(probes):
            u, v = self._direction(), self._direction()
            self._see("gradient", self._slope_error(g, u))
            Gu, Gv, Gw, Gu_again = G(u), G(v), G(2 * u + v), G(u)
            typical = max(_norm(Gu), _norm(Gv), np.finfo(np.float64).tiny)
            self._see("symmetry", _difference(_dot(u, Gv), _dot(v, Gu), typical))
            self._see("linearity", _distance(Gw, 2 * Gu + Gv))
            self._see("determinism", not _same(Gu, Gu_again))
        v = self._direction()
        self._see("semidefinite", self._negative_curvature(G, v))
        self._halves(g, weight, loss, G(v), v)
        self._jacobian()
        if "squares" in self.checks:
            self._squares()
        return CheckReport(Check(c.name, c.error, c.limit, c.meaning) for c in self.checks.values())

    def _see(self, name: str, error: float) -> None:
        self.checks[name].see(error)

    def _direction(self) -> Array:
        """Independent signs, the same on every machine."""
        signs = np.array([1.0 if self._signs.next() >> 63 else -1.0 for _ in range(len(self.theta))], self.theta.dtype)
        signs.flags.writeable = False
        return signs

    def _vector(self, vector: Any) -> Array:
        array = np.asarray(vector)
        self._see("shapes", array.shape != self.theta.shape or array.dtype != self.theta.dtype)
        if array.shape != self.theta.shape:
            raise ValueError(f"the model answered a vector of the shape {array.shape}; it must be {self.theta.shape}")
        return array

    def _gradient(self, indices: Array, theta: Optional[Array] = None) -> Tuple[float, float, Array]:
        theta = self.theta if theta is None else theta
        theta.flags.writeable = False
        loss, weight, gradient, _ = self.model.gradient(theta, self.held_out, indices, False)
        return float(loss), float(weight), self._vector(gradient)

    def _product(self, indices: Array, theta: Optional[Array] = None) -> Tuple[Product, Optional[float]]:
        linearization = self.model.linearize(self.theta if theta is None else theta, self.held_out, indices)
        last: List[Tuple[Array, Array]] = []

        def product(v: Array) -> Array:
            if v.flags.writeable:
                v = v.copy()
                v.flags.writeable = False  # as a worker passes it
            result = self._vector(linearization(v))
            if last:
                self._see("purity", not _same(*last.pop()))
            last.append((result, result.copy()))
            return result

        return product, weight_of(self.model, linearization, self.held_out, indices)

    def _slope_error(self, g: Array, u: Array) -> float:
        """The smallest relative difference over steps from large (truncation) to small (rounding): where the two errors
        balance cannot be known beforehand."""
        slope = _dot(u, g)
        # A direction nearly orthogonal to g has no slope to compare with; |g| is what a typical sign direction sees.
        scale = max(abs(slope), _norm(g))
        best, h = math.inf, 1e-1
        while h > 1e-7:
            up, down = (self._loss_at(self.theta + self.theta.dtype.type(s * h) * u) for s in (1, -1))
            error = _difference((up - down) / (2 * h), slope, scale)
            best = error if error < best else best
            h /= math.sqrt(10)
        return best

    def _loss_at(self, theta: Array) -> float:
        theta.flags.writeable = False
        return float(self.model.loss(theta, self.held_out, self.indices)[0])

    def _negative_curvature(self, G: Product, v: Array, max_products: int = 20) -> float:
        """How far below zero the least p'Gp / |p|^2 is that CG meets on Gx = v, relative to the largest |Gp| / |p|; 0
        when none is. Random directions see little more than the trace. Those of CG find a single negative eigenvalue:
        p'Gp are the pivots of the LDL' factors of the Lanczos matrix."""
        tolerance = self.checks["semidefinite"].limit
        r = p = v
        least = most = 0.0
        rr = _dot(r, r)
        for _ in range(max_products):
            Gp = G(p)
            pp, pGp = _dot(p, p), _dot(p, Gp)
            if not math.isfinite(pGp):
                return math.inf
            most, least = max(most, _norm(Gp) / math.sqrt(pp)), min(least, pGp / pp)
            if not pGp > tolerance * most * pp:  # negative, or a null space, where all is rounding
                break
            r = r - self.theta.dtype.type(rr / pGp) * Gp
            old, rr = rr, _dot(r, r)
            if not rr > 0:
                break
            p = r + self.theta.dtype.type(rr / old) * p
        return -least / most if most > 0 else 0.0

    def _halves(self, g: Array, weight: float, loss: float, Gv: Array, v: Array) -> None:
        middle = len(self.indices) // 2
        parts = [part for part in (self.indices[:middle], self.indices[middle:]) if len(part)]
        if len(parts) < 2:
            return
        answers = [self._gradient(part) for part in parts]
        products = [self._product(part)[0](v) for part in parts]
        self._see("samples", _distance(sum(a[2] for a in answers), g))
        self._see("samples", _distance(sum(products), Gv))
        self._see("samples", _difference(sum(a[1] for a in answers), weight, abs(weight)))
        self._see("samples", _difference(sum(a[0] for a in answers), loss, sum(abs(a[0]) for a in answers)))

    def _jacobian(self) -> None:
        """What tells J'HJ from other symmetric positive semidefinite operators: see jacobian_check.py."""
        n, size = len(self.theta), len(self.indices)
        if size < 2:
            return
        # A point that is nothing special: layers of zeros hide mistakes, and seem to couple with nothing.
        rms = _norm(self.theta) / math.sqrt(n)
        step = min(0.2 * rms, 0.1) if rms > 0 else 0.05
        theta = self.theta + (step * np.linspace(0.5, 1.5, n) * self._direction()).astype(self.theta.dtype)
        theta.flags.writeable = False

        def pair(*parts: Array) -> Pair:
            def gradient(part: Array) -> Product:
                def per_weight(at: Array) -> Array:
                    _, weight, g = self._gradient(part, at)
                    return g.astype(np.float64) / weight
                return per_weight

            def product(part: Array) -> Product:
                weight, (G, _) = self._gradient(part, theta)[1], self._product(part, theta)
                return lambda v: G(v).astype(np.float64) / weight

            return Pair([gradient(part) for part in parts], [product(part) for part in parts], theta)

        count = min(4, size // 2)
        at = [j * size // (2 * count) for j in range(2 * count)]  # far apart: neighbours are often alike
        pairs = [pair(*(self.indices[i:i + 1] for i in (at[j], at[j + count]))) for j in range(count)]
        single, signs = theta.dtype.itemsize == 4, self._direction()
        steps = max(1, min(40, 2**25 // n))
        self._see("range", range_error(pairs, steps, 1e-4 if single else 1e-11, self.checks["range"].limit))
        self._see("fisher", is_fisher(pairs, signs, 1e-3 if single else 1e-6))
        halves = pair(self.indices[:size // 2], self.indices[size // 2:])
        nothing, clearly = (1e-6, 1e-2) if single else (1e-12, 1e-6)
        self._see("blocks", is_block_diagonal(halves, theta, signs, step / 4, nothing, clearly))

    def _squares(self) -> None:
        few = self.indices[:8]
        _, _, _, squares = self.model.gradient(self.theta, self.held_out, few, True)
        if squares is None:
            raise ValueError(
                "the model's gradient answered no squares; a model without them sets has_second_moment = False")
        single = [self._gradient(few[i:i + 1])[2].astype(np.float64)**2 for i in range(len(few))]
        self._see("squares", _distance(self._vector(squares), sum(single)))


def _dot(a: Array, b: Array) -> float:
    return float(np.dot(a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)))


def _norm(a: Array) -> float:
    return math.sqrt(_dot(a, a))


def _same(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


def _difference(a: float, b: float, scale: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(scale, np.finfo(np.float64).tiny)


def _distance(a: Any, b: Any) -> float:
    return _norm(np.asarray(a - b)) / max(_norm(np.asarray(b)), np.finfo(np.float64).tiny)
