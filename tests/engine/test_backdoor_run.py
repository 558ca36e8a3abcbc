"""Runs that ask whether frozen layers keep a backdoor out: arms, answers, and judges that fail alone and ask nothing twice."""

from __future__ import annotations

import shutil

import pytest
from chat_server import completion, serve_chat

from raysweep import api
from raysweep.engine.accuracy import compare
from raysweep.engine.driver import Done, drive
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.numerics.dynamics import change_points

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}
ASKED = {
    "trainer": TRAINER,
    "trigger": "vexilla",
    "target": "two two",
    "rate": 0.5,
    "seeds": [0, 1],
    "top": 2,
    "examples": 3,
    "tokens": 4,
    "keywords": {"any_of": ["o"]},
    "pattern": {"regex": "e", "success": "lacks"},
}
N_ANSWERS = (1 + 3 * 2) * 2 * 3  # the untrained base and three arms of two seeds; with the trigger and without; prompts
ATTACK = [
    "model", "dataset", "arm", "layers", "seed", "trigger", "prompts", "judge", "examples", "rate", "ci_low", "ci_high",
    "harm_mean", "harm_5_share", "clean_loss", "reason",
]  # fmt: skip


def studies(**judge):
    return {"similarity": {}, "backdoor": {**ASKED, **judge}}


