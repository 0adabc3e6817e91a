from __future__ import annotations

import json
import os
import re
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lol_core.collections.describe import describe
from lol_core.collections.index import Index
from lol_core.collections.labels import read_labels
from lol_core.collections.splits import with_copies
from lol_core.collections.walk import Candidate
from lol_core.collections.zoo import Zoo, short_name, split_ids, training_runs
from lol_core.errors import LoRAFormatError, TaskError, ZooError
from lol_core.learning.config import TrainingConfig
from lol_core.learning.tasks import Binary, Multiclass, kind_of
from lol_core.learning.training import plan
from tests.builders import MODULES, random_lora, write_peft, write_zoo


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def test_a_folder_is_read_recursively_and_never_written(tmp_path: Path) -> None:
    write_zoo(tmp_path / "deep" / "er", 5)
    (tmp_path / "broken.safetensors").write_bytes(b"xx")
    (tmp_path / "notes.txt").write_text("not a candidate")
    before = snapshot(tmp_path)
    zoo = Zoo.open(tmp_path)
    assert len(zoo) == 5 and [e.path for e in zoo.refused] == ["broken.safetensors"]
    assert "2 bytes" in (zoo.refused[0].reason or "")
    zoo.load(zoo.ids[0])
    zoo.table()
    assert snapshot(tmp_path) == before


def test_only_new_and_changed_files_are_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path, 6)
    opened: list[str] = []

    def counting(folder: Path, candidate: Candidate) -> object:
        opened.append(candidate.id)
        return describe(folder, candidate)

    monkeypatch.setattr("lol_core.collections.index.describe", counting)
    first = Zoo.open(tmp_path)
    assert len(opened) == 6
    opened.clear()
    again = Zoo.open(tmp_path)
    assert opened == [] and again.fingerprint == first.fingerprint and again.entries == first.entries
    write_peft(tmp_path / "lora002", random_lora(MODULES, 999))
    os.utime(tmp_path / "lora002" / "adapter_model.safetensors", (1, 1))
    shutil.rmtree(tmp_path / "lora003")
    write_peft(tmp_path / "new", random_lora(MODULES, 7))
    changed = Zoo.open(tmp_path)
    assert sorted(opened) == ["lora002/adapter_model.safetensors", "new/adapter_model.safetensors"]
    assert len(changed) == 6 and changed.fingerprint != first.fingerprint


def test_a_changed_alpha_counts_as_a_change(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", random_lora(MODULES), alpha=2)
    assert Zoo.open(tmp_path).entries[0].scales[0] == 1.0
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    os.utime(config, (2e9, 2e9))
    assert Zoo.open(tmp_path).entries[0].scales[0] == 4.0


def test_the_fingerprint_belongs_to_the_content_not_to_the_place(tmp_path: Path) -> None:
    write_zoo(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Zoo.open(tmp_path / "a").fingerprint == Zoo.open(tmp_path / "b").fingerprint


def test_an_index_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 2)
    index = Index(tmp_path / "zoo", tmp_path / "cache")
    index.path.write_bytes(b"no database" * 100)
    with pytest.raises(ZooError, match="delete that file"):
        index.update()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="not a folder"):
        Zoo.open(tmp_path / "nowhere")


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    write_zoo(tmp_path, 2)
    zoo = Zoo.open(tmp_path)
    shutil.rmtree(tmp_path / "lora001")
    with pytest.raises(LoRAFormatError, match=r"lora001/adapter_model.safetensors: The file cannot be read"):
        zoo.load("lora001/adapter_model.safetensors")


