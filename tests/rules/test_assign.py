import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.nets.base import Inputs, Net, weight_layers
from robustbench_bio.records.threat import Threat
from robustbench_bio.rules import RULES, LayerRules, Rule, RuleOptions, attach, initialise, resolve
from robustbench_bio.rules.feedback import FeedbackRule
from robustbench_bio.rules.layers import layer_rule
from robustbench_bio.zoo import catalog

SPIKING = ("stdp",)  # need neurons, which the networks of these tests have none of: test_stdp.py
ALL = tuple(rule for rule in RULES.names() if rule not in SPIKING)
PER_LAYER = tuple(rule for rule in ALL if issubclass(RULES.get(rule), Rule))
FEEDBACK = tuple(rule for rule in PER_LAYER if issubclass(RULES.get(rule), FeedbackRule))
LOCAL = tuple(rule for rule in PER_LAYER if layer_rule(rule).local)
BLIND = tuple(rule for rule in PER_LAYER if not RULES.get(rule).sees_labels)
INPUTS = Inputs((2, 8, 8), 3, (0.4, 0.5), (0.2, 0.3))
LABELS = torch.tensor([0, 2, 1, 2, 1])


def images(seed: int = 0) -> Tensor:
    return torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, reduction="none")


def cnn(seed: int = 0, norm: str = "none") -> Net:
    return nets.build("cnn", INPUTS, seed=seed, widths=(4, 6), norm=norm)


def mlp() -> Net:
    return nets.build("mlp", INPUTS, seed=0, hidden=(6, 5, 4))


def cells(**params: object) -> Net:
    params = {"channels": 4, "layers": 3, "genotype": "biodarts"} | params
    genotype = catalog.genotype(str(params.pop("genotype")))
    return nets.build("cells", INPUTS, seed=0, genotype=genotype, **params)


def resnet() -> Net:
    return nets.build("resnet", INPUTS, seed=0, width=4)


def ruled(rule: str, seed: int = 0, norm: str = "none", **options: object) -> Net:
    """A network under one rule; "bp" by the rule's own code, which an assignment leaves out."""
    net = cnn(seed, norm)
    attach(net, rule, seed=seed, options=options)
    if rule == "bp":
        net.rules = LayerRules(net, dict.fromkeys(weight_layers(net), "bp"), options, seed, 3)
    return net


def norm_for(rule: str) -> str:
    """A rule of whole networks may relax activities, which batch statistics would move."""
    return "batch" if rule in PER_LAYER else "none"


def snapshot(net: Net) -> dict[str, Tensor]:
    """Every tensor that the network holds, those outside its state dict too."""
    return {name: t.detach().clone() for name, t in [*net.named_parameters(), *net.named_buffers()]}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def learn(net: Net, steps: int = 1) -> None:
    local = {id(p) for p in net.rules.local_parameters(net)}
    optimiser = torch.optim.SGD([p for p in net.parameters() if id(p) not in local], 0.1)
    for step in range(steps):
        optimiser.zero_grad()
        net.rules.backward(net, images(step), cross_entropy)
        optimiser.step()
        net.rules.step(net)


def test_the_rules_of_the_field_are_members() -> None:
    assert {"bp", "fa", "usf", "brsf", "frsf", "dfa", "oja", "hard-wta", "softhebb", "pc", "stdp"} <= set(RULES.names())
    assert set(BLIND) >= {"dfa", *LOCAL}
    assert set(LOCAL) >= {"hard-wta", "oja", "softhebb"}


# Assignments


def test_a_bare_rule_takes_every_weight_layer_but_a_blind_one_the_output() -> None:
    net = resnet()
    layers = list(weight_layers(net))
    for rule in set(FEEDBACK) - {"bp"}:
        assert resolve(net, rule) == dict.fromkeys(layers, rule)
    for rule in BLIND:
        assert resolve(net, rule) == dict.fromkeys(layers[:-1], rule)
    assert layers[-1] == "linear"
    assert resolve(net, "bp") == {}
    assert resolve(cnn(), "pc") == dict.fromkeys(weight_layers(cnn()), "pc")


@pytest.mark.parametrize("rule", PER_LAYER)
def test_a_bare_rule_takes_the_operations_of_cells_and_no_more(rule: str) -> None:
    net = cells(auxiliary=True)
    wanted = [name for name in weight_layers(net) if ".operations." in name]
    assert list(resolve(net, rule)) == ([] if rule == "bp" else wanted)
    assert len(wanted) < len(weight_layers(net))


