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


def oracle(X_LND, Y_MND=None):
    """(biased, debiased) linear CKA in float64 from whole matrices: H K H and U-centred K, their inner products."""

    def centred(K_NN):
        return K_NN - K_NN.mean(axis=0) - K_NN.mean(axis=1)[:, None] + K_NN.mean()

    def u_centred(K_NN):
        n = len(K_NN)
        K_NN = K_NN - np.diag(np.diag(K_NN))
        row_N = K_NN.sum(axis=0)
        U_NN = K_NN - (row_N[:, None] + row_N) / (n - 2) + row_N.sum() / ((n - 1) * (n - 2))
        return U_NN - np.diag(np.diag(U_NN))

    def grams(layers, centring):
        layers = [np.asarray(X_ND, dtype=np.float64) for X_ND in layers]
        return [centring((X_ND - X_ND.mean(axis=0)) @ (X_ND - X_ND.mean(axis=0)).T) for X_ND in layers]

    matrices = []
    for centring in (centred, u_centred):
        ours = grams(X_LND, centring)
        theirs = ours if Y_MND is None else grams(Y_MND, centring)
        rows = [[(K * G).sum() / math.sqrt((K * K).sum() * (G * G).sum()) for G in theirs] for K in ours]
        matrices.append(np.array(rows))
    return tuple(matrices)