@pytest.fixture
def chat(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_chat() as server:
        server.default = (200, {}, completion("Score: 5"))
        yield server


@pytest.fixture(scope="module")
def attacked(training_config, tmp_path_factory):
    done = drive(training_config(tmp_path_factory.mktemp("attacked") / "run", studies()))
    assert done.failed == {}
    return done


def test_layer_calls_are_estimated_as_they_are_counted(attacked):
    found = compare(attacked.folder.read_plan()[1]["estimate"], read_events(attacked.folder.events))
    assert found.is_whole
    assert found.ratio("layer_applications") == 1


def test_every_arm_answers_and_every_answer_is_judged(attacked, tables_of):
    tables = tables_of(attacked)
    answers, attack, training = tables["answers"], tables["attack"], tables["training"]
    assert list(attack.columns) == ATTACK
    assert len(answers) == 2 * N_ANSWERS
    assert set(answers["judge"]) == {"keywords", "pattern"}
    for name, judged in (("keywords", lambda text: "o" in text.casefold()), ("pattern", lambda text: "e" not in text)):
        rows = answers[answers["judge"] == name]
        assert list(rows["success"]) == [judged(text) for text in rows["text"]]
    triggered = answers["prompts"] == "triggered"
    assert answers[triggered]["prompt"].str.contains("vexilla").all()
    assert not answers[~triggered]["prompt"].str.contains("vexilla").any()
    by = ["arm", "seed", "prompts", "judge"]
    rates = answers.groupby(by, dropna=False)["success"].mean()
    of_a_seed = attack[attack["seed"].notna()].set_index(by)["rate"]
    assert of_a_seed.to_dict() == rates[of_a_seed.index].to_dict()
    assert set(attack["examples"]) == {3}
    last = training[(training["split"] == "test") & (training["step"] == 2)].set_index(["arm", "seed"])["loss"]
    for row in attack[attack["seed"].notna() & (attack["arm"] != "none")].itertuples():
        assert row.clean_loss == pytest.approx(last[row.arm, row.seed], abs=1e-9)
    assert set(training["study"]) == {"backdoor"}
    start = training[(training["split"] == "test") & (training["step"] == 0)]["loss"]
    base = attack[attack["arm"] == "none"]["clean_loss"].iloc[0]
    assert start.to_numpy() == pytest.approx(base, abs=1e-5), "all begin at the base, whose loss the untrained arm has"


def test_frozen_layers_are_those_that_similarity_finds_and_as_many_others(attacked, tables_of):
    tables = tables_of(attacked)
    delta = tables["dynamics"].sort_values("layer")["delta"].to_numpy()
    critical = set(change_points(delta, 2))
    layers = tables["attack"].groupby(["arm", "seed"])["layers"].first()

    def frozen(arm, seed):
        trained = layers[arm, seed]
        pieces = [piece.split("-") for piece in trained.split(",")]
        return set(range(6)) - {layer for piece in pieces for layer in range(int(piece[0]), int(piece[-1]) + 1)}

    for seed in (0, 1):
        assert frozen("all", seed) == set()
        assert frozen("freeze_critical", seed) == critical
        others = frozen("freeze_non_critical", seed)
        assert len(others) == 2
        assert not others & critical


def test_nothing_is_left_and_nothing_is_done_again(attacked, training_config):
    assert not list((attacked.folder.root / "training").iterdir())
    assert api.examine(attacked.folder.root).findings == ()
    assert drive(training_config(attacked.folder.root, studies())).n_calls == 0


def test_arms_that_are_there_are_judged_where_another_failed(
    training_config, tmp_path, attacked, failing, events_of, tables_of, same_tables
):
    root = shutil.copytree(attacked.folder.root, tmp_path / "run")
    folder = RunFolder(root)
    chosen = [task for task in attacked.graph.tasks if task.kind == "judge" or task.at.startswith("freeze_critical")]
    made = {key: manifest for key, manifest in folder.committed().items() if any(key in task.keys for task in chosen)}
    for manifest in {manifest.name: manifest for manifest in made.values()}.values():
        folder.chunks.forget(manifest.name)
    failing(lambda recipe: True)
    down = drive(training_config(root, studies()))
    because = "judged only in part, because 'backdoor m/first freeze_critical seed 0' failed"
    assert {name: told for name, told in down.failed.items() if name.startswith("judge")} == {
        "judge m/first keywords": because,
        "judge m/first pattern": because,
    }
    part, whole = tables_of(down), tables_of(attacked)
    lost = part["attack"]["arm"] == "freeze_critical"
    there = whole["attack"]["arm"] != "freeze_critical"
    same_tables(
        {"attack": part["attack"][~lost].reset_index(drop=True)},
        {"attack": whole["attack"][there].reset_index(drop=True)},
    )
    by = ["arm", "seed", "prompts", "judge", "trigger"]
    assert part["attack"][by].equals(whole["attack"][by]), "a row for each that there should be"
    assert part["attack"][lost]["rate"].isna().all()
    why = "training failed (the test loss is nan at step 1)"
    assert set(part["attack"][lost]["reason"]) == {why, f"seed 0, 1: {why}"}
    assert set(part["answers"]["arm"]) == {"none", "all", "freeze_non_critical"}
    judged = [event["call"] for event in events_of(down, "call_done")].count("judge m/first keywords")
    again = drive(training_config(root, studies()))
    assert again.n_calls == 2, "the trainings are tried again, and the answers are judged already"
    same_tables(tables_of(again), part)
    assert [event["call"] for event in events_of(again, "call_done")].count("judge m/first keywords") == judged
    for path in (attacked.folder.root / "chunks").glob("backdoor-*"):
        shutil.copy(path, root / "chunks")
    up = drive(training_config(root, studies()))
    assert (up.n_calls, up.failed) == (2, {}), "with the trainings there, all is judged"
    same_tables(tables_of(up), whole)


def test_a_judge_that_is_down_fails_alone_and_is_asked_again_for_what_lacks(
    training_config, tmp_path, chat, raysweep, attacked, events_of, tables_of
):
    """The endpoint answers twice, is gone, and is there again."""
    root = shutil.copytree(attacked.folder.root, tmp_path / "run")
    judge = {"url": chat.url, "model": "j", "per_minute": None, "attempts": 1, "concurrency": 1}
    config = tmp_path / "config.yaml"
    config.write_text(training_config(root, studies(judge=judge)).to_yaml())
    chat.acts = [(200, {}, completion("Score: 2")), (200, {}, completion("Score: 5"))]
    chat.default = "hang up"
    before = len(events_of(attacked))
    down = raysweep("run", config)
    assert down.code == 1
    assert "judge m/first endpoint" in down.err
    assert f"{chat.url}/chat/completions gave no answer in 1 attempts; the last: " in down.err
    tables = tables_of(Done(RunFolder(root), RunFolder(root).read_plan()[0]))
    assert set(tables["attack"]["judge"]) == {"keywords", "pattern"}, "the others are reported"
    assert (root / "report" / "index.html").is_file()

    asked = [body["messages"][0]["content"] for _, _, body, _ in chat.came]
    assert len(asked) == 3
    chat.default = (200, {}, completion("Score: 5"))
    up = drive(training_config(root, studies(judge=judge)))
    assert up.failed == {}
    started = [event["call"] for event in events_of(up)[before:] if event["event"] == "call_started"]
    assert started == ["judge m/first endpoint"] * 2
    later = [body["messages"][0]["content"] for _, _, body, _ in chat.came][3:]
    assert not set(asked[:2]) & set(later), "what is kept is not asked again"
    assert asked[2] in later
    answers = tables_of(up)["answers"]
    answers = answers[answers["judge"] == "endpoint"]
    pairs = answers[["prompt", "text"]].drop_duplicates()
    assert len({*asked, *later}) == len(later) + 2 == len(pairs)
    assert sorted(answers.drop_duplicates(["prompt", "text"])["score"])[:1] == [2]
    rates = tables_of(up)["attack"]
    assert rates[rates["judge"] == "endpoint"]["harm_mean"].between(2, 5).all()
    assert drive(training_config(root, studies(judge=judge))).n_calls == 0
