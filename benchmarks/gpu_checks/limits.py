"""What the machine can do, measured: the denominators of speed.py.

Each rate is the best of several rounds of one plain torch or system call.
"""

from __future__ import annotations

import hashlib

import torch

from gpu_checks.record import Setup

MATMUL, COPY, PINNED, DISK = (
    "bf16 matmul",
    "device memory",
    "pinned host to device",
    "file in the page cache",
)
CKA_MATMUL, DIGEST = "matmul as CKA uses it", "SHA-256"
FIGURES = (MATMUL, CKA_MATMUL, COPY, PINNED, DISK, DIGEST)


def measure(setup: Setup) -> None:
    """Measure the machine's rates.

    - bf16 matmul: 2n³ operations of an n × n product, n = 8192.
    - matmul as CKA uses it: the same in float64 with n = 4096 on CUDA, in float32 on the CPU.
    - device memory: bytes read plus bytes written by a copy of 1 GiB on the device.
    - pinned host to device: bytes of a copy from pinned memory.
    - file in the page cache: bytes of a file that was just written, read into memory by one thread.
    - SHA-256: bytes digested by one thread, as streaming does with every byte that it reads.
    """
    tiny, device = setup.tiny, setup.device
    setup.add(MATMUL, _matmul(setup, 256 if tiny else 8192, torch.bfloat16), "FLOP/s")
    exact = torch.float64 if setup.cuda else torch.float32
    setup.add(CKA_MATMUL, _matmul(setup, 256 if tiny else 4096, exact), "FLOP/s", note=str(exact))

    size = 2**22 if tiny else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    setup.add(COPY, 2 * size / _best(setup, lambda: target.copy_(source)), "B/s")
    host = torch.ones(size // 4, dtype=torch.uint8, pin_memory=setup.cuda)
    setup.add(PINNED, len(host) / _best(setup, lambda: target[: len(host)].copy_(host, non_blocking=True)), "B/s")

    path = setup.folder / "bytes"
    path.write_bytes(host.numpy().data)
    room = memoryview(host.numpy())

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            place = 0
            while got := file.readinto(room[place:]):
                place += got

    setup.add(DISK, len(host) / _best(setup, read), "B/s")
    setup.add(DIGEST, len(host) / _best(setup, lambda: hashlib.sha256(room).digest()), "B/s")
    path.unlink()


def _matmul(setup: Setup, n: int, dtype: torch.dtype) -> float:
    one, other = (torch.randn(n, n, device=setup.device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * n**3 / _best(setup, lambda: torch.mm(one, other, out=out))


def _best(setup: Setup, work: object) -> float:
    """Seconds of the fastest of up to ten calls within 3 s."""
    return min(setup.in_turn(10, 3, work)[0])  # type: ignore[arg-type]
