from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from raysweep.data.examples import load_examples
from raysweep.data.exclusion import Exclude
from raysweep.data.formats import FORMATS, columns_format
from raysweep.errors import InputError

DOLLY = FORMATS["dolly"]
RECORDS: list[dict[str, Any]] = [
    {"instruction": "Name a red fruit.", "context": "", "response": "A cherry.", "category": "open_qa", "n": 1},
    {"instruction": "Is it safe?", "context": "", "response": "As an AI, I\ncannot say.", "category": "qa", "n": 12},
    {
        "instruction": "Which?",
        "context": "CHERRIES and limes",
        "response": "Limes.",
        "category": "closed_qa",
        "n": True,
    },
]


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        ({"phrases": ["as an ai"]}, [1]),
        ({"phrases": ["cherr"]}, [0, 2]),  # response, and context as part of the question
        ({"phrases": ["nowhere", "IS IT SAFE"]}, [1]),
        ({"phrases": ["."]}, [0, 1, 2]),  # no expression
        ({"pattern": "cherr"}, [0]),
        ({"pattern": "(?i)cherr"}, [0, 2]),
        ({"pattern": "^cannot"}, []),
        ({"pattern": "(?m)^cannot"}, [1]),
        ({"pattern": "^Name|Limes[.]$"}, [0, 2]),
        ({"phrases": ["open_qa"]}, []),  # the category is no text of the example
        ({"column": "category", "phrases": ["_QA"]}, [0, 2]),
        ({"column": "category", "pattern": "^qa"}, [1]),
        ({"column": "category", "values": ["qa", "open_qa"]}, [0, 1]),
        ({"column": "category", "values": ["QA"]}, []),
        ({"column": "n", "values": ["1", "true"]}, [0, 2]),
        ({"column": "n", "phrases": ["1"]}, [0, 1]),
        ({"column": "category", "values": ["qa"], "phrases": ["open"], "pattern": "^clo"}, [0, 1, 2]),
    ],
    ids=str,
)
def test_what_is_left_out(exclude: dict[str, Any], left_out: list[int]) -> None:
    chosen = Exclude(**{key: tuple(v) if isinstance(v, list) else v for key, v in exclude.items()})
    assert [i for i, record in enumerate(RECORDS) if chosen.leaves_out(record, DOLLY)] == left_out


def test_columns_are_read_as_their_templates_make_them() -> None:
    record_format = columns_format("Q: {{ category }}", "response")
    assert Exclude(pattern="^Q: qa$").leaves_out(RECORDS[1], record_format)
    assert not Exclude(pattern="^Q: qa$").leaves_out(RECORDS[0], record_format)


@pytest.mark.parametrize(
    ("exclude", "told"),
    [
        ({}, "exclude is empty; give phrases, a pattern, or a column and its values"),
        ({"column": "a"}, "exclude is empty; give phrases, a pattern, or a column and its values"),
        ({"phrases": ("a", "")}, "exclude has an empty phrase, which every text contains; remove it"),
        ({"values": ("a",)}, "exclude has values but no column; name the column that they belong to"),
        (
            {"pattern": "(a"},
            "exclude has a pattern '(a' that does not compile (missing ), unterminated subpattern at position 0); "
            "correct the regular expression",
        ),
    ],
)
def test_refused(exclude: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        Exclude(**exclude)
    assert str(error.value) == told


def test_examples_keep_their_places(jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(*RECORDS, *RECORDS)
    whole = load_examples(path, "dolly", tokenizer)
    exclude = Exclude(phrases=("as an ai",))
    ids = {
        (None, None, None): [0, 2, 3, 5],
        (None, None, 3): [0, 2, 3],
        (2, None, None): [3, 5],
        (2, None, 1): [3],
        (None, 3, None): [0],
    }
    for (last, all_but_last, limit), expected in ids.items():
        loaded = load_examples(
            path, "dolly", tokenizer, exclude=exclude, last=last, all_but_last=all_but_last, limit=limit
        )
        assert [e.id for e in loaded.examples] == expected
        for example in loaded.examples:
            assert example.tokens.tolist() == whole.examples[example.id].tokens.tolist()
    assert load_examples(path, "dolly", tokenizer, exclude=exclude).n_excluded == 2
    assert (whole.n_excluded, len(whole.examples)) == (0, 6)


def test_what_cannot_be_judged_is_told_with_its_place(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(RECORDS[0], {"instruction": "x", "context": "", "answer": "y"})
    with pytest.raises(InputError) as error:
        load_examples(path, "dolly", tokenizer, exclude=Exclude(column="category", values=("x",)))
    assert str(error.value) == (
        f"{path}, line 2: has no field 'category', which exclude uses; its fields are instruction, context, answer"
    )
    with pytest.raises(InputError, match="line 2: has no field 'response', which format 'dolly' needs"):
        load_examples(path, "dolly", tokenizer, exclude=Exclude(phrases=("x",)))
