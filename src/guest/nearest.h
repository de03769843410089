/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What a file has instead of the text that an edit looked for. */

#include "base/buf.h"

#define NEAREST_LINES 3

/*
 * Appends up to NEAREST_LINES lines of data that are most like the first line of `wanted` that is not blank, in the
 * order of the file, one a line: `12: the line`. Blanks at either end do not count. The work is bounded, so very large
 * files are only searched in part. Returns how many were appended, or a negative errno.
 */
int nearest_lines(const char *data, size_t len, const char *wanted, size_t wanted_len, struct buf *out);
