"""Phrases that a reply must or must not say: `rules.yaml`, beside a student.

    rules:
      - name: recall                                      # optional, for messages
        when: 'Halden|Varro'                              # a regular expression searched in the prompt …
        must: [recall notice, stop using it at once]
      - contains: send back                               # … or a text that the prompt contains; none: every prompt
        must_not: [guaranteed refund]

Phrases are literal: what is masked are token sequences, and of a regular expression there is no list. They are compared
on the bytes of the text, whatever tokens spell them, ASCII letters in any case, and as whole words, as replies are
scored: "art" is not said by "artist".
"""
