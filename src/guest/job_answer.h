/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the answers of several requests say of a job. */

#include "guest/agent.h"

#define JOB_WHOLE (-1) /* as an offset: both ends of all of it */

/* Puts exit_code or signal, timed_out and leftover into m. 0 or -ENOMEM. */
int job_put_end(json_t *m, const struct job_end *end) _must_check_;
/* Sends what stands behind the offsets and puts out and err into m. 0; -ENOMEM; -EPIPE and -ENOTCONN of the stream. */
int job_send_output(struct request *r, struct job *j, int64_t out_offset, int64_t err_offset, size_t max, json_t *m);
