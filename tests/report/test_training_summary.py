"""The lines that a command prints of trainings: figures that were put into the tables by hand."""

import pandas as pd

from raysweep.report.summary import summary_lines


def training(arm, seed, losses, study="adaptation"):
    steps = range(0, 10 * len(losses), 10)
    return pd.DataFrame({"model": "m", "dataset": "d", "study": study, "arm": arm, "layers": "0-3", "seed": seed,
                         "step": list(steps), "split": "test", "loss": losses})  # fmt: skip


def test_a_fine_tune_says_where_its_loss_went():
    (line,) = summary_lines({"training": training("all", 3, [4.0, 1.5, 0.25], "finetune")})
    assert line.startswith("m on d: Fine-tuned (layers ")
    assert "seed 3) in 20 steps" in line
    assert "from 4.000 to 0.250 nats" in line
    assert "<" not in line


def test_arms_are_compared_in_plain_words():
    rows = [
        ("critical", "non_critical", measure, 3, 20, value, value - 0.1, value + 0.1, None)
        for measure, value in (("area", -0.5), ("final", -0.75))
    ]
    columns = ["arm", "versus", "measure", "seeds", "steps", "value", "ci_low", "ci_high", "reason"]
    compared = pd.DataFrame(rows, columns=columns).assign(model="m", dataset="d")
    curves = pd.concat(
        [training(arm, seed, [4.0, 2.0, 1.0]) for arm in ("critical", "non_critical") for seed in range(3)]
    )
    (line,) = summary_lines({"adaptation": compared, "training": curves})
    assert "falls faster with" not in line
    assert "falls faster than" in line
    assert "0.50 nats lower" in line
    compared["ci_high"] = 0.2
    (line,) = summary_lines({"adaptation": compared, "training": curves})
    assert "undecided" in line


def test_steps_of_a_training_count_once():
    losses = training("all", 3, [4.0, 1.5], "finetune")
    along = pd.DataFrame({"model": ["m", "m"], "dataset": "d", "step": [5, 10], "measured": ["m.step-5", "m"]})
    of_step = losses.assign(model="m.step-5")
    assert len(summary_lines({"training": pd.concat([losses, of_step]), "along": along})) == 1
    assert len(summary_lines({"training": pd.concat([losses, of_step])})) == 2
