import hashlib
import importlib
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from samples import CHANGES, outcomes, spec
from torch import Tensor, nn

import robustbench_bio as rb
from robustbench_bio.attacks import ATTACKS
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import default_home, write_atomically
from robustbench_bio.core.progress import Progress
from robustbench_bio.evaluation import migration
from robustbench_bio.evaluation.store import Store, file_name
from robustbench_bio.nets import Inputs, build
from robustbench_bio.nets.base import Net
from robustbench_bio.records.result import EvalSpec, Outcomes, Provenance, Result

N = 48
#: Inputs at most that a network without a card is asked about before a result is looked up.
ASKED = 28


class Rows(nn.Module):
    """A linear classifier that notes which inputs it sees; its sums do not depend on the batch at all."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(4, 9, generator=generator))
        self.seen: list[bytes] = []

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # and no stand-in of a trace
            self.seen.extend(row.numpy().tobytes() for row in x.detach())
        return (x.flatten(1)[:, None] * self.weight).sum(2)


def subject() -> tuple[Rows, tuple[Tensor, Tensor]]:
    """Return a classifier in eval mode and examples, of which it gets most right."""
    model = Rows().eval()
    x = torch.rand(N, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    model.seen.clear()
    return model, (x, y)


def measure(store: Store | None, batch_size: int = 8, **changes: Any) -> Result:
    model, data = subject()
    return rb.evaluate(
        model, data, batch_size=batch_size, store=store, **({"attack": "pgd", "steps": 5, "eps": 0.1} | changes)
    )


class Killed(Exception):
    pass


def killer(after: int) -> Progress:
    def progress(done: int, total: int, line: str) -> None:
        assert total == N
        if done >= after:
            raise Killed

    return progress


def finished(n: int = 4, **changes: Any) -> Result:
    where = Provenance(seconds=1.0, device="cpu", created="now", packages={})
    return Result(spec=spec(n=n, **changes), outcomes_record=outcomes(), provenance=where)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_put_is_what_is_got(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "er")
    assert store.get(finished().spec) is None
    assert not store.root.exists()
    path = store.put(finished())
    found = store.get(finished().spec)
    assert found is not None
    assert found.from_store
    assert not finished().from_store
    assert found == finished().model_copy(update={"from_store": True})
    assert files(tmp_path) == [path]
    assert Store(str(store.root)).get(finished().spec) == found


def test_the_file_is_json_with_the_hash_of_its_record(tmp_path: Path) -> None:
    path = Store(tmp_path).put(finished())
    sealed = json.loads(path.read_text())
    text = json.dumps(sealed["record"], sort_keys=True, separators=(",", ":"))
    assert sealed["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert sealed["record"]["outcomes"]["adversarial_prediction"] == [0, 4, 5, 3]


def forged(store: Store, result: Result) -> dict[str, Any]:
    """Return a file that is well made but answers another question."""
    sealed: dict[str, Any] = json.loads(store.put(result).read_text())
    return sealed


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "prediction": lambda sealed: sealed["record"]["outcomes"]["adversarial_prediction"].__setitem__(1, 1),
    "eps": lambda sealed: sealed["record"]["spec"].update(eps=0.5),
    "provenance": lambda sealed: sealed["record"]["provenance"].update(device="gpu"),
    "extra": lambda sealed: sealed["record"].update(note="x"),
    "missing": lambda sealed: sealed["record"]["outcomes"].pop("steps"),
    "hash": lambda sealed: sealed.update(sha256="0" * 64),
    "no hash": lambda sealed: sealed.pop("sha256"),
    "no record": lambda sealed: sealed.pop("record"),
    "nan": lambda sealed: sealed["record"]["outcomes"]["distance"].__setitem__(0, float("nan")),
    "another spec": lambda sealed: sealed.update(forged(Store("other"), finished(seed=5))),
    "fewer rows": lambda sealed: sealed.update(forged(Store("other"), finished(n=5))),
}
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda _: b"",
    "list": lambda _: b"[]",
    "text": lambda _: b'"x"',
    "deep": lambda _: b"[" * 200_000,
    "binary": lambda _: b"\xff\xfe\x00",
}


@pytest.mark.parametrize("how", [*EDITS, *TEXTS])
def test_a_damaged_or_edited_result_is_an_error(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subject = finished(n=5) if how == "fewer rows" else finished()
    store = Store(tmp_path / "results")
    path = store.put(subject)
    if how in EDITS:
        sealed = json.loads(path.read_text())
        EDITS[how](sealed)
        path.write_text(json.dumps(sealed))
    else:
        path.write_bytes(TEXTS[how](path.read_bytes()))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} does not match its own hash or spec.*delete it$"):
        store.get(subject.spec)
    path.unlink()
    assert store.get(subject.spec) is None


def test_results_of_different_specs_never_share_a_path() -> None:
    store = Store("root")
    specs = [spec(), *(spec(**{field: value}) for field, value in CHANGES.items())]
    specs += [spec(model=name) for name in ("a/b", "a_b", "../a_b", "a b", "..", ".", "", "a.b", "A.b")]
    specs += [spec(params={"steps": value}) for value in (1, True, "1", None, 1.0)]
    paths = {store.path(s) for s in specs}
    assert len(paths) == len(specs)
    for path in paths:
        assert Path("root") in path.parents
        assert ".." not in path.parts
        assert len(path.relative_to("root").parts) == 3


def test_unfinished_batches_of_different_specs_stay_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_part(spec(), outcomes())
    assert store.parts(spec()) == [outcomes()]
    assert store.parts(spec(seed=1)) == []
    assert store.get(spec()) is None


@pytest.mark.parametrize("again", [8, 5, 48])
def test_a_killed_run_continues_without_repeating_finished_batches(tmp_path: Path, again: int) -> None:
    whole = measure(None)
    assert 0 < whole.robust_accuracy < whole.clean_accuracy < 1
    store = Store(tmp_path)
    with pytest.raises(Killed):
        measure(store, progress=killer(24))
    left = sum(map(len, store.parts(whole.spec)))
    assert left == 24
    assert store.get(whole.spec) is None

    model, data = subject()
    resumed = rb.evaluate(model, data, batch_size=again, store=store, attack="pgd", steps=5, eps=0.1)
    gate = 8
    known = {row.numpy().tobytes() for row in data[0][gate:left]}
    fresh = {row.numpy().tobytes() for row in data[0][left:]}
    assert not known & set(model.seen), "a finished example was given to the network again"
    assert fresh <= set(model.seen)
    assert same(resumed, whole)
    assert store.get(whole.spec) is not None
    assert [path.suffix for path in files(tmp_path)] == [".json"]


def same(one: Result, other: Result) -> bool:
    return (one.spec, one.outcomes_record) == (other.spec, other.outcomes_record)


@pytest.mark.parametrize("batch_size", [1, 7, 48, 1000])
def test_outcomes_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert same(measure(None, batch_size=batch_size), measure(None))


def test_an_equal_call_is_answered_from_the_store_after_a_look_at_a_few_answers(tmp_path: Path) -> None:
    first = measure(Store(tmp_path))
    model, data = subject()
    again = rb.evaluate(model, data, batch_size=3, store=Store(tmp_path), attack="pgd", steps=5, eps=0.1)
    assert len(model.seen) <= ASKED, "no more than the fingerprint asks"
    assert again.from_store
    assert not first.from_store
    assert again.outcomes_record == first.outcomes_record
    assert again.provenance == first.provenance


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 6}, {"eps": 0.11}, {"norm": "l2"}, {"ids": range(1, N + 1)}])
def test_another_question_gets_an_answer_of_its_own(tmp_path: Path, change: dict[str, Any]) -> None:
    measure(Store(tmp_path))
    assert not measure(Store(tmp_path), **change).from_store
    assert len(files(tmp_path)) == 2


def test_another_network_or_other_data_get_an_answer_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    measure(store)
    model, (x, y) = subject()
    assert not rb.evaluate(model, (x, y.flip(0)), store=store, attack="pgd", steps=5, eps=0.1).from_store
    assert not rb.evaluate(model, (x.flip(0), y), store=store, attack="pgd", steps=5, eps=0.1).from_store
    assert not rb.evaluate(model, (x[:-1], y[:-1]), store=store, attack="pgd", steps=5, eps=0.1).from_store
    model.weight[0, 0] += 1e-6
    assert not rb.evaluate(model, (x, y), store=store, attack="pgd", steps=5, eps=0.1).from_store


@pytest.mark.parametrize("damage", ["truncated", "edited", "half written"])
def test_a_damaged_batch_is_measured_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(Killed):
        measure(store, progress=killer(24))
    part = files(tmp_path)[0]
    text = part.read_text()
    if damage == "truncated":
        part.write_text(text[:-20])
    elif damage == "edited":
        first = re.search(r'"clean_prediction":\[(\d)', text)
        assert first is not None
        part.write_text(text.replace(first.group(), first.group()[:-1] + str((int(first.group(1)) + 1) % 4)))
    else:
        part.rename(part.with_name(f".{part.name}.0123456789abcdef"))
    assert sum(map(len, store.parts(measure(None).spec))) == 16
    assert same(measure(store), measure(None))
    assert [path.suffix for path in files(tmp_path)] == [".json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^cannot write .*a\.json: No space left on device$"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def interrupted(_: int) -> None:
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == [path]


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.json", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "results")
    model, data = subject()
    with pytest.raises(UserError, match=r"^cannot write .*results: Not a directory: name another folder with --out$"):
        rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    assert len(model.seen) <= ASKED, "no more than the fingerprint asks"
    with pytest.raises(UserError, match=r"^cannot write .*file: File exists: name another folder"):
        write_atomically(tmp_path / "file" / "a.json", b"x")


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*: File name too long: name another folder with --out$"):
        Store(tmp_path / ("x" * 300)).get(spec())


def test_results_live_below_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("BIOROBUST_HOME", "~/x")
    assert default_home() == Path("/h/x")
    monkeypatch.delenv("BIOROBUST_HOME")
    assert default_home() == Path("/h/.cache/biorobust")


@pytest.mark.slow
def test_a_run_that_was_killed_outright_gives_what_an_undisturbed_one_gives(trained_card: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        options = "--attack pgd --steps 60 --n-examples 120 --batch-size 6 --gradient exact --eps 4/255 --json"
        return [
            sys.executable, "-c", "from robustbench_bio.cli import main; main()", "eval", "--model", str(trained_card),
            "--set", "early_exit=false", "--out", str(out), *options.split(),
        ]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = tmp_path / "killed"
    victim = subprocess.Popen(command(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)  # noqa: S603
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(run.rglob("*.parts/[!.]*.json"))) < 3:
        assert victim.poll() is None, "it was done before it could be killed"
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(30) == -signal.SIGKILL
    parts = list(run.rglob("*.parts/[!.]*.json"))
    assert 3 <= len(parts) < 20
    assert not list(run.glob("*/*/*.json"))
    next(iter(parts)).write_text("half")

    documents = []
    for out in (run, tmp_path / "whole"):
        done = subprocess.run(command(out), capture_output=True, check=True, env=environment, timeout=120)  # noqa: S603
        documents.append(json.loads(done.stdout))
        assert not documents[-1]["results"][0]["from_store"]
    records = [json.loads(path.read_text())["record"] for path in sorted(tmp_path.glob("*/*/*/*.json"))]
    assert len(records) == 2
    assert records[0]["outcomes"] == records[1]["outcomes"]
    assert records[0]["spec"] == records[1]["spec"]
    assert documents[0]["worst_case"] == documents[1]["worst_case"]
    assert [path.name for path in files(run)] == [path.name for path in files(tmp_path / "whole")]


# --- results of the first schema ----------------------------------------------------------------------------------


def of_the_zoo() -> tuple[Net, tuple[Tensor, Tensor]]:
    """Return a network that a description says all about, and examples, of which it gets most right."""
    model = build("mlp", Inputs((1, 3, 3), 4, (0.5,), (0.5,)), seed=0, hidden=(8,)).eval()
    model.description = "of a card"
    x, y = subject()[1]
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    return model, (x, y)


def as_first_schema(store: Store, result: Result, model: nn.Module) -> Path:
    """Put a result back as the first schema kept it, and return its file."""
    store.path(result.spec).unlink()
    document = migration.first_spec(result.spec, migration.first_fingerprint(model))
    key = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    record = result.model_dump(mode="json") | {"spec": document}
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    path = store.path(result.spec).with_name(file_name("pgd", "linf", document["gradient"], key))
    path.write_text(f'{{"sha256":"{digest}","record":{body}}}\n')
    return path


def test_a_result_of_the_first_schema_is_taken_over_without_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (model, data) = Store(tmp_path), of_the_zoo()
    result = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    path = as_first_schema(store, result, model)
    monkeypatch.setattr("robustbench_bio.evaluation.measure.gate", lambda *_: pytest.fail("no work"))
    again = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    assert again.from_store
    assert same(again, result)
    assert again.provenance == result.provenance
    assert store.get(result.spec) is not None, "it is kept under today's key"
    path.unlink()
    assert rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1).from_store


def test_a_network_without_a_card_may_be_another_than_that_of_the_first_schema(tmp_path: Path) -> None:
    store, (model, data) = Store(tmp_path), subject()
    result = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    as_first_schema(store, result, model)
    rolled = subject()[0]
    rolled.register_forward_hook(lambda *call: call[-1].roll(1, 1))
    assert not rb.evaluate(rolled, data, store=store, attack="pgd", steps=5, eps=0.1).from_store


def test_the_first_schema_has_the_key_that_it_had(tmp_path: Path) -> None:
    # Written by hand from a file of that time: the order of fields does not matter, their names and values do.
    spec = samples.spec(attack="pgd", gradient="surrogate:triangle", draws=20)
    document = migration.first_spec(spec, "7" * 64)
    assert document == {
        "schema_version": 1, "version": spec.version, "model": "tiny", "weights_sha256": "7" * 64, "dataset": "digits",
        "split": "test", "n": 2, "data_sha256": "1" * 64, "attack": "pgd",
        "params": {"steps": 40, "step_size": None, "random_start": True}, "norm": "linf", "eps": 8 / 255,
        "gradient": "surrogate:qgate", "backend": "native", "precision": "float32", "seed": 0, "votes": 20,
    }  # fmt: skip
    assert EvalSpec.read(migration.upgraded_spec(document, "0" * 64)) == spec


@pytest.mark.parametrize("spoil", ["other network", "edited"])
def test_a_result_of_the_first_schema_that_is_not_this_one_is_measured_anew(tmp_path: Path, spoil: str) -> None:
    store, (model, data) = Store(tmp_path), of_the_zoo()
    result = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    path = as_first_schema(store, result, model if spoil == "edited" else nn.Linear(1, 1))
    if spoil == "edited":
        path.write_text(path.read_text().replace('"label":[', '"label":[0,', 1))
    again = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    assert not again.from_store
    assert same(again, result)


@pytest.mark.parametrize(
    "outcomes", [{name: [] for name in Outcomes.model_fields}, "none"], ids=["short", "no columns"]
)
def test_a_sealed_result_of_the_first_schema_needs_an_outcome_for_each_example(tmp_path: Path, outcomes: Any) -> None:
    store, (model, data) = Store(tmp_path), of_the_zoo()
    result = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    path = as_first_schema(store, result, model)
    record = json.loads(path.read_text())["record"] | {"outcomes": outcomes}
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "record": record}))
    again = rb.evaluate(model, data, store=store, attack="pgd", steps=5, eps=0.1)
    assert not again.from_store
    assert same(again, result)


def test_a_key_holds_the_batch_size_where_outcomes_depend_on_it(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    small, large = (measure(None, batch_size=n, backend="torchattacks").spec for n in (8, 16))
    assert (small.batch_size, large.batch_size) == (8, 16)
    assert small.key() != large.key()
    assert measure(None, batch_size=8).spec == measure(None, batch_size=16).spec, "streams of examples know no batch"
    random = measure(None, batch_size=8, gradient="eot:2").spec
    assert random.batch_size is None, "this network is not random"


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a stored record and seal it again, as somebody who knows the format would."""
    record = json.loads(path.read_text())["record"]
    change(record)
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    path.write_text(f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}","record":{body}}}\n')


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["outcomes"].update(label=record["outcomes"]["adversarial_prediction"]),
        lambda record: record["outcomes"].update(id=[row + 1000 for row in record["outcomes"]["id"]]),
        lambda record: record["outcomes"].update(id=[0] * len(record["outcomes"]["id"])),
    ],
    ids=["labels", "ids", "one example"],
)
def test_a_result_with_outcomes_of_other_examples_is_not_believed(tmp_path: Path, change: Any) -> None:
    store = Store(tmp_path)
    resealed(store.path(measure(store).spec), change)
    with pytest.raises(UserError, match="outcomes of other examples: it was edited, delete it"):
        measure(store)


