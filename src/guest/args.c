/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/args.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <string.h>

#include "base/str.h"
#include "wire/wire.h"

#define invalid(err, ...) error_set(err, ERROR_INVALID_ARGUMENT, __VA_ARGS__)

static int get_path(const json_t *o, const char **ret, struct error *err) {
        const char *path;
        int r = json_get_str(o, "path", &path, err);

        if (r < 0)
                return r;
        if (path[0] != '/')
                return invalid(err, "path \"%.200s\" is not absolute: it must begin with \"/\"", path);
        if (strlen(path) >= WIRE_PATH_MAX)
                return invalid(err, "path is %zu bytes long; the longest allowed is %u", strlen(path),
                               WIRE_PATH_MAX - 1);
        *ret = path;
        return 0;
}

int args_opt_range(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret, struct error *err) {
        int64_t v = *ret;
        const json_t *member = json_object_get(o, key);
        int r = json_opt_int(o, key, &v, err);

        if (r < 0 || !member || json_is_null(member))
                return r;
        if (v < min || v > max)
                return invalid(err, "%s is %" PRIi64 "; it must be %" PRIi64 " to %" PRIi64, key, v, min, max);
        *ret = v;
        return 0;
}

int file_read_args_parse(const json_t *o, struct file_read_args *ret, struct error *err) {
        struct file_read_args a = {.offset = -1, .limit = -1, .start_line = -1, .line_count = -1};
        int r;

        if ((r = get_path(o, &a.path, err)) < 0 ||
            (r = args_opt_range(o, "offset", 0, INT64_MAX, &a.offset, err)) < 0 ||
            (r = args_opt_range(o, "limit", 0, INT64_MAX, &a.limit, err)) < 0 ||
            (r = args_opt_range(o, "start_line", 1, INT64_MAX, &a.start_line, err)) < 0 ||
            (r = args_opt_range(o, "line_count", 0, INT64_MAX, &a.line_count, err)) < 0 ||
            (r = json_opt_bool(o, "sparse", &a.sparse, err)) < 0)
                return r;
        a.by_line = a.start_line >= 0 || a.line_count >= 0;
        if (a.by_line && (a.offset >= 0 || a.limit >= 0))
                return invalid(err, "offset and limit count bytes, start_line and line_count lines: give one pair");
        if (a.sparse && (a.by_line || a.offset >= 0 || a.limit >= 0))
                return invalid(err, "sparse reads the whole file: give no offset, limit, start_line or line_count");
        a.offset = MAX(a.offset, (int64_t) 0);
        a.start_line = MAX(a.start_line, (int64_t) 1);
        *ret = a;
        return 0;
}

static int parse_mode(const char *s, mode_t *ret, struct error *err) {
        mode_t mode = 0;

        if (!*s || strlen(s) > 5)
                return invalid(err, "mode \"%.20s\" is not an octal file mode such as \"0644\"", s);
        for (const char *p = s; *p; p++) {
                if (*p < '0' || *p > '7')
                        return invalid(err, "mode \"%.20s\" is not an octal file mode such as \"0644\"", s);
                mode = mode * 8 + (mode_t) (*p - '0');
        }
        if (mode > 07777)
                return invalid(err, "mode \"%.20s\" is out of range: at most \"7777\"", s);
        *ret = mode;
        return 0;
}

int file_write_args_parse(const json_t *o, struct file_write_args *ret, struct error *err) {
        struct file_write_args a = {.mode = 0644, .size = -1};
        const char *mode = NULL;
        int r;

        if ((r = get_path(o, &a.path, err)) < 0 || (r = json_opt_str(o, "mode", &mode, err)) < 0 ||
            (r = json_opt_bool(o, "append", &a.append, err)) < 0 ||
            (r = args_opt_range(o, "size", 0, INT64_MAX, &a.size, err)) < 0)
                return r;
        if (a.append && a.size >= 0)
                return invalid(err, "size is for a whole file, not for append");
        if (mode && (r = parse_mode(mode, &a.mode, err)) < 0)
                return r;
        a.has_mode = mode;
        *ret = a;
        return 0;
}

