"""Plain similarity, formula by formula, and states to try it on."""

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

KERNELS = ("linear", "rbf")


seeds = st.integers(0, 2**32 - 1)


few = settings(max_examples=15, deadline=None)


def drifting_states(seed, layers=4, examples=11, width=6):
    """Layers that change step by step, as a residual stream does."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((layers, examples, width)).cumsum(axis=0)


def plain_gram(X_ND, kernel, median=None):
    if kernel == "linear":
        return X_ND @ X_ND.T
    distances_NN = np.array([[((a - b) ** 2).sum() for b in X_ND] for a in X_ND])
    return np.exp(-distances_NN / (2 * (median or plain_lower_median(distances_NN))))


def plain_lower_median(distances_NN):
    entries = sorted(distance for distance in distances_NN.ravel() if distance != 0)
    return entries[(len(entries) - 1) // 2]


def plain_cka(K_NN, L_NN):
    n = len(K_NN)
    H = np.eye(n) - np.ones((n, n)) / n

    def hsic(A_NN, B_NN):
        return np.trace(A_NN @ H @ B_NN @ H) / (n - 1) ** 2

    return hsic(K_NN, L_NN) / math.sqrt(hsic(K_NN, K_NN) * hsic(L_NN, L_NN))


def plain_debiased_cka(K_NN, L_NN):
    n = len(K_NN)

    def u_centred(A_NN):
        A_NN = A_NN - np.diag(np.diag(A_NN))
        U_NN = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    U_NN[i, j] = A_NN[i, j] - A_NN[i].sum() / (n - 2) - A_NN[:, j].sum() / (n - 2)
                    U_NN[i, j] += A_NN.sum() / ((n - 1) * (n - 2))
        return U_NN

    U_NN, V_NN = u_centred(K_NN), u_centred(L_NN)
    return (U_NN * V_NN).sum() / math.sqrt((U_NN**2).sum() * (V_NN**2).sum())


def plain_matrix(X_LND, kernel, pair=plain_cka):
    grams = [plain_gram(np.asarray(X_ND, dtype=np.float64), kernel) for X_ND in X_LND]
    return np.array([[pair(K_NN, L_NN) for L_NN in grams] for K_NN in grams])
