"""A look at a teacher and its prompts before anything is trained: what every p and K would keep, lose and cost."""
