"""The supernet: what it holds, what its edges compute, and that the fast way computes the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_bio import rules
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets import Inputs
from robustbench_bio.nets.cells import CellNet
from robustbench_bio.nets.cost import macs, parameters
from robustbench_bio.nets.operations import FactorizedReduce
from robustbench_bio.records.genotype import Edge, Genotype
from robustbench_bio.records.space import Space
from robustbench_bio.rules.geometry import Convolution
from robustbench_bio.search.supernet.fast.depthwise import Depthwise
from robustbench_bio.search.supernet.fast.shared import evaluate_edges
from robustbench_bio.search.supernet.mixed_edge import MixedEdge
from robustbench_bio.search.supernet.supernet import Supernet, Weights, shares_work
from robustbench_bio.zoo import catalog

#: One operation of each kind that the fast way treats in its own manner, under different rules.
MIXTURE = Space(
    name="mixture",
    title="",
    primitives=[
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect_u", "skip_connect_f",
        "sep_conv_3x3_u", "sep_conv_3x3_br", "sep_conv_5x5_fa", "dil_conv_3x3_fr", "dil_conv_5x5_u", "dil_conv_5x5",
    ],
    nodes=2,
)  # fmt: skip


def inputs(side=8):
    return Inputs((3, side, side), 5, (0.5,) * 3, (0.25,) * 3)


def small(space=MIXTURE, *, side=8, channels=4, layers=1, rule="genotype", dtype=torch.float64, **kwargs):
    """Build a small supernet with rules, spread alphas and running statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(inputs(side), space=space, channels=channels, layers=layers, **kwargs).to(dtype)
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.5, 0.5)
                norm.running_var.uniform_(0.5, 1.5)
    rules.attach(net, rule)
    rules.initialise(net, rules.RuleOptions(), 0)
    net.draw_alphas(torch_generator("alphas"))
    for alpha in net.alphas:
        alpha.data *= 1000
    return net


def batch(n=6, side=8, dtype=torch.float64):
    generator = torch_generator("batch", side)
    return torch.rand(n, 3, side, side, generator=generator, dtype=dtype), torch.randint(5, (n,), generator=generator)


def step(net, x, y):
    """Return everything that a step of training leaves behind: logits, gradients, buffers."""
    x = x.clone().requires_grad_()
    logits = net.rules.backward(net, x, lambda z: F.cross_entropy(z, y, reduction="none"))
    found = {"logits": logits, "x": x.grad, "alphas 0": net.alphas[0].grad, "alphas 1": net.alphas[1].grad}
    found |= {name: p.grad for name, p in net.named_parameters()}
    return found | {f"buffer {name}": b for name, b in net.named_buffers()}


