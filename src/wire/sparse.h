/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Files that travel with their holes: what the sending and the receiving end share.
 *
 * The sender asks the file system where data and holes are. A hole of SPARSE_HOLE_MIN or more becomes its length on
 * WIRE_CH_HOLE, a smaller one is sent as zeros, since it saves nothing. The receiver writes data and passes over holes;
 * what it has written is flushed as it goes, so that the last fsync() of a large file is short.
 */

#include <sys/types.h>

#include "base/util.h"

#define SPARSE_HOLE_MIN (64u * 1024u)
#define SPARSE_LEN_BYTES 8u                        /* of the length of a hole on WIRE_CH_HOLE, big endian */
#define SPARSE_WRITE_OUT (8ull * 1024u * 1024u)    /* after so many bytes the write-out is started */
#define SPARSE_FLUSH_BYTES (64ull * 1024u * 1024u) /* after so many bytes all is flushed to the disk */

/* A piece of a file: from where it was asked for, `len` bytes (never 0). */
struct sparse_piece {
        uint64_t len;
        bool hole;
};

/* What stands at pos (< size). A file system that knows no holes has data only. -ENODATA: the file has become shorter
 * than size. */
int sparse_next(int fd, uint64_t pos, uint64_t size, struct sparse_piece *ret);
/* Reads up to n bytes at pos. -ENODATA when the file ends there. */
ssize_t sparse_read(int fd, void *data, size_t n, uint64_t pos);

void sparse_len_encode(uint64_t len, uint8_t ret[SPARSE_LEN_BYTES]);

/* Collects the pieces of 8 from what arrives on WIRE_CH_HOLE. */
struct sparse_lens {
        uint8_t piece[SPARSE_LEN_BYTES];
        unsigned have; /* not 0: in the middle of a length, no other data may come */
};
/* Takes bytes from *data. 1: *ret is a length; 0: all bytes are taken. */
int sparse_lens_take(struct sparse_lens *l, const char **data, size_t *n, uint64_t *ret);

/* Writes a file from its beginning to its end. */
struct sparse_writer {
        int fd;           /* borrowed */
        uint64_t pos;     /* holes included */
        uint64_t written; /* data alone */
};
int sparse_write(struct sparse_writer *w, const void *data, size_t n);
/* -EFBIG when no file can be that large. */
int sparse_skip(struct sparse_writer *w, uint64_t len);
/* Gives the file its size, which a hole at its end does not. */
int sparse_finish(struct sparse_writer *w);
