"""What the documentation shows runs as it is written, and prints what it says."""

import contextlib
import io
import re
import shlex
import socket
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
import torch

from robustbench_bio.attacks import ATTACKS, WhiteBoxModel
from robustbench_bio.attacks.external import BACKENDS
from robustbench_bio.cli import app as cli
from robustbench_bio.nets.surrogates import SURROGATES
from robustbench_bio.records.preset import AttackPreset
from robustbench_bio.records.space import Space
from robustbench_bio.search.base import ENGINES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robustbench_bio"
OWN, ADDING, README = ROOT / "docs" / "own.md", ROOT / "docs" / "adding.md", ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

#: Points by which a figure may differ from the documented one: processors add up floats in different orders.
POINTS = 10.0

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the output that the page shows below it, "" if none."""

    language: str
    text: str
    output: str

    @property
    def file(self) -> str:
        """Name of the file that the block is, "" if it is to be run."""
        found = _FILE.match(self.text)
        return found[1] if found else ""


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "text":
            found[-1] = found[-1]._replace(output=body)
        else:
            found.append(Block(language, body, ""))
    return found


def examples(page: Path) -> dict[str, list[Block]]:
    """Return the blocks of each section of the second level, by its number or title."""
    titles = re.split(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)[1:]
    parts = zip(titles[::2], titles[1::2], strict=True)
    return {title: blocks(body) for title, body in parts if blocks(body)}


def example(number: int) -> list[Block]:
    (found,) = (parts for title, parts in examples(OWN).items() if title.startswith(f"{number}."))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder without a network, where modules can be imported; what they register is taken back."""

    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError(f"the documentation reached out for {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ATTACKS.names()  # reads the folder first
    attacks, modules = dict(ATTACKS._members), set(sys.modules)
    with torch.random.fork_rng():
        yield tmp_path
    ATTACKS._members.clear()
    ATTACKS._members.update(attacks)
    for path in tmp_path.glob("*.py"):
        if path.stem not in modules:
            sys.modules.pop(path.stem, None)


def run(parts: list[Block], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the blocks one after the other, as a reader would, and return what each printed."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for part in parts:
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            if part.file:
                Path(part.file).write_text(part.text)
            elif part.language == "python":
                exec(compile(part.text, "<the documentation>", "exec"), names)  # noqa: S102
            elif part.language == "bash":
                command(part.text, monkeypatch)
            else:
                raise AssertionError(f"nobody runs a block of {part.language!r}")
        printed.append(heard.getvalue())
    return printed


def command(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "biorobust", line
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, line


def plain(output: str) -> str:
    """Return an output without frames, line breaks, and figures that no two runs share."""
    output = re.sub(r"(?m)^((?:pgd|swift) .*\S)\s+[\d.]+\*?$", r"\1", output)  # seconds
    output = re.sub(r"p = [-\d.e]+", "p", re.sub(r"[\u2500-\u257f]", " ", output))
    return " ".join(output.split())


def agrees(shown: str, came: str) -> bool:
    """Tell whether two outputs have the same words, and figures that are close."""
    shown, came = plain(shown), plain(came)
    if _NUMBER.sub("0", shown) != _NUMBER.sub("0", came):
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(came), strict=True)
    return all(abs(float(a) - float(b)) <= POINTS for a, b in pairs)


def check(parts: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    for part, came in zip(parts, run(parts, monkeypatch), strict=True):
        assert not (came and part.language == "python" and not part.output), f"not shown: {came}"
        if part.output:
            assert agrees(part.output, came), f"shown:\n{part.output}\ncame:\n{came}"


@pytest.mark.slow
def test_the_example_of_an_own_model_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(example(1), monkeypatch)


@pytest.mark.slow
def test_the_example_of_an_own_data_set_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(example(2), monkeypatch)
    assert (place / "runs" / "my-net-stripes" / "my-net.toml").is_file()


@pytest.mark.slow
def test_the_example_of_an_own_attack_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(example(3), monkeypatch)


@pytest.mark.slow
def test_the_example_of_the_readme_runs_as_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = (part for part in blocks(README.read_text()) if part.language == "python")
    (printed,) = run([part], monkeypatch)
    accuracies, _, *rows, verdict = printed.splitlines()
    clean, robust, low, high = map(float, _NUMBER.findall(accuracies))
    assert 0 < low < robust < high < clean <= 1
    assert [row.split()[0] for row in rows[:5]] == ["0", "1", "2", "3", "4"]
    assert verdict == "sound masked"


def test_every_example_of_an_own_thing_is_run() -> None:
    assert [title.partition(".")[0] for title in examples(OWN)] == ["1", "2", "3"]
    assert {part.language for parts in examples(OWN).values() for part in parts} == {"python", "bash", "toml"}


@pytest.mark.parametrize("page", [OWN, ADDING, README], ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:robustbench_bio|models|spaces|attacks|tests|docs)/[\w./-]*)`", text)
    assert links
    for link in links:
        assert (page.parent / link).exists(), link
    for path in paths:
        assert (ROOT / path).exists(), path


def test_adding_names_what_an_attack_may_ask() -> None:
    shown = set(re.findall(r"`model\.(\w+)\(", ADDING.read_text()))
    public = {name for name, value in vars(WhiteBoxModel).items() if callable(value) and not name.startswith("_")}
    assert shown == public


def test_adding_names_things_that_are_there() -> None:
    text = ADDING.read_text()
    for path, names in {
        "nets/surrogates.py": ["SURROGATES"],
        "attacks/external/base.py": ["Backend", "PeerAttack", "Job", "fixed"],
        "rules/base.py": ["Rule", "NetworkRule", "sees_labels"],
        "rules/options.py": ["RuleOptions"],
        "rules/feedback.py": ["FeedbackRule"],
        "rules/hebbian.py": ["Hebbian"],
        "nets/operations.py": ["builds"],
        "datasets/base.py": ["Dataset"],
        "nets/base.py": ["Net"],
        "search/base.py": ["ENGINES", "Engine", "small"],
        "search/candidate_engine.py": ["CandidateEngine", "propose"],
    }.items():
        source = (ROOT / "robustbench_bio" / path).read_text()
        for name in names:
            assert f"`{name}`" in text, name
            assert re.search(rf"(class|def) {name}\b|^ *{name}\b.*[:=]", source, re.MULTILINE), (path, name)
    assert SURROGATES
    assert BACKENDS.names()
    assert ENGINES.names()


def places(path: str) -> list[Path]:
    """Return what a path of the architecture page names: in the package, or else at the top level."""
    return [place for place in (PACKAGE / path, ROOT / path) if place.exists()]


def defines(source: str, name: str) -> bool:
    """Tell whether a module defines a name, at any depth, or registers it."""
    return bool(re.search(rf'(class|def) {name}\b|^ *{name}\b *[:=]|register\("{name}"', source, re.MULTILINE))


def test_the_architecture_names_paths_and_names_that_are_there() -> None:
    named, text = 0, ARCHITECTURE.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ARCHITECTURE.parent / link).exists(), link
    for block in re.split(r"\n\n|\n(?=\||\d+\. )", text):
        marked = re.findall(r"`([^`\n]+)`", block)
        paths = [mark for mark in marked if ("/" in mark and " " not in mark) or mark.endswith(".py")]
        for path in set(paths) - {"__init__.py"}:
            assert places(path), path
        sources = [place.read_text() for path in paths for place in places(path) if place.suffix == ".py"]
        names = [mark for mark in marked if mark.isidentifier()]
        for name in names:
            assert any(defines(source, name) for source in sources), f"{name} is in none of {paths}"
        named += len(names)
    assert named > 40


def test_the_architecture_lists_the_rooms_in_the_order_of_their_imports() -> None:
    shown = re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert shown == contract["layers"][::-1]


def test_the_files_that_adding_shows_are_read() -> None:
    shown = {part.file: part.text for part in blocks(ADDING.read_text()) if part.file}
    assert sorted(shown) == ["attacks/my-preset.toml", "spaces/my-space.toml"]
    for path, text in shown.items():
        kind = AttackPreset if path.startswith("attacks/") else Space
        assert tomllib.loads(text)["name"] == Path(path).stem
        assert kind.from_toml(text, path).title


@pytest.mark.parametrize(
    ("came", "same"),
    [
        ("robust 58.0%\n", True),
        ("robust  55.5%", True),
        ("robust 80.0%", False),
        ("fragile 58.0%", False),
        ("robust 58.0% again", False),
    ],
)
def test_an_output_is_compared_by_words_and_close_figures(came: str, same: bool) -> None:
    assert agrees("robust 57.5%\n", came) == same


def test_seconds_p_values_and_frames_are_not_compared() -> None:
    shown = "┌──┐\npgd  linf 8/255  rule  56.0 [49.1, 62.7]  35.9  0.7\np = 3e-06"
    assert agrees(shown, "pgd linf 8/255 rule 55.0 [49.1, 62.7] 36.9 88.7*\n\np = 0.5")
    assert not agrees(shown, "pgd linf 8/255 exact 55.0 [49.1, 62.7] 36.9 88.7*\n\np = 0.5")
