"""Fitted estimators as plain data: JSON-able values and numpy arrays, from which the same estimator comes back."""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from sklearn.exceptions import NotFittedError

from mercer.errors import DataError, StructureError
from mercer.kernel import Kernel
from mercer.learn.spec import from_spec, to_spec

FORMAT = 1  # of the values that `get_state` gives; raised where an older mercer would misread them
DEPTH = 24  # of values in values; deeper ones are not ours
RUN = ("progress", "checkpoint")  # arguments of one run: functions and files of a machine
CLOSE = 1e-6  # by which exact numbers of a kernel may differ from those that its plain form names
RECORDS: dict[str, Any] = {}
OWNERS: dict[str, type[Saved]] = {}

_Kind = TypeVar("_Kind", bound=type)


def record(kind: _Kind) -> _Kind:
    """A class that may stand in a state: a dataclass of plain fields, or one with `plain()` and `of(plain)`.

    Fields that comparisons leave out are left out of a state too, and come back as their defaults.
    """
    RECORDS[kind.__name__] = kind
    return kind


class Writer:
    """Values in plain form; arrays go to `arrays`, under the name of the attribute that holds them."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.kernels: dict[int, str] = {}

    def __call__(self, value: Any, name: str) -> Any:
        """Raises StructureError naming what has no plain form."""
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool | np.bool_):
            return bool(value)
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else {"number": str(float(value))}
        if isinstance(value, torch.Tensor):
            return self._array(value.detach().cpu().numpy(), name, "tensor")
        if isinstance(value, np.ndarray):
            return self._array(value, name, "array")
        if RECORDS.get(type(value).__name__) is type(value):
            own = dataclasses.is_dataclass(value)
            names = [f.name for f in dataclasses.fields(value) if f.compare] if own else []
            parts = {key: getattr(value, key) for key in names} if own else value.plain()
            fields = {key: self(v, f"{name}.{key}") for key, v in parts.items()}
            return {"record": type(value).__name__, "fields": fields}
        if isinstance(value, Kernel):
            return self._kernel(value, name)
        if isinstance(value, list | tuple):
            found = [self(v, f"{name}.{i}") for i, v in enumerate(value)]
            return found if isinstance(value, list) else {"tuple": found}
        if isinstance(value, dict):
            return {"dict": {str(key): self(v, f"{name}.{key}") for key, v in value.items()}}
        if isinstance(value, Saved):
            return {"object": value._written(self, f"{name}.")}
        raise StructureError(f"{name} is {type(value).__name__}, which has no plain form to save")

    def _array(self, value: np.ndarray, name: str, kind: str) -> dict[str, Any]:
        if value.dtype == object:
            if value.ndim != 1:
                raise StructureError(f"{name} is an array of Python objects, which has no plain form to save")
            return {"labels": [self(v, f"{name}.{i}") for i, v in enumerate(value.tolist())]}
        if name in self.arrays:
            raise StructureError(f"two arrays of one state are named {name!r}")
        self.arrays[name] = np.array(value).reshape(value.shape or (1,))
        return {kind: name, "shape": list(value.shape), "dtype": str(value.dtype)}

    def _kernel(self, kernel: Kernel, name: str) -> dict[str, Any]:
        """Its plain form, and the very numbers that it trains: a lengthscale is not always the exp of its log."""
        if id(kernel) in self.kernels:
            return {"same": self.kernels[id(kernel)]}
        plain = to_spec(kernel)
        self.kernels[id(kernel)] = name
        numbers = {key: self(v, f"{name}.{key}") for key, v in kernel.state_dict().items()}
        return {"kernel": plain, "numbers": numbers}


class Reader:
    """What a Writer wrote."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays, self.left = arrays, set(arrays)
        self.kernels: dict[str, Kernel] = {}

    def __call__(self, plain: Any, name: str, depth: int = 0) -> Any:
        """Raises DataError naming what is missing, or is not as the state says."""
        if depth > DEPTH:
            raise DataError(f"{name} nests deeper than {DEPTH} levels")
        if plain is None or isinstance(plain, bool | int | float | str):
            return plain
        if isinstance(plain, list):
            return [self(v, f"{name}.{i}", depth + 1) for i, v in enumerate(plain)]
        if not isinstance(plain, dict):
            raise DataError(f"{name} is {type(plain).__name__}, which no state holds")
        kind = next((k for k in (*self.WAYS, "array", "tensor") if k in plain), None)
        if kind is None:
            raise DataError(f"{name} is of no form that a state has ({', '.join(map(str, plain))[:80]})")
        if kind in ("array", "tensor"):
            found = self._array(plain, kind, name)
            return torch.from_numpy(found) if kind == "tensor" else found
        return self.WAYS[kind](self, plain, name, depth + 1)

    def _array(self, plain: dict[str, Any], kind: str, name: str) -> np.ndarray:
        key, shape = str(plain[kind]), plain.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise DataError(f"the state does not say the shape of {name}")
        if key not in self.arrays:
            raise DataError(f"the array {key!r} of the state is missing")
        found, wanted = np.array(self.arrays[key]), tuple(shape) or (1,)
        if found.shape != wanted or str(found.dtype) != plain.get("dtype") or found.dtype.hasobject:
            told, sizes = (" x ".join(map(str, s)) for s in (found.shape, wanted))
            raise DataError(f"the array {key!r} is {told} {found.dtype}; the state says {sizes} {plain.get('dtype')}")
        self.left.discard(key)
        return found.reshape(shape)

    def _number(self, plain: dict[str, Any], name: str, depth: int) -> float:
        if plain["number"] not in ("inf", "-inf", "nan"):
            raise DataError(f"{name} is {plain['number']!r}; expected inf, -inf or nan")
        return float(plain["number"])

    def _tuple(self, plain: dict[str, Any], name: str, depth: int) -> tuple[Any, ...]:
        return tuple(self(v, f"{name}.{i}", depth) for i, v in enumerate(plain["tuple"]))

    def _dict(self, plain: dict[str, Any], name: str, depth: int) -> dict[str, Any]:
        return {key: self(v, f"{name}.{key}", depth) for key, v in plain["dict"].items()}

    def _labels(self, plain: dict[str, Any], name: str, depth: int) -> np.ndarray:
        found = [self(v, f"{name}.{i}", depth) for i, v in enumerate(plain["labels"])]
        return np.array([*found, None], dtype=object)[:-1]

    def _same(self, plain: dict[str, Any], name: str, depth: int) -> Kernel:
        if plain["same"] not in self.kernels:
            raise DataError(f"{name} is the kernel {plain['same']!r}, which the state does not hold")
        return self.kernels[plain["same"]]

    def _kernel(self, plain: dict[str, Any], name: str, depth: int) -> Kernel:
        found = from_spec(plain["kernel"]).requires_grad_(False)
        numbers, named = plain.get("numbers"), found.state_dict()
        if not isinstance(numbers, dict) or set(numbers) != set(named):
            raise DataError(f"{name} does not hold the numbers of its kernel: {', '.join(named)}")
        exact = {key: self(v, f"{name}.{key}", depth) for key, v in numbers.items()}
        for key, value in named.items():
            given = exact[key]
            fits = isinstance(given, torch.Tensor) and given.shape == value.shape and given.dtype == value.dtype
            if not fits or not torch.allclose(given, value, rtol=CLOSE, atol=CLOSE, equal_nan=True):
                raise DataError(f"the array '{name}.{key}' does not hold the numbers that its kernel names")
        found.load_state_dict(exact)
        self.kernels[name] = found
        return found

    def _record(self, plain: dict[str, Any], name: str, depth: int) -> Any:
        kind, fields = RECORDS.get(str(plain["record"])), plain.get("fields")
        if kind is None or not isinstance(fields, dict):
            raise DataError(f"{name} is a record {plain['record']!r}, which mercer does not have")
        given = {key: self(v, f"{name}.{key}", depth) for key, v in fields.items()}
        own = dataclasses.is_dataclass(kind)
        try:
            return kind(**given) if own else kind.of(given)
        except (TypeError, KeyError) as error:
            raise DataError(f"{name} is no {plain['record']}: {error}") from error

    def _object(self, plain: dict[str, Any], name: str, depth: int) -> Any:
        state = plain["object"]
        kind = OWNERS.get(str(state.get("class"))) if isinstance(state, dict) else None
        if kind is None:
            raise DataError(f"{name} is of no class that mercer saves")
        return kind._read_back(state, self, f"{name}.")

    WAYS: ClassVar[dict[str, Any]] = {
        "number": _number, "tuple": _tuple, "dict": _dict, "labels": _labels, "same": _same, "kernel": _kernel,
        "record": _record, "object": _object,
    }  # fmt: skip


