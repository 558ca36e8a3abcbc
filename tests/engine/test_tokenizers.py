"""What is said where base and tuned would read one text in two ways."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from raysweep.engine import tokenizers
from raysweep.engine.inspection import inspect
from raysweep.engine.origins import describe_run
from raysweep.errors import InputError

OTHER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def tuned(world, tmp_path, tokenizer):
    """tuned(change): a copy of the tuned checkpoint, its tokenizer's files changed."""

    def make(change):
        folder = shutil.copytree(world / "tuned", tmp_path / "other")
        change(folder)
        return folder

    return make


def with_template(folder):
    (folder / "chat_template.jinja").write_text(OTHER)


def with_blank(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + "{# a remark #}")


def with_two_tokens_swapped(folder):
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    ids = told["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(told))


def with_changed(change):
    """A change of the tokenizer's own file."""

    def changed(folder):
        path = folder / "tokenizer.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    return changed


def with_split_words(folder):
    split = {"type": "Split", "pattern": {"Regex": "n|e"}, "behavior": "Isolated", "invert": False}

    def change(told):
        own = [told["pre_tokenizer"]] if told["pre_tokenizer"] else []
        told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *own]}

    with_changed(change)(folder)


def with_fewer_merges(folder):
    with_changed(lambda told: told["model"].update(merges=told["model"]["merges"][:5]))(folder)


def with_small_letters(folder):
    with_changed(
        lambda told: told.update(normalizer={"type": "Replace", "pattern": {"String": "seven"}, "content": "nine"})
    )(folder)


def with_a_word_as_a_token(folder):
    """An entry of the vocabulary that is found before anything is split."""
    word = "t" if "t" in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] else "e"

    def change(told):
        number = told["model"]["vocab"][word]
        flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": False}
        told["added_tokens"].append({"id": number, "content": word, **flags})

    with_changed(change)(folder)


def without_a_reader(folder):
    (folder / "tokenizer.json").write_text("{")


def test_tokens_with_two_ids_are_refused(make_config, world, tuned):
    folder = tuned(with_two_tokens_swapped)
    with pytest.raises(InputError) as caught:
        inspect(make_config("nowhere", f"models.0.tuned.first={folder}"))
    told = str(caught.value)
    assert told.startswith(f"base '{world}/base' and tuned '{folder}' have tokenizers that do not agree: the token '")
    assert "; a pair must share one vocabulary; " in told


def splitting(world, folder, used=None):
    """Of the texts of the `first` records: how many two tokenizers split differently, tokens, and tokens of the first's alone."""
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (used or world / "base", folder))
    n_texts = n_tokens = n_other = 0
    for line in (world / "first.jsonl").read_text().splitlines():
        record = json.loads(line)
        turns = [{"role": "user", "content": record["question"]}, {"role": "assistant", "content": record["answer"]}]
        text = ours.apply_chat_template(turns, tokenize=False).rstrip()
        one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs))
        n_texts += one != other
        n_tokens += len(one)
        rest = list(other)
        for token in one:
            if token in rest:
                rest.remove(token)
            else:
                n_other += 1
    return n_texts, n_tokens, n_other


def test_another_chat_template_is_told(make_config, world, tuned):
    folder = tuned(with_template)
    config = make_config("nowhere", f"models.0.tuned.first={folder}")
    facts = inspect(config)
    assert facts.warnings == (
        f"first (for m): the chat template of '{folder}' formats 10 of 10 texts differently from the one of "
        f"'{world}/base', which is used for both; its losses may be measured on texts that it was not trained on. Give "
        "both folders the same "
        "tokenizer, the one that the tuned checkpoint was trained with",
    )
    assert describe_run(config, facts)["warnings"] == list(facts.warnings)
    assert inspect(make_config("nowhere", f"models.0.tuned.first={folder}", "models.0.template=plain")).warnings == ()


def test_a_template_that_words_some_texts_differently(make_config, world, tuned):
    def with_a_word_replaced(folder):
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("message.content", "message.content | replace('seven', '7')"))
        assert "replace" in path.read_text()

    texts = (world / "first.jsonl").read_text().splitlines()
    n = sum("seven" in text for text in texts)
    assert 0 < n < len(texts)
    (told,) = inspect(make_config("nowhere", f"models.0.tuned.first={tuned(with_a_word_replaced)}")).warnings
    assert f" formats {n} of 10 texts differently from the one of " in told


