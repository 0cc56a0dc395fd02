"""Entry point: makes the standard library cooperate with gevent where that is needed, then calls cmd."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    if not (
        {"--version", "completion", "man", "health"} & {*sys.argv[1:2]} or {"-h", "--help"} & {*sys.argv}
    ):
        from gevent import config, monkey  # which these do without, and start faster

        config.loop = "libev-cext"  # on Windows gevent prefers libuv, whose watchers are not what net/ needs
        monkey.patch_all()
    from gnar_lib import cmd

    return cmd.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
