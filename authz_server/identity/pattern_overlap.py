"""Decide whether two identity patterns can match one and the same SPIFFE ID."""

from authz_server.core.spiffe import split_uri


def overlap(one: str, other: str) -> bool:
    """Tell whether some SPIFFE ID matches both patterns.

    Exact for well-formed patterns, in which a path segment has at most one `*` that stands for any
    characters, none included. Only the limit of 2048 bytes for an id is left out of account.
    """
    one_domain, _, one_path = split_uri(one)
    other_domain, _, other_path = split_uri(other)
    one_segments, other_segments = one_path.split("/"), other_path.split("/")
    return (
        one_domain == other_domain
        and len(one_segments) == len(other_segments)
        and all(map(_segments_overlap, one_segments, other_segments))
    )


def _segments_overlap(one: str, other: str) -> bool:
    if "*" not in one:
        return _matches(other, one)
    if "*" not in other:
        return _matches(one, other)
    one_head, _, one_tail = one.partition("*")
    other_head, _, other_tail = other.partition("*")
    # The longer head, any letter, the longer tail: a segment that both match, and neither empty
    # nor `.` nor `..`. If the heads or the tails differ within the shorter one, there is none.
    return (one_head.startswith(other_head) or other_head.startswith(one_head)) and (
        one_tail.endswith(other_tail) or other_tail.endswith(one_tail)
    )


def _matches(pattern: str, segment: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == segment
    return (
        len(segment) >= len(head) + len(tail)
        and segment.startswith(head)
        and segment.endswith(tail)
    )
