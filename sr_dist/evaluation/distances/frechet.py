"""The Fréchet distance of two Gaussians, in float64 and never below zero.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2

The last term is the sum of the square roots of the eigenvalues of S1 S2. These are the eigenvalues of the symmetric L' S2 L
with S1 = L L'. If that is ill-conditioned, or there are fewer rows than columns, the term is a sum of singular values instead:
of S1^1/2 S2^1/2, or of A B' with the centred rows A, B divided by sqrt(n - 1). `scipy.linalg.sqrtm` is not used: it is slower,
its result can be complex, and clean-fid's call of it fails from scipy 1.18 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sr_dist.core.errors import UserError

Array = np.ndarray
EPS = float(np.finfo(np.float64).eps)
DOUBT = 1e-9  # share of tr (S1 S2)^1/2 that may be rounding error; exceeded well below a condition number of 1e10


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (the sum of outer products about the mean) of rows, in float64.

    The scatter is about the mean, so rows far from zero lose no digits: the covariance equals numpy.cov's to 1e-12.
    """

    n: int
    mean: Array  # (width,)
    scatter: Array  # (width, width)

    @property
    def covariance(self) -> Array:
        return self.scatter / (self.n - 1)

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1)

    def __sub__(self, part: Moments) -> Moments:
        """The moments without some of the rows."""
        return self._combined(part, -1)

    def _combined(self, other: Moments, sign: int) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise UserError(f"features of different width cannot be combined: {self.mean.size} and {other.mean.size}")
        n, difference = self.n + sign * other.n, other.mean - self.mean
        mean = self.mean + sign * other.n / n * difference
        between = self.n * other.n / n * np.outer(difference, difference)
        return Moments(n, mean, self.scatter + sign * (other.scatter + between))


def moments(rows: Array) -> Moments:
    """(n, width) of any float type; n may be 0."""
    rows = rows.astype(np.float64)
    mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
    rows -= mean
    return Moments(len(rows), mean, rows.T @ rows)


def from_moments(a: Moments, b: Moments) -> float:
    refuse_counts(a.n, b.n)
    return _distance(a.mean, b.mean, np.trace(a.covariance), np.trace(b.covariance), _cross(a.covariance, b.covariance))


def from_rows(a: Array, b: Array) -> float:
    """For fewer rows than columns: never forms a (width, width) matrix."""
    refuse_counts(len(a), len(b))
    (x, mean_x), (y, mean_y) = _centred(a), _centred(b)
    return _distance(mean_x, mean_y, np.vdot(x, x), np.vdot(y, y), _nuclear_norm(x @ y.T))


def refuse_counts(n: int, other: int) -> None:
    """A Fréchet distance is biased: it falls as n grows."""
    if n != other:
        raise UserError(f"a Fréchet distance needs two sets of the same size, but has {n} and {other} images")
    if n < 2:
        raise UserError(f"a Fréchet distance needs 2 images or more, but has {n}")


def _distance(mean_a: Array, mean_b: Array, trace_a: float, trace_b: float, cross: float) -> float:
    difference = mean_a - mean_b
    return max(float(difference @ difference + trace_a + trace_b - 2 * cross), 0.0)


def _centred(rows: Array) -> tuple[Array, Array]:
    rows = rows.astype(np.float64)
    mean = rows.mean(0)
    return (rows - mean) / np.sqrt(len(rows) - 1), mean


def _cross(a: Array, b: Array) -> float:
    """tr (S1 S2)^1/2"""
    try:
        L = np.linalg.cholesky(a)
    except np.linalg.LinAlgError:  # not positive definite
        return _nuclear_norm(_root(a).T @ _root(b))
    values = np.linalg.eigvalsh(L.T @ b @ L)
    # The error of an eigenvalue is a few eps of the largest one; that of its square root is this over twice the root.
    if values[0] <= 0 or EPS * values[-1] * (0.5 / np.sqrt(values)).sum() > DOUBT * np.sqrt(values).sum():
        return _nuclear_norm(_root(a).T @ _root(b))
    return float(np.sqrt(values).sum())


def _root(matrix: Array) -> Array:
    """R with R R' = the matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(min=0))


def _nuclear_norm(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum())
