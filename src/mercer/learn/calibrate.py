"""Probabilities from scores: a multinomial logistic map with one temperature and a bias for each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mercer.learn.state import record

WEIGHT = 1.0  # strength of the prior, in rows: few rows give modest probabilities


def log_chances(logits: np.ndarray) -> np.ndarray:
    """Logarithms of softmax, row by row: n c -> n c; plain numpy, as L-BFGS asks for it thousands of times."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@record
@dataclass(frozen=True)
class Calibration:
    """p = softmax(temperature * scores + bias): scores n c -> n c."""

    temperature: float
    bias: np.ndarray

    @classmethod
    def fit(cls, scores: np.ndarray, codes: np.ndarray, usual: float = 1.0) -> Calibration:
        """The map of least log loss on scores of rows that the classifier did not see. codes: 0 .. c - 1.

        usual: the logarithm of the temperature that few rows are drawn to.
        Source [guo2017, sec. 4.2], [platt1999].
        """
        n, c = scores.shape
        one, rows = np.eye(c)[codes], np.arange(n)

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            t, bias = np.exp(theta[0]), theta[1:]
            logits = t * scores + bias
            each = log_chances(logits)
            wrong = np.exp(each) - one
            value = -float(each[rows, codes].sum())
            slope = np.concatenate([[t * float((wrong * scores).sum())], wrong.sum(0)])
            prior = WEIGHT * np.concatenate([[theta[0] - usual], bias])
            return value + 0.5 * float(prior @ np.concatenate([[theta[0] - usual], bias])), slope + prior

        found = minimize(loss, np.concatenate([[usual], np.zeros(c)]), jac=True, method="L-BFGS-B")
        return cls(float(np.exp(found.x[0])), found.x[1:])

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """temperature * scores + bias."""
        return self.temperature * scores + self.bias

    def then(self, other: Calibration) -> Calibration:
        """This map, and other of the logits that it gives."""
        return Calibration(other.temperature * self.temperature, other.temperature * self.bias + other.bias)

    def loss(self, scores: np.ndarray, codes: np.ndarray) -> float:
        """The mean log loss, in nats."""
        return -float(log_chances(self.logits(scores))[np.arange(len(codes)), codes].mean())

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.exp(log_chances(self.logits(scores)))
