"""Plain measures of similarity between two layers, formula by formula, with other means than the package's."""

import math

import numpy as np
import scipy.linalg
import scipy.spatial
import scipy.stats
from plain_similarity import plain_cka, plain_debiased_cka, plain_gram


def plain_measure(metric, x_ND, y_ND, components=3, neighbours=3, variance=0.9):
    """The value of one metric between two layers, in float64."""
    parameters = {"components": components, "neighbours": neighbours, "variance": variance}
    return _PLAIN[metric](np.asarray(x_ND, np.float64), np.asarray(y_ND, np.float64), **parameters)


def centred(x_ND):
    return x_ND - x_ND.mean(axis=0)


def principal(x_ND):
    """Scores [N, K] on the principal axes, largest variance first, by the covariance matrix."""
    variances, axes = np.linalg.eigh(np.cov(x_ND.T))
    order = [i for i in np.argsort(variances)[::-1] if variances[i] > 1e-10 * variances.max()]
    return centred(x_ND) @ axes[:, order], variances[order]


def cut(x_ND, variance):
    scores, variances = principal(x_ND)
    share = 0.0
    for kept, part in enumerate(variances / variances.sum(), start=1):
        share += part
        if share >= variance:
            return scores[:, :kept]
    return scores


def correlations(x_NK, y_NK):
    """Canonical correlations, as cosines of the principal angles."""
    return np.sort(np.cos(scipy.linalg.subspace_angles(x_NK, y_NK)))[::-1]


def svcca(x, y, variance, **_):
    return correlations(cut(x, variance), cut(y, variance)).mean()


def pwcca(x, y, variance, **_):
    """The canonical variables of x from the eigenvectors of Sxx⁻¹ Sxy Syy⁻¹ Syx."""
    x_NK, y_NK = cut(x, variance), cut(y, variance)
    Sxx, Syy, Sxy = x_NK.T @ x_NK, y_NK.T @ y_NK, x_NK.T @ y_NK
    squared, directions = scipy.linalg.eigh(Sxy @ np.linalg.inv(Syy) @ Sxy.T, Sxx)
    total = weights = 0.0
    for place in np.argsort(squared)[::-1][: min(x_NK.shape[1], y_NK.shape[1])]:
        h_N = x_NK @ directions[:, place]
        weight = sum(abs(h_N @ column) for column in centred(x).T)
        total, weights = total + weight * math.sqrt(max(squared[place], 0.0)), weights + weight
    return total / weights


def cca_top_k(x, y, components, **_):
    return correlations(principal(x)[0][:, :components], principal(y)[0][:, :components]).mean()


def procrustes(x, y, **_):
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(centred(z), ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return 1 - ((x @ rotation - y) ** 2).sum() / 2


def rsa(x, y, **_):
    return scipy.stats.spearmanr(scipy.spatial.distance.pdist(x), scipy.spatial.distance.pdist(y)).statistic


def cosine_of(a, b):
    return (a @ b) / math.sqrt((a @ a) * (b @ b))


def cosines(x):
    return [[cosine_of(a, b) for b in x] for a in x]


def near(rows, k):
    """For each example the set of its k nearest, by the cosines to all."""
    examples = range(len(rows))
    return [set(sorted(set(examples) - {i}, key=lambda j: (-rows[i][j], j))[:k]) for i in examples]


def mutual_knn(x, y, neighbours, **_):
    pairs = zip(near(cosines(x), neighbours), near(cosines(y), neighbours), strict=True)
    return np.mean([len(in_x & in_y) / neighbours for in_x, in_y in pairs])


def cknna(x, y, neighbours, **_):
    def align(a, b):
        total = 0.0
        for i, (near_a, near_b) in enumerate(zip(near(a, neighbours), near(b, neighbours), strict=True)):
            for j in near_a & near_b:
                total += (a[i][j] - sum(a[i]) / len(a)) * (b[i][j] - sum(b[i]) / len(b))
        return total

    x, y = cosines(x), cosines(y)
    return align(x, y) / math.sqrt(align(x, x) * align(y, y))


def cosine(x, y, **_):
    return np.mean([cosine_of(a, b) for a, b in zip(x, y, strict=True)])


def block_influence(x, y, **_):
    return 1 - cosine(x, y)


def angular(x, y, **_):
    return np.mean([math.acos(min(1.0, cosine_of(a, b))) / math.pi for a, b in zip(x, y, strict=True)])


def cka(kernel, pair):
    return lambda x, y, **_: pair(plain_gram(x, kernel), plain_gram(y, kernel))


_PLAIN = {
    "cka_linear": cka("linear", plain_cka),
    "cka_linear_debiased": cka("linear", plain_debiased_cka),
    "cka_rbf": cka("rbf", plain_cka),
    "svcca": svcca,
    "pwcca": pwcca,
    "cca_top_k": cca_top_k,
    "procrustes": procrustes,
    "rsa": rsa,
    "mutual_knn": mutual_knn,
    "cknna": cknna,
    "angular": angular,
    "block_influence": block_influence,
    "cosine": cosine,
}
