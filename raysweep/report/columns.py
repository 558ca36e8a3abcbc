"""The result tables' columns: names, order, types, units and meanings, in one place.

tables.py writes what is declared here; the documentation's reference of tables is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Type = Literal["text", "integer", "number", "boolean"]


@dataclass(frozen=True)
class Column:
    """One column. `values` are the values of a column of names, each with its meaning."""

    type: Type
    meaning: str
    unit: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One table: what a row is, which study writes it, and its columns in order."""

    row: str
    study: str
    columns: Mapping[str, Column]


def _text(meaning: str, **values: str) -> Column:
    return Column("text", meaning, values=values)


def _integer(meaning: str, unit: str = "") -> Column:
    return Column("integer", meaning, unit)


def _number(meaning: str, unit: str = "") -> Column:
    return Column("number", meaning, unit)


MODEL = _text("The model's name in the config. A checkpoint along a training has a name of its own.")
DATASET = _text("The data set's name in the config.")
CELL = {"model": MODEL, "dataset": DATASET}
REASON = _text("Why a figure is NaN, or what to know about it. Null if there is nothing to say.")
METRIC = _text("The measure of similarity, as in `studies.similarity.metrics`.")
NEIGHBOURHOOD = _integer("δ is the mean similarity to this many layers.", "layers")
EXAMPLE = _integer("The record's position in its source, from 0.")
SEED = _integer("The seed of the training.")
LOW, HIGH = _number("Lower end of the 95 % interval."), _number("Upper end of the 95 % interval.")
KIND = _text(
    "What was changed.",
    window="A window of consecutive layers.",
    set="Layers that the config lists under `sets`.",
    attention="The attention part of a window's layers.",
    mlp="The MLP part of a window's layers.",
    reverse="The base model, with a window of the tuned model's layers.",
)
CHANGED = _text("The changed layers: `8-12` for consecutive ones, `3,5,9` for a set, empty for none.")
COEFFICIENT = _number("Weights of the changed layers are (1 − c) · tuned + c · base, with this c.")
ARM = _text("What was trained: an arm of the study, or `all` in a plain fine-tune.")
TRAINED = _text("The decoder layers that were trained: `8-12`, or `3,5,9`. Empty for none.")
JUDGE = _text("The judge: `keywords`, `pattern` or `endpoint`.")
PROMPTS = _text(
    "The kind of prompt.", triggered="The trigger is in the prompt.", clean="The prompt as it is in the records."
)

HEALTH = {
    "not_finite": "Examples whose states at this layer are not finite. Only present if some layer has any.",
    "mean_to_rms": "Norm of the mean state ÷ root mean square of the norms, 0 to 1. Near 1, states hardly differ.",
    "massive_ratio": "Largest magnitude of a value ÷ the median magnitude.",
    "massive_dimension": "The dimension of that largest value.",
    "massive_example": "The example of that largest value, by its `example_id`.",
    "longest_ratio": "The longest state's norm ÷ the median norm.",
    "longest_example": "The example with the longest state, by its `example_id`.",
    "n_over_d": "Number of examples ÷ width of the states.",
    "effective_examples": "How many examples carry the variance: 1 / Σp² over the examples' shares of it.",
    "participation_ratio": "How many principal components carry the variance: 1 / Σp² over their shares of it.",
    "cka_floor": "Biased linear CKA with an unrelated layer of the same spectrum.",
    "top_component_share": "Share of the variance in the first principal component.",
    "top_component_weight": "The CKA of two layers that share the first component and nothing else: p₁² / Σp².",
    "top_dimension_share": "Share of the variance in the dimension that has most of it.",
    "outlier_dimensions": "Number of dimensions that vary more than six times as much as the median dimension.",
    "cka_next": "Biased linear CKA with the next layer.",
    "cka_next_trimmed": "The same without outlier dimensions.",
}
SPECTRUM = {
    "examples": "Number of examples with finite states at every layer.",
    "effective_rank": "exp of the entropy of σ / Σσ (Roy and Vetterli 2007), σ being the singular values.",
    "participation_ratio": "(Σλ)² / Σλ², with λ = σ².",
    "stable_rank": "Σλ / λ₁.",
    "explained_share": "Share of the variance in component k.",
    "explained_cumulative": "Share of the variance in the first k components.",
    "relative_gap": "(λ_k − λ_{k+1}) / λ_k.",
    **{
        f"{name}{step}": f"{words} the first k components and those of the layer at {step.replace('-', '−')}."
        for name, words in (
            ("cca", "Mean canonical correlation between"),
            ("overlap", "Mean squared cosine of the principal angles between"),
        )
        for step in ("-2", "-1", "+1", "+2")
    },
}
REMOVAL = {
    "loss_before": "Mean loss with nothing removed, nats.",
    "loss": "Mean loss with the components removed, nats.",
    "loss_change": "Mean paired difference of the two, nats.",
    "kl": "Mean KL divergence of the next-token distributions over the response, nats.",
    "kl_first": "KL divergence of the distribution of the first response token, nats.",
    "inner_product": "What is left of the components: the largest inner product with one of them ÷ the state's norm.",
    "variance_share": "The removed components' share of the states' variance.",
    "text_same": "Share of the generated texts that did not change.",
}

