/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The few fields of a qcow2 file's header that the host wants to know without running qemu-img. Layout: "Header" in
 * docs/interop/qcow2.txt of QEMU; all numbers are big endian:
 *
 *     0 magic "QFI\xfb"    4 version (2, 3)    8 backing file offset (8 bytes)    16 backing file size (4 bytes)
 *    20 cluster bits      24 virtual size in bytes (8 bytes)
 *
 * The name of the backing file is the last thing in the header's cluster: nothing lies behind it.
 */

#include "base/util.h"

#define QCOW2_BACKING_MAX 1023u /* longest name of a backing file, as in the format's description */

struct qcow2_header {
        uint64_t virtual_bytes;
        uint64_t backing_offset;             /* of the name in the file; 0 without one */
        char backing[QCOW2_BACKING_MAX + 1]; /* as stored: relative to the file's folder, or absolute; "" without one */
};

/* Reads from an open file. -EBADMSG when it is no qcow2 file, another negative errno when it cannot be read. */
int qcow2_header_read(int fd, struct qcow2_header *ret);
/* Writes another name of at most QCOW2_BACKING_MAX bytes in the place of the one there is, which may be longer. */
int qcow2_backing_write(int fd, uint64_t backing_offset, const char *name);
