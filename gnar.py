"""Entry point: prepares the process before any other module is imported, then calls cmd."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    from gnar_lib import patch

    with patch.prepared_process(sys.argv[1:]):
        from gnar_lib import cmd

        return cmd.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
