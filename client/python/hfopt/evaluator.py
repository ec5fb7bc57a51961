"""Answers a server's requests with a model, independent of any connection."""
from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

import grpc
import numpy as np

from .model import Array, Model, weight_of
from .samples import window_indices
from .v1 import evaluation_pb2

Vectors = Dict[bytes, Array]  # by name
Key = Tuple[bytes, bytes]  # of a linearization: its point and slice

_MOST_WEIGHTS = 1024


@dataclass
class Evaluation:
    """A request with the vectors that it names, held until it is answered."""
    request: evaluation_pb2.EvaluationRequest
    vectors: Vectors


@dataclass
class Evaluated:
    """An answer with the vectors that it names, by transfer."""
    answer: evaluation_pb2.Answer
    vectors: List[Tuple[int, Array]] = field(default_factory=list)
    bfloat16: bool = False  # the vectors are to be rounded to it, and sent so


@dataclass
class _Linearization:
    vectors: Vectors  # of its point
    weight: float
    product: Callable[[Array], Array]


def vector_names(request: evaluation_pb2.EvaluationRequest) -> List[bytes]:
    points = list(request.losses.points)
    names = []
    if request.HasField("gradient"):
        points.append(request.gradient.point)
    if request.HasField("product"):
        points.append(request.product.point)
        names.append(request.product.direction)
    for point in points:
        names += [point.base, *(term.vector for term in point.terms)]
    return names


def _key(message: Any) -> bytes:
    key: bytes = message.SerializeToString(deterministic=True)
    return key


