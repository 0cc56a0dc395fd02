"""Where gnar.pyz starts. Even Python 2.7 has to be able to run this file, to say that it is too old."""

import sys

from pyz.inside import holds, host

if __name__ == "__main__":
    obstacle = host.find_obstacle(holds)
    if obstacle:
        sys.exit("gnar.pyz: " + obstacle)

    from pyz.inside.start import start

    start(host.name(holds.PLATFORMS))
