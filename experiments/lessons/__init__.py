"""Lessons: each runs production code on something small and asserts what it claims."""