class Evaluator:
    """To be used from one thread, whose calls it passes on to the model."""

    def __init__(self, model: Model, max_linearizations: int):
        self.model = model
        self.last_error: Optional[BaseException] = None  # that a model answered with
        self._max_linearizations = max_linearizations
        self._linearizations: OrderedDict[Key, _Linearization] = OrderedDict()  # newest last
        self._weights: Dict[bytes, float] = {}  # of slices that were asked for
        self._next_transfer = 1

    def forget(self, resident: Vectors) -> List[Key]:
        """Drops what was computed at points of which a vector is no longer there, or is in other memory now; tells what
        that was."""
        stale = [key for key, kept in self._linearizations.items()
                 if any(resident.get(name) is not vector for name, vector in kept.vectors.items())]
        self.drop(stale)
        return stale

    def drop(self, keys: List[Key]) -> None:
        for key in keys:
            del self._linearizations[key]

    def evaluate(self, evaluation: Evaluation, dtype: np.dtype[Any]) -> Evaluated:
        """An exception of the model becomes a Failure."""
        request, begin = evaluation.request, time.perf_counter()
        result = Evaluated(evaluation_pb2.Answer(request_id=request.id))
        kind = request.WhichOneof("kind")
        try:
            if kind is None:
                raise NotImplementedError("a kind of request that this worker does not know; update its package hfopt")
            with np.errstate(all="ignore"):  # a non-finite loss is an answer
                getattr(self, "_answer_" + kind)(evaluation, dtype, result)
        except Exception as error:  # the model could not answer; the session goes on
            self.last_error = error
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(error, MemoryError) else grpc.StatusCode.INTERNAL
            window = request.slice
            data = "held-out" if self._held_out(window) else "training"
            where = f" on {data} shard {window.shard} of {window.shards}"
            subject = "initial parameters" if kind == "initial_parameters" else f"{kind or 'request'}{where}"
            result.vectors.clear()
            result.answer.failure.code = code.value[0]
            result.answer.failure.message = f"{subject}: {type(error).__name__}: {error}"
        result.answer.compute_seconds = time.perf_counter() - begin
        return result

    def _answer_losses(self, evaluation: Evaluation, dtype: np.dtype[Any], result: Evaluated) -> None:
        held_out, indices = self._examples(evaluation.request.slice)
        answer, points = result.answer.losses, evaluation.request.losses.points
        sums: Dict[str, List[float]] = {}
        for i, point in enumerate(points):
            loss, weight, metrics = self.model.loss(self._point(point, evaluation.vectors, dtype), held_out, indices)
            if i > 0 and weight != answer.weight:
                raise ValueError(
                    f"the model's weight changed from {answer.weight} to {weight} between points; it must depend on "
                    "the examples alone")
            answer.loss_sums.append(float(loss))
            answer.weight = float(weight)
            self._remember_weight(evaluation.request.slice, answer.weight)
            for name, value in (metrics or {}).items():
                sums.setdefault(name, [0.0] * len(points))[i] = float(value)
        for name, values in sorted(sums.items()):
            answer.metrics.add(name=name, sums=values)

    def _answer_gradient(self, evaluation: Evaluation, dtype: np.dtype[Any], result: Evaluated) -> None:
        asked, answer = evaluation.request.gradient, result.answer.gradient
        held_out, indices = self._examples(evaluation.request.slice)
        theta = self._point(asked.point, evaluation.vectors, dtype)
        parts, count = asked.sub_batches or 1, len(indices)
        total: Optional[Array] = None
        moment: Optional[Array] = None
        for p in range(parts):
            part = indices[p * count // parts:(p + 1) * count // parts]
            if asked.sub_batches and not len(part):
                answer.sub_batches.add()
                continue
            loss, weight, gradient, squares = self.model.gradient(theta, held_out, part, bool(asked.second_moment))
            gradient = self._vector(gradient, "gradient", dtype)
            answer.loss_sum += float(loss)
            answer.weight += float(weight)
            total = gradient if total is None else total + gradient
            if asked.second_moment:
                if squares is None:
                    raise ValueError(
                        "the model's gradient answered no squares; a model without them sets has_second_moment = False")
                squares = self._vector(squares, "sum of squared gradients", dtype)
                moment = squares if moment is None else moment + squares
            if asked.sub_batches:
                answer.sub_batches.add(squared_norm=float(np.square(gradient, dtype=np.float64).sum()),
                                       weight=float(weight))
        self._remember_weight(evaluation.request.slice, answer.weight)
        zero = np.zeros(self.model.num_parameters, dtype)
        answer.gradient_transfer = self._attach(zero if total is None else total, result)
        if asked.second_moment:
            answer.second_moment_transfer = self._attach(zero if moment is None else moment, result)

    def _answer_product(self, evaluation: Evaluation, dtype: np.dtype[Any], result: Evaluated) -> None:
        asked = evaluation.request.product
        kept = self._linearization(evaluation, dtype)
        product = self._vector(kept.product(evaluation.vectors[asked.direction]), "product", dtype)
        if asked.bfloat16 and dtype != np.float32:
            raise ValueError(f"asks for bfloat16 in a run of {dtype.name}")
        result.bfloat16 = asked.bfloat16
        result.answer.product.product_transfer = self._attach(product, result)
        result.answer.product.weight = kept.weight

    def _answer_initial_parameters(self, evaluation: Evaluation, dtype: np.dtype[Any], result: Evaluated) -> None:
        theta = self.model.initial_parameters(evaluation.request.initial_parameters.seed, dtype.type)
        answer = result.answer.initial_parameters
        answer.parameters_transfer = self._attach(self._vector(theta, "vector of initial parameters", dtype), result)

    def _linearization(self, evaluation: Evaluation, dtype: np.dtype[Any]) -> _Linearization:
        point, window = evaluation.request.product.point, evaluation.request.slice
        key = _key(point), _key(window)
        kept = self._linearizations.get(key)
        if kept is None:
            # Make room first: the activations of two linearizations may not fit into memory.
            if len(self._linearizations) >= self._max_linearizations:
                self._linearizations.popitem(last=False)
            held_out, indices = self._examples(window)
            theta = self._point(point, evaluation.vectors, dtype)
            product = self.model.linearize(theta, held_out, indices)
            weight = weight_of(self.model, product, held_out, indices)
            if weight is None:
                weight = self._weights.get(_key(window))
            if weight is None:
                weight = float(self.model.loss(theta, held_out, indices)[1])
                self._remember_weight(window, weight)
            names = [point.base, *(term.vector for term in point.terms)]
            kept = _Linearization({name: evaluation.vectors[name] for name in names}, weight, product)
            self._linearizations[key] = kept
        self._linearizations.move_to_end(key)
        return kept

    def _remember_weight(self, window: evaluation_pb2.Slice, weight: float) -> None:
        if len(self._weights) >= _MOST_WEIGHTS:
            self._weights.clear()
        self._weights[_key(window)] = weight

    def _point(self, point: evaluation_pb2.Point, vectors: Vectors, dtype: np.dtype[Any]) -> Array:
        """base + sum of coefficient * vector, term by term in the element type, without fused multiply-add."""
        theta = vectors[point.base]
        for term in point.terms:
            step = dtype.type(term.coefficient) * vectors[term.vector]
            theta = np.add(theta, step, out=step)
        if point.terms:
            theta.flags.writeable = False
        return theta

    def _examples(self, window: evaluation_pb2.Slice) -> Tuple[bool, Array]:
        if window.data_set not in (evaluation_pb2.DATA_SET_TRAINING, evaluation_pb2.DATA_SET_HELD_OUT):
            raise ValueError(f"slice.data_set: {window.data_set} is neither TRAINING (1) nor HELD_OUT (2)")
        held_out = self._held_out(window)
        return held_out, window_indices(self.model.num_examples[held_out], window.shard, window.shards, window.begin,
                                        window.count)

    @staticmethod
    def _held_out(window: evaluation_pb2.Slice) -> bool:
        return bool(window.data_set == evaluation_pb2.DATA_SET_HELD_OUT)

    def _vector(self, vector: Any, what: str, dtype: np.dtype[Any]) -> Array:
        array: Array = np.ascontiguousarray(vector, dtype)
        if array.shape != (self.model.num_parameters,):
            raise ValueError(
                f"the model's {what} has the shape {array.shape}; it must be ({self.model.num_parameters},)")
        return array

    def _attach(self, vector: Array, result: Evaluated) -> int:
        result.vectors.append((self._next_transfer, vector))
        self._next_transfer += 1
        return result.vectors[-1][0]
