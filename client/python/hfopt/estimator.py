"""Nonlinear least squares as an estimator with the conventions of scikit-learn, which is not needed for it."""
from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from .model import Array
from .numpy import Products, _Residuals, least_squares


class LeastSquaresRegressor:
    """Fits y = fun(x, X) for the parameters x, by `hfopt.least_squares`: the minimum of

        sum of sample_weight (fun(x, X) - y)^2 / 2 + alpha |x|^2 / 2

        def growth(x, X):
            return x[0] * np.exp(x[1] * X[:, 0])

        def slopes(x, X):
            e = np.exp(x[1] * X[:, 0])
            return np.stack([e, x[0] * X[:, 0] * e], axis=1)

        model = hfopt.LeastSquaresRegressor(growth, [1.0, 0.0], slopes).fit(X, y)
        model.x_, model.predict(X_new), model.score(X_test, y_test)

    It can be cloned, searched over and be the last step of a pipeline: `GridSearchCV(model, {"alpha": [0, 1e-2]})`.
    m is the number of samples, n that of parameters.

    fun      fun(x, X) -> predictions of the shape of y: (m,) or (m, outputs)
    x0       where the search begins: n numbers
    jac      the Jacobian of the predictions with respect to x, in one of the forms that `hfopt.least_squares` takes,
             with X as the last argument: jac(x, X) -> dense, sparse or LinearOperator of the shape (y.size, n),
             outputs of a sample side by side; a pair (jvp(x, v, X), vjp(x, u, X)); or "2-point"
    alpha    weight of |x|^2 / 2
    gtol, ftol, max_iterations, options   as in `hfopt.least_squares`, for the sum above
    server   "host:port" of a running server; by default a private one is started for each fit

    Attributes after `fit`: `x_` (n numbers), `cost_` (the sum above), `n_iter_`, `reason_` (why it ended) and
    `history_` (`hfopt.History`). Raises what `hfopt.least_squares` raises, and ValueError where shapes do not agree.
    """

    _estimator_type = "regressor"  # for scikit-learn before 1.6

    def __init__(self, fun: Callable[..., Any], x0: Any, jac: Any = None, *, alpha: float = 0.0, gtol: float = 1e-8,
                 ftol: float = 1e-15, max_iterations: Optional[int] = 200,
                 options: Optional[Mapping[str, Any]] = None, server: Optional[str] = None):
        # As they are, and under their names: clone() wants it.
        self.fun, self.x0, self.jac, self.alpha, self.gtol, self.ftol = fun, x0, jac, alpha, gtol, ftol
        self.max_iterations, self.options, self.server = max_iterations, options, server

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LeastSquaresRegressor:
        """Finds x for inputs X of m samples, passed to `fun` as they are, and targets y of the shape (m,) or (m,
        outputs). `sample_weight`: m numbers of 0 or more."""
        y = np.asarray(y, np.float64)
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}; give 0 or more")
        roots = np.sqrt(_weights(sample_weight, y)).ravel()
        n = np.size(self.x0)

        def differences(x: Array, X: Any) -> Array:
            predictions: Array = np.asarray(self.fun(x, X), np.float64)
            _check_shape(predictions, y)
            errors: Array = (predictions - y).ravel()
            return errors

        data = _Residuals(differences, self.jac, (X, ), {}, self.x0)
        ridge = np.sqrt(self.alpha) * np.ones(n if self.alpha else 0)

        def fun(x: Array) -> Array:
            return np.concatenate([roots * data.residuals(x), ridge * x[:len(ridge)]])

        def jac(x: Array) -> _Products:
            forward, back = data.linearized(x)
            return _Products(
                (y.size + len(ridge), n),
                lambda v: np.concatenate([roots * forward(v), ridge * v[:len(ridge)]]),
                lambda u: back(roots * u[:y.size]) + (ridge * u[y.size:] if len(ridge) else 0))

        result = least_squares(fun, self.x0, jac, gtol=self.gtol, ftol=self.ftol, max_iterations=self.max_iterations,
                               options=self.options, server=self.server)
        self.x_, self.cost_, self.n_iter_ = result.x, result.cost, len(result.history)
        self.reason_, self.history_ = result.reason, result.history
        if getattr(X, "ndim", 0) == 2:
            self.n_features_in_ = int(X.shape[1])
        return self

    def predict(self, X: Any) -> Array:
        """fun(x_, X), of the shape (m,) or (m, outputs)."""
        if not hasattr(self, "x_"):
            raise _not_fitted("LeastSquaresRegressor is not fitted yet; call fit before predict and score")
        predictions: Array = np.asarray(self.fun(self.x_, X))
        return predictions

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination, 1 - sum w (y - prediction)^2 / sum w (y - mean)^2: 1 at best, 0 for the
        mean, averaged over outputs. Where y is constant: 1 if it is met exactly, otherwise 0."""
        y = np.asarray(y, np.float64)
        w, predictions = _weights(sample_weight, y), self.predict(X)
        _check_shape(predictions, y)
        errors = predictions - y
        mean = np.sum(w * y, axis=0) / np.sum(w, axis=0)
        left, all_ = np.sum(w * errors**2, axis=0), np.sum(w * (y - mean)**2, axis=0)
        explained = np.where(all_ > 0, 1 - left / np.where(all_ > 0, all_, 1), np.where(left > 0, 0.0, 1.0))
        return float(np.mean(explained))

    def get_params(self, deep: bool = True) -> Dict[str, Any]:
        """The arguments of the constructor by name."""
        return {name: getattr(self, name) for name in _names()}

    def set_params(self, **params: Any) -> LeastSquaresRegressor:
        """Changes arguments of the constructor; what was fitted stays until the next `fit`. ValueError for names that
        it does not have."""
        for name, value in params.items():
            if name not in _names():
                raise ValueError(f"LeastSquaresRegressor has no parameter {name!r}; it has {', '.join(_names())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        shown = [f"{name}={getattr(value, '__qualname__', None) or repr(value)}"
                 for name, value in self.get_params().items() if value is not defaults[name]]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags  # asked by scikit-learn itself
        return Tags(estimator_type="regressor", target_tags=TargetTags(required=True, multi_output=True),
                    regressor_tags=RegressorTags(), input_tags=InputTags(allow_nan=True))


class _Products:
    """A linear operator, as far as least_squares needs one."""

    def __init__(self, shape: Any, matvec: Products, rmatvec: Products):
        self.shape, self.matvec, self.rmatvec = shape, matvec, rmatvec


def _names() -> List[str]:
    return list(inspect.signature(LeastSquaresRegressor).parameters)


def _weights(sample_weight: Any, y: Array) -> Array:
    """One for each element of y."""
    if y.ndim not in (1, 2):
        raise ValueError(f"y has the shape {y.shape}; it must be (samples,) or (samples, outputs)")
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if w.shape != (len(y), ) or not np.all(w >= 0):
        raise ValueError(f"sample_weight must be {len(y)} numbers of 0 or more, one for each sample; its shape is "
                         f"{w.shape}")
    return np.broadcast_to(w.reshape((-1, ) + (1, ) * (y.ndim - 1)), y.shape)


def _check_shape(predictions: Array, y: Array) -> None:
    if predictions.shape != y.shape:
        raise ValueError(f"fun answered the shape {predictions.shape}; y has {y.shape}")


def _not_fitted(message: str) -> Exception:
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    error: Exception = NotFittedError(message)
    return error
