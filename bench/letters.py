"""The learnable reward of the time-to-score study: how often a letter occurs in the response.

It is a function of the text, and of the tokens alike: the byte-level tokenizer keeps an ASCII letter whole. Standard
library only, because it is also read in the peers' environments.
"""

LETTER = "e"
SCORE_OF_ONE = 0.25
