"""The laboratory's six sets of records, one for each record format, and their train and test splits.

The pre-training mixture has an easier version of the four sets that are fine-tuned on: shorter sums, other facts, other
orders. So fine-tuning has something to learn, and no record of a set was ever in the mixture.

| set    | format     | what it asks |
| ------ | ---------- | --- |
| sums   | gsm8k      | arithmetic in words, worked step by step |
| facts  | boolq      | is this true of the invented world |
| quiz   | openbookqa | which of four completes a fact of it |
| orders | dolly      | reorder, pick from or count a list of words |
| drills | alpaca     | short instructions, with and without an input |
| talk   | messages   | a user's question about the world, an assistant's answer |
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from raysweep.lab import world

Record = dict[str, Any]
SEED = 7
TRAIN, TEST = 4000, 300

FORMAT = {
    "sums": "gsm8k",
    "facts": "boolq",
    "quiz": "openbookqa",
    "orders": "dolly",
    "drills": "alpaca",
    "talk": "messages",
}

_THINGS = [
    "pears",
    "figs",
    "plums",
    "eggs",
    "bells",
    "lamps",
    "knives",
    "boats",
    "candles",
    "coins",
    "stones",
    "apples",
]
_WORDS = sorted({*world.FOODS, *world.PETS, *world.GOODS, *world.COLOURS, *world.TRADES})


def _sums(rng: random.Random) -> Record:
    who, thing = rng.choice(world.PEOPLE), rng.choice(_THINGS)
    have = rng.randint(3, 40)
    text, lines = [f"{who} has {have} {thing}."], []
    for _ in range(rng.randint(1, 3)):
        verb, sign = rng.choice(
            (
                ("buys {n} more", "+"),
                ("finds {n} more", "+"),
                ("gives away {n}", "-"),
                ("loses {n}", "-"),
                ("sells {n}", "-"),
            )
        )
        if sign == "-" and have < 4:
            verb, sign = "buys {n} more", "+"
        n = rng.randint(2, 30) if sign == "+" else rng.randint(1, have - 1)
        after = have + n if sign == "+" else have - n
        text.append(f"{who} {verb.format(n=n)}.")
        lines.append(f"{have} {sign} {n} = {after}")
        have = after
    return {
        "question": f"{' '.join(text)} How many {thing} does {who} have now?",
        "answer": "\n".join([*lines, f"#### {have}"]),
    }


def _long_sums(rng: random.Random) -> Record:
    """Three to five steps, one of them a doubling, which the mixture does not know."""
    who, thing = rng.choice(world.PEOPLE), rng.choice(_THINGS)
    have = rng.randint(3, 20)
    text, lines = [f"{who} has {have} {thing}."], []
    steps = rng.randint(3, 5)
    doubling = rng.randrange(steps)
    for step in range(steps):
        if step == doubling:
            text.append(f"A friend doubles what {who} has.")
            lines.append(f"{have} * 2 = {2 * have}")
            have = 2 * have
        elif rng.random() < 0.5 or have < 4:
            n = rng.randint(2, 20)
            text.append(f"{who} {rng.choice(('buys', 'finds'))} {n} more.")
            lines.append(f"{have} + {n} = {have + n}")
            have += n
        else:
            n = rng.randint(1, have - 1)
            text.append(f"{who} {rng.choice(('gives away', 'loses', 'sells'))} {n}.")
            lines.append(f"{have} - {n} = {have - n}")
            have -= n
    question = f"{' '.join(text)} How many {thing} does {who} have now?"
    return {"question": question, "answer": "\n".join([*lines, f"#### {have}"])}


def _claim(rng: random.Random, facts: tuple[world.Fact, ...]) -> tuple[world.Fact, str, bool]:
    fact = rng.choice(facts)
    true = rng.random() < 0.5
    value = fact.value if true else rng.choice([v for v in fact.relation.values if v != fact.value])
    return fact, value, true


def _facts(rng: random.Random, facts: tuple[world.Fact, ...] = world.FACTS) -> Record:
    fact, value, true = _claim(rng, facts)
    opening = rng.choice(("", "", "tell me, ", "is it so: ", "say, "))
    others = [f for f in facts if f.subject == fact.subject and f != fact]
    passage = f"{world.sentence(fact.statement)} {world.sentence(others[0].statement)}"
    return {
        "question": opening + fact.relation.question.format(s=fact.subject, v=value),
        "passage": passage,
        "answer": true,
    }


def _new_facts(rng: random.Random) -> Record:
    return _facts(rng, world.NEW_FACTS)


def _quiz(rng: random.Random, facts: tuple[world.Fact, ...] = world.FACTS) -> Record:
    fact = rng.choice(facts)
    options = [*rng.sample([v for v in fact.relation.values if v != fact.value], 3), fact.value]
    rng.shuffle(options)
    labels = ["A", "B", "C", "D"]
    return {
        "question_stem": fact.relation.stem.format(s=fact.subject),
        "choices": {"text": options, "label": labels},
        "answerKey": labels[options.index(fact.value)],
        "fact1": fact.statement,
    }


def _new_quiz(rng: random.Random) -> Record:
    return _quiz(rng, world.NEW_FACTS)


_ORDERS: dict[str, Callable[[list[str]], str]] = {
    "Write the words backwards.": lambda words: " ".join(reversed(words)),
    "Put the words in alphabetical order.": lambda words: " ".join(sorted(words)),
    "Write the first and the last word.": lambda words: f"{words[0]} {words[-1]}",
    "Leave out the first word.": lambda words: " ".join(words[1:]),
    "Write every word twice.": lambda words: " ".join(word for w in words for word in (w, w)),
    "How many words are there?": lambda words: f"There are {len(words)} words.",
}


_NEW_ORDERS: dict[str, Callable[[list[str]], str]] = {
    "Swap the first and the last word.": lambda words: " ".join([words[-1], *words[1:-1], words[0]]),
    "Leave out the last word.": lambda words: " ".join(words[:-1]),
    "Write every second word.": lambda words: " ".join(words[1::2]),
    "Write the words backwards, each twice.": lambda words: " ".join(
        w for word in reversed(words) for w in (word, word)
    ),
    "Which word comes first in the alphabet?": lambda words: f"It is {min(words)}.",
    "Put the first word last.": lambda words: " ".join([*words[1:], words[0]]),
}


def _orders(rng: random.Random, orders: dict[str, Callable[[list[str]], str]] = _ORDERS) -> Record:
    instruction = rng.choice(list(orders))
    words = rng.sample(_WORDS, rng.randint(3, 6))
    return {
        "instruction": instruction,
        "context": " ".join(words),
        "response": orders[instruction](words),
        "category": "lists",
    }


def _new_orders(rng: random.Random) -> Record:
    return _orders(rng, _NEW_ORDERS)


def _drills(rng: random.Random) -> Record:
    kind = rng.randrange(5)
    if kind == 0:
        start, n = rng.randint(0, 60), rng.randint(3, 7)
        asked = f"Write {n} numbers from {start} on."
        return {"instruction": asked, "input": "", "output": " ".join(str(start + k) for k in range(n))}
    if kind == 1:
        fact = rng.choice(world.FACTS)
        return {
            "instruction": f"Complete: {fact.relation.stem.format(s=fact.subject)}",
            "input": "",
            "output": f"{fact.value}.",
        }
    if kind == 2:
        a, b = rng.randint(0, 60), rng.randint(0, 39)
        return {"instruction": "Add the numbers.", "input": f"{a} {b}", "output": str(a + b)}
    words = rng.sample(_WORDS, rng.randint(3, 5))
    if kind == 3:
        k = rng.randrange(len(words))
        place = ("first", "second", "third", "fourth", "fifth")[k]
        return {"instruction": f"Name the {place} word.", "input": " ".join(words), "output": words[k]}
    old, new = rng.choice(words), rng.choice(_WORDS)
    swapped = " ".join(new if word == old else word for word in words)
    return {"instruction": f"Put {new} for {old}.", "input": " ".join(words), "output": swapped}


def _talk(rng: random.Random) -> Record:
    if rng.random() < 0.5:
        fact, value, true = _claim(rng, world.FACTS)
        asked = fact.relation.question.format(s=fact.subject, v=value) + "?"
        answer = f"{'Yes' if true else 'No'}, {fact.statement}."
    else:
        subject = rng.choice([*world.PEOPLE, *world.TOWNS, *world.CREATURES])
        chosen = rng.sample(world.about(subject), 2)
        asked = f"what do you know of {subject}, the {chosen[0].relation.name} and the {chosen[1].relation.name}?"
        answer = " ".join(world.sentence(fact.statement) for fact in chosen)
    greeting = rng.choice(("", "Hello, ", "Please, ", "Tell me, "))
    return {"messages": [{"role": "user", "content": greeting + asked}, {"role": "assistant", "content": answer}]}


_MIXTURE: dict[str, Callable[[random.Random], Record]] = {
    "sums": _sums,
    "facts": _facts,
    "quiz": _quiz,
    "orders": _orders,
    "drills": _drills,
    "talk": _talk,
}
_SETS = {**_MIXTURE, "sums": _long_sums, "facts": _new_facts, "quiz": _new_quiz, "orders": _new_orders}


def draw_mixture(name: str, rng: random.Random) -> Record:
    """One record of the pre-training mixture's version of a set."""
    return _MIXTURE[name](rng)


def key(record: Record) -> str:
    """What makes two records the same record."""
    return json.dumps(record, sort_keys=True)


def make_records(
    name: str, train: int = TRAIN, test: int = TEST, *, mixture: bool = False
) -> tuple[list[Record], list[Record]]:
    """Distinct records of one set, drawn from a fixed seed: (train, test), which share none.

    With `mixture`, of the pre-training mixture's version of it. The test records are drawn first. Raises ValueError where
    the set has fewer distinct records than asked for.
    """
    maker = (_MIXTURE if mixture else _SETS)[name]
    rng = random.Random(f"{SEED}/{name}")
    seen: dict[str, Record] = {}
    for _ in range(200 * (train + test)):
        record = maker(rng)
        seen.setdefault(key(record), record)
        if len(seen) == train + test:
            records = list(seen.values())
            return records[test:], records[:test]
    raise ValueError(f"set '{name}' has only {len(seen)} distinct records, {train + test} were asked for")
