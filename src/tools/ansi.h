/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Removes the control sequences of terminals from text: what begins with ESC, as ECMA-48 and xterm have it.
 *
 *     ESC [ parameters final                  CSI: colours, cursor movement
 *     ESC ] text, then BEL or ESC \           OSC: titles, links
 *     ESC P, X, ^ or _, text, then ESC \      DCS, SOS, PM, APC
 *     ESC intermediates final                 choice of a character set
 *     ESC character                           everything else of two characters
 *
 * Nothing else is touched: carriage returns, backspaces and C1 characters (U+0080 to U+009F) stay. The latter also
 * introduce sequences on some terminals, but programs do not write them in UTF-8, and text that was encoded twice has
 * them by accident. What has no end within ANSI_SEQUENCE_MAX bytes is no sequence: only its introducer is removed,
 * so that a stray one does not swallow an output.
 */

#include "base/buf.h"

#define ANSI_SEQUENCE_MAX 4096u

/* Appends s without sequences; one that the end of s cuts is removed too. 0, -ENOMEM, -ENOBUFS. */
int ansi_strip(struct buf *out, const char *s, size_t n);
/* Bytes at the end of s that begin a sequence which the bytes behind it may finish. */
size_t ansi_unfinished(const char *s, size_t n);
