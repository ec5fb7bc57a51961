"""Options of a run by name, as `hfopt run create --set NAME=VALUE` has them."""
from __future__ import annotations

from typing import Any, List, Mapping, Optional

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from .v1 import run_pb2
from .wire import ELEMENT_TYPES


def short_name(enum: EnumDescriptor, number: int) -> str:
    """"LBFGS_FROZEN" -> "frozen": the value 0 of every enum is PREFIX_UNSPECIFIED."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)  # of a later version
    prefix: str = enum.values_by_number[0].name[:-len("UNSPECIFIED")]
    name: str = value.name
    return (name[len(prefix):] if name.startswith(prefix) else name).lower()


def run_options(*, preset: Optional[str] = None, dtype: Any = None, shards: int = 0, seed: Optional[int] = None,
                max_iterations: Optional[int] = None, target_loss: Optional[float] = None,
                max_seconds: Optional[float] = None, lease_seconds: Optional[float] = None,
                options: Optional[Mapping[str, Any]] = None) -> run_pb2.RunOptions:
    """What CreateRun is asked for; the server fills in the rest. ValueError names the option, its value and what is
    allowed."""
    result = run_pb2.RunOptions()
    if dtype is not None:
        name = np.dtype(dtype).name
        if name not in ELEMENT_TYPES:
            raise ValueError(f"dtype is {name}; allowed: {', '.join(ELEMENT_TYPES)}")
        result.element_type = ELEMENT_TYPES[name]
    for name, count, bits in ("shards", shards, 32), ("seed", 0 if seed is None else seed, 64):
        if not hasattr(count, "__index__"):
            raise TypeError(f"{name} is {count!r}; give a whole number")
        if not 0 <= count < 1 << bits:
            raise ValueError(f"{name} is {count}; allowed: 0 to {(1 << bits) - 1}")
    result.shards = shards
    if seed is not None:
        result.seed = seed
    if max_seconds is not None:
        result.max_wall_seconds = max_seconds
    if lease_seconds is not None:
        result.lease_seconds = lease_seconds
    named = {
        "preset": preset, "stop.max_iterations": max_iterations, "stop.target_loss": target_loss, **(options or {})
    }
    for key, value in named.items():
        if value is not None:
            set_option(result.optimizer, key, value)
    return result


def set_option(message: Any, name: str, value: Any) -> None:
    """Sets the field that is named by its path, for example "preconditioner.lbfgs", to a value or the text of one."""
    steps, path = name.split("."), ""
    for i, step in enumerate(steps):
        field = message.DESCRIPTOR.fields_by_name.get(step)
        if field is None:
            where = f" in {path}" if path else ""
            raise ValueError(
                f"options: there is no option \"{step}\"{where}; allowed: "
                f"{', '.join(_field_names(message.DESCRIPTOR))}")
        path = f"{path}.{step}" if path else step
        is_section, is_last = field.message_type is not None, i + 1 == len(steps)
        if is_section and is_last:
            raise ValueError(
                f"options: {path} is a group of options; name one of them: "
                f"{', '.join(_field_names(field.message_type))}")
        if not is_section and not is_last:
            raise ValueError(f"options: {path} is a single option; nothing is inside it")
        if is_last:
            setattr(message, step, _parse(path, field, value))
        else:
            message = getattr(message, step)


def option_names() -> List[str]:
    """All names for `options`, enums with their values: ["preset=accelerated|published|deterministic", ...]."""
    return _option_names(run_pb2.OptimizerOptions.DESCRIPTOR, "")


def _option_names(descriptor: Descriptor, prefix: str) -> List[str]:
    names: List[str] = []
    for field in descriptor.fields:
        if field.message_type is not None:
            names += _option_names(field.message_type, f"{prefix}{field.name}.")
        elif field.enum_type is not None:
            names.append(f"{prefix}{field.name}={'|'.join(_short_names(field.enum_type))}")
        else:
            names.append(prefix + field.name)
    return names


def _parse(path: str, field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        for number, name in ((v.number, v.name) for v in field.enum_type.values if v.number != 0):
            if str(value).lower() in (short_name(field.enum_type, number), name.lower()):
                return number
        raise ValueError(f"options: {path} is \"{value}\"; allowed: {', '.join(_short_names(field.enum_type))}")
    is_double = field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE
    try:
        number = float(value)
        if is_double:
            return number
        exact = int(value) if isinstance(value, str) else int(number)
        bits = 32 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else 64
        if exact == number and 0 <= exact < 2**bits:
            return exact
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"options: {path} is \"{value}\"; allowed: " +
                     ("a number" if is_double else "a whole number from 0"))


def _short_names(enum: EnumDescriptor) -> List[str]:
    return [short_name(enum, v.number) for v in enum.values if v.number != 0]


def _field_names(descriptor: Descriptor) -> List[str]:
    return [field.name for field in descriptor.fields]