int file_edit_args_parse(const json_t *o, struct file_edit_args *ret, struct error *err) {
        struct file_edit_args a = {0};
        int64_t old_len = -1, new_len = -1;
        int r;

        if ((r = get_path(o, &a.path, err)) < 0 ||
            (r = args_opt_range(o, "old_len", 0, ARGS_EDIT_TEXT_MAX, &old_len, err)) < 0 ||
            (r = args_opt_range(o, "new_len", 0, ARGS_EDIT_TEXT_MAX, &new_len, err)) < 0 ||
            (r = json_opt_bool(o, "replace_all", &a.replace_all, err)) < 0)
                return r;
        if (old_len < 0 || new_len < 0)
                return invalid(err, "%s is missing", old_len < 0 ? "old_len" : "new_len");
        if (old_len == 0) {
                r = invalid(err, "The text to replace is empty");
                error_hint(err, "Use file_write to create a file or to replace all of it.");
                return r;
        }
        a.old_len = (size_t) old_len;
        a.new_len = (size_t) new_len;
        *ret = a;
        return 0;
}

int file_list_args_parse(const json_t *o, struct file_list_args *ret, struct error *err) {
        struct file_list_args a = {0};
        int64_t max = ARGS_LIST_DEFAULT;
        int r;

        if ((r = get_path(o, &a.path, err)) < 0 || (r = json_opt_bool(o, "recursive", &a.recursive, err)) < 0 ||
            (r = args_opt_range(o, "max_entries", 1, ARGS_LIST_MAX, &max, err)) < 0)
                return r;
        a.max_entries = (size_t) max;
        *ret = a;
        return 0;
}

int mount_root_args_parse(const json_t *o, struct mount_root_args *ret, struct error *err) {
        struct mount_root_args a = {.device = "/dev/vda"};
        int r;

        if ((r = json_opt_str(o, "device", &a.device, err)) < 0 || (r = json_opt_bool(o, "grow", &a.grow, err)) < 0 ||
            (r = args_opt_range(o, "disk_bytes", 1, INT64_MAX, &a.disk_bytes, err)) < 0)
                return r;
        if (!str_starts_with(a.device, "/dev/") || !name_valid(a.device + 5, ARGS_DEVICE_MAX, ""))
                return invalid(err, "device \"%.100s\" is not of the form /dev/<name>", a.device);
        *ret = a;
        return 0;
}

static int hex_digit(char c) {
        return c >= '0' && c <= '9'   ? c - '0'
               : c >= 'a' && c <= 'f' ? c - 'a' + 10
               : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                      : -1;
}

/* "02:00:0a:63:00:02" */
static int parse_mac(const char *s, uint8_t ret[6], struct error *err) {
        bool ok = strlen(s) == 17;

        for (size_t i = 0; ok && i < 6; i++) {
                int high = hex_digit(s[3 * i]), low = hex_digit(s[3 * i + 1]);

                ok = high >= 0 && low >= 0 && (i == 5 || s[3 * i + 2] == ':');
                ret[i] = (uint8_t) (high * 16 + low);
        }
        if (!ok)
                return invalid(err, "network.mac \"%.40s\" is not of the form 02:00:00:00:00:01", s);
        if (ret[0] & 1)
                return invalid(err, "network.mac \"%.40s\" is a multicast address", s);
        return 0;
}

static int parse_network(const json_t *o, struct net_args *ret, struct error *err) {
        const char *mac = NULL, *address, *gateway = NULL;
        struct net_args n = {0};
        int64_t prefix = -1;
        int r;

        if (!json_is_object(o))
                return invalid(err, "network must be an object, not %s", json_type_name(o));
        if ((r = json_opt_str(o, "mac", &mac, err)) < 0 || (r = json_get_str(o, "address", &address, err)) < 0 ||
            (r = args_opt_range(o, "prefix_len", 1, 32, &prefix, err)) < 0 ||
            (r = json_opt_str(o, "gateway", &gateway, err)) < 0 || (r = json_opt_bool(o, "reset", &n.reset, err)) < 0)
                return r;
        if (prefix < 0)
                return invalid(err, "network.prefix_len is missing");
        if (mac && (r = parse_mac(mac, n.mac, err)) < 0)
                return r;
        if (inet_pton(AF_INET, address, &n.address) != 1)
                return invalid(err, "network.address \"%.60s\" is not an IPv4 address", address);
        if (gateway && inet_pton(AF_INET, gateway, &n.gateway) != 1)
                return invalid(err, "network.gateway \"%.60s\" is not an IPv4 address", gateway);
        n.has_mac = mac;
        n.has_gateway = gateway;
        n.prefix_len = (uint8_t) prefix;
        *ret = n;
        return 0;
}