def agree(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, expected in first.items():
        if expected is None:
            assert second[name] is None, name
            continue
        error = (second[name].double() - expected.double()).norm()
        assert error <= tolerance * (expected.double().norm() + tolerance), name


def both_ways(net, x, y):
    """Return what a step leaves behind the plain way and the fast way, from the same state."""
    found = []
    for fast in (False, True):
        one = copy.deepcopy(net)
        one.fast = fast
        found.append(step(one, x, y))
    return found


# --- what it holds ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    """The supernet of BioNAS as published; skips of stride 2 are left to bp, as its code does."""
    cifar = Inputs((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    with torch.device("meta"):
        return Supernet(cifar, space=catalog.space("bionas"), skip_rule="ignored")


def test_the_published_supernet_has_the_published_number_of_weights(full):
    ruled = sum(full.get_submodule(name).weight.numel() for name in full.genotype_rules())
    assert parameters(full) == 7_383_162
    assert parameters(full) + ruled == 14_543_994
    assert full.reductions == {2, 5}
    # 864 as published counts the 64 scales and shifts of its two batch norms, which a search leaves out.
    assert parameters(full.cells[0].edges[0].operations["sep_conv_3x3_u"]) == 864 - 64


def test_skips_of_stride_two_are_ruled_unless_told_otherwise(full):
    net = small()
    skips = {n for n, m in net.named_modules() if isinstance(m, FactorizedReduce) and "operations" in n}
    assert skips
    assert {f"{n}.{c}" for n in skips for c in ("conv0", "conv1")} <= set(net.genotype_rules())
    assert not [name for name in full.genotype_rules() if "skip_connect" in name]


def test_rules_follow_the_suffixes_of_the_primitives():
    net = small()
    found = {(name.split(".operations.")[1].split(".")[0], rule) for name, rule in net.genotype_rules().items()}
    assert found == {
        ("skip_connect_u", "usf"), ("skip_connect_f", "frsf"), ("sep_conv_3x3_u", "usf"), ("sep_conv_3x3_br", "brsf"),
        ("sep_conv_5x5_fa", "fa"), ("dil_conv_3x3_fr", "frsf"), ("dil_conv_5x5_u", "usf"),
    }  # fmt: skip
    assert net.rules.assignment == net.genotype_rules()
    slots = net.rule_slots()
    assert all(len(layers) == (4 if "sep" in slot else 2) for slot, layers in slots.items())
    bp = [layer for slot, layers in slots.items() if slot.endswith("dil_conv_5x5") for layer in layers]
    assert {layer for layers in slots.values() for layer in layers} == {*net.genotype_rules(), *bp}


def test_only_the_stem_has_norms_with_a_scale():
    net = small()
    norms = {name: m.affine for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert [name for name, affine in norms.items() if affine] == ["stem.norm"]


def test_alphas_are_no_parameters_and_follow_the_network():
    net = Supernet(inputs(), space=MIXTURE, channels=2)
    before = net.alphas
    state = torch.random.get_rng_state()
    net.draw_alphas(torch_generator("alphas"))
    assert torch.equal(torch.random.get_rng_state(), state)
    values = torch.cat([alpha.detach().flatten() for alpha in before])
    assert 0.7e-3 < values.std() < 1.3e-3
    assert abs(values.mean()) < 4e-4
    assert not any("alpha" in name for name in net.state_dict())
    assert not {id(alpha) for alpha in before} & {id(p) for p in net.parameters()}
    assert all(alpha.is_leaf and alpha.requires_grad and alpha.shape == (5, 11) for alpha in before)
    net.double()
    assert net.alphas[0] is before[0]  # an optimiser that holds them goes on holding them
    assert net.alphas[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"space": catalog.space("eg-nas"), "channels": 6}, "multiple of 4, got 6"),
        ({"space": MIXTURE, "channels": 0}, "channels to be a whole number >= 1"),
        ({"space": MIXTURE, "layers": 0}, "layers to be a whole number >= 1"),
        ({"space": MIXTURE, "skip_rule": "ignore"}, "did you mean ignored"),
        ({"space": MIXTURE, "fast": "yes"}, "fast to be true or false"),
    ],
)
def test_values_out_of_range_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        Supernet(inputs(), **kwargs)


# --- what it computes -------------------------------------------------------------------------------------------


def test_weights_of_a_genotype_make_it_the_network_of_that_genotype():
    space = MIXTURE.model_copy(update={"pool_norm": False})
    normal = (
        Edge("dil_conv_3x3_fr", 0),
        Edge("max_pool_3x3", 1),
        Edge("skip_connect_u", 2),
        Edge("sep_conv_5x5_fa", 0),
    )
    reduce = (Edge("skip_connect_f", 1), Edge("sep_conv_3x3_u", 0), Edge("avg_pool_3x3", 1), Edge("dil_conv_5x5", 2))
    genotype = Genotype(name="g", source="", normal=normal, reduce=reduce)
    net = small(space, layers=3)
    target = CellNet(inputs(), genotype=genotype, channels=4, layers=3).double()
    for name, source in (("stem", "stem0"), ("classifier", "classifier")):
        target.get_submodule(source).load_state_dict(net.get_submodule(name).state_dict())
    tables = {}
    for kind, edges in (("normal", normal), ("reduce", reduce)):
        tables[kind] = torch.zeros(5, 11, dtype=torch.float64)
        for i, (op, state) in enumerate(edges):
            tables[kind][(0, 2)[i // 2] + state, space.primitives.index(op)] = 1
    for i, (mine, theirs) in enumerate(zip(net.cells, target.cells, strict=True)):
        for part in ("preprocess0", "preprocess1"):
            theirs.get_submodule(part).load_state_dict(mine.get_submodule(part).state_dict(), strict=False)
        for j, (op, state) in enumerate(reduce if i in net.reductions else normal):
            source = mine.edges[(0, 2)[j // 2] + state].operations[op]
            theirs.operations[j].load_state_dict(source.state_dict(), strict=False)
    x, _ = batch()
    with net.mixing(tables["normal"], tables["reduce"]):
        torch.testing.assert_close(net(x), target(x), rtol=1e-10, atol=1e-10)


def test_operations_of_weight_zero_are_not_run():
    net = small()
    weights = torch.full((5, 11), 0.1, dtype=torch.float64)
    weights[:, MIXTURE.primitives.index("sep_conv_3x3_u")] = 0
    before = {name: b.clone() for name, b in net.named_buffers() if name.endswith("running_mean")}
    with net.mixing(weights, weights), torch.no_grad():
        net(batch()[0])
    after = dict(net.named_buffers())
    moved = {name for name, b in before.items() if not torch.equal(b, after[name])}
    assert {name for name in before if "sep_conv_3x3_u" not in name} == moved


def test_mixing_with_the_softmax_of_the_alphas_changes_nothing():
    net = small().eval()
    x, _ = batch()
    normal, reduce = (alpha.detach().softmax(1) for alpha in net.alphas)
    with torch.no_grad():
        expected = net(x)
        with net.mixing(reduce, normal):
            other = net(x)
            with net.mixing(normal, reduce):
                assert torch.equal(net(x), expected)
            assert torch.equal(net(x), other)
        assert torch.equal(net(x), expected)
    assert not torch.allclose(other, expected)


def test_mixing_ends_with_its_block_even_after_an_error():
    net = small().eval()
    x, _ = batch()
    with torch.no_grad():
        expected = net(x)
        with pytest.raises(ZeroDivisionError), net.mixing(*torch.zeros(2, 5, 11)):
            raise ZeroDivisionError
        assert torch.equal(net(x), expected)
    with pytest.raises(UserError, match=r"expected weights \[5, 11\] for the space mixture, got \[5, 10\]"):
        net.mixing(torch.zeros(5, 11), torch.zeros(5, 10)).__enter__()


def test_weights_in_a_mixing_receive_gradients_even_where_they_are_zero():
    net = small(layers=3)
    weights = [torch.full((5, 11), 0.1, dtype=torch.float64) for _ in range(2)]
    column = MIXTURE.primitives.index("sep_conv_3x3_u")
    for table in weights:
        table[:, column] = 0
        table.requires_grad_()
    x, y = batch()
    with net.mixing(*weights):
        F.cross_entropy(net(x), y).backward()
    assert all((table.grad[:, column] != 0).all() for table in weights)


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_of_alphas_are_those_of_finite_differences_under_backpropagation(fast):
    net = small(rule="bp", fast=fast, channels=2, layers=3)
    x, y = batch()

    def loss():
        return F.cross_entropy(net(x), y)

    gradients = torch.autograd.grad(loss(), net.alphas)
    for alpha, gradient in zip(net.alphas, gradients, strict=True):
        for place in ((0, 0), (0, 3), (1, 5), (1, 9)):
            sides = []
            for change in (1e-5, -2e-5):
                alpha.data[place] += change
                sides.append(loss().item())
            alpha.data[place] += 1e-5
            assert gradient[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_variants_of_a_skip_are_told_apart_in_reduction_cells_only():
    net = small(layers=3)
    for alpha in net.alphas:
        alpha.data.zero_()
    step(net, *batch())
    first, second = (MIXTURE.primitives.index(f"skip_connect_{suffix}") for suffix in "uf")
    normal, reduce = (alpha.grad for alpha in net.alphas)
    torch.testing.assert_close(normal[:, first], normal[:, second], rtol=1e-9, atol=1e-12)
    from_inputs = [0, 1, 2, 3]
    assert not torch.isclose(reduce[from_inputs, first], reduce[from_inputs, second], rtol=1e-3).any()


def test_with_shared_weights_alphas_could_not_tell_rules_apart():
    primitives = [f"{op}_{suffix}" for op in ("sep_conv_3x3", "dil_conv_3x3") for suffix in ("u", "fa")]
    space = Space(name="rules", title="", nodes=1, primitives=primitives)
    net = small(space, layers=3)
    own = copy.deepcopy(net)
    for edge in net.modules():
        if isinstance(edge, MixedEdge):
            for op in ("sep_conv_3x3", "dil_conv_3x3"):
                edge.operations[f"{op}_fa"].load_state_dict(edge.operations[f"{op}_u"].state_dict())
    for each in (net, own):
        for alpha in each.alphas:
            alpha.data.zero_()
        step(each, *batch())
    for shared, apart in zip(net.alphas, own.alphas, strict=True):
        torch.testing.assert_close(shared.grad[:, ::2], shared.grad[:, 1::2], rtol=1e-9, atol=1e-12)
        assert not torch.isclose(apart.grad[:, ::2], apart.grad[:, 1::2], rtol=1e-3).all()


def test_channels_that_do_not_take_part_pass_and_are_shuffled():
    space = Space(name="partial", title="", primitives=["none", "skip_connect"], partial=4)
    x = torch.rand(2, 8, 5, 5)
    edge = MixedEdge(space, 8, stride=1)
    out = edge(x, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(out, x[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    out = MixedEdge(space, 8, stride=2)(x, torch.tensor([1.0, 0.0]))
    passed = F.max_pool2d(x[:, 2:], 2, ceil_mode=True)
    torch.testing.assert_close(out[:, [1, 2, 3, 5, 6, 7]], passed[:, [0, 2, 4, 1, 3, 5]])
    assert not out[:, [0, 4]].any()


# --- the fast way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_fast_way_gives_the_same_numbers(training):
    net = small(layers=3).train(training)
    plain, fast = both_ways(net, *batch())
    agree(plain, fast, 1e-11)
    assert not torch.equal(plain["logits"], fast["logits"])  # or else the fast way was not taken


@pytest.mark.parametrize("side", [1, 2, 4, 9, 16])
def test_the_fast_way_gives_the_same_numbers_on_maps_of_any_size(side):
    # One cell that reduces: strides of 2 at this size, of 1 at half of it.
    agree(*both_ways(small(side=side), *batch(side=side)), 1e-11)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("partial", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "frsf", "brsf", "random:1:brsf+frsf"])
def test_the_fast_way_applies_each_layers_own_rule(rule, partial, training):
    """Outputs, running statistics, and the gradients of weights, alphas and input."""
    space = MIXTURE.model_copy(update={"partial": partial})
    net = small(space, rule=rule, channels=4 * partial).train(training)
    agree(*both_ways(net, *batch()), 1e-11)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_fast_way_takes_gradients_in_any_order_of_memory(order, monkeypatch):
    """Other devices return their convolutions and gradients in an order of their own."""
    net = small(layers=3)
    plain, _ = both_ways(net, *batch())
    output, adjoint = Depthwise.output, Convolution._adjoint
    monkeypatch.setattr(Depthwise, "output", lambda *args: output(*args).contiguous(memory_format=order))
    monkeypatch.setattr(
        Convolution,
        "_adjoint",
        lambda *args: tuple(None if g is None else g.contiguous(memory_format=order) for g in adjoint(*args)),
    )
    monkeypatch.setattr("robustbench_bio.search.supernet.supernet._channels_last", lambda g: g.contiguous())
    agree(plain, both_ways(net, *batch())[1], 1e-11)


def test_the_fast_way_can_be_turned_off_and_is_for_cpus_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("the fast way was taken")

    monkeypatch.setattr("robustbench_bio.search.supernet.supernet.evaluate_edges", refuse)
    x, _ = batch(dtype=torch.float32)
    small(dtype=torch.float32, fast=False)(x)
    with pytest.raises(AssertionError):
        small(dtype=torch.float32)(x)
    assert shares_work(x, Weights(torch.ones(5, 11)))
    assert not shares_work(x.to("meta"), Weights(torch.ones(5, 11)))
    assert not shares_work(x, Weights(torch.ones(5, 11), [[True] * 11] * 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert not shares_work(x, Weights(torch.ones(5, 11)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darts", "eg-nas"])
def test_the_fast_way_gives_the_same_numbers_in_spaces_that_ship(name):
    agree(*both_ways(small(catalog.space(name), channels=8), *batch()), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bionas", "bionas-all"])
@pytest.mark.parametrize("side", [8, 9, 16])
def test_the_fast_way_gives_the_same_numbers_in_large_spaces(name, side):
    agree(*both_ways(small(catalog.space(name), side=side, layers=3), *batch(side=side)), 1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fast_way_gives_the_same_numbers_on_a_gpu():
    net = small(layers=3).to("cuda")
    agree(*both_ways(net, *(t.to("cuda") for t in batch())), 1e-9)


def test_in_single_precision_both_ways_differ_by_rounding():
    agree(*both_ways(small(dtype=torch.float32), *batch(dtype=torch.float32)), 2e-4)


def test_large_stacks_are_split_without_a_difference(monkeypatch):
    net = small()
    monkeypatch.setattr("robustbench_bio.search.supernet.fast.shared.STACK", 1)
    agree(*both_ways(net, *batch()), 1e-11)


def test_after_steps_of_brsf_both_ways_still_use_the_same_draws():
    net = small(rule="brsf")
    net.rules.step(net)
    agree(*both_ways(net, *batch()), 1e-11)


@pytest.mark.parametrize("rule", ["dfa", "oja", "softhebb"])
def test_the_fast_way_gives_way_to_rules_that_are_more_than_a_matrix(rule):
    net = small(rule=f"genotype,*sep_conv_3x3*={rule},*dil_conv_5x5_u*={rule}")
    agree(*both_ways(net, *batch()), 1e-11)


def test_the_fast_way_leaves_out_what_the_frozen_need_not_learn():
    net = small()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    plain, fast = both_ways(net, *batch())
    agree(plain, fast, 1e-11)
    assert fast["alphas 1"].any()


def test_hooks_on_layers_are_heard():
    net = small(dtype=torch.float32)
    plain = copy.deepcopy(net)
    plain.fast = False
    assert macs(net, (3, 8, 8)) == macs(plain, (3, 8, 8))


def test_under_autocast_the_plain_way_is_taken():
    net = small(dtype=torch.float32).eval()
    plain = copy.deepcopy(net)
    plain.fast = False
    x, _ = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=0.1, atol=0.1)


def test_inputs_far_from_zero_keep_their_digits():
    # Sums of squares of values near 100 that differ by 1 would lose four of seven digits.
    space = Space(name="far", title="", primitives=["sep_conv_5x5", "dil_conv_3x3"], nodes=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        edges = [MixedEdge(space, 4, 1) for _ in range(2)]
    x = 100 + torch.rand(16, 4, 8, 8, generator=torch_generator("far"))
    weights = torch.full((2, 2), 0.5)
    fast = evaluate_edges(x, edges, weights)
    for edge, row, out in zip(edges, weights, fast, strict=True):
        exact = copy.deepcopy(edge).double()(x.double(), row.double())
        plain = (edge(x, row) - exact).norm() / exact.norm()
        assert (out - exact).norm() / exact.norm() < max(10 * plain, 1e-5)


def test_second_derivatives_are_refused_not_wrong():
    net = small(rule="bp")
    x, y = batch()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), net.alphas[1:], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
