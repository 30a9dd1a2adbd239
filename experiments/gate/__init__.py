"""`tdistill evaluate --gate FILE`: conditions on a student's measures, as a check in somebody's CI.

    confidence: 0.95            # optional; see below
    conditions:
      - {measure: critical_pass, at_least: 1}
      - {measure: task_score, at_least: 0.9, of: teacher}
      - {measure: leak, at_most: 0.2}
      - {measure: token_ms_1, at_most: 50}
      - {measure: length, between: [20, 60]}
      - {measure: task_score, slice: quote, at_least: 0.5}

A condition has a `measure`, any that `tdistill evaluate` reports, and its limits: `at_least`, `at_most`, or both as
`between`. With `of: teacher` a limit is that many times the teacher's own value on the same prompts. With `slice` the
measure is that of the prompts with this tag (at least four of them), or of `rare words`.

With `confidence` a limit is held against the one-sided bound of a bootstrap over prompts, the lower one for `at_least`,
the upper one for `at_most`. Measures that are no mean over prompts or tokens (times, variety, quantiles) have no such
bound; their values are held against the limits as they are.
"""