def test_a_template_that_refuses_the_records_words_them_differently(make_config, tuned):
    def refusing(folder):
        (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")

    (told,) = inspect(make_config("nowhere", f"models.0.tuned.first={tuned(refusing)}")).warnings
    assert " formats 10 of 10 texts differently " in told


@pytest.mark.parametrize(
    "change",
    [with_split_words, with_fewer_merges, with_small_letters, with_a_word_as_a_token],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_texts_that_are_split_differently_are_counted(make_config, world, tuned, change, template):
    folder = tuned(change)
    facts = inspect(make_config("nowhere", f"models.0.tuned.first={folder}", f"models.0.template={template}"))
    (told,) = facts.warnings
    if template == "chat":
        n_texts, n_tokens, n_other = splitting(world, folder)
        assert n_texts
        assert told == (
            f"first (for m): the tokenizer of '{folder}' splits {n_texts} of 10 texts differently from the one of "
            f"'{world}/base', which is used for both ({n_other} of {n_tokens} tokens are not in its vocabulary); its "
            "losses may be "
            "measured on tokens that "
            "it was not trained on. Give both folders the same tokenizer, the one that the tuned checkpoint was "
            "trained with"
        )
    else:
        assert f"first (for m): the tokenizer of '{folder}' splits " in told


def test_what_a_cut_takes_is_not_compared(make_config, world, tuned, tmp_path):
    """Only the last word of each answer is split differently."""
    folder = tuned(with_split_words)
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (world / "base", folder))
    words = (world / "first.jsonl").read_text().replace('"', " ").split()
    word = next(word for word in words if ours(f" {word}")["input_ids"] != theirs(f" {word}")["input_ids"])
    path = tmp_path / "my.jsonl"
    path.write_text(f'{{"question": "a b", "answer": "c d {word}"}}\n' * 3)
    whole = [tokenizer(f"a b\nc d {word}")["input_ids"] for tokenizer in (ours, theirs)]
    alike = next(i for i, (one, other) in enumerate(zip(*whole, strict=False)) if one != other)
    asked = (f"models.0.tuned.first={folder}", "models.0.template=plain", f"datasets.0.path={path}")
    told = [inspect(make_config("nowhere", *asked, f"datasets.0.max_tokens={n}")).warnings for n in (alike, alike + 1)]
    assert not any("splits" in text for text in told[0])
    assert (
        f"splits 3 of 3 texts differently from the one of '{world}/base', which is used for both (3 of " in told[1][0]
    )


def test_of_many_texts_some_are_compared(make_config, world, tuned, monkeypatch):
    monkeypatch.setattr(tokenizers, "MOST_COMPARED", 4)
    (told,) = inspect(make_config("nowhere", f"models.0.tuned.first={tuned(with_template)}")).warnings
    assert " formats 4 of 4 texts (one in 3 of the data set) differently " in told


def without_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.fixture
def bare(world, tmp_path):
    """A copy of the base without a chat template."""
    folder = shutil.copytree(world / "base", tmp_path / "bare")
    without_template(folder)
    return folder


def tokens_of(facts):
    return [example.tokens.tolist() for example in facts.cells["m", "first"].examples]


def test_the_chat_template_of_the_tuned_is_used_where_the_base_has_none(make_config, world, bare):
    asked = [f"models.0.base={bare}", "studies={substitution: {widths: [2]}}"]
    facts = inspect(make_config("nowhere", *asked))
    assert facts.warnings == (
        f"first (for m): base '{bare}' has no chat template, so the one of '{world}/tuned' formats the records for "
        "both, with its tokenizer",
    )
    assert tokens_of(facts) == tokens_of(inspect(make_config("nowhere", asked[1])))


def test_a_base_that_splits_the_borrowed_texts_differently_is_reported(make_config, world, bare):
    with_split_words(bare)
    n_texts, n_tokens, n_other = splitting(world, bare, used=world / "tuned")
    facts = inspect(make_config("nowhere", f"models.0.base={bare}", "studies={substitution: {widths: [2]}}"))
    assert [text.startswith(f"first (for m): base '{bare}' has no chat template") for text in facts.warnings] == [
        True,
        False,
    ]
    assert facts.warnings[1].startswith(
        f"first (for m): the tokenizer of '{bare}' splits {n_texts} of 10 texts differently from the one of "
        f"'{world}/tuned', which is used for both ({n_other} of {n_tokens} tokens are not in its vocabulary); "
    )


def add_token(folder, token, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(tokenizer) - 1


@pytest.fixture
def with_token(world, tiny_pair, tmp_path):
    """with_token(rows): overrides for a base without a chat template, and a tuned one whose template writes a token more."""

    def make(rows):
        template = OTHER.replace("<assistant>", "<|im_start|>assistant").replace(
            "<{{ m.role }}>", "<|im_start|>{{ m.role }}"
        )
        base, tuned = (tmp_path / name for name in ("roomy-base", "roomy-tuned"))
        for folder, model in zip(
            (base, tuned), tiny_pair("llama", 2, max_position_embeddings=256, vocab_size=rows), strict=True
        ):
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(world / "base").save_pretrained(folder)
        without_template(base)
        number = add_token(tuned, "<|im_start|>", template)
        asked = (f"models.0.base={base}", f"models.0.tuned.first={tuned}", "studies={substitution: {widths: [1]}}")
        return asked, base, tuned, number

    return make


def test_tokens_of_its_own_are_used_where_the_models_have_room(make_config, with_token):
    asked, base, folder, _ = with_token(rows=328)
    facts = inspect(make_config("nowhere", *asked))
    assert facts.warnings == (
        f"first (for m): base '{base}' has no chat template, so the one of '{folder}' formats the records for both, "
        "with its tokenizer; 10 of 10 texts have tokens that the base's tokenizer does not have (<|im_start|>)",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.decode(tokens)[:16] for tokens in tokens_of(facts)] == ["<|im_start|>user"] * 10


def test_tokens_that_the_models_have_no_row_for_are_refused(make_config, with_token, tokenizer):
    n = len(tokenizer)
    asked, base, folder, number = with_token(rows=n)
    assert number == n
    with pytest.raises(InputError) as caught:
        inspect(make_config("nowhere", *asked))
    told = (
        f"its vocabulary has {n} (ids 0 to {n - 1}), its tokenizer {n + 1}, and the largest id is {n}, '<|im_start|>'"
    )
    assert told in str(caught.value)
    assert str(caught.value).endswith(
        f" (base '{base}' has no chat template, so the one of '{folder}' is used; other prompt templates, such as "
        "plain, need no chat template)"
    )


def test_a_template_without_a_tokenizer_is_used_with_the_bases(make_config, world, bare, tuned):
    def alone(folder):
        for path in folder.glob("tokenizer*"):
            path.unlink()

    folder = tuned(alone)
    asked = (f"models.0.base={bare}", f"models.0.tuned.first={folder}", "studies={substitution: {widths: [2]}}")
    facts = inspect(make_config("nowhere", *asked))
    assert facts.warnings == (
        f"first (for m): base '{bare}' has no chat template, so the one of '{folder}' formats the records for both, "
        "with the base's tokenizer",
    )
    assert tokens_of(facts) == tokens_of(inspect(make_config("nowhere", asked[-1])))


def test_no_template_at_all_is_refused(make_config, bare, tuned):
    with pytest.raises(InputError, match="has no chat template, which template 'chat' uses"):
        inspect(make_config("nowhere", f"models.0.base={bare}", f"models.0.tuned.first={tuned(without_template)}"))


@pytest.mark.parametrize("change", [with_blank, without_a_reader, lambda folder: None])
def test_what_makes_no_difference_is_not_told(make_config, tuned, change):
    assert inspect(make_config("nowhere", f"models.0.tuned.first={tuned(change)}")).warnings == ()


def test_the_command_is_told_as_a_shell_takes_it(small, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/raysweep/__main__.py", "sweep", "--response", "{{ answer }}"])
    assert describe_run(*small)["command"] == "raysweep sweep --response '{{ answer }}'"
    monkeypatch.setattr("sys.argv", ["/bin/raysweep", "demo"])
    assert describe_run(*small)["command"] == "raysweep demo"
