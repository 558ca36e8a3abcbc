"""Runs whose chat template reads the clock: one date for a run folder, whatever the day."""

from __future__ import annotations

import datetime
import json
import shutil

import pytest
import yaml
from transformers.utils import chat_template_utils

from raysweep.api import critical
from raysweep.config import load_config
from raysweep.engine import reader
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.planned import plan_run

BODY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
DATED = "{{ strftime_now('%d %b %Y') }}" + BODY
ALONE = ("studies={substitution: {widths: [3]}}", "execution.chunk=5")


@pytest.fixture
def clock(monkeypatch):
    """clock(date): what the clock says from now on, here and to transformers."""

    def move(date):
        class Moved(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime.fromisoformat(date)

        monkeypatch.setattr(chat_template_utils, "datetime", Moved)
        monkeypatch.setattr(reader, "today", lambda: date)

    return move


@pytest.fixture
def dated_config(make_config, world, tmp_path):
    """dated_config(storage, "key=value", …): the plain config on checkpoints whose chat template is `template`."""

    def make(storage, *overrides, template=DATED):
        for name in ("base", "tuned"):
            folder = shutil.copytree(world / name, tmp_path / name, dirs_exist_ok=True)
            (folder / "chat_template.jinja").write_text(template)
        places = (f"models.0.base={tmp_path / 'base'}", f"models.0.tuned.first={tmp_path / 'tuned'}")
        return make_config(storage, *places, *ALONE, *overrides)

    return make


def keys_of(config, **more):
    return [key for task in plan(config, inspect(config, **more)).tasks for key in task.keys]


def prompts_of(facts):
    return [example.prompt for example in facts.cells["m", "first"].examples]


def test_texts_are_of_the_date_that_is_asked_for(dated_config, clock):
    clock("2031-02-03")
    today, pinned = (
        inspect(dated_config("nowhere")),
        inspect(dated_config("nowhere", "models.0.template_date=2024-07-26")),
    )
    assert all(prompt.startswith("03 Feb 2031<user>") for prompt in prompts_of(today))
    assert all(prompt.startswith("26 Jul 2024<user>") for prompt in prompts_of(pinned))
    assert today.template_dates == {"m": "2031-02-03"}
    assert pinned.template_dates == {"m": "2024-07-26"}
    recorded = inspect(dated_config("nowhere"), template_dates={"m": "1999-01-01", "other": "2000-01-01"})
    assert recorded.template_dates == {"m": "1999-01-01"}


def test_the_date_is_part_of_the_keys_if_the_clock_is_read_and_else_changes_nothing(dated_config, clock, make_config):
    clock("2031-02-03")
    one, other = keys_of(dated_config("nowhere")), keys_of(dated_config("nowhere", "models.0.template_date=2024-07-26"))
    assert len(one) == len(other) > 0
    assert not set(one) & set(other)
    clock("2024-07-26")
    assert keys_of(dated_config("nowhere")) == other
    before = keys_of(make_config("nowhere", *ALONE))
    assert keys_of(make_config("nowhere", *ALONE, "models.0.template_date=1999-01-01")) == before
    plain = inspect(make_config("nowhere", *ALONE))
    assert plain.template_dates == {}
    assert plain.warnings == ()


def test_a_date_that_no_template_asks_for_is_reported(make_config, dated_config):
    told = "models[].template_date of 'm' is 2024-07-26 and has no effect: no chat template reads the clock"
    assert inspect(make_config("nowhere", *ALONE, "models.0.template_date=2024-07-26")).warnings == (told,)
    asked = ("models.0.template_date=2024-07-26", "models.0.template=plain")
    assert inspect(dated_config("nowhere", *asked)).warnings == (told,)


def test_a_run_is_resumed_at_its_date_on_another_day(dated_config, clock, tmp_path, tables_of, same_tables):
    clock("2031-02-03")
    config = dated_config(tmp_path / "run")
    first = drive(config)
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert kept["models"][0]["template_date"] == "2031-02-03"
    about = json.loads((tmp_path / "run/plan.json").read_text())["about"]
    assert [row["template_date"] for row in about["datasets"]] == ["2031-02-03"]

    clock("2031-02-04")
    again = drive(config)
    assert again.n_calls == 0
    same_tables(tables_of(again), tables_of(first), exactly=True)
    told = plan_run(config)
    assert set(told.tasks.values()) == {(n, n) for _, n in told.tasks.values()}
    assert told.template_dates == {"m": "2031-02-03"}
    assert told.to_text().startswith(
        "date         the chat template of m reads the clock and gets 2031-02-03, now and when this run is resumed "
        "(models[].template_date sets another)\n"
    )
    assert told.to_json()["template_dates"] == {"m": "2031-02-03"}
    assert drive(load_config(tmp_path / "run/config.yaml")).n_calls == 0  # the config that the run has kept

    half = drive(dated_config(tmp_path / "run", "datasets.0.limit=5"))  # the first of the two chunks
    assert half.n_calls == 0
    more = drive(dated_config(tmp_path / "run", "studies.substitution.widths=[2, 3]"))
    fresh = drive(
        dated_config(tmp_path / "other", "models.0.template_date=2031-02-03", "studies.substitution.widths=[2, 3]")
    )
    same_tables(tables_of(more), tables_of(fresh))


def test_a_fresh_run_and_another_date_begin_anew(dated_config, clock, tmp_path):
    clock("2031-02-03")
    drive(dated_config(tmp_path / "run"))
    clock("2031-02-04")
    pinned = drive(dated_config(tmp_path / "run", "models.0.template_date=2024-07-26"))
    assert pinned.n_calls > 0
    assert drive(dated_config(tmp_path / "run")).n_calls == 0  # the latest date recorded
    assert drive(dated_config(tmp_path / "run"), fresh=True).n_calls > 0
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert kept["models"][0]["template_date"] == "2031-02-04"


def test_a_run_that_reads_no_clock_records_no_date(make_config, tmp_path):
    drive(make_config(tmp_path / "run", *ALONE))
    assert "template_date" not in (tmp_path / "run/config.yaml").read_text()
    about = json.loads((tmp_path / "run/plan.json").read_text())["about"]
    assert not any("template_date" in row for row in about["datasets"])
    planned = plan_run(make_config(tmp_path / "run", *ALONE)).to_text()
    assert not any(line.startswith("date ") for line in planned.splitlines())


@pytest.mark.parametrize("content", ["models: [", "models: 7", "models: [{name: m, template_date: soon}]", "", "[]"])
def test_a_damaged_record_is_no_record(content, dated_config, clock, tmp_path):
    clock("2031-02-03")
    drive(dated_config(tmp_path / "run"))
    (tmp_path / "run/config.yaml").write_text(content)
    assert plan_run(dated_config(tmp_path / "run")).template_dates == {"m": "2031-02-03"}
    clock("2031-02-04")
    assert plan_run(dated_config(tmp_path / "run")).template_dates == {"m": "2031-02-04"}


def test_checkpoints_along_a_training_have_the_models_date(training_config, world, tmp_path, clock):
    clock("2031-02-03")
    base = shutil.copytree(world / "base", tmp_path / "base")
    (base / "chat_template.jinja").write_text(DATED)
    studies = {"substitution": {"widths": [3]}, "finetune": {"along": [1], "trainer": {"max_steps": 2}}}
    config = training_config(tmp_path / "run", studies, f"models.0.base={base}")
    told = plan_run(config)
    assert told.template_dates == {"m": "2031-02-03"}
    assert any("step-1" in name for name in told.names)


def test_critical_layers_report_the_date(dated_config, clock):
    clock("2031-02-03")
    told: list[str] = []
    critical(dated_config("nowhere", "studies={similarity: {}}"), resamples=10, warn=told.append)
    assert told == ["the chat template of m reads the clock and gets 2031-02-03"]
