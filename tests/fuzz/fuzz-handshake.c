/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's scanner. First byte: how the rest is cut into pieces, which must not matter. */

#include <string.h>

#include "fuzz.h"
#include "wire/handshake.h"

/* Where the preamble ended (0: there is none), and the answer to it. */
static size_t scan(const uint8_t *data, size_t size, size_t piece, uint8_t answer[HANDSHAKE_LEN]) {
        struct handshake_scanner s = {0};

        for (size_t at = 0; at < size;) {
                size_t n = MIN(piece, size - at), used = 0;
                int r = handshake_scan(&s, data + at, n, &used, answer);

                ASSERT(used <= n && s.have < HANDSHAKE_LEN);
                at += used;
                if (r == 1)
                        return at;
                ASSERT(r == 0 && used == n);
        }
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        uint8_t a[HANDSHAKE_LEN] = {0}, b[HANDSHAKE_LEN] = {0};

        if (size < 1)
                return 0;
        size_t piece = 1u + data[0];
        data++;
        size--;

        size_t end = scan(data, size, size + 1, a);
        ASSERT(scan(data, size, piece, b) == end);
        ASSERT(memcmp(a, b, sizeof(a)) == 0);
        /* It answers with the nonce, which are the last bytes of the preamble. */
        if (end > 0)
                ASSERT(end >= HANDSHAKE_LEN && memcmp(a + 16, data + end - 16, 16) == 0);
        return 0;
}
