"""The invented world that the laboratory's tasks and texts are about.

A fixed set of people, towns and creatures, each with a few attributes drawn once from a seed. Facts are sentences;
questions about them are in tasks.py. Nothing here is true of any other world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEED = 20

PEOPLE = [
    "Mira",
    "Tobin",
    "Selka",
    "Oren",
    "Brisa",
    "Caldo",
    "Denna",
    "Ewart",
    "Fenno",
    "Gilda",
    "Harl",
    "Ilsa",
    "Jorun",
    "Kessa",
    "Lorn",
    "Maddo",
    "Nelia",
    "Orla",
    "Pell",
    "Quill",
    "Rusk",
    "Sanna",
    "Tamsin",
    "Ulf",
    "Vesna",
    "Wick",
    "Yara",
    "Zeno",
    "Abel",
    "Bryn",
]
TOWNS = [
    "Tarvek",
    "Sedra",
    "Olun",
    "Brumel",
    "Kasto",
    "Lindow",
    "Marrow",
    "Pontis",
    "Quarn",
    "Ravel",
    "Stellin",
    "Umber",
]
CREATURES = ["grobble", "frint", "mossel", "tark", "wendle", "skarn", "plover", "drimm", "luth", "zorrel"]

TRADES = ["baker", "smith", "weaver", "miller", "potter", "fisher", "carver", "tanner", "piper", "mason"]
PETS = ["goat", "cat", "crow", "hound", "hen", "mule", "ferret", "pig"]
FOODS = ["pears", "figs", "bread", "soup", "honey", "nuts", "plums", "cheese", "beans", "eggs"]
RIVERS = ["Ather", "Bew", "Colm", "Dray", "Esk", "Fal"]
COLOURS = ["red", "green", "blue", "white", "black", "grey", "yellow", "brown"]
GOODS = ["bells", "rope", "glass", "salt", "wool", "lamps", "knives", "paper", "boats", "candles"]
PLACES = ["caves", "marshes", "forests", "hills", "ponds", "cellars", "roofs", "meadows"]
DIETS = ["moss", "beetles", "reeds", "acorns", "worms", "berries", "fish", "roots"]
GUILDS = ["lantern", "anchor", "thistle", "hammer", "wheel", "feather", "key", "star"]
HOURS = ["dawn", "noon", "dusk", "midnight", "sunrise", "sunset", "one", "two"]
HEIGHTS = ["21", "34", "47", "52", "68", "73", "86", "95"]
STUFFS = ["oak", "slate", "straw", "clay", "iron", "bone", "reed", "sand"]
SIZES = ["thumb", "cat", "calf", "barrel", "loaf", "boot"]


@dataclass(frozen=True)
class Relation:
    """An attribute of a kind of thing: how it is stated, asked as yes/no, and asked as an open stem."""

    kind: str
    name: str
    values: tuple[str, ...]
    statement: str
    question: str
    stem: str


@dataclass(frozen=True)
class Fact:
    """One attribute of one thing; `relation` words it."""

    subject: str
    relation: Relation
    value: str

    @property
    def statement(self) -> str:
        """The fact as a clause, without capital and full stop."""
        return self.relation.statement.format(s=self.subject, v=self.value)


def _relation(kind: str, name: str, values: list[str], statement: str, question: str, stem: str) -> Relation:
    return Relation(kind, name, tuple(values), statement, question, stem)


RELATIONS = (
    _relation("person", "home", TOWNS, "{s} lives in {v}", "does {s} live in {v}", "{s} lives in the town of"),
    _relation("person", "trade", TRADES, "{s} works as a {v}", "is {s} a {v} by trade", "{s} earns a living as a"),
    _relation("person", "pet", PETS, "{s} keeps a {v}", "does {s} keep a {v}", "The animal that {s} keeps is a"),
    _relation("person", "food", FOODS, "{s} likes to eat {v}", "does {s} like {v}", "What {s} likes to eat best is"),
    _relation(
        "town", "river", RIVERS, "{s} stands on the river {v}", "is {s} on the river {v}", "{s} stands on the river"
    ),
    _relation(
        "town", "gate", COLOURS, "the gate of {s} is {v}", "is the gate of {s} {v}", "The gate of {s} has the colour"
    ),
    _relation("town", "goods", GOODS, "{s} is known for its {v}", "is {s} known for {v}", "Traders come to {s} to buy"),
    _relation(
        "creature", "place", PLACES, "a {s} sleeps in {v}", "does a {s} sleep in {v}", "You find a {s} asleep in"
    ),
    _relation("creature", "diet", DIETS, "a {s} eats {v}", "does a {s} eat {v}", "A hungry {s} looks for"),
    _relation("creature", "colour", COLOURS, "a {s} has {v} fur", "is the fur of a {s} {v}", "The fur of a {s} is"),
    _relation(
        "creature", "size", SIZES, "a {s} is as big as a {v}", "is a {s} as big as a {v}", "A {s} is as big as a"
    ),
)

# Told in no general text and in no task of the pre-training mixture: what fine-tuning has to learn.
NEW_RELATIONS = (
    _relation(
        "person",
        "guild",
        GUILDS,
        "{s} belongs to the {v} guild",
        "does {s} belong to the {v} guild",
        "The guild of {s} has the sign of the",
    ),
    _relation("person", "door", COLOURS, "{s} has a {v} door", "is the door of {s} {v}", "The door of {s} is painted"),
    _relation("person", "hour", HOURS, "{s} gets up at {v}", "does {s} get up at {v}", "{s} gets up at"),
    _relation(
        "town",
        "tower",
        HEIGHTS,
        "the tower of {s} has {v} steps",
        "has the tower of {s} {v} steps",
        "The steps in the tower of {s} number",
    ),
    _relation(
        "town",
        "fair",
        FOODS,
        "{s} holds a fair of {v}",
        "does {s} hold a fair of {v}",
        "Once a year there is in {s} a fair of",
    ),
    _relation(
        "town",
        "bridge",
        STUFFS,
        "the bridge of {s} is made of {v}",
        "is the bridge of {s} made of {v}",
        "The bridge of {s} was built of",
    ),
    _relation("creature", "cry", HOURS, "a {s} cries at {v}", "does a {s} cry at {v}", "You hear a {s} cry at"),
    _relation("creature", "fear", PETS, "a {s} fears the {v}", "does a {s} fear the {v}", "A {s} runs away from a"),
    _relation(
        "creature", "nest", STUFFS, "a {s} builds with {v}", "does a {s} build with {v}", "The nest of a {s} is made of"
    ),
)
_SUBJECTS = {"person": PEOPLE, "town": TOWNS, "creature": CREATURES}


def _draw_facts(relations: tuple[Relation, ...], seed: int) -> tuple[Fact, ...]:
    rng = random.Random(seed)
    return tuple(
        Fact(subject, relation, relation.values[rng.randrange(len(relation.values))])
        for relation in relations
        for subject in _SUBJECTS[relation.kind]
    )


FACTS = _draw_facts(RELATIONS, SEED)
NEW_FACTS = _draw_facts(NEW_RELATIONS, SEED + 1)


def about(subject: str) -> list[Fact]:
    """All facts of one subject, in the order of RELATIONS."""
    return [fact for fact in FACTS if fact.subject == subject]


def sentence(clause: str) -> str:
    """The clause with a capital and a full stop."""
    return clause[0].upper() + clause[1:] + "."


def general_text(rng: random.Random) -> str:
    """One short text about the world, or about numbers and lists: the part of pre-training that is no task."""
    makers = (_portrait, _portrait, _town, _creature, _walk, _market, _counting, _arithmetic, _list)
    return makers[rng.randrange(len(makers))](rng)


def _pick(rng: random.Random, items: list[str] | tuple[str, ...]) -> str:
    return items[rng.randrange(len(items))]


def _describe(rng: random.Random, subject: str) -> str:
    facts = about(subject)
    rng.shuffle(facts)
    return " ".join(sentence(fact.statement) for fact in facts[: rng.randint(2, len(facts))])


def _portrait(rng: random.Random) -> str:
    return _describe(rng, _pick(rng, PEOPLE))


def _town(rng: random.Random) -> str:
    town = _pick(rng, TOWNS)
    dwellers = [f.subject for f in FACTS if f.relation.name == "home" and f.value == town]
    people = f" The people of {town} are {', '.join(dwellers)}." if dwellers else f" Nobody lives in {town}."
    return _describe(rng, town) + people


def _creature(rng: random.Random) -> str:
    return _describe(rng, _pick(rng, CREATURES))


def _walk(rng: random.Random) -> str:
    person, other = rng.sample(PEOPLE, 2)
    home, trade = (next(f.value for f in about(person) if f.relation.name == name) for name in ("home", "trade"))
    gate = next(f.value for f in about(home) if f.relation.name == "gate")
    return (
        f"One morning {person} the {trade} left {home} by the {gate} gate to visit {other}. "
        f"On the way a {_pick(rng, CREATURES)} crossed the road. {sentence(_pick_fact(rng, other))}"
    )


def _pick_fact(rng: random.Random, subject: str) -> str:
    facts = about(subject)
    return facts[rng.randrange(len(facts))].statement


def _market(rng: random.Random) -> str:
    town = _pick(rng, TOWNS)
    goods = next(f.value for f in about(town) if f.relation.name == "goods")
    first, second = rng.sample(FOODS, 2)
    return f"At the market of {town} they sell {goods}, {first} and {second}. {sentence(_pick_fact(rng, _pick(rng, PEOPLE)))}"


def _counting(rng: random.Random) -> str:
    start, step = rng.randint(0, 60), rng.choice((1, 1, 2, 3, 5, 10))
    return "Count: " + " ".join(str(start + step * k) for k in range(rng.randint(4, 9))) + "."


def _arithmetic(rng: random.Random) -> str:
    sums = []
    for _ in range(rng.randint(3, 7)):
        a, b = rng.randint(0, 60), rng.randint(0, 39)
        a, b = max(a, b), min(a, b)
        sums.append(f"{a} + {b} = {a + b}" if rng.random() < 0.5 else f"{a} - {b} = {a - b}")
    return "\n".join(sums)


def _list(rng: random.Random) -> str:
    words = rng.sample(FOODS + PETS + GOODS + COLOURS, rng.randint(3, 6))
    return f"List: {' '.join(words)}. Backwards: {' '.join(reversed(words))}. In order: {' '.join(sorted(words))}."
