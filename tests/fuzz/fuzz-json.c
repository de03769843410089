/* SPDX-License-Identifier: Apache-2.0 */
/* JSON of a peer: parsing with limits, the typed getters, errors sent over the wire, and writing it again. */

#include <string.h>

#include "base/json.h"
#include "fuzz.h"
#include "wire/mux.h"
#include "wire/wire.h"

static void read_members(const json_t *value) {
        static const char *const keys[] = {"type",       "version", "message",  "command",
                                           "timeout_ms", "offset",  "recursive"};

        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                const char *s = NULL;
                int64_t n = 0;
                bool b = false;

                if (json_get_str(value, keys[i], &s, &err) == 0)
                        ASSERT(s && !error_is_set(&err));
                else
                        ASSERT(error_is_set(&err));
                (void) json_get_int(value, keys[i], &n, &err);
                (void) json_get_bool(value, keys[i], &b, &err);
                (void) json_opt_str(value, keys[i], &s, &err);
                (void) json_opt_int(value, keys[i], &n, NULL);
                (void) json_opt_bool(value, keys[i], &b, NULL);
        }
}

/* Any value read as an error is one, and goes over the wire a second time unchanged. */
static void read_error(const json_t *value) {
        _cleanup_error_ struct error first = ERROR_INIT, second = ERROR_INIT;
        _cleanup_json_ json_t *sent = NULL;

        wire_error_from_json(value, &first);
        ASSERT(error_is_set(&first));
        sent = wire_error_to_json(&first);
        ASSERT(sent);
        wire_error_from_json(sent, &second);
        ASSERT(first.code == second.code);
        ASSERT(strcmp(error_message(&first), error_message(&second)) == 0);
        ASSERT(!first.hint == !second.hint);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *value = NULL, *again = NULL;
        _cleanup_buf_ struct buf text = BUF_INIT(8 * WIRE_FRAME_MAX);

        if (json_parse((const char *) data, size, WIRE_FRAME_MAX, WIRE_JSON_DEPTH_MAX, &value, &err) < 0) {
                ASSERT(!value && error_is_set(&err));
                return 0;
        }
        read_members(value);
        read_error(value);
        ASSERT(json_write(value, &text) == 0);
        ASSERT(json_parse(text.data, text.len, 8 * WIRE_FRAME_MAX, WIRE_JSON_DEPTH_MAX, &again, NULL) == 0);
        ASSERT(json_equal(value, again));
        return 0;
}