def test_genotype_names_the_rules_of_the_published_network() -> None:
    inputs = Inputs((3, 32, 32), 10, (0.0,) * 3, (1.0,) * 3)
    params = {"genotype": catalog.genotype("biodarts"), "channels": 36, "layers": 20, "skip_rule": "ignored"}
    net = nets.build("cells", inputs, seed=0, **params)
    rules = resolve(net, "genotype")
    assert Counter(rules.values()) == {"usf": 148, "frsf": 144}
    assert sum(net.get_submodule(name).weight.numel() for name in rules) == 1_446_552
    attach(net, rules)
    assert sum(p.numel() for p in net.parameters()) == 2_867_662


def test_genotype_without_suffixes_is_plain_bp() -> None:
    assert resolve(cells(genotype="darts-v2"), "genotype") == {}


MLP = ("stages.0.linear", "stages.1.linear", "stages.2.linear", "stages.3.linear")


@pytest.mark.parametrize(
    ("assignment", "rules"),
    [
        ("usf,stages.1.*=fa", ("usf", "fa", "usf", "usf")),
        ("stages.1.*=fa,usf", ("usf", "usf", "usf", "usf")),
        (" usf , stages.0.linear = bp ", ("bp", "usf", "usf", "usf")),
        ("stages.[01].linear=brsf", ("brsf", "brsf", "bp", "bp")),
        ("*=frsf,stages.?.linear=usf,*.3.*=fa", ("usf", "usf", "usf", "fa")),
        ("usf,bp,stages.2.linear=usf", ("bp", "bp", "usf", "bp")),
        ("fa,dfa", ("dfa", "dfa", "dfa", "bp")),
        ("dfa,stages.3.*=fa", ("dfa", "dfa", "dfa", "fa")),
        ("oja,stages.1.linear=usf", ("oja", "usf", "oja", "bp")),
        ("random:5:fa,stages.0.*=usf", ("usf", "fa", "fa", "fa")),
        ("pc,usf", ("usf", "usf", "usf", "usf")),
        ("usf,pc", ("pc", "pc", "pc", "pc")),
        ("random:1:pc", ("pc", "pc", "pc", "pc")),
        ("*=pc", ("pc", "pc", "pc", "pc")),
    ],
)
def test_later_terms_override_earlier_ones(assignment: str, rules: Sequence[str]) -> None:
    found = resolve(mlp(), assignment)
    assert found == {name: rule for name, rule in zip(MLP, rules, strict=True) if rule != "bp"}
    assert list(found) == [name for name in MLP if name in found]


