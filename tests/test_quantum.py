"""Overlaps of quantum states against circuits made gate by gate, the published data, and counts of a device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.stats import unitary_group

from mercer.errors import ShapeError
from mercer.kernels import Precomputed, QuantumOverlap
from mercer.learn import KernelSVC

Z, ONE, H = np.diag([1.0, -1.0]), np.eye(2), np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)


def on(gates: dict[int, np.ndarray], d: int) -> np.ndarray:
    found = np.eye(1)
    for i in range(d):
        found = np.kron(found, gates.get(i, ONE))
    return found


def published(x: np.ndarray, couples: list[tuple[int, int]], layers: int) -> np.ndarray:
    """U H^n ... U H^n |0>, U = exp(i sum of phi_S prod Z), as the exponential of a matrix."""
    d = len(x)
    generator = sum(x[i] * on({i: Z}, d) for i in range(d))
    for i, j in couples:
        generator = generator + (math.pi - x[i]) * (math.pi - x[j]) * on({i: Z, j: Z}, d)
    layer = expm(1j * generator) @ on({i: H for i in range(d)}, d)
    return np.linalg.matrix_power(layer, layers)[:, 0]


def circuit(x: np.ndarray) -> np.ndarray:
    """The same by gates of two qubits: H, phases diag(1, e^(2 i x)), and phases between controlled nots."""
    flip = np.eye(4)[[0, 1, 3, 2]]

    def phase(angle: float) -> np.ndarray:
        return np.diag([1.0, np.exp(2j * angle)])

    between = flip @ np.kron(ONE, phase((math.pi - x[0]) * (math.pi - x[1]))) @ flip
    layer = between @ np.kron(phase(x[0]), phase(x[1])) @ np.kron(H, H)
    return (layer @ layer)[:, 0]


def overlaps(states: list[np.ndarray]) -> np.ndarray:
    return np.array([[abs(np.vdot(a, b)) ** 2 for b in states] for a in states])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("pairs", ["full", "chain", "none"])
def test_overlaps_are_those_of_the_published_unitary(layers, pairs) -> None:
    x = np.random.default_rng(0).uniform(0, 2 * math.pi, (6, 4))
    all_pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    couples = {"full": all_pairs, "chain": [(0, 1), (1, 2), (2, 3)], "none": []}[pairs]
    want = overlaps([published(row, couples, layers) for row in x])
    points = torch.from_numpy(x)
    got = QuantumOverlap(1.0, layers, pairs).block(points, points)
    np.testing.assert_allclose(got.detach(), want, atol=1e-13)


def test_overlaps_are_those_of_the_circuit_of_gates() -> None:
    x = np.random.default_rng(1).uniform(0, 2 * math.pi, (8, 2))
    points = torch.from_numpy(x)
    np.testing.assert_allclose(
        QuantumOverlap().block(points, points).detach(), overlaps([circuit(row) for row in x]), atol=1e-13
    )


def test_states_are_unit_vectors_and_the_gram_is_definite() -> None:
    g = torch.Generator().manual_seed(0)
    for d in (1, 5, 12):
        x = 2 * math.pi * torch.rand(40, d, generator=g, dtype=torch.float64)
        kernel = QuantumOverlap([1.0 + 0.1 * i for i in range(d)])
        size = kernel.states(x).detach().abs().square().sum(-1)
        assert kernel.states(x).shape == (40, 2**d) and torch.allclose(size, torch.ones_like(size), atol=1e-13)
        gram = kernel.block(x, x).detach()
        assert (gram.diagonal() - 1).abs().max() < 1e-13 and torch.linalg.eigvalsh(gram)[0] > -1e-12
        v = torch.randn(40, 2, generator=g, dtype=torch.float64)
        assert torch.allclose(kernel(x) @ v, gram @ v, atol=1e-11)


def generated(each: int, seed: int, gap: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Points of (0, 2 pi]^2 where <psi(x)| V^+ Z Z V |psi(x)> is beyond +-gap for a random V, `each` of either sign."""
    random = np.random.default_rng(seed)
    turn = unitary_group.rvs(4, random_state=random)
    observable = turn.conj().T @ on({0: Z, 1: Z}, 2) @ turn
    rows: dict[int, list[np.ndarray]] = {-1: [], 1: []}
    while min(len(found) for found in rows.values()) < each:
        x = random.uniform(0, 2 * math.pi, 2)
        state = circuit(x).conj()  # exp(i phase), as published; the gates turn the other way round
        value = (state.conj() @ observable @ state).real
        if abs(value) >= gap:
            rows[int(np.sign(value))].append(x)
    x = np.concatenate([rows[-1][:each], rows[1][:each]])
    return x, np.repeat([-1, 1], each)


