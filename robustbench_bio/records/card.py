"""What a card says: a network of the zoo, and how it was trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from robustbench_bio.records.base import FileName, Fraction01, Identifier, Precision, Record, Scalar, Seed, Sha256, Text

#: Characters of a text among the options of a network or a rule, which may be the path of a genotype.
MAX_OPTION = 1000


def _plain_options(options: dict[str, Scalar | list[int]]) -> dict[str, Scalar | list[int]]:
    for text in (*options, *(value for value in options.values() if isinstance(value, str))):
        if len(text) > MAX_OPTION or not text.isprintable():
            raise ValueError(f"expected printable texts of at most {MAX_OPTION:,} characters, got {text[:40]!r}")
    return options


NetOptions = Annotated[dict[str, Scalar | list[int]], AfterValidator(_plain_options)]


class Adversary(Record):
    """The attack that an adversarially trained network learns against."""

    attack: Literal["pgd", "tpgd"] = "pgd"
    eps: Fraction01
    steps: int = Field(default=7, ge=1, le=10_000)
    step_size: float | None = Field(default=None, gt=0, le=1)
    beta: float = Field(default=6.0, gt=0, le=1e6)
    """Weight of the KL term under tpgd (TRADES, Zhang et al. 2019, eq. 5)."""


class Recipe(Record):
    """How a network is trained; everything that decides the weights, together with the seed."""

    epochs: int = Field(default=50, ge=1, le=1_000_000)
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0, le=1e39)
    min_lr: float = Field(default=0.0, ge=0, le=1e6)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=3e-4, ge=0, le=1e6)
    warmup_epochs: float = Field(default=0.0, ge=0, le=1e6)
    grad_clip: float | None = Field(default=5.0, gt=0, le=1e30)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    crop: int = Field(default=0, ge=0, le=4096)
    """Random shift by up to this many pixels, zero padded."""
    flip: bool = False
    grow: list[Annotated[int, Field(ge=4, le=4096)]] = Field(default_factory=list, max_length=64)
    """Sides that images are scaled to, each for an equal share of the steps; the data's own side comes last."""
    cutout: int = Field(default=0, ge=0, le=4096)
    """Side of the square that is set to zero, in pixels."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    auxiliary_weight: float = Field(default=0.0, ge=0, le=1e6)
    ema: float | None = Field(default=None, gt=0, lt=1)
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    select: Literal["best", "last"] = "best"
    """Which epoch's weights are kept: the best on the held-out part of train, or the last."""
    init: Literal["one-law", "ruled-only", "network"] = "one-law"
    """Weights drawn from the feedback's law everywhere, in ruled layers only, or as the network was built."""
    precision: Precision = "float32"
    adversary: Adversary | None = None

    @model_serializer(mode="wrap")
    def _without_news(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a field that recipes gained after the first cards where it is at its default: hashes stay."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name not in NEWS or value != NEWS[name]}


#: Fields that recipes gained since the first cards, and their defaults.
NEWS: dict[str, Any] = {"grow": []}


class TrainedNet(Record):
    """One network of a card: its size, weights and training for one data set."""

    net: NetOptions = Field(default_factory=dict)
    seed: Seed = 0
    recipe: Recipe
    weights: FileName | None = None
    weights_sha256: Sha256 | None = None
    trained_on: Text = ""
    val_accuracy: Fraction01 | None = None

    @model_validator(mode="after")
    def _weights_have_a_hash(self) -> Self:
        if (self.weights is None) != (self.weights_sha256 is None):
            raise ValueError("expected weights and weights_sha256 together")
        return self


class ModelCard(Record):
    """A network of the zoo: architecture, rules, and what was trained for each data set."""

    id: Identifier
    title: Text
    summary: Text = ""
    reference: Text = ""
    licence: Text = "MIT"
    rule: Text = "genotype"
    """Assignment of rules to layers, in the syntax of `rules.resolve`."""
    rule_options: Annotated[dict[str, Scalar], AfterValidator(_plain_options)] = Field(default_factory=dict)
    net: NetOptions
    """`name` of the network and parameters that hold for every data set."""
    datasets: dict[str, TrainedNet] = Field(default_factory=dict)