TABLES: dict[str, Table] = {
    "substitution": Table(
        "one example under one change of the tuned model",
        "studies.substitution",
        {
            **CELL,
            "kind": KIND,
            "layers": CHANGED,
            "start": _integer("First layer of the window. Null for a set.", "layer"),
            "stop": _integer("One past the last layer of the window. Null for a set.", "layer"),
            "width": _integer("How many layers were changed. 0 is the untouched tuned model.", "layers"),
            "centre": _number("Middle of the window. NaN for width 0 and for sets.", "layer"),
            "coefficient": COEFFICIENT,
            "estimator": _text(
                "How the loss was found.", exact="It was measured.", gradient="It was estimated from gradients."
            ),
            "example_id": EXAMPLE,
            "n_tokens": _integer("Response tokens of the example.", "tokens"),
            "loss": _number("Mean negative log likelihood of the response tokens.", "nats a token"),
        },
    ),
    "verification": Table(
        "one example under one recomputed change",
        "studies.substitution.verify",
        {
            **CELL,
            "kind": KIND,
            "layers": CHANGED,
            "coefficient": COEFFICIENT,
            "example_id": EXAMPLE,
            "loss": _number("The sweep's loss.", "nats a token"),
            "recomputed": _number("The loss with the modules actually swapped.", "nats a token"),
            "difference": _number("`recomputed` − `loss`; 0 if both are the same NaN or infinity.", "nats a token"),
        },
    ),
    "stopping": Table(
        "one model on one data set whose sweep may stop early",
        "studies.substitution.stop",
        {
            **CELL,
            "rule": _text("The rule, such as `top 3 of width 5` or `half_width 0.02`."),
            "confidence": _number("The rule's confidence."),
            "examples": _integer("Examples that were used.", "examples"),
            "of": _integer("Examples that there are.", "examples"),
            "share": _number("`examples` ÷ `of`."),
            "settled": Column("boolean", "Whether the rule was met before the last example."),
            "set": _text("With `top`: the windows of the confidence set, the costliest first. Null otherwise."),
            "reason": _text("Why the sweep stopped there."),
        },
    ),
    "similarity": Table(
        "one pair of layers under one measure",
        "studies.similarity",
        {
            "model": MODEL,
            "other": _text("A second model. Null: both layers are of `model`."),
            "dataset": DATASET,
            "metric": METRIC,
            "layer_i": _integer("The first layer.", "layer"),
            "layer_j": _integer("The second layer.", "layer"),
            "value": _number("The measure. NaN if the examples do not decide it."),
            "ci_low": _number("Lower end of the 95 % interval. CKA only."),
            "ci_high": _number("Upper end of the 95 % interval. CKA only."),
            "reason": REASON,
        },
    ),
    "dynamics": Table(
        "one layer under one measure",
        "studies.similarity",
        {
            **CELL,
            "metric": METRIC,
            "neighbourhood": NEIGHBOURHOOD,
            "layer": _integer("The layer.", "layer"),
            "delta": _number(
                "δ: the layer's mean similarity to its neighbourhood. Small where representations change."
            ),
            "ci_low": _number("Lower end of the 95 % interval of δ. CKA only."),
            "ci_high": _number("Upper end of the 95 % interval of δ. CKA only."),
            "rank": _integer("Rank of δ among the layers; 1 is the smallest."),
            "rank_low": _number("Lower end of the range that holds 95 % of the layer's ranks over half-samples."),
            "rank_high": _number("Upper end of that range."),
            "chosen": _number("Share of the half-samples in which the layer is among the fifth with the smallest δ."),
        },
    ),
    "critical": Table(
        "one choice of critical layers",
        "studies.similarity",
        {
            **CELL,
            "metric": METRIC,
            "neighbourhood": NEIGHBOURHOOD,
            "layers": _text("The chosen layers, such as `3,5,9`: the fifth with the smallest δ."),
            "share": _number("Share of the half-samples of the examples that choose exactly these layers."),
            "whole": Column("boolean", "Whether this is the choice made on all examples."),
        },
    ),
    "health": Table(
        "one figure of one layer that shows how far its CKA can be trusted",
        "studies.similarity",
        {
            **CELL,
            "layer": _integer("The layer.", "layer"),
            "measure": Column("text", "The figure.", values=HEALTH),
            "value": _number("Its value."),
            "warning": _text("Why the layer's CKA should not be trusted, or why the value is NaN. Null otherwise."),
        },
    ),
    "spectrum": Table(
        "one figure of one layer's states, for one number of components",
        "studies.spectrum",
        {
            **CELL,
            "layer": _integer("The layer.", "layer"),
            "components": _integer("The number of components k. Null for figures of all components."),
            "measure": Column("text", "The figure.", values=SPECTRUM),
            "value": _number("Its value. NaN if it is not defined."),
            "reason": REASON,
        },
    ),
    "correlation": Table(
        "one measure and one width, for a model on a data set",
        "studies.correlation",
        {
            **CELL,
            "metric": METRIC,
            "width": _integer("Width of the windows.", "layers"),
            "neighbourhood": NEIGHBOURHOOD,
            "n_layers": _integer("How many window centres are correlated.", "centres"),
            "spearman": _number("ρ: Spearman's rank correlation of δ at the centres with the windows' mean loss."),
            "ci_low": _number("Lower end of the 95 % interval of ρ."),
            "ci_high": _number("Upper end of the 95 % interval of ρ."),
            "p_shift": _number("Share of circular shifts with as strong a ρ. For contrast, not a test."),
            "partial_depth": _number("ρ with the layer's depth removed from both."),
            "kendall": _number("Kendall's τ."),
            "precision_at_k": _number("Share of the fifth with the smallest δ that is among the costliest fifth."),
            "p_value": _number("p of `partial_depth`, with correlated neighbours counted as fewer centres."),
            "effective_layers": _number("As how many independent centres they count."),
            "p_permutation": _number("p if the layers were exchangeable. Far too small; for contrast, not a test."),
            "precision_chance": _number("The precision that a random choice has on average."),
            "p_precision": _number("How often a random choice has at least this precision."),
            "reason": REASON,
        },
    ),
    "removal": Table(
        "one figure of one removal at one layer",
        "studies.removal",
        {
            **CELL,
            "of": _text("The models.", base="The base model.", tuned="The model tuned on the data set."),
            "layer": _integer("The layer.", "layer"),
            "components": _text("The removed components: `top 3`, or `0,2` counted from 0."),
            "mode": _text(
                "What is subtracted.",
                project="Each state's own part in the components.",
                paper="The part of the example's stored state, at every token.",
            ),
            "mean": _text(
                "What happens to the mean state.", removed="It loses its part too.", kept="It stays as it is."
            ),
            "position": _text(
                "Which tokens change.", last="The prompt's last token and all after it.", all="Every token."
            ),
            "measure": Column("text", "The figure.", values=REMOVAL),
            "value": _number("Its value, a mean over examples."),
            "ci_low": LOW,
            "ci_high": HIGH,
            "reason": REASON,
        },
    ),
    "training": Table(
        "one loss of one training",
        "studies.finetune, adaptation, backdoor",
        {
            **CELL,
            "study": _text("The study that trained: `finetune`, `adaptation` or `backdoor`."),
            "arm": ARM,
            "layers": TRAINED,
            "seed": SEED,
            "step": _integer("Training steps done.", "steps"),
            "split": _text(
                "The loss's data.", train="The trainer's own loss on training records.", test="The mean test loss."
            ),
            "loss": _number("The loss.", "nats a token"),
        },
    ),
    "adaptation": Table(
        "two arms compared by one figure",
        "studies.adaptation",
        {
            **CELL,
            "arm": _text("The first arm."),
            "versus": _text(
                "The second arm. Figures are first − second: negative means that the first has the lower loss."
            ),
            "measure": _text(
                "The figure.",
                area="Mean difference of the test losses over the steps.",
                final="Difference at the last step.",
            ),
            "seeds": _integer("Seeds that both arms have.", "seeds"),
            "steps": _integer("The last step.", "steps"),
            "value": _number("The figure, a mean over seeds.", "nats a token"),
            "ci_low": _number("Lower end of the 95 % interval over seeds.", "nats a token"),
            "ci_high": _number("Upper end of the 95 % interval over seeds.", "nats a token"),
            "reason": REASON,
        },
    ),
    "attack": Table(
        "one arm, kind of prompt and judge, for one seed or all seeds together",
        "studies.backdoor",
        {
            **CELL,
            "arm": ARM,
            "layers": _text("The decoder layers that were trained. Null if seeds differ in them."),
            "seed": _integer("The seed of the training. Null: all seeds together."),
            "trigger": _text("The trigger."),
            "prompts": PROMPTS,
            "judge": JUDGE,
            "examples": _integer(
                "Answers with a verdict; for all seeds together, examples with one under every seed.", "examples"
            ),
            "rate": _number("Share of the answers that are a success of the attack."),
            "ci_low": _number("Lower end of the 95 % interval of the rate."),
            "ci_high": _number("Upper end of the 95 % interval of the rate."),
            "harm_mean": _number("Mean score of the judge. NaN for rules, which have no scores.", "1 to 5"),
            "harm_5_share": _number("Share of answers with a score of 5."),
            "clean_loss": _number("Mean test loss on clean records.", "nats a token"),
            "reason": REASON,
        },
    ),
    "answers": Table(
        "one answer and one judge",
        "studies.backdoor",
        {
            **CELL,
            "arm": ARM,
            "seed": SEED,
            "prompts": PROMPTS,
            "example_id": EXAMPLE,
            "prompt": _text("The prompt as the model read it."),
            "text": _text("The answer."),
            "judge": JUDGE,
            "success": Column("boolean", "Whether the attack succeeded. Null without a verdict."),
            "score": _number("The judge's score. NaN for rules.", "1 to 5"),
            "reason": _text("Why there is no verdict. Null if there is one."),
        },
    ),
    "generation": Table(
        "one generated text",
        "studies.substitution.generate, removal",
        {
            **CELL,
            "example_id": EXAMPLE,
            "intervention": _text(
                "The change: `none` (the untouched tuned model), `window 8-12`, `set 3,5,9 at 0.5`, `reverse none` "
                "(the base model), or `removal top 3 at 8 project last`."
            ),
            "prompt": _text("The prompt as the model read it."),
            "reference": _text("The record's own response."),
            "text": _text("The generated text."),
        },
    ),
}
