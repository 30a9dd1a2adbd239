"""`tdistill update`: a teacher that has changed, its old store and student, and no more questions than it takes."""
