"""Text that cannot forge a line, drive a terminal or break a column."""


def printable(text: str) -> str:
    r"""Return `text` with every character that is not printable replaced by an escape.

    Line breaks, terminal escapes, bidirectional overrides, zero-width characters, lone surrogates
    and NUL become `\n`, `\x1b`, `\u202e` and so on; a backslash becomes two. INVARIANT: injective,
    so two different texts never look the same; printable text without a backslash is unchanged.

    SECURITY: strings of a request reach people and text columns through here (CWE-117, CWE-150).
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(char) for char in text)


def _escape(char: str) -> str:
    if char.isprintable() and char != "\\":
        return char
    return char.encode("unicode_escape").decode("ascii")
