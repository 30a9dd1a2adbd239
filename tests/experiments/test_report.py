"""The tables of a comparison, from rows written by hand."""

from __future__ import annotations

from experiments.report import Row, tables


def test_what_learning_took_has_a_table_of_its_own() -> None:
    """Two seeds of 10 and 14 seconds: 12; 3 and 5 milliard operations: 4. The teacher did not learn and has no line."""
    rows = [
        Row("teacher", 0, 0.9, 0, {}, {"forward_kl": 0.0}, []),
        Row("gkd", 0, 0.9, 5, {"seconds": 10.0, "tokens": 1500.0, "flops": 3e9}, {"forward_kl": 0.2}, []),
        Row("gkd", 1, 0.9, 5, {"seconds": 14.0, "tokens": 1500.0, "flops": 5e9}, {"forward_kl": 0.2}, []),
    ]
    close, cost = tables(rows).split("\n\n")
    assert [line.split()[0] for line in close.splitlines()] == ["agent", "teacher", "gkd"]
    head, gkd = cost.splitlines()
    assert head.split() == ["agent", "top_p", "seeds", "updates", "seconds", "tokens", "learnt", "from", "Gflop"]
    assert gkd.split() == ["gkd", "0.9", "2", "5", "12", "1,500", "4"]