static int parse_dns(const json_t *list, struct configure_args *a, struct error *err) {
        size_t i;
        json_t *v;

        if (!json_is_array(list) || json_array_size(list) > ARGS_DNS_MAX)
                return invalid(err, "dns must be an array of at most %d addresses", ARGS_DNS_MAX);
        json_array_foreach (list, i, v) {
                struct in6_addr any;
                const char *s = json_string_value(v);

                if (!s || (inet_pton(AF_INET, s, &any) != 1 && inet_pton(AF_INET6, s, &any) != 1))
                        return invalid(err, "dns[%zu] is not an IP address", i);
                a->dns[a->n_dns++] = s;
        }
        a->has_dns = true;
        return 0;
}

static bool hex_valid(const char *s, size_t len) {
        return strlen(s) == len && strspn(s, "0123456789abcdef") == len;
}

int configure_args_parse(const json_t *o, struct configure_args *ret, struct error *err) {
        struct configure_args a = {0};
        const json_t *network = json_object_get(o, "network"), *dns = json_object_get(o, "dns");
        int r;

        if ((r = json_opt_str(o, "hostname", &a.hostname, err)) < 0 ||
            (r = json_opt_str(o, "machine_id", &a.machine_id, err)) < 0 ||
            (r = args_opt_range(o, "realtime_ns", 1, INT64_MAX, &a.realtime_ns, err)) < 0 ||
            (r = json_opt_str(o, "entropy", &a.entropy, err)) < 0 ||
            (r = json_opt_str(o, "session", &a.session, err)) < 0)
                return r;
        if (a.hostname && (!name_valid(a.hostname, HOSTNAME_MAX, ".-_") || strchr("-.", a.hostname[0])))
                return invalid(err,
                               "hostname \"%.100s\" must be 1 to %d of [A-Za-z0-9._-] and begin with a letter or digit",
                               a.hostname, HOSTNAME_MAX);
        if (a.machine_id && !hex_valid(a.machine_id, MACHINE_ID_LEN))
                return invalid(err, "machine_id must be %d lower-case hexadecimal digits", MACHINE_ID_LEN);
        /* Never quoted: it is a secret. */
        if (a.session && !hex_valid(a.session, WIRE_SESSION_LEN))
                return invalid(err, "session must be %u lower-case hexadecimal digits", WIRE_SESSION_LEN);
        if (a.entropy && strlen(a.entropy) > ARGS_ENTROPY_MAX)
                return invalid(err, "entropy is longer than %u characters", ARGS_ENTROPY_MAX);
        if (network && !json_is_null(network)) {
                if ((r = parse_network(network, &a.network, err)) < 0)
                        return r;
                a.has_network = true;
        }
        if (dns && !json_is_null(dns) && (r = parse_dns(dns, &a, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int relay_args_parse(const json_t *o, uint16_t *ret_port, struct error *err) {
        int64_t port = -1;
        int r = args_opt_range(o, "port", 1, UINT16_MAX, &port, err);

        if (r < 0)
                return r;
        if (port < 0)
                return invalid(err, "port is missing");
        *ret_port = (uint16_t) port;
        return 0;
}

int freeze_args_parse(const json_t *o, struct freeze_args *ret, struct error *err) {
        struct freeze_args a = {.max_ms = -1};
        int r = args_opt_range(o, "max_ms", 1, WIRE_FREEZE_MAX_MS, &a.max_ms, err);

        if (r < 0)
                return r;
        if (a.max_ms < 0)
                return invalid(err, "max_ms is missing");
        *ret = a;
        return 0;
}