class Saved(ABC):  # noqa: B024 - its classes have estimators for a base, too
    """Base of what can be saved: its classes say which fitted attributes there are. Not public.

    _fitted: names of attributes that predictions need; _sometimes: of those that some fits have. What is no plain
    value is taken apart by `_pieces` and made again by `_restored`.
    """

    _fitted: tuple[str, ...] = ()
    _sometimes: tuple[str, ...] = ("n_features_in_", "feature_names_in_", "stopped_")

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        OWNERS[cls.__name__] = cls

    @classmethod
    def _names(cls, which: str) -> list[str]:
        """Of the class and its bases, each once."""
        return list(dict.fromkeys(name for kind in reversed(cls.__mro__) for name in vars(kind).get(which, ())))

    def _ready(self) -> None:  # noqa: B027 - few need it
        """Make what a fit puts off until it is asked for."""

    def _pieces(self) -> dict[str, Any]:
        """What stands for attributes that are no plain values."""
        return {}

    def _restored(self, parts: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Make these attributes again; those of `_fitted` are there."""

    def _written(self, write: Writer, at: str) -> dict[str, Any]:
        missing = [name for name in self._names("_fitted") if not hasattr(self, name)]
        if missing:
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet ({missing[0]} is not there)")
        self._ready()
        arguments: dict[str, Any] = {}
        for name in inspect.signature(type(self)).parameters:
            before = dict(write.arrays)
            try:
                if name not in RUN:
                    arguments[name] = write(getattr(self, name), f"{at}argument.{name}")
            except (StructureError, NotFittedError):  # code of a user: the argument will be the default
                write.arrays = before
        found = [*self._names("_fitted"), *(name for name in self._names("_sometimes") if hasattr(self, name))]
        fitted = {name: write(getattr(self, name), at + name.strip("_")) for name in found}
        parts = {name: write(value, at + name) for name, value in self._pieces().items()}
        own = {"arguments": arguments, "fitted": fitted, "parts": parts}
        return {"format": FORMAT, "class": type(self).__name__, **own}

    def get_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able values, arrays) of the fitted object: what `from_state` makes it from, and no pickle.

        Raises StructureError where a kernel is code of yours.
        """
        write = Writer()
        return self._written(write, ""), write.arrays

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The fitted object that `get_state` described; arguments that are code of yours are the defaults.

        Raises DataError where the state is of another class or a newer format, and naming an array that is missing or
        of another shape than the state says.
        """
        read = Reader(arrays)
        found = cls._read_back(values, read, "")
        if read.left:
            raise DataError(f"the array {min(read.left)!r} belongs to no part of this state")
        return found

    @classmethod
    def _read_back(cls, values: Any, read: Reader, at: str) -> Self:
        if not isinstance(values, dict) or type(values.get("format")) is not int or "class" not in values:
            raise DataError("values are no state of mercer: they name neither format nor class; see get_state")
        if values["format"] > FORMAT:
            newer = f"a state of format {values['format']}, and this mercer reads up to {FORMAT}"
            raise DataError(f"{newer}: install a newer mercer")
        if values["class"] != cls.__name__:
            raise DataError(f"a state of {str(values['class'])[:80]}, not of {cls.__name__}")
        parts: dict[str, Any] = {key: values.get(key) for key in ("arguments", "fitted", "parts")}
        for key, part in parts.items():
            if not isinstance(part, dict):
                raise DataError(f"the state of {cls.__name__} has no {key!r}")
        needed, known = cls._names("_fitted"), set(inspect.signature(cls).parameters) - set(RUN)
        missing = [name for name in needed if name not in parts["fitted"]]
        strange = set(parts["fitted"]) - {*needed, *cls._names("_sometimes")} | set(parts["arguments"]) - known
        if missing or strange:
            what = f"lacks {missing[0]!r}" if missing else f"holds {min(strange)!r}, which it does not have"
            raise DataError(f"the state of {cls.__name__} {what}")
        found = cls(**{name: read(v, f"{at}argument.{name}") for name, v in parts["arguments"].items()})
        for name, plain in parts["fitted"].items():
            setattr(found, name, read(plain, at + name.strip("_")))
        own = {name: read(plain, at + name) for name, plain in parts["parts"].items()}
        try:
            found._restored(own)
        except KeyError as error:
            raise DataError(f"the state of {cls.__name__} lacks the part {error}") from error
        return found