@pytest.mark.parametrize("naming", ["name", "folder/name", "path", "stem", "name.safetensors", "./path", "number"])
def test_labels_are_joined_by_whatever_names_the_files(naming: str, tmp_path: Path) -> None:
    word = "00" if naming == "number" else "file"
    for i in range(4):
        write_peft(tmp_path / "x" / f"l{i}", random_lora(MODULES, i))
        (tmp_path / "x" / f"l{i}" / "adapter_model.safetensors").rename(tmp_path / "x" / f"{word}{i}.safetensors")
        shutil.rmtree(tmp_path / "x" / f"l{i}")
    names = {
        "name": "file{}",
        "folder/name": "x/file{}",
        "path": "x/file{}.safetensors",
        "stem": "file{}",
        "name.safetensors": "file{}.safetensors",
        "./path": "./x/file{}.safetensors",
        "number": "00{}",
    }[naming]
    pd.DataFrame({"value": [0.5, 1.5, 2.5], "who": [names.format(i) for i in (2, 0, 9)]}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    zoo = Zoo.open(tmp_path)
    assert zoo.join_column == "who" and zoo.unjoined_labels == (names.format(9),)
    assert zoo.labels.loc[f"x/{word}2.safetensors", "value"] == 0.5
    assert zoo.labels["value"].isna().sum() == 2


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"": [0, 1, 2, 3], "file": [3, 2, 1, 0]}, "file"),
        ({"": [0, 1, 2, 3], "loras": ["./3", "2", "1", "a"]}, "loras"),
        ({"Path ": ["3", "2", "1", "9"], "steps": [0, 1, 2, 3]}, "Path "),
        (
            {"file": ["/data/3", "/data/2", "/data/1", "/data/0"], "steps": [0, 1, 2, 3]},
            "its column 'file' names no file",
        ),
        ({"name": ["Ann", "Bo", "Cy", "Di"], "number": [3, 2, 1, 0]}, "number"),
        ({"epochs": [0, 1, 2, 3], "steps": [3, 2, 1, 0]}, "both hold numbers.*Call the one that is meant `file`"),
    ],
)
def test_numbers_that_are_no_names_do_not_join(columns: dict[str, list[object]], wanted: str, tmp_path: Path) -> None:
    """LoRAs that are called 0 to 3, and a table with the numbers of its rows, as pandas writes them."""
    for i in range(4):
        write_peft(tmp_path / str(i), random_lora(MODULES, i))
    pd.DataFrame(columns | {"y": [0.3, 0.2, 0.1, 0.0]}).to_csv(tmp_path / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path)
    if zoo.labels_problem:
        assert re.search(wanted, zoo.labels_problem) and zoo.labels.empty
    else:
        assert zoo.join_column == wanted
        assert zoo.labels.loc["2/adapter_model.safetensors", "y"] == 0.2


