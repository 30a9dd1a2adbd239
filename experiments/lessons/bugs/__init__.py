"""Exercises: five short functions, each with one planted bug; `python -m experiments.lessons.bugs` tries them."""
