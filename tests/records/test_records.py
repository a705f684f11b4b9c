import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError
from samples import CHANGES, outcomes, result, spec

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.base import Record, read_toml
from robustbench_bio.records.card import NEWS, Adversary, ModelCard, Recipe
from robustbench_bio.records.result import EvalSpec, Outcomes
from robustbench_bio.records.threat import check_eps, format_eps, parse_eps

CARD = """
id = "tiny"
title = "Tiny"

[net]
name = "mlp"
"""
RECIPE = CARD + "\n[datasets.digits.recipe]\n"


def refusal(text: str) -> str:
    """Return what a reader of this card is told, which must be one line that names the file."""
    with pytest.raises(UserError) as caught:
        ModelCard.from_toml(text, "cards/tiny.toml")
    message = str(caught.value)
    assert message.startswith("cards/tiny.toml: ")
    assert "\n" not in message
    assert len(message) < 500
    return message.removeprefix("cards/tiny.toml: ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("epohcs = 3", "field 'datasets.digits.recipe.epohcs': unknown field 'epohcs': did you mean epochs"),
        ('epochs = "3"', "field 'datasets.digits.recipe.epochs': Input should be a valid integer, got '3'"),
        ("epochs = 3.0", "field 'datasets.digits.recipe.epochs': Input should be a valid integer, got 3.0"),
        ("epochs = true", "field 'datasets.digits.recipe.epochs': Input should be a valid integer, got True"),
        ("epochs = 0", "field 'datasets.digits.recipe.epochs': Input should be greater than or equal to 1, got 0"),
        ("lr = nan", "field 'datasets.digits.recipe.lr': Input should be a finite number, got nan"),
        ("lr = inf", "field 'datasets.digits.recipe.lr': Input should be a finite number, got inf"),
        ("lr = true", "field 'datasets.digits.recipe.lr': Input should be a valid number, got True"),
        ('lr = "0.1"', "field 'datasets.digits.recipe.lr': Input should be a valid number, got '0.1'"),
        ("lr = 2020-01-01", "field 'datasets.digits.recipe.lr': Input should be a valid number, got datetime.date"),
        ("flip = 1", "field 'datasets.digits.recipe.flip': Input should be a valid boolean, got 1"),
        ('flip = "yes"', "field 'datasets.digits.recipe.flip': Input should be a valid boolean, got 'yes'"),
        ('select = "worst"', "field 'datasets.digits.recipe.select': Input should be 'best' or 'last', got 'worst'"),
        ("adversary = 3", "field 'datasets.digits.recipe.adversary': "),
        ("adversary = {eps = 8}", "field 'datasets.digits.recipe.adversary.eps': "),
        ("adversary = {}", "field 'datasets.digits.recipe.adversary.eps': expected a value, got none: add this field"),
    ],
)
def test_a_card_with_a_wrong_value_is_refused_with_field_and_remedy(line: str, expected: str) -> None:
    assert refusal(RECIPE + line).startswith(expected)


@pytest.mark.parametrize("value", ["nan", "-inf", "[1.5]", "2020-01-01", "{a = 1}"])
def test_a_parameter_of_a_net_or_rule_is_a_plain_finite_value(value: str) -> None:
    assert refusal(f"{CARD}width = {value}").startswith("field 'net.width': expected true or false, a finite number")
    message = refusal(f"rule_options = {{a = {value}}}{CARD}")
    assert message.startswith("field 'rule_options.a': expected true or false, a finite number, a text, got ")
    assert "more)" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "field 'id': expected a value, got none: add this field (and 2 more)"),
        (CARD.replace('"tiny"', '"../tiny"'), "field 'id': expected lower-case letters, digits, '-' and '.'"),
        ("colour = 1" + CARD, "field 'colour': unknown field 'colour': choose from "),
        ("titel = 1" + CARD, "field 'titel': unknown field 'titel': did you mean title"),
        (CARD.replace("[net]", "[nets]"), "field 'net': expected a value, got none"),
        (CARD + "[datasets.digits]", "field 'datasets.digits.recipe': expected a value, got none"),
        (CARD + "name = 'again'", "expected TOML, got "),
        ("id = ", "expected TOML, got "),
        ("id = '\x00'", "expected TOML, got "),
        ("a = " + "[" * 15_000, "expected TOML, got "),
        ("a = " + "{a = " * 3_000, "expected TOML, got "),
        ("a." * 3_000 + "b = 1", "expected keys of at most 32 parts, got one of more: shorten it"),
        ("a." * 31 + "b = 1", "field 'id': expected a value, got none"),
        (CARD + "a." * 31 + "b = 1", "field 'net.a': expected true or false"),
        ("a = " + "9" * 5000, "expected TOML, got "),
        ('id = "' + "x" * 15_000, "expected TOML, got "),
        ("a." * 1_000_000, "expected at most 20,000 characters, got more"),
    ],
    ids=range(17),
)
def test_a_malformed_card_is_one_line(text: str, expected: str) -> None:
    assert refusal(text).startswith(expected)


