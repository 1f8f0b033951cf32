"""Where the files are that a table names: inside of the table's own folder or zip file, and never through a link."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from innerloop.datasets.files import listing
from innerloop.datasets.tables import written

LINK = "is a link or in a linked folder; put the file itself there"
NOWHERE = "is nowhere there"


class Places:
    """Where the files that tables name are, in a folder or a zip file.

    names: of everything that the source holds. None: they are listed once a file is not where its table says, and for
    a zip file at once.
    """

    def __init__(self, source: Path, names: Iterable[str] | None = None) -> None:
        self.source = source
        self.root = "" if source.is_file() else os.path.realpath(source)
        self.entries = set(listing(source)) if names is None and not self.root else names and set(names)
        self.by_name: dict[str, list[str]] | None = None

    def find(self, table: str, file: str, by_name: bool = True) -> tuple[str, str]:
        """Return a file's path in the source, and why it cannot be used, or "".

        It is where the table says, or the one file of its name at any depth. Absolute paths may lead into the source.

        table: path of the table in the source. by_name: whether a file is searched for by its name.
        """
        given = written(posixpath.normpath(posixpath.join(posixpath.dirname(table), file)), self._is_there)
        path = self._relative(given)
        outside = path.startswith(("/", "../")) or path == ".."
        if not outside and self._is_there(path):
            return path, LINK if self._is_link(path) else ""
        places = self._named(posixpath.basename(path)) if by_name else []
        if len(places) == 1:
            return places[0], ""
        if places:
            return path, f"is there more than once: {', '.join(places[:3])}"
        if outside:
            return path, f"{NOWHERE} in {self.source}, and files outside of it are not read"
        return path, LINK if self._is_link(path) else NOWHERE

    def _named(self, name: str) -> list[str]:
        if self.by_name is None:  # the whole folder is read only if it must be
            self.by_name = {}
            for entry in listing(self.source) if self.entries is None else sorted(self.entries):
                self.by_name.setdefault(posixpath.basename(entry), []).append(entry)
        return self.by_name.get(name, [])

    def _relative(self, path: str) -> str:
        for root in {self.root, os.path.abspath(self.source)} if self.root else ():
            if path.startswith(f"{root}/"):
                return path.removeprefix(f"{root}/")
        return path

    def _is_there(self, path: str) -> bool:
        if not self.root:
            return self.entries is not None and path in self.entries
        try:
            return os.path.isfile(os.path.join(self.root, path))
        except (OSError, ValueError):  # a name that is too long, or holds a NUL character
            return False

    def _is_link(self, path: str) -> bool:
        try:
            return bool(self.root) and os.path.realpath(os.path.join(self.root, path)) != os.path.join(self.root, path)
        except (OSError, ValueError):
            return False
