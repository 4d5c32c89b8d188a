"""Evaluation: suites of tasks, the one scorer, metrics with intervals, and the runner that measures a model."""
