"""Imports gnar and its packages from the unpacked files, each only with the content that was unpacked.

The folder is not in `sys.path`: what somebody puts there later is not imported, also if the folder has been
removed and another one has taken its name.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

from pyz.inside.folders import Folder

SITE = "site-packages"


class Finder:
    """Finds the modules among the files of a folder; goes into `sys.meta_path`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._top = {path.split("/")[1].partition(".")[0] for path in folder.files}

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return how to import a module; None if it is none of gnar's."""
        if name.partition(".")[0] not in self._top:
            return None
        files, at = self._folder.files, f"{SITE}/{name.replace('.', '/')}"
        if f"{at}/__init__.py" in files:
            return self._spec_of_source(name, f"{at}/__init__.py")
        for suffix in EXTENSION_SUFFIXES:
            if at + suffix in files:
                held = self._folder.held_path_of(at + suffix)
                return ModuleSpec(name, _CompiledLoader(name, held, self._folder, at + suffix), origin=held)
        return self._spec_of_source(name, f"{at}.py") if f"{at}.py" in files else None

    def _spec_of_source(self, name: str, path: str) -> ModuleSpec:
        origin, is_package = self._folder.path_of(path), path.endswith("/__init__.py")
        spec = ModuleSpec(
            name, _SourceLoader(name, origin, self._folder), origin=origin, is_package=is_package
        )
        spec.has_location = True
        return spec  # a package has no folders of its own in which Python would look for modules


class _SourceLoader(SourceFileLoader):
    """Loads a module from bytecode, or from its source where there is no bytecode to be used."""

    def __init__(self, name: str, path: str, folder: Folder) -> None:
        super().__init__(name, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code of the module."""
        prefix, sys.pycache_prefix = sys.pycache_prefix, None  # the bytecode is beside the source
        try:
            return super().get_code(fullname)
        finally:
            sys.pycache_prefix = prefix

    def path_stats(self, _path: str) -> dict[str, float]:
        """Return a time for the source; the bytecode is right whatever the time is."""
        return {"mtime": 0}

    def get_data(self, path: str) -> bytes:
        """Return the content of a file. Raises OSError for an unknown one, and DamagedError."""
        inside = path[len(self._folder.home) + 1 :].replace("\\", "/")
        if inside not in self._folder.files:
            raise FileNotFoundError(path)
        return self._folder.read(inside)

    def set_data(self, *_: object, **__: object) -> None:
        """Write no bytecode: nothing is put into the folder once it is complete."""


class _CompiledLoader(ExtensionFileLoader):
    """Loads a compiled module, after a look at its content and at that of its package's libraries."""

    def __init__(self, name: str, held: str, folder: Folder, inside: str) -> None:
        super().__init__(name, held)
        self._folder = folder
        self._inside = inside

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Load the module. Raises DamagedError, before any of its code runs."""
        libraries = f"{SITE}/{spec.name.partition('.')[0]}.libs/"
        for path in self._folder.files:
            if path == self._inside or path.startswith(libraries):
                self._folder.read(path)
        return super().create_module(spec)
