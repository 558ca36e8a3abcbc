"""CKA between all layers: time against pytorch-cka 1.1.3, the paper's procedure and the products themselves; memory from a store.

`--only speed|mean|real|ways|store` runs one part. `real` takes the states of SmolLM2-135M (fetched once) on the Dolly records in the folder
RAYSWEEP_REAL_DATA. Needs the extra `bench` (pytorch-cka); `store` writes 0.5 GB to the temporary
folder and removes it; its memory is the process's anonymous pages, sampled fifty times a second. Every speed stands beside its error against an oracle in float64. Limits are of a machine with two
cores that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cka import cka_from_features
from cka.hsic import hsic_cross
from common import in_turn, machine, spread

from raysweep.data.examples import load_examples
from raysweep.fetching import fetch
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.memory import Peak
from raysweep.numerics.blas_threads import each, workers
from raysweep.numerics.cka import cka_matrix
from raysweep.numerics.linear_products import cheaper_by_dimensions
from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.activations import open_activations
from raysweep.studies.capture import capture_states

PARTS = ("speed", "mean", "real", "ways", "store")
SHAPES = ((32, 300, 4096, 2.5), (32, 1000, 2048, 3.0), (80, 300, 1024, 3.0))  # layers, examples, width, times faster
PAIRS_TIMED = 6  # of the paper's procedure, which takes over a minute for all
STORE = (32, 8000, 1024)
REAL_RECORDS = 100
ALLOWED, WORKING = 170_000_000, 120_000_000  # bytes: in all, and told to cka_matrix


def told(figure: float, limit: float, *, least: bool = False) -> str:
    """A limit, and whether the figure keeps it."""
    kept = figure >= limit if least else figure <= limit
    return f"limit {limit:g}{' at least' if least else ''}: {'kept' if kept else 'MISSED'}"


def states(layers: int, examples: int, width: int) -> np.ndarray:
    """Layers that drift from one to the next, float32, of about unit scale."""
    rng = np.random.default_rng(0)
    X_LND = np.empty((layers, examples, width), np.float32)
    X_LND[0] = rng.standard_normal((examples, width), dtype=np.float32)
    for layer in range(1, layers):
        X_LND[layer] = 0.9 * X_LND[layer - 1] + 0.44 * rng.standard_normal((examples, width), dtype=np.float32)
    return X_LND


def oracle(X_LND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(biased, debiased) in float64 by the formulas, a whole matrix a layer."""
    biased, debiased = [], []
    for X_ND in X_LND:
        X_ND = np.asarray(X_ND, np.float64)
        X_ND = X_ND - X_ND.mean(axis=0)
        K_NN = X_ND @ X_ND.T
        biased.append(K_NN.ravel().copy())
        np.fill_diagonal(K_NN, 0)
        n, row_N = len(K_NN), K_NN.sum(axis=0)
        K_NN = K_NN - (row_N[:, None] + row_N) / (n - 2) + row_N.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(K_NN, 0)
        debiased.append(K_NN.ravel())
    matrices = []
    for vectors in (biased, debiased):
        F_LL = np.array([[left @ right for right in vectors] for left in vectors])
        matrices.append(F_LL / np.sqrt(np.outer(F_LL.diagonal(), F_LL.diagonal())))
    return matrices[0], matrices[1]


def cheapest_path(X_LND: torch.Tensor) -> torch.Tensor:
    """What pytorch-cka does for one model with itself: its Grams made once, and its own hsic_cross."""
    grams = torch.stack([torch.mm(X_ND, X_ND.T) for X_ND in X_LND])
    hsic = hsic_cross(grams, grams)
    own = torch.diagonal(hsic)
    return torch.clamp(hsic / torch.sqrt(torch.clamp(own.unsqueeze(1) * own, min=0.0)), 0.0, 1.0)


def paper_seconds(X_LND: torch.Tensor) -> float:
    """The paper's procedure over all L² pairs, by the time of some: three HSICs a pair, each of two Grams and K H L H."""
    layers, n, _ = X_LND.shape
    H = torch.eye(n) - torch.ones(n, n) / n

    def hsic(X_ND: torch.Tensor, Y_ND: torch.Tensor) -> torch.Tensor:
        return torch.trace(X_ND @ X_ND.T @ H @ (Y_ND @ Y_ND.T) @ H)

    def pair(i: int, j: int) -> torch.Tensor:
        X_ND, Y_ND = X_LND[i], X_LND[j]
        return hsic(X_ND, Y_ND) / torch.sqrt(hsic(X_ND, X_ND) * hsic(Y_ND, Y_ND))

    pair(0, 1)
    started = time.perf_counter()
    for place in range(PAIRS_TIMED):
        pair(place, layers - 1 - place)
    return (time.perf_counter() - started) / PAIRS_TIMED * layers**2