@pytest.mark.parametrize(
    "bad", ["../tiny", "a/b", "a\\b", ".", "..", "a..b", "-a", "A", "", "a" * 65, "a\n", "ä", "a_b"]
)
def test_an_id_is_a_plain_name(bad: str) -> None:
    with pytest.raises(ValidationError, match="expected lower-case letters"):
        ModelCard(id=bad, title="t", net={"name": "mlp"})


@pytest.mark.parametrize(
    "bad", ["../x.safetensors", "a/b", "/etc/passwd", "a\\b", "..", ".hidden", "", "a" * 129, "a\n", "a\x00b"]
)
def test_a_weights_file_is_a_name_without_folders(bad: str) -> None:
    document = tomllib.loads(RECIPE + "epochs = 1") | {}
    document["datasets"]["digits"] |= {"weights": bad, "weights_sha256": "0" * 64}
    with pytest.raises(UserError, match="expected a plain file name without folders"):
        ModelCard.read(document)


@pytest.mark.parametrize("half", [{"weights": "a.safetensors"}, {"weights_sha256": "0" * 64}])
def test_weights_and_their_hash_come_together(half: dict[str, str]) -> None:
    document = tomllib.loads(RECIPE)
    document["datasets"]["digits"] |= half
    with pytest.raises(UserError, match="expected weights and weights_sha256 together"):
        ModelCard.read(document)


@pytest.mark.parametrize("bad", ["0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n", "A" * 64])
def test_a_hash_is_64_lower_case_hex_digits(bad: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        spec(network_sha256=bad)


def test_a_card_survives_toml() -> None:
    text = (
        'id = "tiny-1.5"\ntitle = "Täst \\"x\\" \\\\ [bold]"\nsummary = "two\\nlines"\nrule = "a.*=fa,usf"\n'
        "rule_options = {local_lr = 1e-05, pc_steps = 3, pc_fixed_prediction = true}\n"
        "[net]\nname = 'mlp'\nhidden = [3, 4]\n"
        '[datasets."a b.c"]\nseed = 7\nval_accuracy = 0.5\nweights = "w.safetensors"\n'
        f'weights_sha256 = "{"a" * 64}"\nnet = {{activation = "tanh"}}\n'
        '[datasets."a b.c".recipe]\nlr = 0.1\ngrad_clip = 1e22\nadversary = {eps = 0.1, attack = "tpgd"}\n'
        "[datasets.digits.recipe]\n"
    )
    card = ModelCard.from_toml(text, "here")
    again = ModelCard.from_toml(card.to_toml(), "there")
    assert again == card
    assert again.sha256() == card.sha256()
    assert card.net["hidden"] == [3, 4]
    assert card.rule_options["pc_fixed_prediction"] is True
    assert card.datasets["a b.c"].recipe.adversary is not None
    assert ModelCard.from_json(card.canonical(), "json") == card


def test_a_card_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(UserError, match=r"^cannot read .*") as caught:
            read_toml(ModelCard, path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"id": NaN}', '{"id": 1e999}'])
def test_malformed_json_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^here: (field |expected JSON)") as caught:
        Outcomes.from_json(text, "here")
    assert "\n" not in str(caught.value)


def test_canonical_text_ignores_key_order_and_the_form_of_floats() -> None:
    one, other = spec(eps=0.1), spec(**dict(reversed(list(spec(eps=1e-1).model_dump().items()))))
    assert one.canonical() == other.canonical() == spec(eps=0.1000000000000000055).canonical()
    assert spec(eps=1).canonical() == spec(eps=1.0).canonical()
    document = json.loads(one.canonical())
    assert list(document) == sorted(document)
    assert list(document["params"]) == sorted(document["params"])
    assert json.dumps(document, sort_keys=True, separators=(",", ":")) == one.canonical()
    assert one.sha256() == hashlib.sha256(one.canonical().encode()).hexdigest()
    assert EvalSpec.from_json(one.canonical(), "x").key() == one.key()


def test_kinds_of_scalars_stay_apart() -> None:
    keys = {spec(params={"a": value}).key() for value in (1, 1.5, True, False, None, "1", "true", 0, "")}
    assert len(keys) == 9
    assert EvalSpec.from_json(spec(params={"a": True}).canonical(), "x").params["a"] is True


def test_every_field_of_a_spec_is_part_of_its_key() -> None:
    assert set(EvalSpec.model_fields) == {*CHANGES, "schema_version"}
    keys = {spec().key()} | {spec(**{field: value}).key() for field, value in CHANGES.items()}
    assert len(keys) == 1 + len(CHANGES)
    with pytest.raises(ValidationError, match="schema_version"):
        spec(schema_version=3)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().eps = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), (" 1 ", 1.0), ("3e-2", 0.03), ("1/3", 1 / 3), ("-1", -1.0), ("0", 0.0)],
)
def test_eps_is_a_number_or_a_fraction(text: str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "8/0", "8/", "/8", "8/255/2", "abc", "nan", "inf", "1e400", "1e999999999", "1/1e-400", "8,5", "١/x", "0x8"],
)
def test_what_is_no_number_is_no_eps(text: str) -> None:
    with pytest.raises(UserError, match=r"^expected eps as a number or a fraction such as 8/255, got "):
        parse_eps(text)


