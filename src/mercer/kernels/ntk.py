"""EmpiricalNTK: the tangent kernel of a torch module at its present parameters."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mercer.budget import memory_budget
from mercer.claims import PSD
from mercer.errors import ShapeError, StructureError
from mercer.kernel import Kernel, random_or_coupled

CHUNK, CHUNK_NUMBERS = 64, 2**20  # samples whose gradients are taken together, and how many numbers those may be

_log = logging.getLogger("mercer")


class EmpiricalNTK(Kernel):
    """The tangent kernel of a module: <d f(x) / d theta, d f(y) / d theta> over its trainable parameters theta.

    module: f on one batch axis, `n *sample_shape -> n outputs` (or `-> n`). A frozen copy is taken, so the kernel does
    not change when the module trains; parameters with requires_grad False do not count. It must be a function of one
    sample: what draws random numbers is refused at the first call.
    outputs: "trace" (sum of the kernels of all outputs), "sum" (the kernel of their sum) or the number of one output.
    sample_shape: the shape of one input; points are its flattened rows `... n d`. Default (d,).
    Claims: symmetric, psd. Cost: a gradient (times outputs for "trace") per point and tile, 2 n m p flops per product.
    Raises StructureError for dropout or BatchNorm in training mode, for random forwards, without parameters to train.
    Source [jacot2018, eq. 4; novak2022].
    """

    claims = PSD

    def __init__(self, module: nn.Module, outputs: str | int = "trace", sample_shape: Sequence[int] | None = None):
        super().__init__()
        culprit = random_or_coupled(module)
        if culprit:
            raise StructureError(
                f"EmpiricalNTK: {culprit} is in training mode, so f is no function: call module.eval()"
            )
        if not (outputs in ("trace", "sum") or (isinstance(outputs, int) and outputs >= 0)):
            raise ValueError(f"EmpiricalNTK.outputs is {outputs!r}; expected 'trace', 'sum' or the number of an output")
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        if not self._names:
            raise StructureError("EmpiricalNTK: the module has no parameter with requires_grad, so no tangent kernel")
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.outputs = outputs
        self.sample_shape = None if sample_shape is None else tuple(sample_shape)
        self._count = 0  # outputs in the Jacobian, once it has been looked up
        self._loop = False  # set once vmap has refused the module

    def train(self, mode: bool = True) -> EmpiricalNTK:
        """The copy keeps the mode it was taken in: a tangent kernel is a fixed function."""
        self.training = mode
        return self

    def workspace(self, d: int) -> int:
        """Numbers in the Jacobian of one point."""
        theta = self._theta()
        if not self._count:
            with torch.no_grad():
                like_theta = next(iter(theta.values()))
                self._count = len(self._value(theta, like_theta.new_zeros(self._shape(d))))
        return self._columns(theta) + 2 * d

    def _columns(self, theta: dict[str, Tensor]) -> int:
        return self._count * sum(p.numel() for p in theta.values())

    def _theta(self) -> dict[str, Tensor]:
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name].detach() for name in self._names}

    def _shape(self, d: int) -> tuple[int, ...]:
        shape = self.sample_shape or (d,)
        if math.prod(shape) != d:
            raise ShapeError(f"EmpiricalNTK.sample_shape is {shape}, {math.prod(shape)} numbers; x.d is {d}")
        return shape

    def jacobian(self, x: Tensor) -> Tensor:
        """d f(x) / d theta: x: ... n d -> ... n p, or ... n outputs*p for "trace", in the dtype of x."""
        theta = self._theta()
        samples = x.to(next(iter(theta.values())).dtype).reshape(-1, *self._shape(x.shape[-1]))
        self.workspace(x.shape[-1])  # looks up how many outputs there are
        columns = self._columns(theta)
        if not len(samples):
            return x.new_zeros(*x.shape[:-1], columns)
        high = min(max(CHUNK_NUMBERS // columns, 1), CHUNK)
        if torch.is_grad_enabled() and samples.requires_grad:
            parts = [self._rows(theta, samples[i : i + high]) for i in range(0, len(samples), high)]
            return torch.cat(parts).reshape(*x.shape[:-1], columns).to(x.dtype)
        rows = x.new_empty(len(samples), columns)  # filled piece by piece: a list of pieces would take twice the memory
        for i in range(0, len(samples), high):
            rows[i : i + high] = self._rows(theta, samples[i : i + high])
        return rows.reshape(*x.shape[:-1], columns)

    @sdpa_kernel(SDPBackend.MATH)  # the fused ones have no batching rule and no second derivative
    def _rows(self, theta: dict[str, Tensor], samples: Tensor) -> Tensor:
        if not self._loop:
            try:
                found = vmap(jacrev(self._value), (None, 0))(theta, samples)
                each = [found[name].reshape(*found[name].shape[:2], -1) for name in self._names]
                return torch.cat(each, -1).flatten(1)
            except (RuntimeError, NotImplementedError) as refusal:
                if "randomness" in str(refusal) or self._draws(theta, samples[0]):
                    raise StructureError(
                        f"EmpiricalNTK: {type(self.module).__name__} draws random numbers in its forward (functional "
                        "dropout in training mode?), so f is no function: call module.eval()"
                    ) from refusal
                rows = self._one_by_one(theta, samples)  # what is wrong with the input is raised again here
                self._loop = True
                _log.warning(
                    "EmpiricalNTK: vmap refuses %s (%s); one sample at a time", type(self.module).__name__, refusal
                )
                return rows
        return self._one_by_one(theta, samples)

    @torch.no_grad()
    def _draws(self, theta: dict[str, Tensor], sample: Tensor) -> bool:
        """Whether one evaluation moves the state of torch's random numbers on the CPU."""
        before = torch.get_rng_state()
        self._value(theta, sample)
        return not torch.equal(before, torch.get_rng_state())

    def _one_by_one(self, theta: dict[str, Tensor], samples: Tensor) -> Tensor:
        higher = torch.is_grad_enabled() and samples.requires_grad
        rows = []
        with torch.enable_grad():
            leaves = {name: p.requires_grad_() for name, p in theta.items()}
            for sample in samples:
                values = self._value(leaves, sample)
                parts = []
                for value in values:
                    grads = torch.autograd.grad(
                        value, list(leaves.values()), retain_graph=True, create_graph=higher, materialize_grads=True
                    )
                    parts += [g.flatten() for g in grads]
                rows.append(torch.cat(parts))
        return torch.stack(rows)

    def _value(self, theta: dict[str, Tensor], sample: Tensor) -> Tensor:
        """The outputs whose gradients are wanted, `count`."""
        found = functional_call(self.module, theta, (sample.unsqueeze(0),)).flatten()
        if self.outputs == "trace":
            return found
        if self.outputs == "sum":
            return found.sum(0, keepdim=True)
        at = int(self.outputs)
        if at >= len(found):
            raise ShapeError(f"EmpiricalNTK.outputs is {at}, but the module has {len(found)} outputs")
        return found[at : at + 1]

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """J(x) J(y)^T: x: ... n d, y: ... m d -> ... n m."""
        left = self.jacobian(x)
        return left @ (left if y is x else self.jacobian(y)).mT

    def diagonal(self, x: Tensor) -> Tensor:
        """|J(x_i)|^2: x: ... n d -> ... n."""
        high = max(memory_budget() // (4 * x.dtype.itemsize * self.workspace(x.shape[-1])), 1)
        rows = x.reshape(-1, x.shape[-1]).split(high)
        return torch.cat([self.jacobian(part).square().sum(-1) for part in rows]).reshape(x.shape[:-1])

    def arguments(self) -> dict[str, Any]:
        return {"module": self.module, "outputs": self.outputs, "sample_shape": self.sample_shape}

    def __repr__(self) -> str:
        return f"EmpiricalNTK({type(self.module).__name__}, outputs={self.outputs!r})"
