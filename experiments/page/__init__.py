"""One self-contained page about a comparison: tables, figures, replies side by side, and how to repeat it."""
