"""A walk through the token MDP: the tree of branches that were visited, and where one stands. No model is in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from envs.candidates import check_top_p
from envs.errors import InputError
from envs.rewards import make_reward

ROOT = -1
LEAST_ALPHA, MOST_ALPHA = 0.1, 2.0


@dataclass(frozen=True)
class Settings:
    """What the MDP is: p of equation (1), α and γ of equation (3), and the token budget H.

    Raises: InputError: one of them out of range.
    """

    top_p: float = 0.9
    alpha: float = 1.0
    """Entropy temperature of values, and the temperature that replies are drawn at."""
    gamma: float = 1.0
    max_new_tokens: int = 64
    max_candidates: int = 64
    context_limit: int = 1_000_000
    """Tokens that every student sees."""

    def __post_init__(self) -> None:
        check_top_p(self.top_p, self.max_candidates)
        make_reward("logprob", self.gamma)
        if not LEAST_ALPHA <= self.alpha <= MOST_ALPHA:
            raise InputError(
                f"temperature = {self.alpha:g} is outside [{LEAST_ALPHA:g}, {MOST_ALPHA:g}]; 1 is the teacher's own"
            )
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {self.max_new_tokens} is below 1; 64 is a usual budget")


@dataclass(frozen=True)
class Node:
    """A visited state: the token that led to it, and from where."""

    parent: int  # its number; ROOT: the prompt
    token: int


@dataclass(frozen=True)
class Walk:
    """All that was visited from one prompt. Every method gives a new walk."""

    prompt: tuple[int, ...]
    nodes: tuple[Node, ...] = ()  # parents before children
    here: int = ROOT

    def way(self, node: int | None = None) -> tuple[int, ...]:
        """Nodes from the prompt to a node, that one included; None: to where one stands."""
        found, at = list[int](), self.here if node is None else node
        while at != ROOT:
            found.append(at)
            at = self.nodes[at].parent
        return tuple(reversed(found))

    def reply(self, node: int | None = None) -> tuple[int, ...]:
        """Tokens from the prompt to a node, or to where one stands."""
        return tuple(self.nodes[number].token for number in self.way(node))

    def children(self, node: int) -> tuple[int, ...]:
        """Visited states one token on."""
        return tuple(number for number, child in enumerate(self.nodes) if child.parent == node)

    def take(self, token: int) -> Walk:
        """One token on; a branch that was visited is entered again, not grown twice."""
        for number in self.children(self.here):
            if self.nodes[number].token == token:
                return replace(self, here=number)
        return replace(self, nodes=(*self.nodes, Node(self.here, token)), here=len(self.nodes))

    def follow(self, tokens: tuple[int, ...]) -> Walk:
        """Several tokens on."""
        walk = self
        for token in tokens:
            walk = walk.take(token)
        return walk

    def undo(self) -> Walk:
        """One token back; the branch stays in the tree. At the prompt nothing happens."""
        return self if self.here == ROOT else replace(self, here=self.nodes[self.here].parent)

    def go(self, node: int) -> Walk:
        """To any visited state.

        Raises: InputError: there is no such state.
        """
        if not ROOT <= node < len(self.nodes):
            raise InputError(
                f"state {node} was not visited; this walk has states -1 (the prompt) to {len(self.nodes) - 1}"
            )
        return replace(self, here=node)
