"""How docstrings become pages: what stands on one line stays a paragraph, doctests are fenced.

Docstrings here write `Source: …`, `Returns: …` and `Raises: …` in a line or two, and `a, b: …` of arguments that are
alike. The Google style would read the second line as a section, and the names as one argument; Markdown would take
`>>>` for three quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Returns|Raises|Attributes):\s*\n)")
LEAD = re.compile(
    r"\n*^(?P<word>Source|Returns|Raises|Yields)(?P<when> \([^)\n]+\))?: +(?P<rest>\S.*(?:\n +\S.*)*)\n?", re.M
)
ARGUMENTS = re.compile(r"^Args:\n(?:(?: +.*)?(?:\n|$))+", re.M)
SHARED = re.compile(r"^(?P<space> +)(?P<names>\w+(?:, \w+)+):(?P<rest>.*(?:\n(?P=space) +.*)*)", re.M)
DOCTEST = re.compile(r"\n*^(?P<body>>>> .*(?:\n(?!\n).+)*)\n?", re.M)


def reflowed(text: str) -> str:
    """A docstring as the page wants it.

    >>> reflowed("Claim.\\n\\nRaises: ValueError: a,\\n    b.")
    'Claim.\\n\\n**Raises:** ValueError: a, b.'
    """

    def lead(found: re.Match[str]) -> str:
        rest = re.sub(r"\n +", " ", found["rest"])
        return f"\n\n**{found['word']}{found['when'] or ''}:** {rest}\n\n"

    def each(found: re.Match[str]) -> str:
        return "\n".join(f"{found['space']}{name}:{found['rest']}" for name in found["names"].split(", "))

    text = ARGUMENTS.sub(lambda found: SHARED.sub(each, found[0]), SECTION.sub("\n\n", text))
    text = LEAD.sub(lead, text)
    text = DOCTEST.sub(lambda found: f"\n\n```pycon\n{found['body']}\n```\n\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class Reflow(griffe.Extension):
    """Reflows the docstring of every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = reflowed(obj.docstring.value)
