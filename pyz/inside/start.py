"""Runs gnar on a host that gnar.pyz is made for: from the unpacked files, which the first start unpacks.

Python compiles this module and `folders` at every start, so they hold only what every start needs; the rest
is in `unpack` and `mend`.
"""

from __future__ import annotations

import os
import sys

from pyz.inside import holds
from pyz.inside.folders import find

IMPORT_ERRORS = (ImportError, SyntaxError, EOFError, ValueError)  # what importing a damaged file raises


def start(host: str) -> None:
    """Run gnar and end the process with its status; `host` is a name in `holds.TARGETS`."""
    name = f"gnar-{holds.BUILD_ID}-{host.replace('/', '-')}"
    home = ""
    try:
        home = find(name) or _unpack(name, host)
        sys.path[0] = os.path.join(home, "site-packages")
        sys.modules.pop("zope", None)  # a .pth file of another installation may have made one
        import gnar

        status = gnar.main()
    except KeyboardInterrupt:  # before gnar takes signals itself
        status = 0
    except IMPORT_ERRORS as exc:
        if home:
            _mend_or_explain(home, exc)
        raise
    sys.exit(status)


def _unpack(name: str, host: str) -> str:
    from pyz.inside.unpack import unpack

    return unpack(name, host)


def _mend_or_explain(home: str, error: Exception) -> None:
    from pyz.inside.mend import mend_or_explain

    mend_or_explain(home, error)