def test_eps_in_pixel_values_is_recognised() -> None:
    with pytest.raises(UserError, match=r"got 8: eps is in input units, did you mean 8/255\?$"):
        check_eps(8, "linf")
    assert check_eps(8, "l2") == 8
    assert check_eps(1.0, "linf") == 1.0


@pytest.mark.parametrize("eps", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_is_positive_and_finite(eps: float, norm: str) -> None:
    with pytest.raises(UserError, match="expected eps"):
        check_eps(eps, norm)


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.5, -1.0, float("nan"), float("inf")])
def test_l0_counts_pixels(eps: float) -> None:
    with pytest.raises(UserError, match="expected eps as a whole number of pixels for l0"):
        check_eps(eps, "l0")
    assert check_eps(3.0, "l0") == 3.0


@pytest.mark.parametrize(
    ("eps", "norm", "text"),
    [
        (8 / 255, "linf", "8/255"),
        (0.5 / 255, "linf", "0.5/255"),
        (0.03, "linf", "7.65/255"),
        (0.0314, "linf", "0.0314"),
        (1 / 3, "linf", "85/255"),
        (8 / 255, "l2", "0.0313725"),
        (3.0, "l0", "3 px"),
        (0.5, "l1", "0.5"),
    ],
)
def test_eps_is_written_as_people_write_it(eps: float, norm: str, text: str) -> None:
    assert format_eps(eps, norm) == text
    if norm == "linf":
        assert parse_eps(text) == pytest.approx(eps, rel=1e-12)


def test_columns_of_outcomes_have_equal_length() -> None:
    with pytest.raises(ValidationError, match="columns of equal length"):
        outcomes(label=[1])


@pytest.mark.parametrize("bad", [{"distance": [float("nan")] * 4}, {"label": [0.5] * 4}, {"id": ["1"] * 4}])
def test_outcomes_hold_finite_numbers_only(bad: dict[str, list[Any]]) -> None:
    with pytest.raises(ValidationError):
        outcomes(**bad)


def test_parts_are_joined_in_the_order_of_the_examples() -> None:
    whole = outcomes()
    columns = whole.model_dump()
    parts = [Outcomes(**{k: [v[i] for i in rows] for k, v in columns.items()}) for rows in ([3, 1], [0], [2])]
    assert Outcomes.joined(parts, whole.id) == whole