def test_a_pattern_reaches_layers_outside_the_slots() -> None:
    net = cells(auxiliary=True)
    wanted = dict.fromkeys(["stem0.conv", *(n for n in weight_layers(net) if n.startswith("auxiliary_head."))], "fa")
    assert resolve(net, "stem0.*=fa,auxiliary_head.*=fa") == wanted


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ufs", "unknown rule 'ufs': did you mean usf.*random:SEED"),
        ("", "unknown rule ''"),
        ("usf,", "unknown rule ''"),
        ("random", "unknown rule 'random'"),
        ("stages.0.*=ufs", "unknown rule 'ufs'"),
        ("stages.0.*=", "unknown rule ''"),
        ("stages.9.*=usf", r"pattern that matches a layer, got 'stages.9.\*': layers are stages.0.linear, "),
        ("STAGES.0.*=usf", "pattern that matches a layer"),
        ("=usf", "pattern that matches a layer"),
        ("random:", "random:SEED"),
        ("random:x", "random:SEED or random:SEED:rule.rule, got 'random:x'"),
        ("random:²", "random:SEED"),
        (f"random:{'9' * 4400}", "at most 18 digits"),
        ("random:-1", "random:SEED"),
        ("random:1:usf:fa", "random:SEED"),
        ("random:1:usf+nope", "unknown rule 'nope'"),
        ("random:1:", "unknown rule ''"),
        ("genotype", "network made from a genotype, got a Mlp: name a rule"),
        ("pc,stages.0.*=usf", "pc on every layer or on none, got a mixture"),
        ("pc,stages.0.*=bp", "pc on every layer or on none"),
        ("usf,stages.0.*=pc", "pc on every layer or on none"),
        ("random:0:pc+bp", "pc on every layer or on none"),
        ("*=dfa", "sees labels on the output layer 'stages.3.linear', got dfa: use bp"),
        ("stages.3.linear=oja", "sees labels on the output layer 'stages.3.linear', got oja"),
        ("*=softhebb", "sees labels"),
        ("*=hard-wta", "sees labels"),
    ],
)
def test_a_wrong_assignment_is_the_users_mistake(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(mlp(), assignment)
    assert "\n" not in str(caught.value)


def test_the_output_layer_is_the_one_that_yields_the_logits() -> None:
    net = cells(auxiliary=True)
    assert list(weight_layers(net))[-1] == "auxiliary_head.classifier"
    for rule in BLIND:
        with pytest.raises(UserError, match="output layer 'classifier'"):
            resolve(net, f"classifier={rule}")


def test_pc_says_which_networks_it_works_on() -> None:
    for net, message in (
        (cells(), "expects a chain of layers, got a CellNet"),
        (cnn(norm="batch"), 'set norm = "none"'),
    ):
        with pytest.raises(UserError, match=message):
            attach(net, "pc")


def test_random_draws_are_reproducible_and_one_for_each_slot() -> None:
    net = cells(layers=6)
    slots = net.rule_slots()
    assert any(len(names) > 1 for names in slots.values())
    first = resolve(net, "random:3")
    assert first == resolve(cells(layers=6), "random:3")
    assert all(len({first[name] for name in names}) == 1 for names in slots.values())
    assert first.keys() == {name for names in slots.values() for name in names}
    assert len({tuple(resolve(net, f"random:{seed}").values()) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("choice", "rules"), [("", ("usf", "brsf", "frsf", "fa")), (":usf+bp", ("usf", "bp")), (":fa+brsf+usf", None)]
)
def test_random_draws_are_uniform_over_slots_and_seeds(choice: str, rules: Sequence[str] | None) -> None:
    net = resnet()
    rules = rules or choice[1:].split("+")
    layers = list(weight_layers(net))
    counts = {name: Counter[str]() for name in layers}
    for seed in range(150):
        found = resolve(net, f"random:{seed}{choice}")
        for name in layers:
            counts[name][found.get(name, "bp")] += 1
    total = sum(counts.values(), Counter[str]())
    assert set(total) == set(rules)
    # 99.99 % quantiles of chi-square would be 9.5 to 21.1 for one to three degrees of freedom.
    expected = 150 * len(layers) / len(rules)
    assert sum((total[rule] - expected) ** 2 / expected for rule in rules) < 25
    assert all(abs(c[rule] - 150 / len(rules)) < 5 * math.sqrt(150) / 2 for c in counts.values() for rule in rules)


def test_a_draw_leaves_the_output_layer_to_bp_where_its_rule_is_blind() -> None:
    outputs = Counter(resolve(mlp(), f"random:{seed}:dfa+usf").get(MLP[-1], "bp") for seed in range(40))
    assert set(outputs) == {"bp", "usf"}
    assert all(resolve(mlp(), f"random:{seed}:softhebb+oja").keys() == set(MLP[:-1]) for seed in range(5))


def test_repeated_names_weigh_a_random_choice() -> None:
    net = resnet()
    drawn = Counter(rule for seed in range(60) for rule in resolve(net, f"random:{seed}:usf+usf+usf+fa").values())
    assert drawn["usf"] / drawn.total() == pytest.approx(0.75, abs=0.05)


# Attaching


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.usefixtures("global_rng_untouched")
def test_attaching_leaves_weights_forward_pass_and_parameters_as_they_were(rule: str) -> None:
    plain, net = cnn(), ruled(rule)
    assert same(dict(plain.named_parameters()), dict(net.named_parameters()))
    assert torch.equal(plain(images()), net(images()))
    assert not list(net.rules.parameters())
    learn(net)
    assert len(list(net.parameters())) == len(list(plain.parameters()))
    assert all("forward" not in layer.__dict__ for layer in net.modules())


def test_a_mapping_is_checked_as_an_assignment_is() -> None:
    wrong = {
        "nowhere": ("usf", "unknown weight layer 'nowhere'"),
        "stages.1.norm": ("usf", "unknown weight layer 'stages.1.norm': did you mean stages.1.conv"),
        "stages.0.conv": ("ufs", "unknown rule 'ufs'"),
        "stages.2.linear": ("dfa", "sees labels"),
        "stages.1.conv": ("pc", "pc on every layer"),
    }
    for name, (rule, message) in wrong.items():
        with pytest.raises(UserError, match=message):
            attach(cnn(norm="batch"), {name: rule})
    rules = attach(cnn(), {"stages.2.linear": "usf", "stages.0.conv": "fa", "stages.1.conv": "bp"})
    assert rules.assignment == {"stages.0.conv": "fa", "stages.2.linear": "usf"}


def test_rules_attached_anew_replace_the_old_ones() -> None:
    net = ruled("fa")
    rules = attach(net, "stages.1.conv=frsf")
    assert net.rules is rules
    assert {name for name in net.state_dict() if name.startswith("rules.")} == {
        "rules.by_layer.stages/1/conv.magnitude"
    }


@pytest.mark.parametrize("init", ["xavier", "kaiming"])
@pytest.mark.usefixtures("global_rng_untouched")
def test_initialise_draws_weights_from_the_law_of_the_feedback(init: str) -> None:
    net = cells(channels=16)
    attach(net, "fa", options={"init": init})
    initialise(net, RuleOptions(init), seed=4)
    feedback = dict(net.rules.named_buffers())
    deepest = 0.0
    for name, layer in weight_layers(net).items():
        w = layer.weight.detach()
        groups = getattr(layer, "groups", 1)
        inside, outside = w[0].numel(), w[:, 0].numel() // groups
        bound = (6 / (inside + outside)) ** 0.5 if init == "xavier" else inside**-0.5
        assert w.abs().max() <= bound
        if w.numel() >= 1000:
            deepest = max(deepest, w.abs().max().item() / bound)
            assert w.std().item() == pytest.approx(bound / 3**0.5, rel=0.08)
            drawn = feedback.get(f"by_layer.{name.replace('.', '/')}.feedback")
            assert drawn is None or abs(torch.corrcoef(torch.stack([w.flatten(), drawn.flatten()]))[0, 1]) < 0.12
        assert layer.bias is None or not layer.bias.any()
    assert deepest > 0.99


def test_initialise_depends_on_the_seed_and_spares_layers_without_a_rule_if_told_to() -> None:
    def drawn(seed: int, which: str) -> dict[str, Tensor]:
        net = cells()
        attach(net, "genotype")
        initialise(net, RuleOptions(), seed, which=which)
        return {name: layer.weight.detach() for name, layer in weight_layers(net).items()}

    before = {name: layer.weight.detach() for name, layer in weight_layers(cells()).items()}
    everywhere, again, other, only = drawn(1, "all"), drawn(1, "all"), drawn(2, "all"), drawn(1, "ruled")
    rules = resolve(cells(), "genotype")
    assert 0 < len(rules) < len(before)
    assert same(everywhere, again)
    for name, untouched in before.items():
        assert not torch.equal(everywhere[name], other[name])
        assert not torch.equal(everywhere[name], untouched)
        assert torch.equal(only[name], everywhere[name] if name in rules else untouched)


# Exact and rule mode


@pytest.mark.parametrize("build", [cnn, lambda: cnn(norm="batch"), cells, resnet, mlp])
def test_exact_logits_and_input_gradients_do_not_depend_on_the_rule(build: object) -> None:
    assert callable(build)
    found = []
    for rule in (None, *FEEDBACK, "dfa", "random:1"):
        net = build().double().eval()
        if rule:
            attach(net, rule, seed=3)
        x = images().double().requires_grad_(True)
        logits = net(x)
        found.append((logits.detach(), *torch.autograd.grad(cross_entropy(logits).sum(), [x, *net.parameters()])))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ALL)
def test_exact_mode_passes_gradcheck(rule: str) -> None:
    net = nets.build("mlp", Inputs((2, 2, 2), 3, (0.4, 0.5), (0.2, 0.3)), seed=0, hidden=(5, 4), activation="tanh")
    attach(net.double(), rule)
    net.rules.backward(net, images()[:, :, :2, :2].double(), cross_entropy)
    x = images()[:2, :, :2, :2].double().requires_grad_(True)
    assert torch.autograd.gradcheck(net, x)
    weights = dict(net.named_parameters())
    leaves = [w.detach().clone().requires_grad_(True) for w in weights.values()]

    def of_weights(*values: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(weights, values, strict=True)), (x.detach(),))

    assert torch.autograd.gradcheck(of_weights, leaves, fast_mode=True)


