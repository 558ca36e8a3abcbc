"""Figures are saved the same whatever the user's settings, and matplotlib is loaded no sooner than it is needed."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from raysweep.report import figures, plotting


@pytest.fixture(scope="module")
def dynamics(tables):
    """The rows of the first data set."""
    return tables["dynamics"].query("dataset == 'sums'")


class TestSave:
    def test_the_same_bytes_whatever_the_users_style(self, dynamics, tmp_path):
        def bytes_of(name):
            paths = plotting.save(figures.dynamics_curve(dynamics, "tiny", "cka_linear"), tmp_path / name)
            return [path.read_bytes() for path in paths]

        first = bytes_of("a")
        with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
            assert bytes_of("b") == first
            assert mpl.rcParams["font.size"] == 30
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]

    def test_names_that_are_no_plain_text_make_valid_files(self, dynamics, tmp_path):
        title = "a\x00b\n$x$ <b>--> 🦊 漢 \u202e" + "long" * 40
        png, svg = plotting.save(figures.dynamics_curve(dynamics, title, "cka_linear"), tmp_path / "odd")
        assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert png.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_waits_until_a_figure_is_drawn_and_pyplot_is_never_imported():
    program = (
        "import sys, pandas as pd\n"
        "import raysweep.report.page\n"
        "from raysweep.report import figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figures.dynamics_curve(pd.DataFrame({'layer': [0, 1], 'delta': [1., 2.], 'ci_low': [0., 1.], 'ci_high': [2., 3.],"
        " 'rank': [1, 2], 'neighbourhood': 3}), 't', 'cka_linear')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
