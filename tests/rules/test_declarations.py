"""What a rule says of itself: its options and its suffix."""

import dataclasses

import pytest

from robustbench_bio import nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.records import genotype
from robustbench_bio.records.genotype import OPERATIONS, SUFFIXES, Primitive, declare_suffix, parse_primitive
from robustbench_bio.rules import RULES, RuleOptions, attach, check_options, own_options


def cnn() -> Net:
    return nets.build("cnn", Inputs((1, 8, 8), 3, (0.4,), (0.2,)), seed=0, widths=(4, 6), norm="none")


@pytest.mark.parametrize("rule", RULES.names())
def test_every_option_of_a_rule_has_a_default_that_a_card_may_write(rule: str) -> None:
    takes = RULES.get(rule).takes
    assert issubclass(takes, RuleOptions)
    values = dataclasses.asdict(takes())
    assert check_options(values) == values
    assert own_options(takes, values) == takes()
    assert takes.__doc__
    assert all(f"{name}" in " ".join(kind.__doc__ or "" for kind in takes.__mro__) for name in values)


def test_each_rule_takes_its_own_options_and_leaves_the_rest() -> None:
    rules = attach(
        cnn(), "stages.0.*=softhebb,stages.1.*=dfa", options={"local_lr": 1, "dfa_pass": "stop", "pc_steps": 3}
    )
    soft, direct = (rule.options for rule in rules.by_layer.values())
    assert (soft.local_lr, soft.softhebb_inverse_temperature, direct.dfa_pass) == (1.0, 1.0, "stop")
    assert not hasattr(direct, "local_lr")
    assert rules.option_values == {"local_lr": 1.0, "dfa_pass": "stop", "pc_steps": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_rl": 1}, "unknown field of rule_options 'local_rl': did you mean local_lr"),
        ({"init": "foo"}, "rule_options: field 'init'"),
        ({"local_lr": "1"}, "rule_options: field 'local_lr'"),
        ({"stdp_rivals": 1}, "rule_options: field 'stdp_rivals'"),
        ({"pc_steps": 1.5}, "rule_options: field 'pc_steps'"),
    ],
)
def test_a_wrong_option_is_the_users_mistake_whatever_the_rule(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach(cnn(), "usf", options=options)


@pytest.mark.parametrize("rule", [name for name, kind in RULES.items() if kind.suffix])
def test_a_primitive_carries_each_suffix_both_ways(rule: str) -> None:
    assert SUFFIXES.get(rule) == RULES.get(rule).suffix
    for operation, ruled in OPERATIONS.items():
        if ruled:
            primitive = Primitive(operation, rule)
            assert parse_primitive(f"{operation}_{SUFFIXES.get(rule)}") == parse_primitive(primitive.name) == primitive


@pytest.mark.parametrize(
    ("rule", "suffix", "message"),
    [
        ("new", "u", "suffix of its own for the rule new, got 'u', which is usf's"),
        ("new", "b", "which is brsf's"),
        ("new", "soft", "which is softhebb's"),
        ("usf", "us", "rule of a primitive 'usf' is registered twice"),
        ("new", "a_b", "lower-case letters and digits for the rule new, got 'a_b'"),
    ],
)
def test_a_suffix_belongs_to_one_rule(rule: str, suffix: str, message: str) -> None:
    assert SUFFIXES.names()  # reads those that rules declare
    with pytest.raises(ValueError, match=message):
        declare_suffix(rule, suffix)


def test_a_new_rule_is_written_into_genotypes_by_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genotype.SUFFIXES, "_members", dict(SUFFIXES.items()))
    declare_suffix("new", "nw")
    assert parse_primitive("sep_conv_3x3_nw") == Primitive("sep_conv_3x3", "new")
    assert Primitive("skip_connect", "new").name == "skip_connect_nw"
