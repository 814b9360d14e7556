"""From per-prompt results to tables with intervals, shares, p, q and floors: what is exported,
shown and drawn. One file for each kind of table; every statistic of a study is computed here."""
