"""Removals against a plain study: components by an SVD of the test's own, whole forward passes one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.blocks import find_blocks
from raysweep.models.surgery import Mode, Positions
from raysweep.studies.removal import NOTHING, Removal
from raysweep.studies.removal_effects import removal_effects, states_at
from raysweep.studies.removal_tables import nowhere_to_remove, remove_at_layer

Tiny = Callable[..., PreTrainedModel]
Draw = Callable[..., list[Example]]
LAYER = 1
CHOSEN: list[tuple[tuple[int, ...], bool]] = [((0,), False), ((0, 1, 2), False), ((1, 3), True)]
REMOVALS = [
    Removal(chosen, mode, position, keep_mean)
    for chosen, keep_mean in CHOSEN
    for mode in get_args(Mode)
    for position in get_args(Positions)
]


@contextmanager
def changed(model: PreTrainedModel, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[None]:
    """The layer's output of the only row as `change` [T, D] → [T, D] makes it, in float64."""

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(change(output[0].double().numpy()))[None].to(output.dtype)

    handle = find_blocks(model)[LAYER].register_forward_hook(hook)
    yield
    handle.remove()


def log_softmax(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Plain:
    """The study once more, plainly."""

    def __init__(self, model: PreTrainedModel, examples: list[Example]) -> None:
        self.model, self.examples = model, examples
        self.stored = np.stack([self._state(e) for e in examples])
        self.mean = self.stored.mean(axis=0)
        self.directions = np.linalg.svd(self.stored - self.mean, full_matrices=False)[2]

    def _state(self, example: Example) -> np.ndarray:
        seen: list[np.ndarray] = []

        def note(states: np.ndarray) -> np.ndarray:
            seen.append(states)
            return states

        with changed(self.model, note):
            log_softmax(self.model, example.tokens[: example.n_prompt])
        return seen[0][-1]

    def change(self, index: int, removal: Removal) -> Callable[[np.ndarray], np.ndarray]:
        C = self.directions[list(removal.chosen)]
        centre = self.mean if removal.keep_mean else 0 * self.mean
        first = self.examples[index].n_prompt - 1 if removal.position == "last" else 0

        def make(H: np.ndarray) -> np.ndarray:
            source = H if removal.mode == "project" else np.repeat(self.stored[index][None], len(H), axis=0)
            out = H.copy()
            out[first:] -= ((source - centre) @ C.T @ C)[first:]
            return out

        return make

    def figures(self, index: int, removal: Removal) -> tuple[float, float, float]:
        """Loss, mean divergence over the response, divergence at its first token."""
        example = self.examples[index]
        labels = slice(example.n_prompt - 1, None)
        before = log_softmax(self.model, example.tokens[:-1])[labels]
        with changed(self.model, self.change(index, removal)):
            after = log_softmax(self.model, example.tokens[:-1])[labels]
        divergence = (np.exp(before) * (before - after)).sum(axis=-1)
        return -after[np.arange(len(after)), example.targets].mean(), divergence.mean(), divergence[0]

    def written(self, index: int, removal: Removal, n: int) -> list[int]:
        """Greedy tokens by the whole forward for each, without a cache."""
        example = self.examples[index]
        ids = example.tokens[: example.n_prompt].tolist()
        with changed(self.model, self.change(index, removal)):
            for _ in range(n):
                ids.append(int(log_softmax(self.model, np.array(ids))[-1].argmax()))
                if ids[-1] == self.model.generation_config.eos_token_id:
                    break
        return ids[example.n_prompt :]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def plain(request: pytest.FixtureRequest, tiny: Tiny, random_examples: Draw) -> Plain:
    return Plain(tiny(request.param), random_examples(7))


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_losses_and_divergences_are_those_of_plain_forwards(plain: Plain, batch_tokens: int) -> None:
    effects, stored = removal_effects(Adapter(plain.model), plain.examples, LAYER, REMOVALS, batch_tokens=batch_tokens)
    np.testing.assert_allclose(stored, plain.stored, atol=1e-5)
    for row, removal in enumerate(REMOVALS):
        told = np.array([plain.figures(index, removal) for index in range(len(plain.examples))]).T
        for ours, theirs in zip((effects.removed_loss, effects.kl, effects.first_kl), told, strict=True):
            np.testing.assert_allclose(ours[row], theirs, atol=2e-5, rtol=1e-4, err_msg=str(removal))
    untouched = [plain.figures(index, NOTHING)[0] for index in range(len(plain.examples))]
    np.testing.assert_allclose(effects.loss, untouched, atol=1e-5)
    assert np.abs(effects.removed_loss - effects.loss).max() > 0.1, (
        "removals change losses, so that agreement says something"
    )


def test_after_project_nothing_is_left_and_the_first_token_is_as_after_paper(plain: Plain) -> None:
    effects, _ = removal_effects(Adapter(plain.model), plain.examples, LAYER, [*REMOVALS, NOTHING])
    project = [row for row, removal in enumerate(REMOVALS) if removal.mode == "project"]
    assert effects.inner_product[project].max() < 1e-6
    for row in project:  # the next entry but one is paper at the same position
        if REMOVALS[row].position == "last":
            np.testing.assert_allclose(effects.first_kl[row], effects.first_kl[row + 2], atol=1e-6)
    assert effects.inner_product[project[0] + 2] > 1e-2
    assert np.array_equal(effects.removed_loss[-1], effects.loss)
    assert not effects.kl[-1].any()


def test_texts_are_those_of_greedy_decoding_by_whole_forwards(plain: Plain, tokenizer: PreTrainedTokenizerBase) -> None:
    removals = [NOTHING, *REMOVALS]
    before = [(name, len(m._forward_hooks)) for name, m in plain.model.named_modules()]
    tables = remove_at_layer(Adapter(plain.model), tokenizer, plain.examples, LAYER, removals, shown=3, new_tokens=6)
    texts = tables["generation"]
    assert list(texts.columns) == ["example_id", "intervention", "prompt", "reference", "text"]
    assert len(texts) == 3 * len(removals)
    for removal in removals:
        written = [tokenizer.decode(plain.written(i, removal, 6), skip_special_tokens=True) for i in range(3)]
        rows = texts[texts["intervention"] == removal.words(LAYER)]
        assert list(rows["text"]) == written, removal
        assert list(rows["example_id"]) == [e.id for e in plain.examples[:3]]
    assert [(name, len(m._forward_hooks)) for name, m in plain.model.named_modules()] == before
    same = tables["removal"].query("measure == 'text_same'").set_index(["components", "mode", "mean", "position"])
    untouched = list(texts["text"][:3])
    for removal in REMOVALS:
        rows = texts[texts["intervention"] == removal.words(LAYER)]
        value = float(same.loc[tuple(removal.labels.values()), "value"])
        assert value == pytest.approx(np.mean([a == b for a, b in zip(rows["text"], untouched, strict=True)]))


def test_the_table_has_means_paired_intervals_and_shares(plain: Plain, tokenizer: PreTrainedTokenizerBase) -> None:
    adapter = Adapter(plain.model)
    effects, _ = removal_effects(adapter, plain.examples, LAYER, REMOVALS)
    table = remove_at_layer(adapter, tokenizer, plain.examples, LAYER, REMOVALS, shown=1, new_tokens=1)["removal"]
    assert list(table["measure"][:8]) == [
        *("loss_before", "loss", "loss_change", "kl", "kl_first", "inner_product", "variance_share", "text_same")
    ]
    assert len(table) == 8 * len(REMOVALS)
    first = table[:8].set_index("measure")
    d = effects.removed_loss[0] - effects.loss
    half = 2.4469118511449692 * d.std(ddof=1) / np.sqrt(7)  # Student's t, 6 degrees of freedom
    np.testing.assert_allclose(
        first.loc["loss_change", ["value", "ci_low", "ci_high"]].astype(float),
        [d.mean(), d.mean() - half, d.mean() + half],
        atol=1e-9,
    )
    s = np.linalg.svd(plain.stored - plain.mean, compute_uv=False) ** 2
    assert first.loc["variance_share", "value"] == pytest.approx(s[0] / s.sum(), rel=1e-5)
    assert table["reason"].isna().all()
    assert set(table["layer"]) == {LAYER}


def test_components_that_are_not_there_have_a_reason_and_no_text(
    tiny: Tiny, random_examples: Draw, tokenizer: PreTrainedTokenizerBase
) -> None:
    adapter = Adapter(tiny("llama"))
    asked = [Removal((0,)), Removal((0, 1, 2)), Removal((3,))]
    tables = remove_at_layer(adapter, tokenizer, random_examples(4), LAYER, asked, shown=2, new_tokens=2)
    rows = tables["removal"]
    lacking = rows[(rows["components"] == "3") & (rows["measure"] != "loss_before")]
    assert lacking["value"].isna().all()
    told = "component 3 is requested, and 4 examples have 3 components at most"
    assert set(lacking["reason"]) == {told}
    assert rows[rows["components"] == "top 3"]["value"].notna().all()
    assert "removal 3 at 1 project last" not in set(tables["generation"]["intervention"])
    same = random_examples(1) * 3
    rows = remove_at_layer(adapter, tokenizer, same, LAYER, asked[:1], shown=1, new_tokens=1)["removal"][1:]
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"component 0 is requested, and all examples have the same state"}


