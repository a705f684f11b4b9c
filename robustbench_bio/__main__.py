"""`python -m robustbench_bio` is the command `biorobust`."""

from robustbench_bio.cli import main

main()
