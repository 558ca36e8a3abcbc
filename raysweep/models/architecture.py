"""Checkpoints on paper: what a config.json tells of one that is not on this machine, for plans.

transformers' own model without weights has the shapes; nothing is downloaded and no weight is read. What is planned so never
matches anything that was measured: the fingerprint is of paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep import lab
from raysweep.errors import InputError, shown
from raysweep.fingerprint import fingerprint
from raysweep.models.checkpoint import Checkpoint, read_config
from raysweep.models.sizes import SIZES


def is_here(source: str) -> bool:
    """Whether a checkpoint's config and weights are on this machine: in a folder, or in the hub's local cache. Asks no network."""
    if lab.is_unfetched(source):
        return False
    folder = Path(lab.resolve(source)).expanduser()
    if folder.exists():
        return True
    if source.startswith((".", "/", "~", lab.SCHEME)) or source.count("/") != 1:
        return False
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(source, name) for name in ("config.json", "adapter_config.json")]
    except HFValidationError:  # a name that the hub does not allow
        return False
    return any(isinstance(path, str) and any(Path(path).parent.glob("*.safetensors")) for path in found)


def describe_architecture(source: str, path: Path) -> Checkpoint:
    """The checkpoint `source` as the config.json at `path` has it: shapes, and bytes in the dtype that the config names.

    Raises InputError where there is no such file, where it is no config that transformers knows, or names a dtype that is no
    plain floating one.
    """
    from raysweep.models.skeleton import model_on_paper

    if not path.is_file():
        raise InputError(f"architecture '{path}' of checkpoint '{source}' is not a file; give a config.json")
    config = read_config(path, path)
    paper = Checkpoint(
        source, path, config, {}, 0, False, f"paper-{fingerprint([source, _as_json(config)])}", on_paper=True
    )
    size = SIZES.get(paper.dtype)
    if size is None:
        raise InputError(f"{path} has dtype {shown(paper.dtype)}, but a plan needs one of {', '.join(SIZES)}")
    try:
        model = model_on_paper(path)
    except InputError:
        raise
    except Exception as error:  # sizes that do not fit one another raise whatever the architecture stumbled over
        raise InputError(
            f"{path} does not describe a model: {error}; is it the checkpoint's own config.json?"
        ) from error
    tied = model.all_tied_weights_keys
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    paper = replace(paper, shapes=shapes)
    return replace(paper, bytes=size * paper.n_parameters)


def _as_json(config: Mapping[str, Any]) -> Any:
    """The config with texts for keys, as its file has them: transformers' own has numbers for labels."""
    return json.loads(json.dumps(config, default=str))


def tuned_on_paper(base: Checkpoint, source: str) -> Checkpoint:
    """A checkpoint that is not here, fine-tuned from `base`: of its sizes, whatever it is stored as."""
    paper = f"paper-{fingerprint([source, base.fingerprint])}"
    return replace(base, source=source, fingerprint=paper, digests={}, on_paper=True, note="")