def test_generated_labels_are_separated_without_error() -> None:
    """Three random unitaries: no error on the rows of training nor on as many new ones, where a Gaussian errs."""
    for seed in range(3):
        x, y = generated(60, seed)
        train = np.arange(120) % 2 == 0
        model = KernelSVC(1e4, QuantumOverlap(), standardize=False).fit(x[train], y[train])
        assert model.score(x[train], y[train]) == 1.0 and model.score(x[~train], y[~train]) == 1.0
        usual = KernelSVC(1e4).fit(x[train], y[train])
        assert usual.score(x[~train], y[~train]) < 0.9


def test_counts_converge_like_one_over_the_root_of_shots() -> None:
    g = torch.Generator().manual_seed(0)
    kernel, x = QuantumOverlap(), 2 * math.pi * torch.rand(40, 3, generator=g, dtype=torch.float64)
    exact = kernel.block(x, x).detach()
    pairs = torch.triu_indices(40, 40, 1)
    errors = {}
    for shots in (100, 1000, 10_000, 100_000):
        found = kernel.measured(x, shots=shots, generator=g)
        assert torch.equal(found, found.mT) and (found.diagonal() == 1).all()
        wrong = (found - exact)[pairs[0], pairs[1]]
        k = exact[pairs[0], pairs[1]]
        # each entry has variance k (1 - k) / shots; 780 of them give its mean to 5 %, four deviations of that are 20 %
        assert float((wrong.square() * shots).mean() / (k * (1 - k)).mean()) == pytest.approx(1, abs=0.2)
        assert torch.allclose(found * shots, (found * shots).round(), atol=1e-6)
        errors[shots] = float(wrong.square().mean().sqrt())
    slope = np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)
    across = kernel.measured(x[:3], x[3:7], shots=10, generator=g)
    assert across.shape == (3, 4) and ((across >= 0) & (across <= 1)).all()


def test_counted_overlaps_still_classify() -> None:
    x, y = generated(40, 0)
    points = torch.from_numpy(x)
    counted = QuantumOverlap().measured(points, shots=10_000, generator=torch.Generator().manual_seed(0))
    rows = np.arange(80.0)[:, None]
    train = np.arange(80) % 2 == 0
    model = KernelSVC(10.0, Precomputed(counted), standardize=False).fit(rows[train], y[train])
    assert model.score(rows[~train], y[~train]) >= 0.95


def test_what_cannot_be_is_named() -> None:
    for build, words in (
        (lambda: QuantumOverlap(layers=0), "layers is 0; expected an integer >= 1"),
        (lambda: QuantumOverlap(pairs="ring"), "expected one of full, chain, none"),
        (lambda: QuantumOverlap(-1.0), "lengthscale"),
        (lambda: QuantumOverlap().measured(torch.zeros(2, 2), shots=0, generator=torch.Generator()), "shots is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    with pytest.raises(ShapeError, match=r"up to 16 columns, one qubit each; x\.d is 17"):
        QuantumOverlap().block(torch.zeros(2, 17), torch.zeros(2, 17))
    with pytest.raises(ShapeError, match=r"lengthscale\.d is 2, x\.d is 3"):
        QuantumOverlap([1.0, 2.0]).block(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="floating points"):
        QuantumOverlap().block(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
