"""Everything that a person looks at: tables, documents, plots, drawings, the site."""
