"""The names in `holds.py`, which `pack` writes into gnar.pyz."""

BUILD_ID: str  # the same for two files that unpack the same
TARGETS: dict[str, list[str]]  # for each host, such as `linux-x86_64/3.12`, the blocks that it needs
FILES: dict[str, str]  # for each host, the digest of the list of all files that it needs
PLATFORMS: dict[str, str]  # the name of each platform, by the mark of compiled modules there
GLIBC: tuple[int, int]  # the oldest version that the compiled modules run with
MUSL: tuple[int, ...]  # the same of musl
