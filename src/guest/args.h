/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * From a request's JSON to a checked struct, one function for each request that carries anything. Nothing is done here
 * but checking; strings are borrowed from the JSON. Every failure is an invalid_argument that names the member.
 * Commands and jobs have theirs in job_args.h.
 */

#include <net/if.h>
#include <netinet/in.h>
#include <sys/types.h>

#include "base/json.h"

#define ARGS_EDIT_TEXT_MAX (16 * 1024 * 1024) /* bytes of the old or the new text of an edit */
#define ARGS_LIST_MAX 100000                  /* entries of one listing */
#define ARGS_LIST_DEFAULT 1000
#define ARGS_DNS_MAX 3 /* resolv.conf(5): MAXNS */
#define ARGS_ENTROPY_MAX 4096u
#define ARGS_DEVICE_MAX 32u
#define MACHINE_ID_LEN 32
#define HOSTNAME_MAX 64 /* Linux: __NEW_UTS_LEN */

struct file_read_args {
        const char *path;
        bool sparse; /* all of it, with its holes */
        bool by_line;
        int64_t offset, limit;          /* bytes; limit -1: to the end */
        int64_t start_line, line_count; /* lines from 1; line_count -1: to the end */
};

struct file_write_args {
        const char *path;
        bool append;
        bool has_mode;
        mode_t mode;
        int64_t size; /* that the content will have; -1: not known */
};

struct file_edit_args {
        const char *path;
        size_t old_len, new_len;
        bool replace_all;
};

struct file_list_args {
        const char *path;
        bool recursive;
        size_t max_entries;
};

struct mount_root_args {
        const char *device; /* "/dev/<name>" */
        bool grow;
        int64_t disk_bytes; /* 0: whatever it has */
};

struct net_args {
        bool has_mac;
        uint8_t mac[6];
        struct in_addr address;
        uint8_t prefix_len;
        bool has_gateway;
        struct in_addr gateway;
        bool reset; /* what connections there are are over */
};

struct configure_args {
        const char *hostname;   /* NULL: not given, as for the others */
        const char *machine_id; /* 32 lower-case hexadecimal digits */
        int64_t realtime_ns;    /* 0: not given */
        const char *entropy;    /* base64 */
        bool has_network;
        struct net_args network;
        bool has_dns;
        size_t n_dns;
        const char *dns[ARGS_DNS_MAX]; /* numeric IPv4 or IPv6 addresses */
        const char *session;           /* WIRE_SESSION_LEN lower-case hexadecimal digits */
};

struct freeze_args {
        int64_t max_ms;
};

/* An optional number in min..max; absent or null leaves *ret as it was. */
int args_opt_range(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret, struct error *err);
int file_read_args_parse(const json_t *o, struct file_read_args *ret, struct error *err);
int file_write_args_parse(const json_t *o, struct file_write_args *ret, struct error *err);
int file_edit_args_parse(const json_t *o, struct file_edit_args *ret, struct error *err);
int file_list_args_parse(const json_t *o, struct file_list_args *ret, struct error *err);
int mount_root_args_parse(const json_t *o, struct mount_root_args *ret, struct error *err);
int configure_args_parse(const json_t *o, struct configure_args *ret, struct error *err);
int relay_args_parse(const json_t *o, uint16_t *ret_port, struct error *err);
int freeze_args_parse(const json_t *o, struct freeze_args *ret, struct error *err);