def test_nowhere_to_remove_has_a_row_a_removal_and_its_reason() -> None:
    tables = nowhere_to_remove(REMOVALS, "fewer than 3 layers have a δ")
    assert len(tables["generation"]) == 0
    assert len(tables["removal"]) == len(REMOVALS)
    assert tables["removal"]["layer"].isna().all()
    assert set(tables["removal"]["reason"]) == {"fewer than 3 layers have a δ"}


def test_a_state_that_is_not_finite_is_named(tiny: Tiny, random_examples: Draw) -> None:
    adapter, examples = Adapter(tiny("llama")), random_examples(4)
    of_others = {int(token) for e in examples for token in e.tokens if e is not examples[2]}
    only = next(int(token) for token in examples[2].tokens[: examples[2].n_prompt] if int(token) not in of_others)
    with torch.no_grad():
        adapter.model.model.embed_tokens.weight[only] = torch.nan
    with pytest.raises(InputError, match=r"^the state of record 6 at layer 1 is not finite \(so of 1 of 4\)"):
        states_at(adapter, examples, LAYER)
    with pytest.raises(IndexError, match="layer 4 is not among 4 layers"):
        removal_effects(adapter, examples, 4, REMOVALS)


@pytest.mark.parametrize(
    ("removal", "words"),
    [
        (NOTHING, "removal none at 8"),
        (Removal((0,)), "removal top 1 at 8 project last"),
        (Removal((0, 1, 2), "paper", "all"), "removal top 3 at 8 paper all"),
        (Removal((0, 2), keep_mean=True), "removal 0,2 at 8 project last mean kept"),
    ],
)
def test_words(removal: Removal, words: str) -> None:
    assert removal.words(8) == words
