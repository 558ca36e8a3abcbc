"""What a call has made, as commits: tables of rows under the keys that they are found by."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from raysweep.engine.calls import Call, Commit, commit_name


def table_commit(kind: str, call: Call, keys: tuple[str, ...], rows: pd.DataFrame) -> Commit:
    """The commit of a data frame, whose column `part` has the key of each row."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    return Commit(commit_name(kind, call.model, call.dataset, keys), keys, table)