@pytest.mark.parametrize("rule", PER_LAYER)
def test_gradcheck_tells_false_input_gradients_from_true_ones(rule: str) -> None:
    net = ruled(rule, norm="batch").double().eval()
    with net.rules.attached(net):
        honest = torch.autograd.gradcheck(net, images()[:2].double().requires_grad_(True), raise_exception=False)
    assert honest == (rule in ("bp", *LOCAL))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", PER_LAYER)
@pytest.mark.usefixtures("global_rng_untouched")
def test_an_input_gradient_is_no_training_whatever_the_mode(rule: str, training: bool) -> None:
    net = ruled(rule, norm="batch")
    net.stages[1].activation = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    net.train(training)
    net.stages[2].norm.eval()
    modes = [module.training for module in net.modules()]
    x = images()
    before = snapshot(net)
    found = [net.rules.input_gradient(net, x, cross_entropy) for _ in range(2)]
    assert [module.training for module in net.modules()] == modes
    assert same(snapshot(net), before)
    assert all(p.grad is None for p in net.parameters())
    assert x.grad is None
    assert not x.requires_grad
    if rule != "brsf":
        net.rules.step(net)
        assert same(snapshot(net), before)
    net.eval()
    assert torch.equal(found[0].logits, net(x))
    assert all(torch.equal(found[0].gradient, other.gradient) for other in found)


