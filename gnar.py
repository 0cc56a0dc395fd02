"""Entry point: patches the standard library for gevent if the command needs gevent, then calls cmd."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit status."""
    from gnar_lib import patch

    with patch.lack_of_files_in_one_line():
        if patch.is_needed(sys.argv[1:]):
            patch.patch_all()
        from gnar_lib import cmd

        return cmd.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
