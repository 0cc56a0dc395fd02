"""Shortens compiled modules of Linux by what is for debuggers alone, which is up to half of them."""

from __future__ import annotations

import struct

MAGIC = b"\x7fELF\x02\x01"  # of 64 bits, the low byte first: every Linux that gnar.pyz is for

# Of the header: where the program headers and the section headers begin; then the size and number of the
# former, and the size, the number and the index of the names of the latter (elf(5), Elf64_Ehdr).
_HEADER = struct.Struct("<32x QQ 6x HHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQ 16x")  # type, flags, offset, two addresses, size in the file


def without_symbols(data: bytes) -> bytes:
    """Return a compiled module without its section headers, and what stands behind all that is loaded.

    The loader goes by the program headers alone. What is no such module comes back as it is.
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
