"""What stands in `holds.py`, which is written into gnar.pyz when that is packed."""

BUILD_ID: str  # the same for the same content
TARGETS: dict[str, list[str]]  # for each host, such as `linux-x86_64/3.12`, the blocks that it needs
PLATFORMS: dict[str, str]  # the platforms by what Python marks compiled modules with there
GLIBC: tuple[int, int]  # the oldest that the compiled modules run with
MUSL: tuple[int, ...]  # the same where that is the C library
