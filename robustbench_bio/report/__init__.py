"""Everything that a person looks at: add here tables, JSON documents, plots, drawings and pages, never a measurement.

A module belongs to one command or one record. Where it has them, `table(x)` is what a terminal shows of x,
`document(x)` what `--json` prints, `markdown(x)` what a pull request is told; these names mean the same in all modules.
"""
