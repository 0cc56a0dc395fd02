"""Cuts what only debuggers read off compiled modules of Linux; it is up to half of such a file."""

from __future__ import annotations

import struct

MAGIC = b"\x7fELF\x02\x01"  # 64 bits, low byte first, as on every Linux that gnar.pyz is made for

# Fields of the header (elf(5), Elf64_Ehdr): where the program headers begin, where the section headers begin,
# size and number of program headers, size and number of section headers, index of the section with the names.
_HEADER = struct.Struct("<32x QQ 6x HHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQ 16x")  # type, flags, offset, two addresses, size in the file


def without_symbols(data: bytes) -> bytes:
    """Return the content of a compiled module without its section headers and without symbols for debuggers.

    The loader reads only the program headers and the segments that these name. The result ends with the last
    of these segments; symbols and section headers come after it. Other kinds of files are returned unchanged.
    """
    if not data.startswith(MAGIC):
        return data
    programs_at, _, program_size, programs, *_ = _HEADER.unpack_from(data)
    end = max(_HEADER.size, programs_at + program_size * programs)
    for number in range(programs):
        _, _, offset, _, _, size = _PROGRAM_HEADER.unpack_from(data, programs_at + number * program_size)
        end = max(end, offset + size)
    head = data[:32] + struct.pack("<QQ", programs_at, 0) + data[48:58] + bytes(6)
    return head + data[len(head) : end]
