"""Attention by any positive kernel: softmax attention and linear attention are one layer with another kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.errors import DataError, MemoryBudgetError, ShapeError, StructureError
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

        is_causal: for this call only, in place of the layer's. Raises DataError for weights that are not >= 0.
        """
        is_causal = self.is_causal if is_causal is None else is_causal
        if weights is not None and not bool((weights >= 0).all()):
            worst = weights.detach().flatten()[int((weights >= 0).flatten().int().argmin())]
            raise DataError(f"weights hold {float(worst)}; expected numbers >= 0, the measure of the keys")
        # through the mask of torch's kernel a weight of 0 has no gradient, and hides its key from those of others
        plain = weights is None or not (is_causal or weights.requires_grad)
        if self.fused and isinstance(self.kernel, ExpDot) and plain:
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
    bias, batch_first: as in torch. Dropout, bias_kv, zero_attn and separate kdim, vdim are not offered. The layer may
    take the place of `self_attn` in torch's TransformerEncoderLayer and its relatives.
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
        # torch's encoder asks this before a shortcut in evaluation that would put softmax in the kernel's place
        self._qkv_same_embed_dim = False
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
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query: n batch embed_dim (batch n embed_dim with batch_first), or n embed_dim -> (out, weights), as in torch.

        key_padding_mask: `batch m`, and attn_mask: `n m` or `batch*heads n m`; boolean (True hides a key) or added to
        log k. is_causal: keys j > i are hidden; a hint, as in torch, where attn_mask is given. A causal mask is told by
        its values; any other needs the n x m matrix, and so do need_weights=True (default False, and weights None) and
        average_attn_weights. Raises MemoryBudgetError where that does not fit. A row that sees no key gives zeros.
        """
        tensors = [query, key, value]
        if query.ndim == 3 and not self.batch_first:
            tensors = [t.transpose(0, 1) for t in tensors]
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            nn.functional.linear(t, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for t, w, b in zip(tensors, weights, biases, strict=True)
        )
        seen = None if key_padding_mask is None else _measure(key_padding_mask, q.dtype).unsqueeze(-2)
        if attn_mask is not None:
            size = (q.shape[:-2].numel(), q.shape[-2], k.shape[-2])
            if tuple(attn_mask.shape) not in (size, size[1:]):
                raise ShapeError(f"attn_mask has shape {tuple(attn_mask.shape)}; expected {size[1:]} or {size}")
        causal = is_causal if attn_mask is None else _hides_the_future(attn_mask)
        shares = None
        if need_weights or not (attn_mask is None or causal):
            shares = self._shares(q, k, seen, attn_mask, is_causal)
            mixed = shares @ v
        else:
            mixed = self.attend(q, k, v, seen, causal)
        out = self.out_proj(mixed.transpose(-3, -2).flatten(-2))
        if need_weights and shares is not None:
            shares = shares.mean(-3) if average_attn_weights else shares
        else:
            shares = None
        return (out.transpose(0, 1) if query.ndim == 3 and not self.batch_first else out), shares

    def _shares(self, q: Tensor, k: Tensor, seen: Tensor | None, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """The matrix of every head, rows summing to one: ... h n m."""
        size = torch.Size([*q.shape[:-1], k.shape[-2]])
        if 4 * size.numel() * q.dtype.itemsize > memory_budget():
            raise MemoryBudgetError(
                f"an attn_mask that is not causal, or need_weights, takes the {tuple(size)} matrix four times, "
                f"the budget is {memory_budget() / 2**20:.0f} MiB: hide keys with key_padding_mask, or raise it with "
                "mercer.memory(...)"
            )
        scores = self.attend.kernel.log_block(q, k)
        if attn_mask is not None:
            mask = attn_mask.reshape(size if attn_mask.numel() == size.numel() else size[-2:])
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(q.dtype)
        elif is_causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        if seen is not None:
            scores = scores + seen.log().unsqueeze(-2)
        top = scores.detach().amax(-1, keepdim=True)
        found = (scores - torch.where(top == -torch.inf, 0.0, top)).exp()
        mass = found.sum(-1, keepdim=True)
        return found / torch.where(mass == 0, 1.0, mass)


def _measure(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights of the keys under a padding mask: boolean, True for a hidden key, or added to log k."""
    if mask.dtype == torch.bool:
        return (~mask).to(dtype)
    top = mask.detach().amax(-1, keepdim=True)  # the rows are normalised: only ratios count
    return (mask - torch.where(torch.isfinite(top), top, 0.0)).exp().to(dtype)


def _hides_the_future(mask: Tensor) -> bool:
    """Whether an attention mask leaves exactly the keys j <= i of every row."""
    future = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        return bool((mask == future).all())
    return bool((mask == torch.zeros_like(mask).masked_fill(future, -torch.inf)).all())
