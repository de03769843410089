/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/qcow2-header.h"

#include <endian.h>
#include <string.h>

#define HEADER_LEN 32
#define OFFSET_VERSION 4
#define OFFSET_BACKING_OFFSET 8
#define OFFSET_BACKING_SIZE 16
#define OFFSET_VIRTUAL_SIZE 24
#define CLUSTER_MAX (2u * 1024u * 1024u) /* the name of the backing file lies in the first cluster */

static uint32_t read_be32(const unsigned char *p) {
        uint32_t v;
        memcpy(&v, p, sizeof(v));
        return be32toh(v);
}

static uint64_t read_be64(const unsigned char *p) {
        uint64_t v;
        memcpy(&v, p, sizeof(v));
        return be64toh(v);
}

/* All n bytes at an offset, or an error. */
static int read_at(int fd, void *to, size_t n, uint64_t offset) {
        ssize_t got;
        do
                got = pread(fd, to, n, (off_t) offset);
        while (got < 0 && errno == EINTR);
        if (got < 0)
                return -errno;
        return (size_t) got == n ? 0 : -EBADMSG;
}

int qcow2_header_read(int fd, struct qcow2_header *ret) {
        unsigned char raw[HEADER_LEN];
        struct qcow2_header header = {0};

        int r = read_at(fd, raw, sizeof(raw), 0);
        if (r < 0)
                return r;
        uint32_t version = read_be32(raw + OFFSET_VERSION);
        if (memcmp(raw, "QFI\xfb", 4) != 0 || version < 2 || version > 3)
                return -EBADMSG;
        header.virtual_bytes = read_be64(raw + OFFSET_VIRTUAL_SIZE);

        uint64_t offset = read_be64(raw + OFFSET_BACKING_OFFSET);
        uint32_t size = read_be32(raw + OFFSET_BACKING_SIZE);
        if (offset != 0) {
                if (size > QCOW2_BACKING_MAX || offset > CLUSTER_MAX)
                        return -EBADMSG;
                r = read_at(fd, header.backing, size, offset);
                if (r < 0)
                        return r;
                header.backing_offset = offset;
        }
        *ret = header;
        return 0;
}

static int write_at(int fd, const void *data, size_t n, uint64_t offset) {
        ssize_t put;
        do
                put = pwrite(fd, data, n, (off_t) offset);
        while (put < 0 && errno == EINTR);
        if (put < 0)
                return -errno;
        return (size_t) put == n ? 0 : -ENOSPC; /* the rest of so few bytes fails for no other reason */
}

int qcow2_backing_write(int fd, uint64_t backing_offset, const char *name) {
        size_t n = strlen(name);
        if (backing_offset == 0 || n > QCOW2_BACKING_MAX)
                return -EINVAL;
        uint32_t size = htobe32((uint32_t) n);
        int r = write_at(fd, name, n, backing_offset);
        return r < 0 ? r : write_at(fd, &size, sizeof(size), OFFSET_BACKING_SIZE);
}
