"""`tdistill explore`: walk the token MDP of any teacher by clicking candidates, in a page on this machine."""
