"""Search spaces, and genotypes that are drawn, changed or read off from them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.genotype import Edge, Genotype, parse_primitive
from robustbench_bio.records.space import Space
from robustbench_bio.search.cells import discretise, draw_genotype, mutate
from robustbench_bio.zoo import catalog

SMALL = Space(name="small", title="two nodes", primitives=["none", "max_pool_3x3", "sep_conv_3x3_u"], nodes=2)


#: Spaces of cells; that of motifs has tests of its own.
CELLS = ["bionas", "bionas-all", "darts", "eg-nas"]


def drawn(space, *key):
    return draw_genotype(space, torch_generator(*key), name="drawn", source="test")


def legal(genotype, space):
    for edges in (genotype.normal, genotype.reduce):
        assert len(edges) == 2 * space.nodes
        assert {edge.op for edge in edges} <= set(space.primitives) - {"none"}
        for first, second in zip(edges[::2], edges[1::2], strict=True):
            assert first.state != second.state
    return True


# --- spaces -----------------------------------------------------------------------------------------------------


def test_spaces_that_ship_are_those_that_are_promised():
    assert catalog.space_names() == sorted([*CELLS, "mse-nas"])
    assert [len(catalog.space(name).primitives) for name in CELLS] == [22, 37, 8, 7]


def test_the_space_of_bionas_is_the_published_one_in_its_order():
    space = catalog.space("bionas")
    convolutions = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    assert space.primitives == [
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect_u", "skip_connect_f", "skip_connect_b"),
        *(f"{operation}_{suffix}" for operation in convolutions for suffix in ("u", "br", "fr", "fa")),
    ]
    assert (space.nodes, space.partial, space.pool_norm, space.channels, space.layers) == (4, 1, True, 16, 8)


def test_eg_nas_searches_on_a_quarter_of_the_channels_without_none():
    space = catalog.space("eg-nas")
    assert space.partial == 4
    assert not space.pool_norm
    assert "none" not in space.primitives
    assert {primitive.rule for primitive in space.parsed} == {"bp"}


def test_the_largest_space_holds_every_rule_but_no_competition_of_single_units():
    space = catalog.space("bionas-all")
    rules = {"bp", "fa", "usf", "frsf", "brsf", "dfa", "oja", "hard-wta", "softhebb"}
    assert {primitive.rule for primitive in space.parsed} == rules
    competing = {p.operation for p in space.parsed if p.rule in {"hard-wta", "softhebb"}}
    assert competing == {"conv_7x1_1x7"}
    assert set(catalog.space("bionas").primitives) < set(space.primitives)


def test_edges_come_in_the_order_of_darts():
    assert catalog.space("darts").sources == (0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4)
    assert SMALL.sources == (0, 1, 0, 1, 2)


def test_a_space_of_ones_own_is_read_from_its_path(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL.to_toml())
    assert catalog.space(str(path)) == SMALL


def test_reading_a_space_loads_no_torch():
    read = "from robustbench_bio.zoo import catalog; catalog.space('bionas')"
    code = f"import sys; {read}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('primitives = ["sep_conv_3x3_u"]', "at least 2 items"),
        ('primitives = ["sep_conv_3x3_u", "sep_conv_3x3_u"]', "expected each primitive once"),
        ('primitives = ["skip_connect_b", "skip_connect_br"]', "skip_connect_br after skip_connect_b"),
        ('primitives = ["sep_conv_3x3_u", "sep_conv_3x3_v"]', "did you mean"),
        ('primitives = ["max_pool_3x3_u", "none"]', "it has no weights, write max_pool_3x3"),
        ('primitives = ["none", "max_pool_3x3"]\nnodes = 0', "nodes"),
        ('primitives = ["none", "max_pool_3x3"]\nnodes = 13', "nodes"),
        ('primitives = ["none", "max_pool_3x3"]\npartial = 0', "partial"),
        ('primitives = ["none", "max_pool_3x3"]\nstem = "imagenet"', "stem"),
        ('primitives = ["none", "max_pool_3x3"]\nchanels = 8', "did you mean channels"),
        ('primitives = ["none", "max_pool_3x3"]\nlayers = "8"', "layers"),
    ],
)
def test_a_faulty_space_is_refused_in_one_line(tmp_path: Path, change: str, message: str):
    path = tmp_path / "bad.toml"
    path.write_text(f'name = "bad"\ntitle = "bad"\n{change}\n')
    with pytest.raises(UserError, match=message) as caught:
        catalog.space(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_space_is_answered_with_near_names():
    with pytest.raises(UserError, match="did you mean bionas"):
        catalog.space("bionass")


# --- discretisation ---------------------------------------------------------------------------------------------


def test_each_node_keeps_its_two_strongest_edges_the_stronger_first():
    normal = torch.tensor([
        [9.0, 1.0, 0.0],  # node 0 from state 0: none is strongest by far, which leaves little for max pool
        [0.0, 0.0, 1.0],  # node 0 from state 1: sep conv, stronger than the edge above
        [0.0, 2.0, 0.0],  # node 1 from state 0
        [5.0, 5.0, 5.0],  # node 1 from state 1: large alphas, weak weights
        [0.0, 0.0, 3.0],  # node 1 from state 2
    ])  # fmt: skip
    found = discretise(SMALL, normal, normal.flip(0), name="found", source="hand")
    pool, conv = "max_pool_3x3", "sep_conv_3x3_u"
    assert found.normal == (Edge(conv, 1), Edge(pool, 0), Edge(conv, 2), Edge(pool, 0))
    assert found.reduce == (Edge(conv, 0), Edge(pool, 1), Edge(pool, 0), Edge(conv, 1))
    assert found.normal_concat == (2, 3)


def test_among_equals_the_first_edge_and_the_first_primitive_win():
    zeros = torch.zeros(5, 3)
    found = discretise(SMALL, zeros, zeros, name="tie", source="hand")
    assert found.normal == tuple(Edge("max_pool_3x3", state) for state in (0, 1, 0, 1))


def test_alphas_on_the_edges_of_a_genotype_give_it_back():
    space = catalog.space("bionas")
    wanted = drawn(space, "one-hot")
    tables = []
    for edges in (wanted.normal, wanted.reduce):
        table = torch.zeros(14, 22)
        for i, (op, state) in enumerate(edges):
            node = i // 2
            table[node * (node + 3) // 2 + state, space.primitives.index(op)] = 6.0 - 3 * (i % 2)
        tables.append(table)
    assert discretise(space, *tables, name="drawn", source="test") == wanted


@pytest.mark.parametrize("bad", [torch.zeros(4, 3), torch.zeros(5, 2), torch.zeros(15)])
def test_alphas_of_another_shape_are_refused(bad):
    with pytest.raises(UserError, match=r"expected alphas \[5, 3\] for the space small"):
        discretise(SMALL, torch.zeros(5, 3), bad, name="a", source="")


def test_alphas_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="diverged"):
        discretise(SMALL, torch.full((5, 3), torch.nan), torch.zeros(5, 3), name="a", source="")


# --- draws and mutations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_drawn_genotypes_are_legal_and_depend_on_the_generator_alone(name: str):
    space = catalog.space(name)
    first = [drawn(space, name, i) for i in range(20)]
    state = torch.random.get_rng_state()
    assert [drawn(space, name, i) for i in range(20)] == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(legal(genotype, space) for genotype in first)
    assert len({genotype.to_toml() for genotype in first}) == 20


def test_every_cell_is_drawn_equally_often():
    generator = torch_generator("uniform")
    space = Space(name="tiny", title="", primitives=["max_pool_3x3", "avg_pool_3x3"], nodes=2)
    count = 4000
    seen = Counter()
    for _ in range(count):
        genotype = draw_genotype(space, generator, name="g", source="")
        seen[frozenset(genotype.normal[2:])] += 1
    # Two of three states, one of two operations on each: 12 second nodes.
    assert len(seen) == 12
    chi2 = sum((n - count / 12) ** 2 / (count / 12) for n in seen.values())
    assert chi2 < 31.3  # quantile 0.999 of χ² with 11 degrees of freedom


@pytest.mark.parametrize("name", CELLS)
def test_a_mutation_changes_the_source_or_the_operation_of_one_edge(name: str):
    space = catalog.space(name)
    generator = torch_generator("mutations", name)
    parent = drawn(space, "parent")
    kinds = Counter()
    for i in range(200):
        child = mutate(parent, space, generator, name=f"child-{i}", source="mutated")
        assert legal(child, space)
        assert (child.name, child.source) == (f"child-{i}", "mutated")
        changed = [
            (cell, j, before, after)
            for cell in ("normal", "reduce")
            for j, (before, after) in enumerate(zip(getattr(parent, cell), getattr(child, cell), strict=True))
            if before != after
        ]
        (cell, _, before, after) = changed[0]
        assert len(changed) == 1
        assert (before.op == after.op) != (before.state == after.state)
        kinds[cell, before.op == after.op] += 1
        parent = child
    assert len(kinds) == 4
    assert min(kinds.values()) > 25  # each one in four of 200; fewer than 26 has a probability of 1e-5


def test_a_mutation_keeps_which_states_make_the_output():
    parent = drawn(SMALL, "parent").model_copy(update={"normal_concat": (3,)})
    child = mutate(parent, SMALL, torch_generator("concat"), name="child", source="")
    assert child.normal_concat == (3,)
    assert child.reduce_concat == (2, 3)


def test_a_mutation_knows_primitives_by_any_spelling():
    space = Space(name="one", title="", primitives=["none", "skip_connect_b"], nodes=1)
    edges = (Edge("skip_connect_br", 0), Edge("skip_connect_br", 1))
    assert parse_primitive("skip_connect_br") == parse_primitive("skip_connect_b")
    with pytest.raises(UserError, match="something to change"):
        mutate(
            Genotype(name="g", source="", normal=edges, reduce=edges), space, torch_generator(0), name="c", source=""
        )


def test_a_genotype_of_another_size_is_not_mutated():
    with pytest.raises(UserError, match="expected cells of 4 nodes for the space darts, got 2 and 2"):
        mutate(drawn(SMALL, 0), catalog.space("darts"), torch_generator(0), name="c", source="")
