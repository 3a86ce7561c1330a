"""What the user sees beside a verb's own output."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def say(line: str) -> None:
    """Tells the user one line on stderr.

    Args:
      line: What to say, without a newline.
    """
    print(f"haiku-mqa: {line}", file=sys.stderr, flush=True)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()
) -> str:
    """Returns rows under a head, in columns.

    Args:
      head: The columns' names.
      rows: As many cells each.
      numbers: The names of columns that end at their right edge.

    Returns:
      Lines, the last without a newline.

    Example:
      >>> print(table(["path", "count"], [["w", "4,096"], ["bias", "64"]], ["count"]))
      path  count
      w     4,096
      bias     64
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ).rstrip()

    return "\n".join(map(line, [head, *rows]))


def counted(count: int, thing: str) -> str:
    """Returns so many things, in words.

    Args:
      count: How many.
      thing: One of them; an s makes it several.

    Example:
      >>> counted(1, "token"), counted(1024, "token")
      ('1 token', '1,024 tokens')
    """
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def size(count: float) -> str:
    """Returns a number of bytes in the unit that suits it.

    Args:
      count: Bytes.

    Example:
      >>> size(538_060_032), size(46_088), size(12)
      ('538.1 MB', '46.1 kB', '12 B')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        # What rounds to 1000.0 belongs to the next unit.
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def seconds(count: float) -> str:
    """Returns a time in the unit that suits it.

    Args:
      count: Seconds.

    Example:
      >>> seconds(12.5), seconds(0.0125), seconds(0.0000125)
      ('12.50 s', '12.5 ms', '12 µs')
    """
    if count >= 1:
        return f"{count:.2f} s"
    if count >= 1e-3:
        return f"{count * 1e3:.1f} ms"
    return f"{count * 1e6:.0f} µs"


def quoted(text: str, longest: int = 40) -> str:
    r"""Returns a text in quotes and on one line, cut where it is long.

    Args:
      text: Any text.
      longest: How many characters are kept.

    Example:
      >>> quoted("one\ntwo three", longest=9)
      '“one two t…”'
    """
    text = " ".join(text.split())
    return f"“{text[:longest]}…”" if len(text) > longest else f"“{text}”"
