"""Motifs as data, genomes and genotypes of them, and their networks."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.motifs import Halving, MotifCell, MotifNet, Projection
from robustbench_bio.nets.spiking import LIF
from robustbench_bio.records.genotype import Edge, Genotype
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import Motif, MotifGenotype, read_genotype, reduction_cells
from robustbench_bio.search.motifs.genome import Genome, GenomeCode
from robustbench_bio.zoo import catalog

SPACE = catalog.space("mse-nas")
assert isinstance(SPACE, MotifSpace)
DIGITS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
CODE = GenomeCode(SPACE, 6)
RELEASED = GenomeCode(SPACE, 6, "released")
STATIC, EVENTS = reduction_cells(6, "direct"), reduction_cells(6, "frames")


def genomes(code: GenomeCode, count: int, seed: int = 0) -> list[Genome]:
    draws = np.random.default_rng(seed).integers(code.lower, np.array(code.upper) + 1, (count, code.length))
    return [tuple(int(gene) for gene in row) for row in draws]


def decoded(code: GenomeCode, genome: Any, name: str = "g") -> MotifGenotype:
    return code.decode(genome, name=name, source="test")


def named(name: str) -> Motif:
    return {listed.name: listed for listed in SPACE.motifs}[name].motif


def uniform(motif: str, inputs: int, layers: int = 6) -> MotifGenotype:
    cells = (named(motif),) * layers
    return MotifGenotype(name=motif, source="test", inputs=inputs, cells=cells)


def build(genotype: MotifGenotype, inputs: Inputs = DIGITS, **params: Any) -> MotifNet:
    net = nets.build("motifs", inputs, seed=0, genotype=genotype, **({"channels": 2, "steps": 3} | params))
    assert isinstance(net, MotifNet)
    return net


# --- motifs -----------------------------------------------------------------------------------------------------


def test_motifs_have_the_published_shapes() -> None:
    """Forward entries / nodes / feedback, counted in the released code."""
    golden = {
        "mm1": (4, 2, 0), "mm2": (6, 3, 0), "mm3": (6, 3, 2), "mm4": (10, 5, 0), "mm5": (4, 2, 1),
        "m1": (6, 2, 0), "m2": (9, 3, 0), "m3": (9, 3, 2), "m4": (15, 5, 0), "m5": (6, 2, 1),
        "t1": (16, 4, 0), "t2": (12, 3, 0), "t4": (12, 3, 0), "t5": (16, 4, 3),
    }  # fmt: skip
    for name, shape in golden.items():
        motif = named(name)
        assert (len(motif.links), len(motif.nodes), len(motif.feedback)) == shape
    (t3,) = [candidate for candidate in SPACE.motifs if candidate.name == "t3"]
    assert (sum(map(len, t3.nodes)), len(t3.feedback)) == (13, 2)
    assert len(SPACE.motifs) == len(golden) + 4  # mm0, m0, t3 and ours


def test_the_malformed_motif_is_refused_and_ours_does_all_that_it_names() -> None:
    with pytest.raises(UserError, match=r"motif t3 cannot be built: the second node has five links.*take t3-ours"):
        named("t3")
    by_name = {candidate.name: candidate for candidate in SPACE.motifs}
    assert [name for name, candidate in by_name.items() if candidate.ours] == ["t3-ours"]

    def real(name: str) -> list[set[Edge]]:
        return [{edge for edge in node if edge.op != "none"} for node in by_name[name].nodes]

    assert real("t3") == real("t3-ours")
    assert by_name["t3"].feedback == by_name["t3-ours"].feedback
    assert SPACE.buildable[4, 3].name == "t3-ours"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("feedback = [[\"skip_connect\", 2]]", "feedback = []\nextra = 1", "extra"),
        ('["conv_3x3_n", 3], ["none", 2]]', '["conv_3x3_n", 3]]', "motif m3: expected 2 feedback links, one for each"),
        ('["conv_3x3_n", 3], ["none", 2]]', '["conv_3x3_n", 3], ["none", 9]]', "m3, feedback of node 2: expected"),
        ('["conv_3x3_n", 3], ["none", 2]]', '["conv_3x3_n", 3], ["none", 5]]', "to go to a state in 0..4, got 5"),
        ('["conv_5x5_n", 3]],\n]', '["conv_5x5_m", 3]],\n]', "unknown link 'conv_5x5_m': did you mean"),
        ("malformed = \"the second", "ours = true\n# \"the second", "motif t3 cannot be built"),
        ("name = \"m2\"", "name = \"m1\"", "each name of a motif once"),
        ("id = 5\nname = \"m5\"", "id = 4\nname = \"m5\"", "expected one motif 4 of 3 inputs, got m4 and m5"),
        ("id = 5\nname = \"m5\"", "id = 5\nmalformed = \"no\"\nname = \"m5\"", "got one that is not"),
    ],
)  # fmt: skip
def test_a_faulty_space_is_refused_in_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (catalog.data_folder("spaces") / "mse-nas.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        catalog.space(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_that_lacks_a_motif_cannot_be_searched() -> None:
    some = SPACE.model_copy(update={"motifs": [one for one in SPACE.motifs if one.name != "m2"]})
    with pytest.raises(UserError, match="expected motifs with the same ids in a row"):
        GenomeCode(some, 6)


# --- genomes ----------------------------------------------------------------------------------------------------


def test_a_genome_of_six_cells_has_121_genes_within_golden_bounds() -> None:
    assert CODE.length == RELEASED.length == 121
    assert (RELEASED.lower[0], RELEASED.upper[0], RELEASED.upper[19], RELEASED.upper[1]) == (0, 3, 2, 1)
    assert (RELEASED.lower[-1], RELEASED.upper[-1]) == (2, 3)
    assert (CODE.lower[0], CODE.upper[0], CODE.lower[-1], CODE.upper[-1]) == (1, 5, 2, 4)
    assert sorted(set(range(6)) - STATIC) == [0, 2, 5]
    assert sorted(set(range(6)) - EVENTS) == [0, 2, 4]


@pytest.mark.parametrize("code", [CODE, RELEASED], ids=["clean", "released"])
def test_genomes_and_toml_go_round_without_loss(code: GenomeCode, tmp_path: Path) -> None:
    for i, genome in enumerate(genomes(code, 30)):
        genotype = decoded(code, genome, f"g{i}")
        path = tmp_path / f"g{i}.toml"
        path.write_text(genotype.to_toml())
        assert read_genotype(path) == genotype
        assert path.read_text() == read_genotype(path).to_toml()
        assert decoded(code, read_genotype(path).genome, f"g{i}") == genotype


@pytest.mark.parametrize("reductions", [STATIC, EVENTS], ids=["images", "events"])
def test_exactly_the_inert_genes_change_no_cell(reductions: frozenset[int]) -> None:
    """Every gene of several genomes is changed in turn, and the cells are compared."""

    def cells(genome: Genome) -> Any:
        genotype = decoded(CODE, genome)
        return genotype.inputs, [cell for i, cell in enumerate(genotype.cells) if i not in reductions]

    for genome in genomes(CODE, 4, seed=1):
        changed = set()
        for place in range(121):
            other = CODE.lower[place] if genome[place] != CODE.lower[place] else CODE.upper[place]
            mutant = (*genome[:place], other, *genome[place + 1 :])
            if cells(mutant) != cells(genome):
                changed.add(place)
        assert CODE.active(genome, reductions) == changed
        assert 121 - len(changed) >= 60  # half of the genome and more is inert
        canonical = CODE.canonical(genome, reductions)
        assert cells(canonical) == cells(genome)
        assert CODE.canonical(canonical, reductions) == canonical


def test_the_sign_of_feedback_is_the_motifs_or_that_of_the_released_genes() -> None:
    genome = [*6 * [3, *19 * [0]], 3]
    assert [cell.feedback for cell in decoded(CODE, genome).cells[:1]] == [(Edge("conv_3x3_n", 3), Edge("none", 2))]
    assert decoded(RELEASED, genome).cells[0].feedback == (Edge("conv_3x3_p", 3), Edge("none", 2))
    genome[11] = 1  # nine links and two of feedback: all of it reads gene 11
    assert decoded(CODE, genome).cells[0].feedback[0].op == "conv_5x5_n"
    assert decoded(RELEASED, genome).cells[0].feedback[0].op == "conv_5x5_p"
    assert decoded(CODE, genome).cells[1].feedback[0].op == "conv_3x3_n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 6}, "expected gene 0 in 1..5 (clean bounds), got 6: it is the motif of cell 0"),
        ({0: 0}, "expected gene 0 in 1..5"),
        ({39: 3}, "expected gene 39 in 0..1 (clean bounds), got 3: it is a kernel of cell 1"),
        ({120: 5}, "expected gene 120 in 2..4 (clean bounds), got 5: it is how many earlier cells each cell reads"),
        ({5: True}, "expected gene 5 in 0..1 (clean bounds), got True"),
    ],
)
def test_a_gene_out_of_bounds_is_named(change: dict[int, Any], message: str) -> None:
    genome: list[Any] = list(genomes(CODE, 1)[0])
    for place, gene in change.items():
        genome[place] = gene
    with pytest.raises(UserError) as caught:
        decoded(CODE, genome)
    assert str(caught.value).startswith(message)


def test_other_mistakes_of_genomes_are_named() -> None:
    with pytest.raises(UserError, match="expected a genome of 121 genes for 6 cells, got 120"):
        CODE.check(CODE.lower[:-1])
    with pytest.raises(UserError, match=r"expected layers in 1\.\.24"):
        GenomeCode(SPACE, 0)
    with pytest.raises(UserError, match="unknown bounds 'cleen': did you mean clean"):
        GenomeCode(SPACE, 6, "cleen")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("inputs = 2", "inputs = 3", "expected motifs of 3 inputs, got mm1 of 2 in cell 0"),
        ("inputs = 2", "inputs = 5", "inputs"),
        ('"conv_3x3_p", 0', '"conv_7x7_p", 0', "unknown link 'conv_7x7_p'"),
        ('"conv_3x3_p", 0', '"conv_3x3_p", 2', "node 0: expected a link to come from a state in 0..1, got 2"),
        ('kind = "motifs"', 'kind = "motif"', "kind"),
        ("inputs = 2", "inputs = 2\nlayers = 6", "unknown field 'layers'"),
    ],
)
def test_a_faulty_genotype_is_refused_in_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = uniform("mm1", 2).to_toml()
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        catalog.any_genotype(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cells_and_motifs_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "motifs.toml"
    path.write_text(uniform("mm1", 2).to_toml())
    assert isinstance(catalog.any_genotype("biodarts"), Genotype)
    with pytest.raises(UserError, match="expected a genotype of cells"):
        catalog.genotype(str(path))
    with pytest.raises(UserError, match="expected a genotype of motifs for the network motifs, got Genotype"):
        nets.build("motifs", DIGITS, seed=0, genotype=catalog.genotype("biodarts"))


# --- the network ------------------------------------------------------------------------------------------------


@pytest.fixture
def _seeded() -> Iterator[None]:
    """Layers that are built by hand draw their weights from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("_seeded")
