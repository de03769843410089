/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The prerequisites that `agentiso check` goes through. Each check is a function that fills one finding; the order of
 * the table is the order in which a person should mend things.
 */

#include "base/error.h"
#include "daemon/config.h"

enum finding_status {
        FINDING_OK,
        FINDING_WARN, /* it works, but less well: a degraded choice */
        FINDING_FAIL, /* workspaces cannot be used */
};

struct finding {
        enum finding_status status;
        char *reason; /* one line */
        char *fix;    /* the command that would mend it; NULL when there is nothing to mend */
};
void finding_clear(struct finding *f);

struct check {
        const char *name;
        void (*run)(const struct config *cfg, struct finding *f);
};
extern const struct check checks[];
extern const size_t n_checks;
