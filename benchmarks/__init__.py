"""Microbenchmarks: `semcom-fast bench` runs every row, `semcom-fast bench likelihood_score --quick` a few small ones."""
