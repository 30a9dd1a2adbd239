"""`tdistill online`: a student that answers a stream of prompts and learns on from it, with a watch over both.

config.py    the settings
sources.py   where prompts come from: a folder, standard input; server.py: an HTTP endpoint
journal.py   what has come in, what was answered, what happened: files that a kill at any moment leaves usable
signals.py   what is noticed about a prompt and its reply
watch.py     which of it has changed
desk.py      which prompts the teacher is asked about, and what it says
learner.py   the student: what it learns from, the gate, the way back
loop.py      block by block: answer, watch, label, learn
show.py      the figures
"""