def syrk(X_LND: np.ndarray, threads: int) -> Callable[[], object]:
    """X Xᵀ of every layer and no more: BLAS splitting each layer's, or `threads` with layers of their own."""
    K_NN = [np.empty((X_LND.shape[1],) * 2, np.float32) for _ in range(threads)]

    def products(worker: int) -> None:
        for X_ND in X_LND[worker::threads]:
            np.matmul(X_ND, X_ND.T, out=K_NN[worker])

    return lambda: each(products, threads)


def rested(rounds: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Seconds of the sides in turn, each after a pause: threads of OpenBLAS and OpenMP spin on for a while after their work."""
    with_pauses = [step for side in sides for step in (lambda: time.sleep(0.2), side)]
    return in_turn(rounds, *with_pauses)[1::2]


def speed(rounds: int) -> None:
    for shape in SHAPES:
        speed_of(rounds, *shape)


def speed_of(rounds: int, layers: int, n: int, width: int, times: float) -> None:
    X = states(layers, n, width)
    T = torch.from_numpy(X)
    half = T.bfloat16()
    own, ours, ours_bf16, peer, cheapest, shared = rested(
        rounds,
        syrk(X, workers()),
        lambda: cka_matrix(X, debiased="both"),
        lambda: cka_matrix(half, debiased="both"),
        lambda: cka_from_features(T, T),
        lambda: cheapest_path(T),
        syrk(X, 1),
    )
    biased, debiased = cka_matrix(X, debiased="both")
    true_biased, true_debiased = oracle(X)
    rate = layers * n**2 * width / min(statistics.median(shared), statistics.median(own))
    unavoidable = (layers * n**2 * width + layers**2 * n**2 / 2) / rate
    over_peer = statistics.median(peer) / statistics.median(ours)
    over_products = statistics.median(ours) / unavoidable
    print(f"{layers} layers, {n} examples, width {width}, float32")
    print(f"  raysweep, biased and debiased: {spread(ours)} s; bfloat16 input: {spread(ours_bf16)} s")
    print(f"  pytorch-cka cka_from_features: {spread(peer)} s; its Grams made once: {spread(cheapest)} s")
    print(f"  cka_from_features over raysweep: {over_peer:.2f}, {told(over_peer, times, least=True)}")
    print(f"  its cheapest path over raysweep: {statistics.median(cheapest) / statistics.median(ours):.2f}")
    print(f"  products alone: BLAS splitting a layer {spread(shared)} s, a layer a thread {spread(own)} s")
    print(f"  raysweep over the unavoidable by the faster's rate: {over_products:.2f}, {told(over_products, 1.33)}")
    for name, found, true in [
        ("raysweep biased", biased, true_biased),
        ("raysweep debiased", debiased, true_debiased),
        ("pytorch-cka", cka_from_features(T, T).numpy(), true_debiased),
    ]:
        print(f"  greatest error against the oracle, {name}: {np.abs(found - true).max():.1e}")
    error = max(np.abs(biased - true_biased).max(), np.abs(debiased - true_debiased).max())
    print(f"  {told(error, 1e-5)}")
    if (layers, n) == (32, 300):
        seconds = paper_seconds(T)
        ratio = seconds / statistics.median(ours)
        print(
            f"  the paper's three HSICs a pair (by {PAIRS_TIMED} of {layers**2} pairs): {seconds:.1f} s, "
            f"over raysweep {ratio:.0f}, {told(ratio, 150, least=True)}"
        )


def mean(_: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 300, 512)).cumsum(axis=0) / np.sqrt(np.arange(1, 9))[:, None, None]
    for common in (10, 100):
        for dtype in (torch.float32, torch.bfloat16):
            T = torch.tensor(X + common).to(dtype)
            true_biased, true_debiased = oracle(T.double().numpy())
            biased, debiased = cka_matrix(T, debiased="both")
            error = max(np.abs(biased - true_biased).max(), np.abs(debiased - true_debiased).max())
            peer = np.abs(cka_from_features(T, T).double().numpy() - true_debiased).max()
            name = str(dtype).removeprefix("torch.")
            print(f"unit scale on a common mean of {common}, {name}: error {error:.1e}, {told(error, 1e-5)}")
            print(f"  pytorch-cka: error {peer:.1e}; first to last layer {float(cka_from_features(T, T)[0, -1]):.4f}")
            print(f"  oracle there: {true_debiased[0, -1]:.4f} debiased, {true_biased[0, -1]:.4f} biased")


def real(_: int) -> None:
    """Both against float64 on a real model's states, which have a large mean and a few large dimensions."""
    if "RAYSWEEP_REAL_DATA" not in os.environ:
        print("states of SmolLM2-135M: not run; set RAYSWEEP_REAL_DATA to a folder with dolly_test.jsonl")
        return
    fetch("smollm2", progress=print)
    source = describe("lab://smollm2")
    path = Path(os.environ["RAYSWEEP_REAL_DATA"]) / "dolly_test.jsonl"
    examples = load_examples(str(path), "dolly", load_tokenizer(source), limit=REAL_RECORDS, max_tokens=512).examples
    adapter = Adapter(load_model(source, dtype="float32"))
    for pooling in ("last", "mean"):
        X = capture_states(adapter, examples, pooling=pooling, batch_tokens=1024).states
        true_biased, true_debiased = oracle(X.double().numpy())
        biased, debiased = cka_matrix(X, debiased="both")
        error = max(np.abs(biased - true_biased).max(), np.abs(debiased - true_debiased).max())
        peer = np.abs(cka_from_features(X, X).double().numpy() - true_debiased)
        print(f"states of SmolLM2-135M, {len(X)} layers, {len(examples)} Dolly prompts, pooling {pooling}, float32")
        print(f"  raysweep: error {error:.1e}, {told(error, 1e-5)}")
        print(
            f"  pytorch-cka: error {np.nanmax(peer):.1e}; {np.mean(~(peer <= 0.01)):.0%} of its entries off by more than 0.01"
        )


def ways(rounds: int) -> None:
    X = states(8, 6000, 64)
    assert cheaper_by_dimensions(list(X))
    dimensions, examples = in_turn(rounds, lambda: cka_matrix(X), lambda: cka_matrix(X, tile=1000))
    apart = np.abs(cka_matrix(X) - cka_matrix(X, tile=1000)).max()
    print(f"8 layers, 6000 examples, width 64: by dimensions {spread(dimensions)} s, by examples {spread(examples)} s")
    print(f"  apart by {apart:.1e}, {told(apart, 1e-6)}")


def store_side(folder: Path, side: str) -> None:
    """One side of the store's figures, in a process of its own; prints JSON."""
    activations = open_activations(folder)
    np.ones((400, 400), np.float32) @ np.ones(
        (400, 400), np.float32
    )  # BLAS has its own memory from its first product on
    source = activations.states() if side == "memory" else activations.stored_layers()
    with Peak() as before:
        pass
    with Peak() as peak:
        started = time.perf_counter()
        biased, debiased = (
            cka_matrix(source, debiased="both")
            if side == "memory"
            else cka_matrix(source, debiased="both", memory=WORKING)
        )
        seconds = time.perf_counter() - started
    figures = {"seconds": seconds, "grown": peak.bytes - before.bytes, "S": [biased.tolist(), debiased.tolist()]}
    print(json.dumps(figures))


def store(rounds: int) -> None:
    layers, n, width = STORE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, parts = [], []
        for start in range(0, n, 1000):
            part = torch.from_numpy(states(layers, 1000, width) + np.float32(start / n)).bfloat16()
            ids = np.arange(start, start + 1000)
            parts.append(f"{start:05d}")
            files += write_part(folder, parts[-1], part, ids, ids, ids)
        publish_manifest(
            folder,
            parts,
            files,
            layers=layers,
            width=width,
            torch_dtype="bfloat16",
            pooling="last",
            model="random",
            dataset="random",
        )
        found: dict[str, list[dict]] = {"memory": [], "store": []}
        for _ in range(rounds):
            for side, figures in found.items():
                command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
                figures.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    in_memory, from_store = ([figures["seconds"] for figures in found[side]] for side in ("memory", "store"))
    ratio = statistics.median(from_store) / statistics.median(in_memory)
    grown = max(figures["grown"] for figures in found["store"])
    apart = np.abs(np.subtract(found["store"][0]["S"], found["memory"][0]["S"])).max()
    print(f"store of {layers} x {n} x {width} bfloat16, page cache warm")
    print(f"  from memory {spread(in_memory)} s, from the store {spread(from_store)} s")
    print(f"  store over memory: {ratio:.2f}, {told(ratio, 1.3)}")
    print(f"  private memory grew by {grown / 1e6:.0f} MB at its peak, {told(grown, ALLOWED)}")
    print(f"  apart by {apart:.1e}, {told(apart, 1e-6)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=("memory", "store"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        store_side(arguments.folder, arguments.side)
        return
    print(machine())
    run = {"speed": speed, "mean": mean, "real": real, "ways": ways, "store": store}
    for part in [arguments.only] if arguments.only else PARTS:
        run[part](min(arguments.rounds, 2) if part == "store" else arguments.rounds)


if __name__ == "__main__":
    main()