def test_a_projection_fires_convolves_and_keeps_its_sign() -> None:
    cell = MotifCell(named("m2"), [4, 4, 4], [0, 0, 0], 4, LIF).eval()
    x = 2 * noise(3, 2, 4, 6, 6)
    excites, inhibits = cell.links["0-0"], cell.links["1-1"]
    assert (excites.sign, inhibits.sign) == ("p", "n")
    for link, sign in ((excites, 1), (inhibits, -1)):
        y = link(x)
        plain = torch.stack([link.synapses(spikes) for spikes in LIF()(x)])
        torch.testing.assert_close(y, torch.where(sign * plain > 0, plain, 0.0))
        assert (sign * y).max() > 0


@pytest.mark.usefixtures("_seeded")
def test_feedback_acts_within_the_step_on_what_comes_later_only() -> None:
    motif = Motif(
        name="mine",
        nodes=(
            (Edge("conv_3x3_p", 0), Edge("conv_3x3", 1)),
            (Edge("skip_connect", 0), Edge("conv_5x5_n", 2)),
            (Edge("conv_3x3", 2), Edge("conv_3x3_p", 3)),
            (Edge("none", 2), Edge("skip_connect", 0)),
        ),
        feedback=(Edge("conv_3x3_n", 2), Edge("skip_connect", 3), Edge("none", 0)),
    )
    cell = MotifCell(motif, [3, 5], [0, 1], 4, LIF).eval()
    for module in cell.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 5.0)  # currents strong enough that all neurons fire now and then
    links = cell.links
    a, b = noise(4, 2, 3, 4, 4), noise(4, 2, 5, 8, 8, seed=1)
    s0, s1 = cell.preprocess[0](a), cell.preprocess[1](b)
    n0 = links["0-0"](s0) + links["0-1"](s1)
    n1 = s0 + links["1-1"](n0)
    n0_later = n0 + cell.feedback["1"](n1)
    n2 = links["2-0"](n0_later) + links["2-1"](n1)
    n1_later = n1 + n2
    wanted = torch.cat([n0_later, n1_later, n2, s0], 2)
    found = cell((a, b))
    torch.testing.assert_close(found, wanted)
    assert (n0_later - n0).abs().max() > 0
    late = a.clone()
    late[2:] += 1
    torch.testing.assert_close(cell((late, b))[:2], found[:2])
    assert (cell((late, b))[2:] - found[2:]).abs().max() > 0


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("side", [8, 7, 1])
def test_halving_sees_the_map_and_the_map_shifted_by_one(side: int) -> None:
    layer = Halving(3, 5).eval()
    x = noise(2, 3, side, side)
    first = F.conv2d(x, layer.conv0.weight, stride=2, padding=1)
    if side == 8:  # where the released form works
        second = F.conv2d(x[:, :, 1:, 1:], layer.conv1.weight, stride=2, padding=1)
        torch.testing.assert_close(layer(x), layer.norm(torch.cat([first, second], 1)))
    assert layer(x).shape == (2, 5, -(-side // 2), -(-side // 2))
    assert layer.conv1.weight.shape[0] == 3
    for times in (2, 3):
        assert Halving(3, 5, times)(x).shape[2] == -(-side // 2**times)


@pytest.mark.parametrize(
    ("inputs", "layers", "shape", "coding"),
    [
        *(
            (k, n, shape, "direct")
            for k in (2, 3, 4)
            for n, shape in ((6, (1, 8, 8)), (7, (3, 9, 5)), (4, (13, 16, 16)))
        ),
        *((k, 9, (6, 16, 16), "frames") for k in (2, 3, 4)),
    ],
)
def test_every_macro_type_takes_images_of_any_size_and_frames(
    inputs: int, layers: int, shape: tuple[int, int, int], coding: str
) -> None:
    prefix = {2: "mm", 3: "m", 4: "t"}[inputs]
    cells = tuple(named(f"{prefix}{n}") for n in itertools.islice(itertools.cycle((5, 1, 2, 4)), layers))
    genotype = MotifGenotype(name="g", source="", inputs=inputs, cells=cells)
    about = Inputs(shape, 10, (0.3,) * shape[0], (0.4,) * shape[0])
    net = build(genotype, about, coding=coding)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (2, 10)
    assert net.stem[0].in_channels == (shape[0] if coding == "direct" else shape[0] // 3)
    assert sum(isinstance(m, nn.Conv2d) for m in net.stem) == (2 if coding == "direct" else 1)
    halved = [i for i, cell in enumerate(net.cells) if isinstance(cell, Projection)]
    assert halved == sorted(net.reductions)
    widths = [3 * 2 * 2 ** (1 + j) for j in range(len(halved))]
    assert [net.cells[i].synapses.norm.num_features for i in halved] == widths
    net.eval()
    torch.testing.assert_close(net(x)[1:], net(x[1:]), atol=1e-5, rtol=1e-4)


def test_each_cell_reads_the_last_cells_and_the_stem_before_the_first() -> None:
    net = build(uniform("m1", 3)).eval()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    stem = net.stem(net.normalise(x)).expand(3, -1, -1, -1, -1)
    outputs = [stem, stem, stem]
    for i, cell in enumerate(net.cells):
        outputs.append(cell(outputs[-1]) if i in {1, 3, 4} else cell(outputs[-3:]))
    steps = torch.stack([net.classifier(step.mean((2, 3))) for step in LIF()(outputs[-1])])
    torch.testing.assert_close(net(x), steps.mean(0))


def test_frames_are_shown_in_order() -> None:
    inputs = Inputs((6, 8, 8), 10, (0.0,) * 6, (1.0,) * 6)
    net = build(uniform("m1", 3), inputs, coding="frames").eval()
    seen: list[Tensor] = []
    net.stem.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    x = torch.rand(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    net(x)
    for t, n in itertools.product(range(3), range(2)):
        assert torch.equal(seen[0][2 * t + n], x[n, 2 * t : 2 * t + 2])
    with pytest.raises(UserError, match="expected channels that are 4 frames, got 6: set steps to a divisor"):
        build(uniform("m1", 3), inputs, coding="frames", steps=4)


def test_the_control_with_relu_has_the_same_weights_and_no_spikes() -> None:
    spiking, plain = build(uniform("m3", 3)), build(uniform("m3", 3), neurons="relu")
    assert {k: v.shape for k, v in spiking.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert not any(isinstance(m, LIF) for m in plain.modules())
    assert (spiking.steps, plain.steps) == (3, 1)
    assert plain(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"steps": 0}, "expected steps to be a whole number >= 1, got 0"),
        ({"channels": 0}, "expected channels"),
        ({"coding": "rate"}, "expected coding to be direct or frames"),
        ({"neurons": "tanh"}, "expected neurons to be lif or relu"),
        ({"surrogate": "triangel"}, "did you mean triangle"),
    ],
)
def test_a_network_names_what_is_wrong(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(uniform("mm1", 2), **params)
