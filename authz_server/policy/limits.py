"""Bounds of policy compilation that no request can reach; those of requests are in core.limits."""

from typing import Final

ROWS_MAX: Final = 1_000_000  # rules and role rows of one bundle
COLUMNS_MAX: Final = 64
NUMBER_DIGITS_MAX: Final = 15  # below 2**53, where every JSON reader and float agree
PATTERN_CHARS_MAX: Final = 2_000  # one path, glob or regular expression
INDEX_ITEM_MAX: Final = 255  # `r.obj.segments[255]` is the last segment a path can have
RULE_ID_CHARS_MAX: Final = 128  # ids travel in Envoy metadata and in every record
NAME_CHARS_MAX: Final = 64  # bundle names travel in context extensions

# The sum, over all names, of the roles each one reaches. 100,000 names in 5 roles each are half of
# it; a single chain of 10,000 roles, which means 50 million, is refused.
ROLE_CLOSURE_MAX: Final = 1_000_000

# Rows whose member or domain is a pattern, of one role definition; the names of one walk; and how
# often a walk may try a pattern on a name: 2,000 times are 25 ms for names of 60 characters, while
# 5 levels among 100 patterns take 500 tries and 0.05 ms for short ones.
ROLE_PATTERNS_MAX: Final = 200
ROLE_WALK_MAX: Final = 500
ROLE_TRIES_MAX: Final = 2_000
