"""The header of a folder's README.md: the files of each split against those that `datasets` finds for the same folder."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from raysweep.data.records import are_here, read_records
from raysweep.errors import InputError

FILES = [
    "a/one.jsonl",
    "a/two.jsonl",
    "b/deep/three.jsonl",
    "held-out.jsonl",
    "part[1].jsonl",
    "part1.jsonl",
    "x-2.jsonl",
    "x-10.jsonl",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"file": name}) + "\n")
    return tmp_path / "set"


def describe(folder: Path, configs: Any) -> None:
    header = yaml.safe_dump({"license": "mit", "configs": configs}) if not isinstance(configs, str) else configs
    (folder / "README.md").write_text(f"---\n{header}---\n# A data set\n---\nwith a line\n")


def found(source: object, split: str | None = None) -> list[str]:
    return [record["file"] for record in read_records(str(source), split=split).records]


def refusal(source: object, **arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        read_records(str(source), **arguments)
    return str(error.value)


CONFIGS: list[Any] = [
    [{"config_name": "default", "data_files": "held-out.jsonl"}],
    [{"config_name": "default", "data_files": ["a/*.jsonl", "held-out.jsonl"]}],
    [{"config_name": "default", "data_files": [{"split": "train", "path": "a/*"}, {"split": "hard", "path": ["b/**", "x-?.jsonl"]}]}],
    [{"config_name": "default", "data_files": [{"split": "one", "path": "**/one.jsonl"}, {"split": "all", "path": "**"}]}],
    [{"config_name": "default", "data_files": [{"split": "train", "path": "**/*.jsonl"}, {"split": "test", "path": "held-out.jsonl"}]}],
    [{"config_name": "default", "data_files": "x-[0-9]*.jsonl"}],
    [{"config_name": "default", "data_dir": "a"}],
    [{"config_name": "default", "data_dir": "b/deep"}],
    [{"config_name": "other", "data_files": "a/*"}, {"config_name": "main", "data_files": "b/**", "default": True}],
    [{"config_name": "other", "data_files": "a/*"}, {"config_name": "default", "data_files": "b/**"}],
]  # fmt: skip


@pytest.mark.parametrize("configs", CONFIGS, ids=range(len(CONFIGS)))
def test_files_are_those_that_datasets_finds(configs: Any, folder: Path, tmp_path: Path) -> None:
    describe(folder, configs)
    (folder / "notes.txt").write_text("no record")
    builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, files in builder.config.data_files.items():
        expected = {Path(file).relative_to(folder).as_posix() for file in files} - {"notes.txt"}
        assert set(found(folder, split=str(split))) == expected
        assert len(found(folder, split=str(split))) == len(expected)


def test_patterns_are_in_their_order_and_their_files_in_natural_order(folder: Path) -> None:
    describe(folder, [{"data_files": ["x-*", "a/two.jsonl", "a/*"]}])
    assert found(folder) == ["x-2.jsonl", "x-10.jsonl", "a/two.jsonl", "a/one.jsonl"]
    assert found(folder, split="train") == found(folder)


def test_a_name_that_is_there_is_no_pattern(folder: Path) -> None:
    describe(folder, [{"data_files": "part[1].jsonl"}])
    assert found(folder) == ["part[1].jsonl"]
    (folder / "part[1].jsonl").unlink()
    assert found(folder) == ["part1.jsonl"]


def test_a_configuration_is_named_behind_the_folder(folder: Path) -> None:
    describe(folder, [{"config_name": name, "data_files": f"{name}/**"} for name in ("a", "b")])
    assert found(f"{folder}:b") == ["b/deep/three.jsonl"]
    assert are_here(f"{folder}:b")
    assert refusal(folder) == f"{folder} has several configurations (a, b): name one, as in {folder}:a"
    assert refusal(f"{folder}:ba").startswith(f"{folder} has no configuration 'ba': ")
    folder.rename(folder.with_name("set:b"))
    assert refusal(f"{folder}:b").startswith(f"{folder}:b has several configurations (a, b)")  # the folder of that name


def test_a_readme_without_configurations_changes_nothing(folder: Path) -> None:
    for header in ("license: mit\n", "", "- a list\n", "configs:\n"):
        describe(folder, header)
        assert len(found(folder)) == len(FILES)
    for text in ("# Only text", "---\nnever: closed\n", ""):
        (folder / "README.md").write_text(text)
        assert len(found(folder)) == len(FILES)
    assert refusal(f"{folder}:main") == (
        f"{folder} has no configuration 'main': its README.md lists none. Remove ':main'"
    )


@pytest.mark.parametrize(
    ("configs", "told"),
    [
        ("configs: [\n", ": its header is not YAML ("),
        ("configs: 7\n", ": `configs` in its header is not a list of configurations. Correct or remove it"),
        ([{"data_files": "none-*"}], ": data_files of split 'train' names 'none-*', and "),
        ([{"data_files": "../other.jsonl"}], ": configuration 'default' names '../other.jsonl', which is not inside the folder. "),
        ([{"data_files": "https://x.org/a.jsonl"}], ": configuration 'default' names 'https://x.org/a.jsonl', which is not inside "),
        ([{"data_files": "/etc/*"}], ": configuration 'default' names '/etc/*', which is not inside the folder. "),
        ([{"data_dir": "../set"}], ": configuration 'default' names '../set', which is not inside the folder. "),
        ([{"data_dir": "c"}], ": there is no folder "),
        ([{"data_files": "a/**.jsonl"}], ": configuration 'default' has the pattern 'a/**.jsonl', in which '**' is not a whole "),
        ([{"data_files": "a/*", "sep": ";"}], ": configuration 'default' sets sep, which raysweep does not apply. "),
        ([{"data_files": [{"split": "x"}]}], ": configuration 'default' has {'split': 'x'} among its data_files, but each "),
        ([{"data_files": [{"path": "a/*", "split": "x"}] * 2}], ": configuration 'default' has {'path': 'a/*', 'split': 'x'} among "),
        ([{"data_files": {"x": 7}}], ": configuration 'default' has {'x': 7} where it needs a path or a list of paths. "),
        ([{"data_files": "a/*", "data_dir": "a"}], ": configuration 'default' has both data_dir and data_files, which is not "),
        ([{"data_files": "a/*"}, {"data_files": "b/*"}], ": two of its configurations have the same name. "),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(configs: Any, told: str, folder: Path) -> None:
    describe(folder, configs)
    assert refusal(folder).startswith(f"{folder}/README.md{told}")


def test_the_files_of_another_split_may_be_absent(folder: Path) -> None:
    describe(
        folder, [{"data_files": [{"split": "train", "path": ["a/*", "none-*"]}, {"split": "test", "path": "b/**"}]}]
    )
    assert found(folder, split="test") == ["b/deep/three.jsonl"]
    assert "data_files of split 'train' names 'none-*', and " in refusal(folder, split="train")
    assert "has no split 'dev'; " in refusal(folder, split="dev")


def test_files_of_another_kind_that_are_named_are_refused(folder: Path) -> None:
    (folder / "lines.txt").write_text("no record")
    describe(folder, [{"data_files": "lines.txt"}])
    assert refusal(folder).startswith(f"{folder}/lines.txt is of a type that raysweep does not read. Convert it to ")