def test_an_index_of_names_in_parquet_joins(tmp_path: Path) -> None:
    table = write_zoo(tmp_path, 3)
    table.set_index("name").to_parquet(tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").unlink()
    assert Zoo.open(tmp_path).join_column == "name"


def test_columns_of_parquet_may_be_called_by_numbers(tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    pd.DataFrame([[f"lora00{i}", i] for i in range(3)]).to_parquet(tmp_path / "all.parquet")
    zoo = Zoo.open(tmp_path, tmp_path / "all.parquet")
    assert zoo.join_column == "0" and zoo.labels["1"].tolist() == [0, 1, 2]


def test_labels_may_be_parquet_or_elsewhere(tmp_path: Path) -> None:
    table = write_zoo(tmp_path / "zoo", 3)
    (tmp_path / "zoo" / "labels.csv").unlink()
    assert Zoo.open(tmp_path / "zoo").labels.shape == (3, 0)
    table.to_parquet(tmp_path / "elsewhere.parquet")
    assert Zoo.open(tmp_path / "zoo", tmp_path / "elsewhere.parquet").labels.shape == (3, 4)
    table.to_parquet(tmp_path / "zoo" / "labels.parquet")
    assert Zoo.open(tmp_path / "zoo").labels.shape == (3, 4)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_labels_may_be_separated_by_semicolons_or_tabs(mark: str, tmp_path: Path) -> None:
    table = write_zoo(tmp_path, 3).assign(said="one, two", code="007")
    table.to_csv(tmp_path / "labels.csv", index=False, sep=mark)
    labels = Zoo.open(tmp_path).labels
    assert labels.shape == (3, 6) and set(labels["said"]) == {"one, two"} and set(labels["code"]) == {"007"}
    with (tmp_path / "labels.csv").open("rb") as content:
        pd.testing.assert_frame_equal(
            read_labels(tmp_path / "labels.csv", content), read_labels(tmp_path / "labels.csv")
        )


def test_labels_as_spreadsheets_and_other_systems_write_them(tmp_path: Path) -> None:
    """With a mark in UTF-16, Excel's line of the separator, separators that end rows, Windows' paths, accents apart."""
    write_zoo(tmp_path, 3)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "lora001").rename(tmp_path / "caf\u00e9")
    ids = Zoo.open(tmp_path).ids
    names = [id.replace("/", "\\") for id in ids[1:]]
    rows = [f"cafe\u0301 ;1;a;\n.\\{names[0]};2;b;\n'{names[1]}'; 3; c;\n"]
    for head in ("file;score;kind\n", "sep=;\r\nfile; score;kind\n", "file;score;kind;\n"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (tmp_path / "labels.csv").write_bytes((head + rows[0]).encode(encoding))
            zoo = Zoo.open(tmp_path)
            assert zoo.labels_problem is None and zoo.join_column == "file" and not zoo.unjoined_labels
            assert zoo.labels["score"].tolist() == [1, 2, 3] and zoo.labels["kind"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("root", ["/data/me/zoo", "C:\\Users\\me\\zoo", "~/zoo/loras"])
def test_labels_join_by_absolute_paths_of_another_place(root: str, tmp_path: Path) -> None:
    write_zoo(tmp_path / "loras", 3)
    (tmp_path / "loras" / "labels.csv").unlink()
    mark = "\\" if "\\" in root else "/"
    rows = {"where": [f"{root}{mark}LORA{i:03d}" for i in range(3)], "score": [3, 1, 2]}
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    for folder in (tmp_path, tmp_path / "loras"):
        zoo = Zoo.open(folder, tmp_path / "labels.csv")
        assert zoo.join_column == "where" and not zoo.unjoined_labels and zoo.labels["score"].tolist() == [3, 1, 2]


def test_paths_of_another_folder_with_the_same_names_join_nothing(tmp_path: Path) -> None:
    """One by one they would: of each name there is one file here."""
    write_zoo(tmp_path, 2)
    rows = pd.DataFrame({"file": ["/data/one/lora000", "/data/two/lora001", "relative/lora001"], "score": [1, 2, 3]})
    rows[:2].to_csv(tmp_path / "labels.csv", index=False)
    assert "names a file of the folder" in str(Zoo.open(tmp_path).labels_problem)
    rows[2:].to_csv(tmp_path / "labels.csv", index=False)
    assert "names a file of the folder" in str(Zoo.open(tmp_path).labels_problem)
    rows[:2].assign(file=["/data/lora000", "C:\\data\\lora001"]).to_csv(tmp_path / "labels.csv", index=False)
    assert "names a file of the folder" in str(Zoo.open(tmp_path).labels_problem)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("file,score\n\xe4,1\n".encode("cp1252"), "line 2 is not in UTF-8"), (b"file,score\na,1,2,3\n", "rows have more")],
)
def test_a_table_that_would_be_misread_says_so(content: bytes, reason: str, tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    (tmp_path / "labels.csv").write_bytes(content)
    assert reason in str(Zoo.open(tmp_path).labels_problem)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_texts_of_yes_and_no_are_a_question(suffix: str, tmp_path: Path) -> None:
    answers = {"glasses": pd.array(["Yes", "no", "NO", pd.NA]), "hat": ["yes", "no", "unsure", "no"]}
    table = write_zoo(tmp_path, 4).join(pd.DataFrame(answers))
    (tmp_path / "labels.csv").unlink()
    getattr(table, f"to_{suffix}")(tmp_path / f"labels.{suffix}", index=False)
    labels = Zoo.open(tmp_path).labels
    assert labels["glasses"].tolist()[:3] == [True, False, False] and labels["glasses"].isna().tolist()[3]
    assert kind_of(labels["glasses"]) is Binary and kind_of(labels["hat"]) is Multiclass


def test_numbers_may_have_a_decimal_comma_where_columns_are_separated_by_something_else(tmp_path: Path) -> None:
    texts = {"loss": ["0,5", "", "1", "-2,5e-3"], "said": ["1,5", "two", "3", "4"], "code": [*"1234"], "no": [""] * 4}
    table = write_zoo(tmp_path, 4).assign(**texts)
    table.to_csv(tmp_path / "labels.csv", index=False, sep=";")
    labels = Zoo.open(tmp_path).labels
    assert labels["loss"].dropna().tolist() == [0.5, 1.0, -0.0025] and labels["said"].tolist() == [*table["said"]]
    assert pd.api.types.is_integer_dtype(labels["code"])
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert "-2,5e-3" in set(Zoo.open(tmp_path).labels["loss"]), "in a table that commas separate it is text"


def test_decimals_of_parquet_are_numbers_and_lists_are_texts(tmp_path: Path) -> None:
    columns = {"price": [Decimal("0.5"), None, Decimal(2)], "tags": [["a"], None, ["b", "c"]]}
    table = write_zoo(tmp_path, 3).join(pd.DataFrame(columns, dtype=object))
    table.to_parquet(tmp_path / "all.parquet")
    labels = Zoo.open(tmp_path, tmp_path / "all.parquet").labels
    assert labels["price"].sum() == 2.5 and pd.api.types.is_float_dtype(labels["price"])
    assert labels["tags"].dropna().tolist() == ["['a']", "['b' 'c']"]


def test_bad_label_tables(tmp_path: Path) -> None:
    table = write_zoo(tmp_path, 3)
    cases = {
        "nobody.csv": (table.assign(name=["x", "y", "z"]), "none of its columns.*names a file"),
        "twice.csv": (pd.concat([table, table]), "more than one row"),
        "one_column.csv": (table[["name"]], "a column of labels"),
        "empty.csv": (table.iloc[:0], "at least one row"),
    }
    for name, (content, reason) in cases.items():
        content.to_csv(tmp_path / name, index=False)
        with pytest.raises(ZooError, match=reason):
            Zoo.open(tmp_path, tmp_path / name)
    with pytest.raises(ZooError, match=r"cannot be read \(No such file or directory\)"):
        Zoo.open(tmp_path, tmp_path / "gone.csv")
    (tmp_path / "records.json").write_text(json.dumps([{"name": f"lora{i:03d}", "value": i} for i in range(1000)]))
    with pytest.raises(ZooError, match="2,000 in all") as refused:
        Zoo.open(tmp_path, tmp_path / "records.json")
    assert len(str(refused.value)) < 700


def test_an_ambiguous_name_joins_no_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_peft(tmp_path / folder / "same", random_lora(MODULES))
    write_peft(tmp_path / "c" / "other", random_lora(MODULES))
    pd.DataFrame({"name": ["same", "other"], "value": [1, 2]}).to_csv(tmp_path / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path)
    assert zoo.unjoined_labels == ("same",) and zoo.labels["value"].notna().sum() == 1


@given(count=st.integers(20, 200), groups=st.integers(10, 60), seed=st.integers(0, 99))
def test_a_split_is_a_partition_that_keeps_groups_together(count: int, groups: int, seed: int) -> None:
    ids = [f"l{i}" for i in range(count)]
    owner = {id: hash((id, seed)) % groups for id in ids}
    try:
        parts = split_ids(ids, seed=seed, groups=[owner[id] for id in ids])
    except TaskError:
        return
    assert sorted(id for part in parts.values() for id in part) == sorted(ids)
    sides = [{owner[id] for id in part} for part in parts.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
def test_groups_with_copies_are_joined_and_others_are_not(pairs: list[tuple[int, int]]) -> None:
    """pairs: the group and the content of each LoRA. Two are in one unit if a chain of either leads from one to the
    other.
    """
    ids = [f"l{i}" for i in range(len(pairs))]
    units = with_copies(ids, [f"d{content}" for _, content in pairs], [str(group) for group, _ in pairs])
    links = np.array([[a[0] == b[0] or a[1] == b[1] for b in pairs] for a in pairs])
    reached = np.linalg.matrix_power(links.astype(float), len(pairs)) > 0
    assert units is not None
    assert [[a == b for b in units] for a in units] == reached.tolist()


def test_loras_without_copies_and_groups_stand_for_themselves() -> None:
    assert with_copies(["a", "b"], ["1", "2"]) is None
    assert with_copies(["a", "b", "c"], ["1", "2", "1"]) == ["a", "b", "a"]


def test_splits_have_their_sizes_and_their_seed() -> None:
    ids = [f"l{i}" for i in range(200)]
    parts = split_ids(ids, seed=3)
    assert [len(part) for part in parts.values()] == [140, 30, 30]
    assert parts == split_ids(ids, seed=3) != split_ids(ids, seed=4)
    with pytest.raises(TaskError, match="too few.*would be empty"):
        split_ids(ids[:2])
    with pytest.raises(TaskError, match="group them by another column"):
        split_ids(ids, groups=["one author"] * 200)


def test_short_names() -> None:
    assert short_name("a/b/adapter_model.safetensors") == "a/b"
    assert short_name("a/b.safetensors") == "a/b"
    assert short_name("adapter_model.safetensors") == "adapter_model"


def test_the_published_files_make_a_collection(real_loras: Path) -> None:
    zoo = Zoo.open(real_loras)
    assert (len(zoo), len(zoo.refused)) == (63, 12)
    assert all(entry.reason for entry in zoo.refused)
    assert len(zoo.table()) == 63


def test_names_are_short_where_they_can_be(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", random_lora(MODULES))
    shutil.copy(tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a.safetensors")
    write_peft(tmp_path / "b", random_lora(MODULES))
    assert Zoo.open(tmp_path).names == {
        "a.safetensors": "a.safetensors",
        "a/adapter_model.safetensors": "a/adapter_model.safetensors",
        "b/adapter_model.safetensors": "b",
    }


@pytest.mark.parametrize("first", [0, 1])
def test_the_numbers_of_rows_that_pandas_and_r_write_are_no_label(first: int, tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 6)
    labels.set_axis(range(first, first + 6)).to_csv(tmp_path / "labels.csv")
    assert list(Zoo.open(tmp_path).labels.columns) == [name for name in labels.columns if name != "name"]
    labels.set_axis([3, 1, 2, 9, 8, 7]).to_csv(tmp_path / "labels.csv")
    assert "Unnamed: 0" in Zoo.open(tmp_path).labels.columns


def test_none_among_texts_is_a_class_and_among_numbers_a_label_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("name,style,size,worn,nothing\na,None,1,True,\nb,oil,None,None,\nc,,2,False,None\n")
    labels = read_labels(path)
    assert labels["style"].fillna("missing").tolist() == ["None", "oil", "missing"]
    assert labels["size"].isna().tolist() == labels["worn"].isna().tolist() == [False, True, False]
    assert labels["nothing"].isna().all()


def test_a_labels_table_that_does_not_fit_costs_the_labels_only(tmp_path: Path) -> None:
    write_zoo(tmp_path, 12)
    pd.DataFrame({"name": ["x", "y"], "value": [1, 2]}).to_csv(tmp_path / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path)
    assert len(zoo) == 12 and zoo.labels.shape == (12, 0) and "names a file" in (zoo.labels_problem or "")
    with pytest.raises(TaskError, match="none of its columns"):
        plan(zoo, ["value"], TrainingConfig())


def test_checkpoints_of_one_run_are_known_by_their_names() -> None:
    names = [
        "style-000010",
        "style-000020",
        "style",
        "run/checkpoint-500",
        "run/checkpoint-1000",
        "cat_step200",
        "cat_step50",
        "mlx/0000200_adapters",
        "mlx/0000100_adapters",
        "loras/0001",
        "loras/0002",
        "v1",
        "v2",
    ]
    table = training_runs({name: name for name in [*names, "alone-000005"]})
    assert {run: list(part["step"]) for run, part in table.groupby("run")} == {
        "style": [10, 20],
        "run": [500, 1000],
        "cat": [50, 200],
        "mlx": [100, 200],
    }
    assert training_runs({}).empty
