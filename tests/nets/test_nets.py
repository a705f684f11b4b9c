import copy
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets import NETS, Inputs, Net, build, keywords, operations
from robustbench_bio.nets.base import weight_layers
from robustbench_bio.nets.cells import Cell, CellNet
from robustbench_bio.nets.cost import Share, macs, parameters, shares
from robustbench_bio.nets.operations import EverySecond, FactorizedReduce, drop_path, operation
from robustbench_bio.nets.small import Triangle
from robustbench_bio.records.base import read_toml
from robustbench_bio.records.genotype import OPERATIONS, Edge, Genotype, Primitive, parse_primitive
from robustbench_bio.records.motifs import MotifGenotype, read_genotype
from robustbench_bio.zoo import catalog

GENOTYPES = Path(__file__).parents[2] / "models" / "genotypes"
DIGITS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
TINY = Inputs((3, 16, 16), 120, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CIFAR = Inputs((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET = Inputs((3, 224, 224), 1000, (0.5,) * 3, (0.25,) * 3)


def read(name: str) -> Genotype:
    return read_toml(Genotype, GENOTYPES / f"{name}.toml")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def signed(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(inputs: Inputs = DIGITS, genotype: str = "biodarts", **params: object) -> CellNet:
    params = {"channels": 4, "layers": 5} | params
    net = build("cells", inputs, seed=0, genotype=read(genotype), **params)
    assert isinstance(net, CellNet)
    return net


def settle(module: nn.Module) -> nn.Module:
    """Give every batch norm statistics, scales and shifts of its own, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(1)
    for m in module.double().modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.5, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(m.weight, 0.5, 2, generator=generator)
            nn.init.normal_(m.bias, 0, 0.5, generator=generator)
    return module.eval()


def bn(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


MOTIFS = MotifGenotype(name="m3", source="", inputs=3, cells=(catalog.space("mse-nas").buildable[3, 3],) * 6)
PRIMITIVES = catalog.space("bionas").primitives
#: What makes a network small, or cannot be left out; a network that is not listed is built with its defaults.
EXAMPLES: dict[str, dict[str, object]] = defaultdict(dict) | {
    "cells": {"genotype": read("biodarts"), "channels": 4, "layers": 5},
    "resnet": {"width": 4},
    "mlp": {},
    "cnn": {},
    "motifs": {"genotype": MOTIFS, "channels": 4, "steps": 3},
    "spiking-cnn": {"widths": (4,), "steps": 3},
    "spiking-resnet": {"blocks": 1, "width": 4, "steps": 3},
}


@pytest.fixture(params=NETS.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# genotypes


def test_search_space_has_22_primitives_in_the_published_order():
    assert len(PRIMITIVES) == 22
    assert PRIMITIVES[:8] == [
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect_u", "skip_connect_f", "skip_connect_b",
        "sep_conv_3x3_u", "sep_conv_3x3_br",
    ]  # fmt: skip
    assert PRIMITIVES[-1] == "dil_conv_5x5_fa"


@pytest.mark.parametrize(
    ("name", "operation", "rule"),
    [
        ("none", "none", "bp"),
        ("sep_conv_3x3", "sep_conv_3x3", "bp"),
        ("sep_conv_3x3_u", "sep_conv_3x3", "usf"),
        ("sep_conv_7x7_br", "sep_conv_7x7", "brsf"),
        ("dil_conv_5x5_fr", "dil_conv_5x5", "frsf"),
        ("dil_conv_3x3_fa", "dil_conv_3x3", "fa"),
        ("conv_7x1_1x7_dfa", "conv_7x1_1x7", "dfa"),
        ("sep_conv_5x5_bp", "sep_conv_5x5", "bp"),
        ("skip_connect_f", "skip_connect", "frsf"),
        ("skip_connect_fr", "skip_connect", "frsf"),
        ("skip_connect_b", "skip_connect", "brsf"),
        ("skip_connect_br", "skip_connect", "brsf"),
        ("sep_conv_3x3_oja", "sep_conv_3x3", "oja"),
        ("sep_conv_3x3_hwta", "sep_conv_3x3", "hard-wta"),
        ("sep_conv_3x3_soft", "sep_conv_3x3", "softhebb"),
    ],
)
def test_primitive_splits_into_operation_and_rule(name: str, operation: str, rule: str):
    assert parse_primitive(name) == Primitive(operation, rule)


def test_every_searched_primitive_keeps_its_name():
    assert [parse_primitive(name).name for name in PRIMITIVES] == PRIMITIVES


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("max_pool_3x3_u", "write max_pool_3x3"),
        ("sep_conv_3x3_f", "did you mean sep_conv_3x3_fr"),
        ("sepconv_3x3", "did you mean sep_conv_3x3"),
    ],
)
def test_unknown_primitive_names_the_remedy(name: str, remedy: str):
    with pytest.raises(UserError, match=remedy):
        parse_primitive(name)


@pytest.mark.parametrize("path", sorted(GENOTYPES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_genotype_is_canonical_and_builds(path: Path):
    genotype = read_genotype(path)
    assert genotype.name == path.stem
    assert genotype.source
    assert genotype.to_toml() == path.read_text(encoding="utf-8")
    assert type(genotype).from_toml(genotype.to_toml()) == genotype
    if isinstance(genotype, Genotype):
        net = build("cells", DIGITS, seed=0, genotype=genotype, channels=2, layers=3)
    else:
        net = build("motifs", DIGITS, seed=0, genotype=genotype, channels=2, steps=2)
    assert net(noise(2, 1, 8, 8)).shape == (2, 10)
    assert set(net.genotype_rules()) <= set(weight_layers(net))


def test_odd_text_survives_the_round_trip():
    genotype = read("biodarts").model_copy(update={"source": 'a "b" \\ c\nd é'})
    assert Genotype.from_toml(genotype.to_toml()) == genotype


def test_concat_is_all_nodes_by_default():
    text = "\n".join(line for line in read("nasnet").to_toml().splitlines() if "concat" not in line)
    genotype = Genotype.from_toml(text)
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5, 6)


def test_genotype_is_frozen_and_hashable():
    genotype = read("biodarts")
    assert {genotype: 1}[read("biodarts")] == 1
    with pytest.raises(ValueError, match="frozen"):
        genotype.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sep_conv_3x3_fr", "sep_conv_3x3_fx", "'normal': edge 2: unknown operation .* did you mean"),
        ("max_pool_3x3", "max_pool_3x3_u", r"'normal': edge 7: expected no rule.* \(and 1 more\)"),
        ('"sep_conv_3x3_u", 2', '"sep_conv_3x3_u", 3', "'normal': expected edge 3 .* in 0..2, got 3"),
        ('"sep_conv_3x3_u", 2', '"sep_conv_3x3_u", -1', "'normal': expected edge 3 .* in 0..2, got -1"),
        ('"sep_conv_3x3_u", 2', '"sep_conv_3x3_u", "2"', r"'normal\.3\.1': .* got '2': write an edge as"),
        ('    ["dil_conv_5x5_u", 3],\n', "", "'reduce': expected two edges for each node, got 7"),
        ("normal_concat = [2, 3, 4, 5]", "normal_concat = [6]", r"'normal_concat': .* in 0..5, got \[6\]"),
        ("reduce_concat = [2, 3, 4, 5]", "reduce_concat = []", "'reduce_concat': expected one or more"),
        ("reduce_concat = [2, 3, 4, 5]", "reduce_concat = [2, 2]", "'reduce_concat': expected one or more"),
        ('name = "biodarts"', 'name = "../biodarts"', "'name': expected up to 100 letters.* rename it"),
        ('name = "biodarts"\n', "", "'name': expected a value, got none: add this field"),
        ("normal = [", "normale = [", r"'normal': expected a value, got none: add this field \(and 1 more\)"),
        ("source =", "source", "expected TOML, got .*line 2"),
    ],
)
def test_faulty_genotype_is_refused_in_one_line_that_names_the_field(old: str, new: str, message: str):
    text = read("biodarts").to_toml()
    assert old in text
    with pytest.raises(UserError, match=message) as caught:
        Genotype.from_toml(text.replace(old, new), "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


def test_too_many_nodes_are_refused():
    edges = (Edge("skip_connect", 0),) * 26
    with pytest.raises(ValueError, match="at most 12 nodes, got 13"):
        Genotype(name="deep", source="test", normal=edges, reduce=edges)


def test_missing_genotype_file_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match="check the path"):
        read_genotype(tmp_path / "none.toml")


# golden numbers of the released code


def test_biodarts_for_cifar_has_the_published_size():
    net = build("cells", CIFAR, seed=0, genotype=read("biodarts"), skip_rule="ignored")
    cost = shares(net, net.genotype_rules(), CIFAR.shape)
    assert parameters(net) == 2_867_662
    assert sum(macs(net, CIFAR.shape).values()) == 452_244_096
    assert set(cost) == {"bp", "usf", "frsf"}
    assert cost["usf"].weights + cost["frsf"].weights == 1_446_552
    assert cost["usf"].macs + cost["frsf"].macs == 222_317_568
    assert (cost["usf"].layers, cost["frsf"].layers) == (148, 144)


def test_biodarts_for_imagenet_has_the_published_size():
    params = {"channels": 48, "layers": 14, "stem": "imagenet", "skip_rule": "ignored"}
    net = build("cells", IMAGENET, seed=0, genotype=read("biodarts"), **params)
    cost = shares(net, net.genotype_rules(), IMAGENET.shape)
    assert parameters(net) == 4_194_304
    assert sum(macs(net, IMAGENET.shape).values()) == 465_701_952
    assert cost["usf"].macs + cost["frsf"].macs == 196_693_056


def test_operations_of_the_supernet_have_the_published_size():
    # 16 channels, 8 cells, 14 edges, all 22 primitives; everything but the mixed edges is added by hand.
    def conv(c_in: int, c_out: int, k: int = 1) -> int:
        return c_in * c_out * k * k

    def mixed(channels: int, stride: int) -> int:
        names = (parse_primitive(p).operation for p in PRIMITIVES)
        return sum(parameters(operation(name, channels, stride, affine=False)) for name in names)

    total = conv(3, 48, 3) + 2 * 48 + 10 * 257
    c_prev_prev, c_prev, c = 48, 48, 16
    for i in range(8):
        c *= 2 if i in {2, 5} else 1
        total += conv(c_prev_prev, c) + conv(c_prev, c)
        c_prev_prev, c_prev = c_prev, 4 * c
        from_inputs = 8
        total += from_inputs * mixed(c, 2 if i in {2, 5} else 1) + (14 - from_inputs) * mixed(c, 1)
    assert total == 7_383_162


def test_separable_convolution_of_16_channels_has_864_weights():
    op = operation("sep_conv_3x3", 16, 1)
    assert parameters(op) == 864


def test_resnets_have_the_published_size():
    sizes = {depth: parameters(build("resnet", CIFAR, seed=0, depth=depth)) for depth in (20, 56)}
    assert sizes == {20: 269_722, 56: 853_018}


def test_reference_resnet20_loads_strictly_and_scores_as_published(reference_resnet20: Path, cifar10_npz: Path):
    net = build("resnet", CIFAR, seed=0, depth=20)
    net.load_state_dict(load_file(reference_resnet20), strict=True)
    net.eval()
    with np.load(cifar10_npz) as data:
        x = torch.from_numpy(data["test_images"]).permute(0, 3, 1, 2) / 255
        y = torch.from_numpy(data["test_labels"])
    with torch.no_grad():
        hits = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(128), y.split(128), strict=True))
    assert len(y) == 846
    assert hits == 776  # 91.73 %


# operations and cells, recomputed by hand


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", OPERATIONS.names())
def test_every_operation_keeps_the_channels_and_says_whether_a_rule_may_own_it(op: str, stride: int):
    module = operation(op, 4, stride)
    side = 7 if stride == 1 else 4
    assert module(noise(2, 4, 7, 7)).shape == (2, 4, side, side)
    ruled = OPERATIONS.get(op)
    assert bool(weight_layers(module)) == (ruled and not isinstance(module, nn.Identity))
    assert parse_primitive(op) == Primitive(op, "bp")
    if ruled:
        assert parse_primitive(f"{op}_u").name == f"{op}_u"


def test_an_operation_registers_itself_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OPERATIONS, "_members", OPERATIONS.registered())
    monkeypatch.setattr(operations, "_BUILDERS", dict(operations._BUILDERS))

    @operations.builds("mine_1x1", ruled=True)
    def mine(channels: int, stride: int, affine: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, channels, 1, stride))

    assert parse_primitive("mine_1x1_fr") == Primitive("mine_1x1", "frsf")
    edges = (Edge("mine_1x1_fa", 0), Edge("none", 1))
    genotype = Genotype(name="mine", source="", normal=edges, reduce=edges)
    net = build("cells", DIGITS, seed=0, genotype=genotype, channels=4, layers=3)
    assert net.genotype_rules() == {f"cells.{i}.operations.0.0": "fa" for i in range(3)}
    assert net(noise(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="operation 'sep_conv_3x3' is registered twice, by True and by False"):
        operations.builds("sep_conv_3x3", ruled=False)


@pytest.mark.parametrize("side", [6, 7])
def test_factorized_reduce_takes_two_grids_of_pixels(side: int):
    op = settle(FactorizedReduce(4, 6))
    x = signed(2, 4, side, side)
    relu = F.pad(x.clamp_min(0), (0, 1, 0, 1))
    grids = [relu[:, :, 0:side:2, 0:side:2], relu[:, :, 1 : side + 1 : 2, 1 : side + 1 : 2]]
    maps = [
        torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], grid)
        for conv, grid in zip((op.conv0, op.conv1), grids, strict=True)
    ]
    torch.testing.assert_close(op(x), bn(torch.cat(maps, 1), op.norm))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "kernel", "dilation"),
    [
        ("sep_conv_3x3", 3, 1),
        ("sep_conv_5x5", 5, 1),
        ("sep_conv_7x7", 7, 1),
        ("dil_conv_3x3", 3, 2),
        ("dil_conv_5x5", 5, 2),
    ],
)
def test_separable_operations_equal_their_formula(name: str, kernel: int, dilation: int, stride: int):
    op = settle(operation(name, 3, stride))
    x = signed(2, 3, 9, 9)
    y = x
    blocks = (op.first, op.second) if name.startswith("sep") else (op,)
    for block, s in zip(blocks, (stride, 1), strict=False):
        dense = torch.zeros(3, 3, kernel, kernel, dtype=torch.float64)
        dense[range(3), range(3)] = block.depthwise.weight[:, 0]
        y = F.conv2d(y.clamp_min(0), dense, None, s, dilation * (kernel - 1) // 2, dilation)
        y = bn(torch.einsum("oi,nihw->nohw", block.pointwise.weight[:, :, 0, 0], y), block.norm)
    torch.testing.assert_close(op(x), y)


@pytest.mark.parametrize("stride", [1, 2])
def test_row_then_column_convolution_equals_its_formula(stride: int):
    op = settle(operation("conv_7x1_1x7", 3, stride))
    x = signed(2, 3, 9, 9)
    y = F.conv2d(F.pad(x.clamp_min(0), (3, 3)), op.row.weight)[:, :, :, ::stride]
    y = F.conv2d(F.pad(y, (0, 0, 3, 3)), op.column.weight)[:, :, ::stride]
    torch.testing.assert_close(op(x), bn(y, op.norm))


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_and_zero_equal_their_formulas(stride: int):
    x = signed(2, 3, 7, 7)
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, stride).unfold(3, 3, stride).flatten(4)
    torch.testing.assert_close(operation("max_pool_3x3", 3, stride)(x), padded.amax(4))
    inside = padded.isfinite()
    mean = padded.where(inside, 0.0).sum(4) / inside.sum(4)
    torch.testing.assert_close(operation("avg_pool_3x3", 3, stride)(x), mean)
    assert torch.equal(operation("none", 3, stride)(x), torch.zeros_like(mean))
    assert isinstance(operation("skip_connect", 3, stride), FactorizedReduce if stride == 2 else nn.Identity)


CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_an_average_pool_is_torchs_own_that_takes_a_copy_on_a_gpu(device: str):
    ours, theirs = operation("avg_pool_3x3", 4, 2).to(device), nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    assert repr(ours) == repr(theirs)
    x = noise(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = noise(2, 4, 4, 4, seed=1)
    gradients = []
    for pool, where in ((ours, device), (theirs, "cpu")):
        leaf = x.to(where).requires_grad_(True)
        (pool(leaf) * weight.to(where)).sum().backward()
        gradients.append(leaf.grad.cpu())
    assert torch.allclose(*gradients, atol=1e-6)


def test_reduction_cell_wires_its_edges_as_the_genotype_says():
    genotype = Genotype(
        name="wiring",
        source="test",
        normal=[("skip_connect", 0)] * 2,
        reduce=[("max_pool_3x3", 0), ("skip_connect", 1), ("sep_conv_3x3", 2), ("avg_pool_3x3", 0)],
        reduce_concat=[3, 2],
    )
    cell = Cell(genotype, 5, 6, 4, reduction=True, reduction_prev=True)
    settle(cell)
    s0, s1 = signed(2, 5, 16, 16), signed(2, 6, 8, 8, seed=1)
    out = cell(s0, s1, 0.0)
    p0, p1 = cell.preprocess0(s0), cell.preprocess1(s1)
    expected = bn(F.conv2d(s1.clamp_min(0), cell.preprocess1.conv.weight), cell.preprocess1.norm)
    torch.testing.assert_close(p1, expected)
    ops = cell.operations
    node0 = F.max_pool2d(p0, 3, 2, 1) + ops[1](p1)
    node1 = ops[2](node0) + F.avg_pool2d(p0, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(out, torch.cat([node1, node0], 1))
    assert out.shape == (2, 8, 4, 4)


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 14, 20])
def test_cells_reduce_at_a_third_and_two_thirds(layers: int):
    net = cells(layers=layers, channels=1)
    sizes = []
    for cell in net.cells:
        cell.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    net.eval()(noise(1, 1, 8, 8))
    reductions = {layers // 3, 2 * layers // 3}
    halvings = [sum(r <= i for r in reductions) for i in range(layers)]
    assert sizes == [(4 * 2**h, 8 >> h, 8 >> h) for h in halvings]


@pytest.mark.parametrize(
    ("inputs", "stem", "head"),
    [
        (DIGITS, "cifar", True),
        (TINY, "cifar", True),
        (CIFAR, "cifar", True),
        (Inputs((1, 28, 28), 10, (0.1,), (0.3,)), "cifar", True),
        (TINY, "imagenet", True),
        (DIGITS, "imagenet", False),
    ],
)
def test_cell_network_runs_on_every_size_with_its_auxiliary_head(inputs: Inputs, stem: str, head: bool):
    net = cells(inputs, stem=stem, auxiliary=head)
    seen: list[Tensor] = []
    if head:
        assert net.auxiliary_head is not None
        net.auxiliary_head.register_forward_hook(lambda _, __, out: seen.append(out))
    x = noise(4, *inputs.shape)
    assert net(x).shape == (4, inputs.classes)
    assert [out.shape for out in seen] == [(4, inputs.classes)] * head
    net.eval()(x)
    assert len(seen) == head


def test_auxiliary_head_pools_as_published_where_it_can():
    published = cells(CIFAR, auxiliary=True).auxiliary_head
    small = cells(TINY, auxiliary=True).auxiliary_head
    large = cells(IMAGENET, auxiliary=True, stem="imagenet").auxiliary_head
    pools = [head.pool for head in (published, small, large)]
    assert [type(pool) for pool in pools] == [nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d]
    assert (pools[0].stride, pools[2].stride) == (3, 2)
    assert isinstance(published.norm2, nn.BatchNorm2d)
    assert isinstance(large.norm2, nn.Identity)


def test_without_auxiliary_head_every_network_has_none(name: str):
    assert build(name, DIGITS, seed=0, **EXAMPLES[name]).auxiliary_head is None


# drop path


def test_drop_path_drops_whole_examples_at_the_rate_and_keeps_the_mean():
    x = 1 + noise(20_000, 2, 1, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = drop_path(x, 0.3)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.3, abs=0.015)  # 4.6 standard errors
    kept = ~dropped[:, 0]
    torch.testing.assert_close(y[kept], x[kept] / 0.7)


def test_drop_path_spares_identities_and_eval_mode():
    edges = [("skip_connect", 0), ("max_pool_3x3", 1)]
    genotype = Genotype(name="mix", source="test", normal=edges, reduce=edges)
    cell = Cell(genotype, 2, 2, 2, reduction=False, reduction_prev=False)
    s0, s1 = noise(64, 2, 4, 4), noise(64, 2, 4, 4, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = cell(s0, s1, 0.5)
    skip = cell.preprocess0(s0)
    pool = F.max_pool2d(cell.preprocess1(s1), 3, 1, 1)
    kept = (out - skip).flatten(1).abs().amax(1) > 1e-6
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(out[kept], (skip + 2 * pool)[kept])
    torch.testing.assert_close(out[~kept], skip[~kept])
    cell.eval()
    assert torch.equal(cell(s0, s1, 0.5), cell(s0, s1, 0.0))


def test_drop_path_of_a_network_is_read_at_each_forward():
    net = cells(drop_path=0.0)
    x = noise(8, 1, 8, 8)
    assert torch.equal(net(x), net(x))
    net.drop_path = 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = net(x), net(x)
    assert not torch.equal(first, second)


# rules that a genotype prescribes


def test_genotype_rules_name_the_convolutions_of_each_ruled_operation():
    net = cells(layers=3)
    rules = net.genotype_rules()
    # Cell 0 is normal: edges 2..4 and 6 are separable convolutions, the skips are identities.
    expected = {
        f"cells.0.operations.{edge}.{block}.{conv}": rule
        for edge, rule in ((2, "frsf"), (3, "usf"), (4, "usf"), (6, "frsf"))
        for block in ("first", "second")
        for conv in ("depthwise", "pointwise")
    }
    assert {k: v for k, v in rules.items() if k.startswith("cells.0.")} == expected
    reduce = {k: v for k, v in rules.items() if k.startswith("cells.1.")}
    assert reduce == dict.fromkeys(
        [f"cells.1.operations.{layer}" for layer in ("1.conv0", "1.conv1", "7.depthwise", "7.pointwise")],
        "usf",
    )


def test_ignored_skip_rule_leaves_factorized_reductions_out():
    applied, ignored = (cells(layers=3, skip_rule=rule) for rule in ("applied", "ignored"))
    gone = set(applied.genotype_rules()) - set(ignored.genotype_rules())
    assert gone == {f"cells.{i}.operations.1.conv{j}" for i in (1, 2) for j in (0, 1)}
    assert set(applied.rule_slots()) - set(ignored.rule_slots()) == {f"cells.{i}.operations.1" for i in (1, 2)}


def test_slots_cover_plain_primitives_too_and_hold_each_layer_once():
    net = cells(genotype="darts-v2", auxiliary=True)
    assert net.genotype_rules() == {}
    layers = [layer for slot in net.rule_slots().values() for layer in slot]
    assert len(layers) == len(set(layers))
    assert set(layers) == {layer for layer in weight_layers(net) if ".operations." in layer}
    assert all(layer.startswith(slot) for slot, members in net.rule_slots().items() for layer in members)


def test_other_networks_give_one_slot_to_each_weight_layer():
    net = build("resnet", CIFAR, seed=0)
    assert list(net.rule_slots()) == list(weight_layers(net))
    assert len(net.rule_slots()) == 20
    assert net.genotype_rules() == {}


# every network


def test_examples_are_those_of_members():
    assert set(EXAMPLES) <= set(NETS.names())


def test_gradient_reaches_every_parameter_and_the_input(name: str):
    net = build(name, DIGITS, seed=0, **EXAMPLES[name])
    x = noise(8, 1, 8, 8).requires_grad_(True)
    F.cross_entropy(net(x), torch.arange(8)).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert x.grad.isfinite().all()
    assert (x.grad.abs().flatten(1).sum(1) > 0).all()


def test_seed_decides_the_weights_and_the_global_rng_stays(name: str):
    before = torch.get_rng_state()
    one, same, other = (build(name, DIGITS, seed=s, **EXAMPLES[name]).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_normalisation_is_inside(name: str):
    plain = Inputs(DIGITS.shape, DIGITS.classes, (0.0,), (1.0,))
    net = build(name, DIGITS, seed=0, **EXAMPLES[name]).eval()
    bare = build(name, plain, seed=0, **EXAMPLES[name]).eval()
    assert not any("normalise" in key for key in net.state_dict())
    x = noise(3, 1, 8, 8)
    torch.testing.assert_close(net(x), bare((x - 0.3) / 0.4))


def test_eval_forward_changes_nothing_and_does_not_depend_on_the_batch(name: str):
    net = build(name, DIGITS, seed=0, **EXAMPLES[name]).eval().double()
    before = copy.deepcopy(net.state_dict())
    x = noise(6, 1, 8, 8).double()
    together = net(x)
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x]), together, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_module_names_that_weight_files_rely_on():
    def modules(net: nn.Module) -> set[str]:
        return {key.rpartition(".")[0] for key in net.state_dict()}

    assert modules(build("mlp", DIGITS, seed=0, hidden=(2,))) == {"stages.0.linear", "stages.1.linear"}
    cnn = build("cnn", DIGITS, seed=0, widths=(2,))
    assert modules(cnn) == {"stages.0.conv", "stages.1.norm", "stages.1.linear"}
    whitened = build("cnn", DIGITS, seed=0, widths=(2,), norm="whiten")
    assert modules(whitened) == {"stages.0.whiten", "stages.0.conv", "stages.1.linear"}
    names = modules(cells(layers=3, auxiliary=True))
    assert {name for name in names if not name.startswith("cells.")} == {
        "stem0.conv", "stem0.norm", "classifier",
        *(f"auxiliary_head.{m}" for m in ("conv1", "norm1", "conv2", "norm2", "classifier")),
    }  # fmt: skip
    assert {name for name in names if name.startswith("cells.2.")} == {
        *(f"cells.2.preprocess0.{m}" for m in ("conv0", "conv1", "norm")),
        *(f"cells.2.preprocess1.{m}" for m in ("conv", "norm")),
        *(f"cells.2.operations.1.{m}" for m in ("conv0", "conv1", "norm")),
        *(f"cells.2.operations.7.{m}" for m in ("depthwise", "pointwise", "norm")),
    }


def test_keywords_of_every_network_are_checked(name: str):
    known = keywords(NETS.get(name))
    nearly = next(iter(known)) + "x"
    with pytest.raises(UserError, match=f"did you mean {nearly[:-1]}"):
        build(name, DIGITS, seed=0, **EXAMPLES[name] | {nearly: 1})


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cell", {}, "did you mean cells"),
        ("cells", {}, "expected genotype for the network cells, got none"),
        ("cells", {"genotype": "biodarts"}, "expected a genotype of cells for the network cells, got str"),
        ("cells", EXAMPLES["cells"] | {"channels": 0}, "expected channels .* >= 1, got 0"),
        ("cells", EXAMPLES["cells"] | {"layers": 2.0}, "expected layers .* whole number .* got 2.0"),
        ("cells", EXAMPLES["cells"] | {"channels": 1, "stem": "imagenet"}, "channels .* >= 2, got 1"),
        ("cells", EXAMPLES["cells"] | {"stem": "cifr"}, "got 'cifr': did you mean cifar"),
        ("cells", EXAMPLES["cells"] | {"skip_rule": "apply"}, "skip_rule .* did you mean applied"),
        ("cells", EXAMPLES["cells"] | {"drop_path": 1.0}, r"drop_path to be in \[0, 1\), got 1.0"),
        ("cells", EXAMPLES["cells"] | {"drop_path": float("nan")}, r"drop_path to be in \[0, 1\), got nan"),
        ("cells", EXAMPLES["cells"] | {"auxiliary": "yes"}, "auxiliary to be true or false, got 'yes'"),
        ("resnet", {"depth": 18}, "expected depth to be one of 20, 32, 44, 56, 110, got 18"),
        ("resnet", {"width": True}, "expected width .* got True"),
        ("mlp", {"hidden": 128}, "expected hidden to be a list .* got 128"),
        ("mlp", {"hidden": [128, 0]}, r"expected hidden\[1\] .* got 0"),
        ("mlp", {"activation": "tan"}, "did you mean tanh"),
        ("cnn", {"widths": []}, r"expected widths to be a list of 1 or more widths, got \[\]"),
        ("cnn", {"kernel": 4}, "expected an odd kernel, got 4: set kernel to 5"),
        ("cnn", {"widths": [2] * 4}, "at most 3 widths for images of 8x8, got 4"),
        ("cnn", {"power": 0}, "expected power > 0, got 0"),
        ("cnn", {"norm": "batchnorm"}, "did you mean batch"),
    ],
)
def test_wrong_value_is_refused_with_a_remedy(name: str, params: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build(name, DIGITS, seed=0, **params)


def test_negative_seed_is_refused():
    with pytest.raises(UserError, match="expected seed"):
        build("mlp", DIGITS, seed=-1)


# chains


@pytest.mark.parametrize(
    ("name", "params", "layers"),
    [
        ("mlp", {}, 3),
        ("mlp", {"hidden": [], "activation": "tanh"}, 1),
        ("mlp", {"hidden": [5], "activation": "tanh"}, 2),
        ("cnn", {"norm": "none"}, 3),
        ("cnn", {"norm": "none", "activation": "triangle", "widths": [4], "kernel": 5}, 2),
    ],
)
def test_chain_equals_forward_and_each_stage_ends_in_its_weight_layer(
    name: str, params: dict[str, object], layers: int
):
    net = build(name, DIGITS, seed=0, **params)
    x = noise(3, 1, 8, 8)
    z = x
    ends: list[nn.Module] = []
    for stage in net.chain():
        leaves = [m for m in stage.modules() if not list(m.children())]
        hooks = [m.register_forward_hook(lambda m, _, __: ends.append(m)) for m in leaves]
        z = stage(z)
        for hook in hooks:
            hook.remove()
        assert len(weight_layers(stage)) == 1
        assert ends[-1] is next(iter(weight_layers(stage).values()))
    assert len(net.chain()) == layers == len(weight_layers(net))
    assert torch.equal(z, net(x))


def test_mlp_equals_its_formula():
    net = build("mlp", DIGITS, seed=0, hidden=(7, 5), activation="tanh").double()
    w1, w2, w3 = weight_layers(net).values()
    x = noise(4, 1, 8, 8).double()
    z = ((x - 0.3) / 0.4).flatten(1) @ w1.weight.T + w1.bias
    z = torch.tanh(z) @ w2.weight.T + w2.bias
    z = torch.tanh(z) @ w3.weight.T + w3.bias
    # The buffers of the normalisation were rounded to float32 first.
    torch.testing.assert_close(net(x), z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "batch", "whiten"])
def test_cnn_equals_its_formula(norm: str):
    plain = Inputs(DIGITS.shape, 10, (0.0,), (1.0,))
    net = build("cnn", plain, seed=0, widths=(3,), norm=norm).double()
    conv, linear = weight_layers(net).values()
    x = signed(16, 1, 8, 8)

    def standard(y: Tensor) -> Tensor:
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
        return (y - mean) / (variance + 1e-5) ** 0.5

    y = F.conv2d(standard(x) if norm == "whiten" else x, conv.weight, conv.bias, padding=1)
    y = F.max_pool2d((standard(y) if norm == "batch" else y).clamp_min(0), 2)
    torch.testing.assert_close(net(x), y.flatten(1) @ linear.weight.T + linear.bias)
    assert (conv.bias is None) == (norm != "none")
    assert parameters(net) == 27 + 3 * (norm == "none") + 6 * (norm == "batch") + 490


@pytest.mark.parametrize("norm", ["batch", "whiten"])
def test_cnn_with_running_statistics_is_no_chain(norm: str):
    with pytest.raises(UserError, match='set norm = "none"'):
        build("cnn", DIGITS, seed=0, norm=norm).chain()


def test_networks_with_branches_are_no_chain():
    with pytest.raises(UserError, match="expects a chain"):
        build("resnet", DIGITS, seed=0).chain()


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
def test_triangle_equals_its_formula_with_a_finite_gradient_at_the_kink(power: float):
    z = signed(2, 5, 3, 3)
    z[:, :, 0, 0] = 2.0  # all channels equal: every unit sits on the kink
    z.requires_grad_(True)
    out = Triangle(power)(z)
    torch.testing.assert_close(out, (z - z.mean(1, keepdim=True)).clamp_min(0) ** power)
    (gradient,) = torch.autograd.grad(out.sum(), z)
    assert gradient.isfinite().all()
    off = z.detach()[:, :, 1:, 1:].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(Triangle(power), (off,))


# measures


@pytest.mark.parametrize("params", [{}, {"auxiliary": True, "stem": "imagenet"}], ids=["cifar", "imagenet"])
def test_macs_of_cells_agree_with_torchs_counter(params: dict[str, object]):
    net = cells(TINY, genotype="amoebanet", **params).eval()
    with FlopCounterMode(display=False) as counter:
        net(noise(1, *TINY.shape))
    assert 2 * sum(macs(net, TINY.shape).values()) == counter.get_total_flops()


def test_macs_agree_with_torchs_counter_layer_by_layer(name: str):
    net = build(name, DIGITS, seed=0, **EXAMPLES[name]).eval()
    with FlopCounterMode(display=False, depth=9) as counter:
        net(noise(1, *DIGITS.shape))
    flops = counter.get_flop_counts()
    assert macs(net, DIGITS.shape) == {
        layer: sum(flops[f"{type(net).__name__}.{layer}"].values()) // 2 for layer in weight_layers(net)
    }


def test_measuring_leaves_the_model_as_it_was(name: str):
    net = build(name, DIGITS, seed=0, **EXAMPLES[name])
    frozen = next(m for m in net.modules() if not list(m.children()))
    frozen.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    assert macs(net, DIGITS.shape) == macs(net, DIGITS.shape)
    assert [m.training for m in net.modules()] == modes
    assert True in modes
    assert False in modes
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_auxiliary_head_counts_as_weights_but_not_as_macs():
    plain, with_head = cells(CIFAR), cells(CIFAR, auxiliary=True)
    assert parameters(with_head) > parameters(plain)
    cost = macs(with_head, CIFAR.shape)
    assert {layer: n for layer, n in cost.items() if n == 0}.keys() == {
        f"auxiliary_head.{layer}" for layer in ("conv1", "conv2", "classifier")
    }
    assert sum(cost.values()) == sum(macs(plain, CIFAR.shape).values())


def test_shares_add_up():
    net: Net = build("mlp", DIGITS, seed=0, hidden=(3, 2))
    cost = shares(net, {"stages.1.linear": "fa"}, DIGITS.shape)
    assert cost == {"bp": Share(2, 64 * 3 + 3 + 2 * 10 + 10, 64 * 3 + 2 * 10), "fa": Share(1, 3 * 2 + 2, 6)}
    net = build("cnn", DIGITS, seed=0)
    assert shares(net, {}, DIGITS.shape)["bp"].weights == parameters(net)


def test_frozen_weights_are_not_counted_as_trainable():
    net = build("mlp", DIGITS, seed=0, hidden=())
    net.stages[0].linear.bias.requires_grad_(False)
    assert parameters(net) == 640


def test_a_convolution_of_every_second_pixel_is_one_of_stride_2() -> None:
    layer, plain = EverySecond(3, 5).double(), nn.Conv2d(3, 5, 1, 2, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    assert repr(layer) == repr(plain)  # fingerprints of networks rest on it
    for side in (1, 4, 7):
        x = torch.rand(2, 3, side, side, dtype=torch.float64, requires_grad=True)
        ours, theirs = layer(x), plain(x)
        assert torch.equal(ours, theirs)
        first = torch.autograd.grad(ours.square().sum(), (x, layer.weight))
        second = torch.autograd.grad(theirs.square().sum(), (x, plain.weight))
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
