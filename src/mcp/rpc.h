/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * JSON-RPC 2.0: text to messages, results and errors to text. No I/O, no state.
 *
 * An id goes back exactly as it came: its bytes are cut out of the text before the text is parsed, so that an integer
 * of any length or a string with escapes keeps its form. The parser could not take integers beyond 64 bits; such a
 * number anywhere in a message is turned into a floating point number of the same text length first, so that the
 * message is answered by whoever finds the value out of range, not refused without an id. A request with \u0000 or half
 * a surrogate pair in a string is refused with its id.
 */

#include <jansson.h>

#include "base/error.h"

#define RPC_PARSE_ERROR (-32700)
#define RPC_INVALID_REQUEST (-32600)
#define RPC_METHOD_NOT_FOUND (-32601)
#define RPC_INVALID_PARAMS (-32602)
#define RPC_INTERNAL_ERROR (-32603)
#define RPC_SERVER_BUSY (-32000)
#define RPC_UNSUPPORTED_VERSION (-32022)

#define RPC_ID_MAX 1024u                /* bytes of an id, as it was written */
#define RPC_BATCH_MAX 64u               /* messages in one batch */
#define RPC_MESSAGE_MAX (1024u * 1024u) /* bytes of a message that we send */

enum rpc_kind { RPC_REQUEST, RPC_NOTIFICATION, RPC_RESPONSE };

struct rpc_message {
        enum rpc_kind kind;
        json_t *root;           /* owned; NULL when it could not be parsed */
        const char *method;     /* inside root; NULL for a response */
        json_t *params;         /* borrowed; NULL when absent or null; may be of any type */
        char *id;               /* owned; the text of the id, NULL when there is none that can be sent back */
        const json_t *id_value; /* borrowed; for comparing ids with each other */
};
void rpc_message_clear(struct rpc_message *m);
#define _cleanup_rpc_message_ _cleanup_(rpc_message_clear)

/* Parses one message, changing the text. On failure a negative errno, *ret_code has the JSON-RPC error code, err the
 * message, and ret->id is set when the answer carries an id. ret needs rpc_message_clear() in any case. */
int rpc_parse(char *text, size_t len, struct rpc_message *ret, int *ret_code, struct error *err);

/* Whether the text is an array, by its first character. */
bool rpc_is_batch(const char *text, size_t len);
struct rpc_span {
        size_t start, len;
};
/* Cuts an array into its elements, which are not looked at. The number of elements, -EINVAL when it is no array,
 * -E2BIG when there are more than max. */
int rpc_split(const char *text, size_t len, struct rpc_span *ret, size_t max);

/* Texts of responses, owned by the caller; NULL when out of memory. id NULL: without an id. data (borrowed) may be
 * NULL. */
char *rpc_error_text(const char *id, int code, const char *message, json_t *data, size_t *ret_len);
/* -ENOBUFS when it would be longer than RPC_MESSAGE_MAX. */
int rpc_result_text(const char *id, const json_t *result, char **ret, size_t *ret_len);
