"""Studies: questions about the method that a comparison of agents does not answer, each a command with its table."""
