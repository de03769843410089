/* SPDX-License-Identifier: Apache-2.0 */
#include "network/ports.h"

#include <string.h>

#include "base/buf.h"

#define TEXT_MAX 4096u

size_t ports_parse(const char *text, uint16_t ret[NETWORK_PORTS_MAX]) {
        size_t n = 0;

        while (text && *text && n < NETWORK_PORTS_MAX) {
                char *end = NULL;
                unsigned long port = strtoul(text, &end, 10);

                if (end == text || port == 0 || port > UINT16_MAX)
                        break;
                ret[n++] = (uint16_t) port;
                text = *end == ',' ? end + 1 : end;
        }
        return n;
}

static int compare(const void *a, const void *b) {
        return *(const uint16_t *) a - *(const uint16_t *) b;
}

char *ports_text(const uint16_t *ports, size_t n) {
        _cleanup_buf_ struct buf text = BUF_INIT(TEXT_MAX);
        _cleanup_free_ uint16_t *sorted = calloc(n + 1, sizeof(*sorted));

        if (!sorted || buf_append_str(&text, "") < 0)
                return NULL;
        if (n > 0)
                memcpy(sorted, ports, n * sizeof(*sorted));
        qsort(sorted, n, sizeof(*sorted), compare);
        for (size_t i = 0; i < n; i++)
                if ((i == 0 || sorted[i] != sorted[i - 1]) &&
                    buf_printf(&text, "%s%u", text.len > 0 ? "," : "", sorted[i]) < 0)
                        return NULL;
        return text.len > 0 ? buf_steal(&text) : strdup("");
}