def test_scores_follow_from_outcomes() -> None:
    found = result()
    assert found.outcomes_record.clean_correct() == [True, True, False, True]
    assert found.outcomes_record.robust_correct() == [True, False, False, True]
    assert (found.n, found.clean_accuracy, found.robust_accuracy) == (4, 0.75, 0.5)
    assert found.success_rate == pytest.approx(1 / 3)
    assert found.queries_mean == 30
    assert found.outcomes["robust"].tolist() == [True, False, False, True]
    assert found.outcomes["id"].tolist() == [3, 7, 9, 11]
    assert found.summary()["robust_accuracy"] == 0.5
    assert found.summary()["key"] == found.spec.key()


def test_an_adversarial_hit_on_a_wrong_example_is_not_robust() -> None:
    lucky = result().model_copy(update={"outcomes_record": outcomes(adversarial_prediction=[0, 4, 2, 3])})
    assert lucky.robust_accuracy == 0.5


def test_without_a_correct_example_there_is_no_success_rate() -> None:
    nothing = result().model_copy(update={"outcomes_record": outcomes(clean_prediction=[9] * 4)})
    assert nothing.clean_accuracy == 0
    assert nothing.success_rate is None
    assert nothing.queries_mean == 0


def test_where_a_result_came_from_is_no_part_of_it() -> None:
    fresh = result()
    stored = fresh.model_copy(update={"from_store": True})
    assert fresh.canonical() == stored.canonical()
    assert "from_store" not in json.loads(fresh.canonical())
    assert json.loads(fresh.canonical())["outcomes"]["id"] == [3, 7, 9, 11]
    assert stored.summary()["from_store"] is True


def test_the_defaults_of_a_recipe_stay() -> None:
    # A card leaves defaults out: another default would change what published cards mean.
    defaults = {
        "epochs": 50, "batch_size": 64, "optimiser": "sgd", "lr": 0.05, "min_lr": 0.0, "momentum": 0.9,
        "weight_decay": 3e-4, "warmup_epochs": 0.0, "grad_clip": 5.0, "label_smoothing": 0.0, "crop": 0,
        "flip": False, "cutout": 0, "drop_path": 0.0, "drop_path_schedule": "linear", "auxiliary_weight": 0.0,
        "ema": None, "val_fraction": 0.1, "select": "best", "init": "one-law", "precision": "float32",
        "adversary": None,
    }  # fmt: skip
    assert defaults.items() <= Recipe().model_dump().items()
    pgd = {"attack": "pgd", "eps": 0.1, "steps": 7, "step_size": None, "beta": 6.0}
    assert pgd.items() <= Adversary(eps=0.1).model_dump().items()


def test_every_record_refuses_unknown_fields() -> None:
    def below(cls: type[Record]) -> list[type[Record]]:
        return [cls, *(deep for sub in cls.__subclasses__() for deep in below(sub))]

    kinds = below(Record)[1:]
    assert len(kinds) >= 8
    for kind in kinds:
        assert kind.model_config["extra"] == "forbid"
        assert kind.model_config["frozen"]
        # Those of tuples take the arrays of TOML for them; their scalars are strict one by one.
        tuples = {"Genotype", "Motif", "MotifGenotype", "ListedMotif"}
        assert kind.model_config["strict"] == (kind.__name__ not in tuples)
        assert not kind.model_config["allow_inf_nan"]
        with pytest.raises(ValidationError, match="unheard_of"):
            kind.model_validate({"unheard_of": 1})


def test_what_recipes_gained_changes_no_hash_of_a_card_that_does_not_use_it() -> None:
    assert {name: Recipe.model_fields[name].get_default(call_default_factory=True) for name in NEWS} == NEWS
    assert not NEWS.keys() & Recipe().model_dump().keys()
    new = Recipe(grow=[16, 24])
    assert NEWS.keys() <= new.model_dump().keys()
    assert Recipe.from_toml(tomli_w.dumps(new.model_dump(exclude_none=True))) == new
    assert Recipe(epochs=3).sha256() != Recipe(epochs=3, grow=[16]).sha256()
