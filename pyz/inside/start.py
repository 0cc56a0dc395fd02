"""Runs gnar on a host that gnar.pyz is made for: from the unpacked files, which the first start unpacks.

Python compiles this module, `folders` and `modules` at every start, so they hold only what every start needs;
the rest is in `unpack` and `mend`.
"""

from __future__ import annotations

import sys

from pyz.inside import holds
from pyz.inside.folders import OUT_OF_FILES, Folder, find
from pyz.inside.modules import Finder

IMPORT_ERRORS = (ImportError, SyntaxError, EOFError, ValueError)  # what importing a damaged file raises


def start(host: str) -> None:
    """Run gnar and end the process with its status; `host` is a name in `holds.TARGETS`."""
    name = f"gnar-{holds.BUILD_ID}-{host.replace('/', '-')}"
    folder = None
    try:
        folder = find(name, holds.FILES[host]) or _unpack(name, host)
        del sys.path[0]  # gnar.pyz, of which no module is needed that is not in `pyz`
        sys.meta_path.insert(0, Finder(folder))
        sys.modules.pop("zope", None)  # a .pth file of another installation may have made one
        import gnar

        status = gnar.main()
    except KeyboardInterrupt:  # before gnar takes signals itself
        status = 0
    except OSError as exc:
        if exc.errno not in OUT_OF_FILES:
            raise
        sys.exit(f"gnar.pyz: {exc.strerror}: raise the limit of this process (ulimit -n)")
    except IMPORT_ERRORS as exc:
        if folder:
            _mend_or_explain(folder, exc)
        raise
    sys.exit(status)


def _unpack(name: str, host: str) -> Folder:
    from pyz.inside.unpack import unpack

    return unpack(name, host)


def _mend_or_explain(folder: Folder, error: Exception) -> None:
    from pyz.inside.mend import mend_or_explain

    mend_or_explain(folder, error)
