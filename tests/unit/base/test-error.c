/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "tap.h"

static void test_names_both_ways(void) {
        for (int i = 0; i < _ERROR_CODE_MAX; i++) {
                enum error_code code = (enum error_code) i;

                CHECK(error_code_name(code)[0] != 0);
                CHECK_INT(error_code_from_name(error_code_name(code)), code);
                CHECK(code == ERROR_NONE ? error_code_errno(code) == 0 : error_code_errno(code) > 0);
        }
        CHECK_STR(error_code_name(ERROR_NOT_FOUND), "not_found");
        CHECK_STR(error_code_name((enum error_code) 999), "internal");
        CHECK_STR(error_code_name((enum error_code) - 1), "internal");
        CHECK_INT(error_code_from_name("nonsense"), ERROR_INTERNAL);
        CHECK_INT(error_code_from_name(NULL), ERROR_INTERNAL);
}

static void test_errno_to_code(void) {
        CHECK_INT(error_code_from_errno(-ENOSPC), ERROR_NO_SPACE);
        CHECK_INT(error_code_from_errno(EDQUOT), ERROR_NO_SPACE);
        CHECK_INT(error_code_from_errno(-ETIMEDOUT), ERROR_TIMEOUT);
        CHECK_INT(error_code_from_errno(-ECANCELED), ERROR_CANCELLED);
        CHECK_INT(error_code_from_errno(ENOENT), ERROR_NOT_FOUND);
        CHECK_INT(error_code_from_errno(EIO), ERROR_INTERNAL);
        CHECK_INT(error_code_from_errno(0), ERROR_NONE);
}

static void test_set_and_replace(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        CHECK(!error_is_set(&e));
        CHECK_INT(error_set(&e, ERROR_NOT_FOUND, "No workspace \"%s\"", "x"), -ENOENT);
        CHECK(error_is_set(&e));
        error_hint(&e, "Call %s", "workspace_list");
        CHECK_STR(e.hint, "Call workspace_list");
        error_hint(&e, "Call it again");
        CHECK_STR(e.hint, "Call it again");

        /* The old text may be an argument of the new one. The old hint goes: it belongs to the old error. */
        CHECK_INT(error_set(&e, ERROR_CONFLICT, "Fork failed: %s", error_message(&e)), -EEXIST);
        CHECK_STR(error_message(&e), "Fork failed: No workspace \"x\"");
        CHECK(e.hint == NULL);
        error_prefix(&e, "Worker %d", 3);
        CHECK_STR(error_message(&e), "Worker 3: Fork failed: No workspace \"x\"");
        CHECK_INT(e.code, ERROR_CONFLICT);

        error_clear(&e);
        CHECK(!error_is_set(&e) && !e.message && !e.hint);
        error_clear(&e);
        error_clear(NULL);
}

static void test_set_errno(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        CHECK_INT(error_set_errno(&e, -ENOSPC, "Cannot write %s", "disk.qcow2"), -ENOSPC);
        CHECK_STR(error_message(&e), "Cannot write disk.qcow2: No space left on device");
        CHECK_INT(e.code, ERROR_NO_SPACE);
        CHECK_INT(error_set_errno(&e, EACCES, "Cannot open it"), -EACCES);
        CHECK_STR(error_message(&e), "Cannot open it: Permission denied");
        CHECK_INT(error_set_errno(&e, 4000, "Odd"), -4000);
        CHECK_STR(error_message(&e), "Odd: error 4000");
}

static void test_null_is_accepted(void) {
        CHECK_INT(error_set(NULL, ERROR_TIMEOUT, "x"), -ETIMEDOUT);
        CHECK_INT(error_set_errno(NULL, EPIPE, "x"), -EPIPE);
        error_hint(NULL, "x");
        error_prefix(NULL, "x");
        CHECK(!error_is_set(NULL));
        CHECK(error_message(NULL) != NULL);

        struct error unset = ERROR_INIT;
        error_hint(&unset, "x");
        error_prefix(&unset, "x");
        CHECK(!unset.hint && !unset.message);
        CHECK_STR(error_message(&unset), "no error");
}

static void test_move(void) {
        _cleanup_error_ struct error a = ERROR_INIT, b = ERROR_INIT;

        error_set(&a, ERROR_TIMEOUT, "slow");
        error_hint(&a, "wait");
        error_set(&b, ERROR_INTERNAL, "old");
        error_move(&b, &a);
        CHECK(!error_is_set(&a) && !a.message);
        CHECK_STR(b.message, "slow");
        CHECK_STR(b.hint, "wait");
        error_move(&b, &b);
        CHECK_STR(b.message, "slow");
        error_move(NULL, &b);
        CHECK(!error_is_set(&b));
        error_set(&b, ERROR_INTERNAL, "old");
        error_move(&b, NULL);
        CHECK(!error_is_set(&b));
}

int main(void) {
        RUN(test_names_both_ways);
        RUN(test_errno_to_code);
        RUN(test_set_and_replace);
        RUN(test_set_errno);
        RUN(test_null_is_accepted);
        RUN(test_move);
        return tap_done();
}
