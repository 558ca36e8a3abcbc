"""States that wait on disk: the same results to the last bit, nothing left behind, and only where it is cheaper."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import DECODERS, build_pair

from raysweep.data.examples import Example
from raysweep.errors import RunError
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.studies import shelf as shelves
from raysweep.studies.capture import Collector
from raysweep.studies.passes import Disk, Need, Pass, choose_passes, disk_trips
from raysweep.studies.shelf import Branch, Shelf, open_shelf
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Work, sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

CHEAP = Disk(free=10**12, weights=10**12, trips=1.0)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> StreamedPair:
    """A streamed pair of the architecture `request.param`, with a spill folder."""
    for model, name in zip(build_pair(DECODERS[request.param]), ("base", "tuned"), strict=True):
        model.save_pretrained(tmp_path / name)
    base, tuned = (StreamedModel(describe(str(tmp_path / name))) for name in ("base", "tuned"))
    return StreamedPair.of(base, tuned, spill=tmp_path / "spill")


def some_on_disk(self: StreamedPair, batches: list[torch.Tensor], *_: object) -> list[Pass]:
    n = len(batches)
    return [Pass(tuple(range(n)), frozenset(range(1, n)), 10**6)]


@pytest.mark.parametrize("pair", ["llama", "gemma3n", "gemma4", "bamba"], indirect=True)
def test_results_are_the_same_to_the_last_bit(
    pair: StreamedPair, random_examples: Callable[..., list[Example]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples, windows = random_examples(6), windows_of_widths(pair.n_layers, [1, 2])
    expected = sweep_losses(pair, examples, windows, batch_tokens=48)
    monkeypatch.setattr(StreamedPair, "passes", some_on_disk)
    work, before = Work(), pair.bytes_read
    collector = Collector(pair.base, examples, "last", 48)
    found = sweep_losses(pair, examples, windows, batch_tokens=48, work=work, collector=collector)
    np.testing.assert_array_equal(found, expected)
    assert work.bytes_on_disk > 0
    assert pair.bytes_read - before == sum(source.decoder_bytes for source in pair.sources)
    assert list((tmp_path / "spill").iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_taken_is_what_was_put(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 6, 5, 4).to(dtype)
    put = {
        7: Branch(wide[:, :3], {"full": (torch.randn(3, 2).to(dtype), torch.arange(3))}),  # not contiguous
        2: Branch(wide[0, 3:], {}),
    }
    with open_shelf(tmp_path, [1], 10**4) as shelf:
        assert isinstance(shelf, Shelf)
        for place in (0, 1):
            shelf.put(place, put)
        assert shelf.bytes_written == (2 * 3 * 5 * 4 + 3 * 2 + 3 * 5 * 4) * dtype.itemsize + 3 * 8
        for place in (1, 0):
            taken = shelf.take(place)
            assert list(taken) == [7, 2]
            for number, branch in taken.items():
                assert list(branch.shared) == list(put[number].shared)
                for ours, theirs in zip(branch.tensors, put[number].tensors, strict=True):
                    assert ours.dtype == theirs.dtype
                    assert torch.equal(ours, theirs)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "free_on_disk", lambda folder: 5 * 10**8)
    words = (
        r"there is too little room \(2\.00 GB needed, 0\.50 GB free\); what is committed is kept. Free some space "
        r"there, give"
    )
    told = rf"^states cannot be kept on disk in '.*' \(execution\.spill\): {words}"
    with pytest.raises(RunError, match=told), open_shelf(tmp_path, [0], 2 * 10**9):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys, torch
from pathlib import Path
from raysweep.errors import RunError
from raysweep.studies.shelf import Branch, open_shelf
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with open_shelf(Path(sys.argv[1]), [0], 10**6) as shelf:
        shelf.put(0, {0: Branch(torch.ones(60_000, 1, 1))})
except RunError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "as Python has it, so that the write fails with EFBIG"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] < 0
    said = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith(
        f"states cannot be kept on disk in '{tmp_path}' (execution.spill): File too large (1.00 MB needed, "
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_a_disk_that_fills_while_states_wait_there(
    pair: StreamedPair, random_examples: Callable[..., list[Example]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples, windows = random_examples(6), [UNTOUCHED, Window(1, 3)]
    expected = sweep_losses(pair, examples, windows, batch_tokens=48)
    monkeypatch.setattr(StreamedPair, "passes", some_on_disk)
    written: list[Path] = []
    opened = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.suffix == ".states" and args[:1] == ("wb",):
            written.append(self)
            if len(written) == 4:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(RunError, match=r"No space left on device \(1\.00 MB needed, .* free\); what is committed"):
            sweep_losses(pair, examples, windows, batch_tokens=48)
    assert list((tmp_path / "spill").iterdir()) == []
    np.testing.assert_array_equal(sweep_losses(pair, examples, windows, batch_tokens=48), expected)


def test_states_wait_on_disk_only_where_that_moves_fewer_bytes() -> None:
    needs = [Need(10)] * 6
    apart = [Pass((0, 1, 2)), Pass((3, 4, 5))]
    assert choose_passes(needs, 30) == apart
    # One pass: 30 of room less 10 that are read back at a time leave 20 in memory, and 40 wait.
    assert choose_passes(needs, 30, CHEAP) == [Pass(tuple(range(6)), frozenset({2, 3, 4, 5}), 40)]
    for weights, expected in ((401, 1), (399, 2)):  # another pass against 40 that are moved ten times
        assert len(choose_passes(needs, 30, Disk(10**9, weights, 10.0))) == expected
    assert choose_passes(needs, 30, Disk(39, 10**9, 1.0)) == apart, "there is no room on the disk"
    assert choose_passes(needs, 60, CHEAP) == [Pass(tuple(range(6)))], "all fit"
    # What must stay in memory (4 each) leaves room for no state of six batches, and for none of five.
    found = choose_passes([Need(10, 4)] * 6, 30, CHEAP)
    assert found == [Pass((0, 1, 2), frozenset({0, 1, 2}), 30), Pass((3, 4, 5), frozenset({3, 4, 5}), 30)]


def test_states_are_moved_twice_for_every_layer_but_the_last() -> None:
    assert disk_trips(5, [UNTOUCHED]) == 2 * 4
    # one window [1, 2) of 3 layers and the trunk: 1, 2 and 2 states behind the layers
    assert disk_trips(3, [UNTOUCHED, Window(1, 2)]) == 2 * 3 / 2
