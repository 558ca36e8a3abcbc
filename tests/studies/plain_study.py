"""States to try the similarity study on, and its figures formula by formula."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from raysweep.studies.similarity import similarity_tables

METRICS = ("cka_linear", "cka_rbf", "cka_linear_debiased")


def walk(layers: int = 7, examples: int = 30, width: int = 10, seed: int = 0) -> torch.Tensor:
    """States that drift from layer to layer by steps of unlike size."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.2, 1.5, layers)
    states = [rng.normal(size=(examples, width))]
    for step in steps[1:]:
        states.append(states[-1] + step * rng.normal(size=(examples, width)))
    return torch.from_numpy(np.stack(states))


def plain_kernel(X: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "linear":
        return np.asarray(X @ X.T)
    d2 = ((X[:, None] - X[None]) ** 2).sum(-1)
    positive = np.sort(d2[d2 > 0])
    return np.asarray(np.exp(-d2 / (2 * positive[(len(positive) - 1) // 2])))


def plain_cka(kernels: list[np.ndarray], debiased: bool = False) -> np.ndarray:
    n = len(kernels[0])
    H = np.eye(n) - 1 / n

    def hsic(K: np.ndarray, M: np.ndarray) -> float:
        if not debiased:
            return float(np.trace(H @ K @ H @ M))
        K, M = K - np.diag(np.diag(K)), M - np.diag(np.diag(M))  # Song et al. (2012), equation 5
        total = np.trace(K @ M) + K.sum() * M.sum() / ((n - 1) * (n - 2)) - 2 * (K.sum(0) @ M.sum(1)) / (n - 2)
        return float(total)

    F = np.array([[hsic(K, M) for M in kernels] for K in kernels])
    return np.asarray(F / np.sqrt(np.outer(np.diag(F), np.diag(F))))


def plain_matrix(states: np.ndarray, metric: str) -> np.ndarray:
    kernels = [plain_kernel(X, "rbf" if metric == "cka_rbf" else "linear") for X in states]
    return plain_cka(kernels, metric == "cka_linear_debiased")


def plain_delta(S: np.ndarray, neighbourhood: int) -> np.ndarray:
    reach = neighbourhood // 2
    near = range(-reach, reach + 1)
    return np.array([np.mean([S[i, i + o] for o in near if 0 <= i + o < len(S)]) for i in range(len(S))])


def tables(
    states: torch.Tensor, metrics: tuple[str, ...] = METRICS, neighbourhood: int = 3, resamples: int = 40
) -> dict[str, pd.DataFrame]:
    return similarity_tables(states, metrics=metrics, neighbourhood=neighbourhood, resamples=resamples, seed=3)
