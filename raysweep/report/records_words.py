"""Records that a run skipped or cut, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def records_warnings(datasets: Sequence[Mapping[str, str]], others: Sequence[str] = ()) -> list[str]:
    """The `others` of inspection, then a line for each of `dataset_records` (engine/origins.py) of which something is not measured."""
    lines = list(others)
    for row in datasets:
        where, n, left_out = f"{row['dataset']} (for {row['model']})", int(row["examples"]), int(row["left_out"])
        if left_out:
            lines.append(
                f"{where}: {left_out} of {n + left_out} records were skipped. They have no response token, or cutting them to max_tokens or to "
                "the model's context leaves none"
            )
        if row["cut"] != "0":
            lines.append(f"{where}: {row['cut']} of {n} examples were cut to max_tokens or to the model's context")
        if (blank := row.get("blank_responses", "0")) != "0":  # earlier runs have not counted them
            lines.append(
                f"{where}: {blank} of {n} examples have a blank response. Their loss comes only from tokens of the prompt template"
            )
        if (answers := row.get("answers_cut", "0")) != "0":
            lines.append(
                f"{where}: {answers} of {n} examples lose a part of their answer, because the chat template drops or rewrites it. The "
                "loss covers only the rest"
            )
    return lines