@pytest.mark.parametrize("rule", ["fa", "oja"])
def test_modes_come_back_after_an_input_gradient_that_failed(rule: str) -> None:
    net = ruled(rule, norm="batch").train()

    def broken(logits: Tensor) -> Tensor:
        raise ValueError(f"no loss for {tuple(logits.shape)}")

    before = snapshot(net)
    with pytest.raises(ValueError, match="no loss"):
        net.rules.input_gradient(net, images(), broken)
    assert all(module.training for module in net.modules())
    assert all("forward" not in module.__dict__ for module in net.modules())
    assert same(snapshot(net), before)


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.usefixtures("global_rng_untouched")
def test_an_attack_through_the_rule_leaves_the_network_as_it_was(rule: str) -> None:
    net = ruled(rule, norm=norm_for(rule)).eval()
    first, *_, last = net.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    x = images()
    rng = ExampleRng(0, range(5))
    found = PGD(steps=3, early_exit=False).perturb(WhiteBoxModel(net, "rule"), x, LABELS, Threat("linf", 8 / 255), rng)
    assert not torch.equal(found.x_adv, x)
    assert same(snapshot(net), before)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p is last or p.grad is None for p in net.parameters())
    assert not any(module.training or "forward" in module.__dict__ for module in net.modules())
    assert not net._forward_hooks


# Attached blocks


@pytest.mark.parametrize("rule", PER_LAYER)
def test_layers_are_restored_after_a_block_also_by_an_exception(rule: str) -> None:
    net = ruled(rule)
    plain = [layer.forward for layer in weight_layers(net).values()]

    def broken() -> None:
        with net.rules.attached(net):
            assert sum("forward" in layer.__dict__ for layer in net.modules()) == len(net.rules.assignment)
            net(images())
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert [layer.forward for layer in weight_layers(net).values()] == plain
    assert not any("forward" in module.__dict__ for module in net.modules())
    assert not net._forward_hooks


def test_a_block_that_cannot_be_entered_restores_what_it_had_taken() -> None:
    net = ruled("fa")
    head = net.stages[2].linear
    del net.stages[2].linear
    with pytest.raises(AttributeError), net.rules.attached(net):
        pytest.fail("entered without its last layer")
    net.stages[2].linear = head
    assert not any("forward" in module.__dict__ for module in net.modules())
    assert not net._forward_hooks


@pytest.mark.parametrize(("outer", "inner"), [("fa", "fa"), ("fa", "dfa"), ("dfa", "fa"), ("dfa", "dfa")])
def test_blocks_nest(outer: str, inner: str) -> None:
    net = ruled(outer)
    rules, its = net.rules, ruled(inner, seed=5).rules
    x = images()
    wanted = [r.input_gradient(net, x, cross_entropy).gradient for r in (rules, its)]

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(cross_entropy(net(leaf)).sum(), leaf)[0]

    exact = gradient()
    with rules.attached(net):
        leaf = x.clone().requires_grad_(True)
        loss = cross_entropy(net(leaf)).sum()
        with its.attached(net):
            assert torch.equal(gradient(), wanted[1])
        assert torch.equal(gradient(), wanted[0])
        with rules.attached(net):
            assert torch.equal(gradient(), wanted[0])
        assert torch.equal(its.input_gradient(net, x, cross_entropy).gradient, wanted[1])
        assert torch.equal(gradient(), wanted[0])
    assert torch.equal(gradient(), exact)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], wanted[0])
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_a_forward_of_the_layers_own_comes_back() -> None:
    net = ruled("fa")
    layer = net.stages[0].conv
    mine = layer.forward
    layer.forward = mine
    with net.rules.attached(net):
        assert layer.__dict__["forward"] is not mine
    assert layer.__dict__["forward"] is mine


