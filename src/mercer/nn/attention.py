"""Attention by any positive kernel: softmax attention and linear attention are one layer with another kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.errors import ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.kernels.dot import ExpDot
from mercer.shapes import shapes


class KernelAttention(nn.Module):
    """Kernel attention: out_i = sum_j w_j k(q_i, k_j) v_j / sum_j w_j k(q_i, k_j), the kernel operator row by row.

    kernel: a positive Kernel, or a FeatureMap with positive features (then linear in n and m). ExpDot() is softmax
    attention. is_causal: keys j > i are left out. A row without any weight gives zeros.
    fused: let torch's scaled_dot_product_attention serve ExpDot (first derivatives only); False keeps the lazy
    operator, whose gradients of any order take O(n + m) memory.
    Cost: n m (2 d + 2 c) flops and O(n + m) memory; with rank-r features 2 (n + m) r c, times log n when causal.
    Raises StructureError for kernels that may be negative. Source [vaswani2017, eq. 1; tsai2019, eq. 2].
    """

    def __init__(self, kernel: Kernel, is_causal: bool = False, fused: bool = True):
        super().__init__()
        if Claim.POSITIVE not in kernel.claims:
            raise StructureError(
                f"KernelAttention divides by row sums, and {kernel!r} may be negative (it does not claim positive); "
                "use a positive kernel such as Gaussian or ExpDot, or positive features such as Favor"
            )
        self.kernel, self.is_causal, self.fused = kernel, is_causal, fused

    @shapes("q: ... n d, k: ... m d, v: ... m c, weights: ... m -> ... n c")
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None, is_causal: bool | None = None
    ) -> Tensor:
        """q: ... n d, k: ... m d, v: ... m c -> ... n c. weights: ... m, >= 0, the keys' measure; 0 hides a key.

        is_causal: for this call only, in place of the layer's.
        """
        is_causal = self.is_causal if is_causal is None else is_causal
        if self.fused and isinstance(self.kernel, ExpDot) and (weights is None or not is_causal):
            fitting = _fused(self.kernel, q, k, v, weights, is_causal)
            if fitting is not None:
                return fitting
        batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        operator = self.kernel(q, k)
        operator = (operator.tril() if is_causal else operator).stabilised()
        columns = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        if weights is not None:
            columns = columns * weights.to(v.dtype).unsqueeze(-1)
        both = operator @ columns.expand(*torch.broadcast_shapes(batch, columns.shape[:-2]), *columns.shape[-2:])
        mass = both[..., -1:]
        return both[..., :-1] / torch.where(mass == 0, 1.0, mass)

    def extra_repr(self) -> str:
        return f"is_causal={self.is_causal}"


def _fused(kernel: ExpDot, q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None, is_causal: bool) -> Tensor | None:
    """torch's own softmax attention on scaled coordinates; None where its n x m matrix might not fit the budget."""
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    mask = None
    if weights is not None:
        mask = weights.to(q.dtype).log()[..., None, :]
        batch = torch.broadcast_shapes(batch, mask.shape[:-2])
        if bool((weights <= 0).all(-1).any()):
            return None  # softmax over no key at all is NaN; the operator gives zeros
    if batch.numel() * q.shape[-2] * k.shape[-2] * q.dtype.itemsize > memory_budget() // 4 or not k.shape[-2]:
        return None
    lead = (1,) * max(2 - len(batch), 0) + tuple(batch)
    parts = [t.expand(*batch, *t.shape[-2:]).reshape(*lead, *t.shape[-2:]) for t in (q, k, v)]
    left, right = kernel.coordinates(parts[0]), kernel.coordinates(parts[1])
    if mask is not None:
        mask = mask.expand(*batch, q.shape[-2], k.shape[-2]).reshape(*lead, q.shape[-2], k.shape[-2])
    out = nn.functional.scaled_dot_product_attention(left, right, parts[2], mask, is_causal=is_causal, scale=1.0)
    return out.reshape(*batch, *out.shape[-2:])


class MultiheadKernelAttention(nn.Module):
    """Multi-head attention with a kernel for the softmax: project, attend in each head, project back.

    Parameters have the names and shapes of torch.nn.MultiheadAttention, so its state_dict loads; with ExpDot() the
    outputs agree. embed_dim: a multiple of num_heads. kernel: shared by the heads, on embed_dim / num_heads columns.
    bias, batch_first: as in torch. Dropout, bias_kv, zero_attn and separate kdim, vdim are not offered.
    Cost: that of KernelAttention, and 8 n embed_dim^2 flops. Raises what KernelAttention raises.
    Source [vaswani2017, sec. 3.2.2].
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kernel: Kernel | None = None,
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ShapeError(f"embed_dim is {embed_dim}, not a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.attend = KernelAttention(ExpDot() if kernel is None else kernel)
        made = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **made))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim, **made)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **made)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """query: n batch embed_dim (batch n embed_dim with batch_first), or n embed_dim -> (out, None), as in torch.

        key_padding_mask: boolean `batch m`, True hides a key. need_weights: only False; no weight matrix is formed.
        """
        if need_weights:
            raise ValueError("need_weights is True, but the weight matrix is never formed; pass need_weights=False")
        tensors = [query, key, value]
        if query.ndim == 3 and not self.batch_first:
            tensors = [t.transpose(0, 1) for t in tensors]
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        heads = [
            nn.functional.linear(t, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for t, w, b in zip(tensors, weights, biases, strict=True)
        ]
        seen = None if key_padding_mask is None else (~key_padding_mask).to(query.dtype).unsqueeze(-2)
        mixed = self.attend(*heads, seen, is_causal).transpose(-3, -2).flatten(-2)
        out = self.out_proj(mixed)
        return (out.transpose(0, 1) if query.ndim == 3 and not self.batch_first else out), None
