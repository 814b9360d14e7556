"""How a study runs each measure: its jobs, and what it may lack. One file a measure, or a few that
share their parts; the catalogue says which function is whose."""
