"""Cells and motifs are told apart in one way, on disk and in memory."""

import tomllib
from pathlib import Path

import pytest

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.kinds import kind_of
from robustbench_bio.records.motif_space import MotifSpace, read_space
from robustbench_bio.records.motifs import MotifGenotype, read_genotype
from robustbench_bio.zoo import catalog


@pytest.mark.parametrize("name", catalog.genotype_names())
def test_a_genotype_is_what_its_file_says(name: str) -> None:
    path = catalog.data_folder("models") / "genotypes" / f"{name}.toml"
    genotype = read_genotype(path)
    expected = "motifs" if isinstance(genotype, MotifGenotype) else "cells"
    assert kind_of(genotype) == kind_of(tomllib.loads(path.read_text())) == expected
    assert kind_of(genotype.model_dump(mode="json")) == expected


@pytest.mark.parametrize("name", catalog.space_names())
def test_a_space_is_what_its_file_says(name: str) -> None:
    space = read_space(catalog.data_folder("spaces") / f"{name}.toml")
    assert (kind_of(space) == "motifs") == isinstance(space, MotifSpace) == (name == "mse-nas")


def test_a_word_that_begins_like_the_kind_decides_nothing(tmp_path: Path) -> None:
    text = (catalog.data_folder("spaces") / "darts.toml").read_text()
    (tmp_path / "mine.toml").write_text(f"kindness = 1\n{text}")
    with pytest.raises(UserError, match=r"mine\.toml: field 'kindness': unknown field"):
        read_space(tmp_path / "mine.toml")
    with pytest.raises(UserError, match=r"cannot read .*none\.toml"):
        read_space(tmp_path / "none.toml")
