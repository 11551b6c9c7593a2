"""Where this d8mesh lies, and so where its data folder and its ``.env`` are.

In the folder of its source, where start_d8.py is, both lie beside that file. Installed
into some Python there is no such folder: the data is in the user's data folder, ``.env`` in the
current one. One rule for every command, and for `Client` and `Worker` as a library.

Source: https://platformdirs.readthedocs.io, XDG Base Directory Specification
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.errors import ConfigError

#: The name of our folder among those of other programs.
APPLICATION: Final = "d8mesh"
#: The data folder in the folder of the source.
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class Installation:
    """One d8mesh: `root` is the folder that its package lies in."""

    root: Path

    @property
    def is_source(self) -> bool:
        """Tell whether it runs from the folder of its source."""
        return (self.root / "start_d8.py").exists()

    @property
    def home(self) -> Path:
        """The folder of ``.env``, and of a relative D8_DATA_DIR."""
        return self.root if self.is_source else Path.cwd()

    def data_folder(self, text: str | None) -> Path:
        """Return the data folder, absolute.

        Args:
            text: D8_DATA_DIR; nothing or blanks for the default.

        Raises:
            ConfigError: it begins with ``~NAME``, and there is no such user.
        """
        text = (text or "").strip()
        if not text:
            return self.root / DATA if self.is_source else _of_user()
        try:
            return self.home / Path(text).expanduser()
        except RuntimeError as error:  # there is no such user, or this one has no home
            raise ConfigError(f"D8_DATA_DIR={text[:80]!r}: expected a folder ({error})") from error

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of another process of this d8mesh; see `start_folder`."""
        # Installed, it is started in a person's folder, whose `queue.py` must not be ours.
        safe_path = () if self.is_source else ("-P",)
        return [sys.executable, *safe_path, "-m", "d8mesh", *arguments]

    @property
    def start_folder(self) -> Path | None:
        """Where such a process is to be started; None: here, where its ``.env`` is."""
        return self.root if self.is_source else None


#: This very d8mesh.
HERE: Final = Installation(Path(__file__).resolve().parents[2])


def settled(config: Config) -> Config:
    """Return `config` with its data folder found: absolute, whatever folder is changed to later.

    Raises:
        ConfigError: as `Installation.data_folder`.
    """
    return replace(config, data_dir=str(HERE.data_folder(config.data_dir)))


def config_of(env: Mapping[str, str]) -> Config:
    """Return the settings of a program that uses d8mesh as a library, from its environment.

    Raises:
        ConfigError: a variable is invalid.
    """
    return settled(Config.from_env(env))


def _of_user() -> Path:
    """Return the folder for our data among those of this user."""
    import platformdirs  # slow to import, and not needed in the folder of the source

    found = platformdirs.user_data_path(APPLICATION, appauthor=False)
    if not found.is_absolute() or _is_homeless(found):  # a service, or a container's user
        return Path.cwd() / DATA
    return found


def _is_homeless(found: Path) -> bool:
    """Tell whether `found` hangs from an empty HOME: it would lie in the root of the disk."""
    return os.environ.get("HOME") == "" and found.is_relative_to("/.local")
