"""Figures as files."""

from pathlib import Path

from robustbench_bio.report.figures import new_figure, write_figure


def test_the_same_drawing_is_the_same_file(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        figure, axes = new_figure(1)
        axes.plot([0, 1], [1, 0], label="falls")
        axes.fill_between([0, 1], [0, 0], [1, 1], alpha=0.1)
        axes.legend()
        (tmp_path / folder).mkdir()
        write_figure(figure, tmp_path / folder / "plot")
    for name in ("plot.png", "plot.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
