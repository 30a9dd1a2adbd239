"""A hybrid student: a small count-based expert of low-frequency words, mixed in where the student is uncertain.

Beside a student, in `expert/`: what was counted (`expert.safetensors`), its settings and the gate (`expert.json`), and
the prompts it was counted and fitted on. The student itself is untouched and loads without any of it.
"""
