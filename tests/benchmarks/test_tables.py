"""The replay of recorded tables."""

import json

import pytest

from benchmarks.tables import data_folder, load_table, load_tables


def write(folder, name, **content):
    """A small table on disk: two instructions, two demo sets, three of the four combinations."""
    prompts = [
        {"instruction": "a", "demos": "x"},
        {"instruction": "a", "demos": ""},
        {"instruction": "b", "demos": "x"},
        {"instruction": "a", "demos": "x"},
    ]
    table = {"name": name, "n_examples": 200, "prompts": prompts, "scores": [0.5, 0.25, 1.0, 0.9], "matrix": None}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(table | content))
    return path


def test_only_listed_combinations_are_in_the_space(tmp_path):
    """Instruction and demos are two parts, only recorded pairs are allowed, and the first of duplicates counts."""
    table = load_table(write(tmp_path, "few_shot"))
    assert table.space.sizes == (2, 2)
    assert table.truth == {(0, 0): 0.5, (0, 1): 0.25, (1, 0): 1.0}
    assert set(table.space.keys()) == set(table.truth)
    assert table.best == 1.0


def test_a_table_without_demos_has_one_part(tmp_path):
    """Zero-shot tables become spaces of instructions alone."""
    prompts = [{"instruction": "a"}, {"instruction": "b", "demos": None}]
    table = load_table(write(tmp_path, "zero_shot", prompts=prompts, scores=[0.1, 0.2]))
    assert table.space.names == ("0_predictor_instruction",)
    assert table.accuracy({"0_predictor_instruction": 1}) == 0.2


def test_recorded_columns_are_replayed(tmp_path):
    """With a matrix, evaluating returns the recorded scores of the examples asked for."""
    matrix = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = load_table(write(tmp_path, "matrix", matrix=matrix))
    assert table.n_examples == 4
    assert table.replay(seed=3)(table.space.params((0, 0)), [3, 1]) == [0.0, 1.0]


def test_draws_are_fixed_by_seed_and_have_the_recorded_mean(tmp_path):
    """Without a matrix scores are fixed draws; 200 of them at .25 stay within four standard errors of it (.12)."""
    table = load_table(write(tmp_path, "means"))
    params = table.space.params((0, 1))
    first = table.replay(seed=0)(params, range(200))
    assert table.replay(seed=0)(params, range(200)) == first
    assert table.replay(seed=1)(params, range(200)) != first
    assert set(first) == {0.0, 1.0}
    assert sum(first) / 200 == pytest.approx(0.25, abs=0.12)


def test_shuffling_changes_indices_and_nothing_else(tmp_path):
    """Every prompt keeps its texts, its accuracy and its scores under its new key."""
    matrix = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = load_table(write(tmp_path, "matrix", matrix=matrix))

    def described(some):
        texts = [some.space.texts(i) for i in range(2)]
        return {(texts[0][a], texts[1][b]): (some.truth[a, b], some.columns[a, b].tolist()) for a, b in some.truth}

    assert any(list(table.shuffled(seed).truth) != list(table.truth) for seed in range(5))
    for seed in range(5):
        assert described(table.shuffled(seed)) == described(table)


def test_an_empty_folder_is_refused_with_the_remedy(tmp_path):
    """Without tables the benchmark says where it looked and how to point it elsewhere."""
    with pytest.raises(SystemExit, match=r"pass --data DIR, set PROMPTUNE_TABLES"):
        data_folder(str(tmp_path))


def test_an_unknown_table_lists_the_known(tmp_path):
    """A filter that matches nothing names the tables there are."""
    write(tmp_path, "one")
    with pytest.raises(SystemExit, match=r"No table matches two: there are one\."):
        load_tables(tmp_path, ["two"])
