"""Entry point: makes the standard library cooperate with gevent where that is needed, then calls cmd."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    first, anywhere = {"--version", "completion", "man", "health"}, {"-h", "--help"}  # need no gevent
    if first.isdisjoint(sys.argv[1:2]) and anywhere.isdisjoint(sys.argv[1:]):
        from gnar_lib import patch

        patch.patch_all()
    from gnar_lib import cmd

    return cmd.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
