"""What a power cut leaves of a folder: the disk as `powercut.c` saw it, and luck for what was not synced."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

BLOCK = 4096
SECTOR = 512


class Power:
    """The power of the machine that a home is on.

    Args:
        home: of the daemon, which has `env`.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._shadow = home.with_name(f"{home.name}.shadow")
        self.env = {"POWERCUT_HOME": str(home), "POWERCUT_SHADOW": str(self._shadow)}

    def on(self) -> None:
        """All that is there is on the disk. To be called while no daemon runs."""
        shutil.rmtree(self._shadow, ignore_errors=True)
        self._shadow.mkdir(mode=0o700)
        for folder in self._folders():
            lines = []
            for file in _files(folder):
                inode = file.stat().st_ino
                self._place("pin", inode).hardlink_to(file)
                shutil.copyfile(file, self._place("inode", inode))
                lines.append(f"{inode} {file.name}\n")
            self._place("names", folder.stat().st_ino).write_text("".join(lines))

    def cut(self, chance: random.Random | None = None) -> str:
        """Leave what is on the disk, once the daemon was killed; with `chance` also some of what was not synced.

        Without it nothing is there that was not synced. With it each folder has its old names or its new ones, and of
        each file any blocks, or halves of them, that were written since it was synced last. Answers what was torn.
        """
        torn: list[str] = []
        for folder in self._folders():
            present = {file.name: file.stat().st_ino for file in _files(folder)}
            names = self._synced_names(folder)
            if chance is not None and chance.random() < 0.5:
                names = present
            contents = {name: self._content(inode, chance) for name, inode in names.items()}
            torn += [name for name, inode in names.items() if contents[name] != self._synced(inode)]
            for file in _files(folder):
                file.unlink()
            for name, content in contents.items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(0o600)
        return ", ".join(torn)

    def _folders(self) -> Iterator[Path]:
        yield self._home
        yield from (path for path in self._home.iterdir() if path.is_dir())

    def _place(self, what: str, number: int) -> Path:
        return self._shadow / f"{what}-{number}"

    def _synced_names(self, folder: Path) -> Mapping[str, int]:
        file = self._place("names", folder.stat().st_ino)
        lines = file.read_text().splitlines() if file.exists() else []
        return {name: int(inode) for inode, name in (line.split(" ", 1) for line in lines)}

    def _synced(self, inode: int) -> bytes:
        file = self._place("inode", inode)
        return file.read_bytes() if file.exists() else b""

    def _content(self, inode: int, chance: random.Random | None) -> bytes:
        synced, pin = self._synced(inode), self._place("pin", inode)
        if chance is None or not pin.exists():
            return synced
        return torn(synced, pin.read_bytes(), chance)


def _files(folder: Path) -> list[Path]:
    """Everything but what a start makes anew."""
    return [path for path in folder.iterdir() if path.is_file() and not path.name.endswith("-shm")]


def torn(synced: bytes, written: bytes, chance: random.Random) -> bytes:
    """Answer a mixture of what was synced and what was written since, of any length between theirs."""
    if synced == written:
        return synced
    length = chance.randint(*sorted((len(synced), len(written))))
    odds = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    found = bytearray()
    for at in range(0, length, BLOCK):
        old, new = (text[at : at + BLOCK].ljust(BLOCK, b"\0") for text in (synced, written))
        if old == new or chance.random() >= odds:
            found += old
        elif chance.random() < 0.2:
            cut = chance.randrange(0, BLOCK, SECTOR)
            found += new[:cut] + old[cut:]
        else:
            found += new
    return bytes(found[:length])
