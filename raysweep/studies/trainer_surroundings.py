"""What is around a training while it runs: transformers kept quiet, trackers kept off the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def quiet() -> Iterator[None]:
    """What transformers has to say below errors is left unsaid: progress is told by raysweep."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def offline(trackers: object, folder: Path) -> Iterator[None]:
    """Of the asked trackers each writes below `folder`, and nowhere else unless the environment says so."""
    places = {
        "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder.resolve() / 'mlflow.db'}"},
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")},
    }
    asked = [trackers] if isinstance(trackers, str) else trackers
    ours = {
        name: value
        for tracker, settings in places.items()
        if isinstance(asked, (list, tuple)) and tracker in asked
        for name, value in settings.items()
    }
    added = [name for name in ours if name not in os.environ]
    os.environ.update({name: ours[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
