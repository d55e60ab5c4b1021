"""Deep kernel machines with free and held Gram matrices, the same landmarks: digits, many outputs, time by rows.

python benchmarks/deep_kernels.py [landmarks [epochs]]
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from mercer.errors import ConvergenceWarning
from mercer.learn import ConvolutionalDeepKernelMachine, DeepKernelMachine


def timed(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of a fit."""
    start = time.perf_counter()
    model.fit(x, y)
    return time.perf_counter() - start


def digits(landmarks: int, epochs: int) -> None:
    """Accuracy and log loss of unseen digits."""
    x, y = load_digits(return_X_y=True)
    print(f"digits, {landmarks} landmarks, {epochs} epochs\nrows   nu      accuracy  log loss  seconds")
    for rows in (200, 1347):
        train, test, known, true = train_test_split(x, y, random_state=0, train_size=rows, stratify=y)
        for nu in (math.inf, 100.0, 10.0, 2.0):
            model = ConvolutionalDeepKernelMachine(
                image_shape=(8, 8), nu=nu, stride=2, landmarks=landmarks, epochs=epochs, random_state=0
            )
            seconds = timed(model, train, known)
            loss = log_loss(true, model.predict_proba(test))
            print(f"{rows:<6} {nu:<7} {model.score(test, true):.4f}    {loss:.4f}    {seconds:.1f}")
        peer = SVC()
        seconds = timed(peer, train, known)
        print(f"{rows:<6} SVC     {peer.score(test, true):.4f}    -         {seconds:.1f}")


def outputs() -> None:
    """R2 of the mean for twenty outputs that share two hidden directions of eight columns."""
    random = np.random.default_rng(0)
    turn = 2 * np.linalg.qr(random.normal(size=(8, 8)))[0][:, :2]
    mix = random.normal(size=(6, 20))

    def true(x: np.ndarray) -> np.ndarray:
        a, b = (x @ turn).T
        parts = [np.sin(2 * a), np.cos(2 * b), np.sign(a * b), np.sin(2 * a + 2 * b), np.abs(a), 1.0 * (b > 0.3)]
        return np.stack(parts, 1) @ mix

    x, test = random.uniform(-1, 1, size=(150, 8)), random.uniform(-1, 1, size=(1000, 8))
    y = true(x) + 0.3 * random.normal(size=(150, 20))
    print("\n20 outputs of 2 directions, 150 rows\nlayers nu      R2      seconds")
    for layers in (1, 2):
        for nu in (math.inf, 1000.0, 100.0, 30.0, 10.0):
            model = DeepKernelMachine(layers=layers, nu=nu, landmarks=80, random_state=0)
            seconds = timed(model, x, y)
            print(f"{layers:<6} {nu:<7} {model.score(test, true(test)):.4f}  {seconds:.1f}")


def rows() -> None:
    """Seconds of a step and of an epoch, 100 landmarks, two layers: linear in the rows."""
    random = np.random.default_rng(0)
    print("\n100 landmarks, 2 layers\nrows    seconds of a step or epoch")
    for n in (1000, 2000, 4000, 20_000, 40_000, 80_000):
        x = random.normal(size=(n, 5))
        y = np.sin(x[:, 0]) + 0.1 * random.normal(size=n)
        few, many = (DeepKernelMachine(landmarks=100, max_iter=k, epochs=k, random_state=0) for k in (1, 3))
        base, more = timed(few, x, y), timed(many, x, y)
        print(f"{n:<7} {(more - base) / max((many.n_iter_ - few.n_iter_) / max(n / 1000 * (n > 4000), 1), 1):.3f}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ConvergenceWarning)
    given = [int(v) for v in sys.argv[1:]]
    digits(*(given + [64, 15][len(given) :]))
    outputs()
    rows()
