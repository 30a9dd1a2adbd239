"""`python -m experiments.lessons.bugs`: which exercises are still wrong; 0 when all are solved."""

from experiments.lessons.bugs.check import main

if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
