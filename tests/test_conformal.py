"""The local scale of intervals: at its own rows it is what the other rows say."""

from __future__ import annotations

import numpy as np

from mercer.learn import LocalConformal


def test_scores_are_residuals_over_a_scale_learned_from_the_other_rows() -> None:
    """Each row's scale by a kernel ridge of log |residual| solved anew without that row."""
    random = np.random.default_rng(0)
    x = random.uniform(-2, 2, size=(50, 1))
    r = np.exp(x[:, 0]) * random.normal(size=50)
    found = LocalConformal(random_state=0).fit(x, r)
    assert found.shrink[0] > 0
    z, weights = found.points.numpy(), found.weights.numpy()[:, 0]
    k = np.exp(-0.5 * (z - z.T) ** 2 / (found.width**2 * found.unit))
    t = np.log(np.abs(r) + 1e-3 * np.abs(r).mean())
    t -= t.mean()
    ridge = float(np.median((t - k @ weights) / weights))  # (k + ridge) weights = t
    np.testing.assert_allclose(k @ weights + ridge * weights, t, rtol=0, atol=1e-9)
    scale = np.empty(50)
    for i in range(50):
        rest = np.arange(50) != i
        scale[i] = k[i, rest] @ np.linalg.solve(k[np.ix_(rest, rest)] + ridge * np.eye(49), t[rest])
    wanted = np.sort(r / np.exp(found.shrink[0] * scale))
    np.testing.assert_allclose(found.scores[:, 0], wanted, rtol=1e-8)