# Copies, saved states, precision


@pytest.mark.parametrize("rule", ALL)
def test_a_copy_learns_the_same_and_apart(rule: str) -> None:
    net = ruled(rule, norm=norm_for(rule))
    learn(net)
    twin = copy.deepcopy(net)
    before = snapshot(net)
    learn(twin)
    assert same(snapshot(net), before)
    assert not same(snapshot(twin), before)
    changed = {t.data_ptr() for t in [*twin.parameters(), *twin.buffers()] if t.numel()}
    assert changed.isdisjoint(t.data_ptr() for t in [*net.parameters(), *net.buffers()])
    learn(net)
    assert same(snapshot(net), snapshot(twin))


@pytest.mark.parametrize("rule", ALL)
def test_a_restored_state_learns_the_same_next_step(rule: str) -> None:
    norm = norm_for(rule)
    net, other = ruled(rule, seed=0, norm=norm), ruled(rule, seed=9, norm=norm)
    learn(net, steps=2)
    assert not same(net.state_dict(), other.state_dict())
    other.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    assert same(snapshot(net), snapshot(other))
    learn(net)
    learn(other)
    assert same(snapshot(net), snapshot(other))


@pytest.mark.parametrize("rule", ALL)
def test_training_never_renames_or_replaces_a_tensor(rule: str) -> None:
    net = ruled(rule, norm=norm_for(rule))
    held = {name: id(t) for name, t in [*net.named_parameters(), *net.named_buffers()]}
    learn(net, steps=2)
    assert {name: id(t) for name, t in [*net.named_parameters(), *net.named_buffers()]} == held


@pytest.mark.parametrize("around", ["forward", "both"])
@pytest.mark.parametrize("rule", PER_LAYER)
def test_autocast_gives_the_plain_logits_and_finite_gradients_in_the_parameters_dtype(rule: str, around: str) -> None:
    net, whole = (ruled(rule, norm="batch") for _ in range(2))
    whole.rules.backward(whole, images(), cross_entropy)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(images())
        if around == "both":
            logits = net.rules.backward(net, images(), lambda out: cross_entropy(out.float()))
    if around == "forward":
        with net.rules.attached(net):
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(images())
            cross_entropy(logits.float()).mean().backward()
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, plain)
    local = {id(p) for p in net.rules.local_parameters(net)}
    for (name, p), q in zip(net.named_parameters(), whole.parameters(), strict=True):
        if id(p) in local:
            assert p.grad is None
            continue
        assert p.grad.dtype == p.dtype == torch.float32
        assert p.grad.isfinite().all()
        if q.grad.norm() > 1e-4:
            assert F.cosine_similarity(p.grad.flatten(), q.grad.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("rule", ALL)
def test_networks_in_float64_and_channels_last_follow_the_rules_too(rule: str) -> None:
    found = []
    for convert in ({"dtype": torch.float64}, {"dtype": torch.float64, "memory_format": torch.channels_last}):
        net = ruled(rule).to(**convert)
        net.rules.backward(net, images().double(), cross_entropy)
        found.append([p.grad for p in net.parameters() if p.grad is not None])
        learned = net.rules.input_gradient(net, images().double(), cross_entropy)
        assert learned.gradient.dtype == torch.float64
        net.rules.step(net)
    assert found[0]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)


def test_rules_attached_after_a_change_of_dtype_take_the_new_one() -> None:
    for rule in ALL:
        net = cnn().double()
        attach(net, rule)
        net.rules.backward(net, images().double(), cross_entropy)
        assert all(b.dtype == torch.float64 for b in net.rules.buffers() if b.is_floating_point())


def test_rules_keep_nothing_of_a_finished_backward_pass() -> None:
    net = ruled("dfa")
    learn(net)
    assert all(rule.error.value is None for _, rule in net.rules.pairs(net))