def test_a_batch_with_outcomes_of_other_examples_is_measured_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Killed):
        measure(store, progress=killer(24))
    first, second, _ = sorted(tmp_path.rglob("*.json"))
    resealed(first, lambda record: record.update(label=record["adversarial_prediction"]))
    second.with_name("copy.json").write_text(second.read_text())
    assert same(measure(store), measure(None))


def test_an_edited_attack_of_another_package_is_another_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "edited_attack.py"
    text = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from robustbench_bio.attacks import ATTACKS, Attack, Proposal

@ATTACKS.register("edited")
@dataclass(frozen=True, kw_only=True)
class Edited(Attack):
    norms: ClassVar[frozenset] = frozenset({"linf"})

    def perturb(self, model, x, y, threat, rng):
        x_adv = (x + SCALE * threat.eps).clamp(0, 1)
        return Proposal(x_adv, torch.zeros_like(y), torch.zeros_like(y))
"""
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for scale in (0, 1):
        plugin.write_text(text.replace("SCALE", str(scale)))
        linecache.clearcache()
        sys.modules.pop("edited_attack", None)
        importlib.invalidate_caches()
        importlib.import_module("edited_attack")
        model, data = subject()
        result = rb.evaluate(model, data, attack="edited", eps=0.3, store=Store(tmp_path / "store"))
        assert not result.from_store
        keys.append(result.spec.params["code_sha256"])
    assert keys[0] != keys[1]
    monkeypatch.delitem(ATTACKS._members, "edited")
