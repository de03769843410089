/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/view.h"

#include <stdio.h>

#include "base/json.h"
#include "base/str.h"
#include "network/ports.h"

#define URL_MAX 64

json_t *view_brief(const struct ws_view *v) {
        return json_pack("{s:s, s:s, s:s}", "workspace_id", v->row.id, "name", v->row.name, "state",
                         ws_state_name(v->row.state));
}

json_t *view_resources(const struct ws_row *row) {
        return json_pack("{s:i, s:i, s:i}", "vcpus", (int) row->vcpus, "memory_mb", (int) row->memory_mb, "disk_gb",
                         (int) row->disk_gb);
}

json_t *view_origin(const struct ws_origin *origin) {
        return json_pack("{s:s, s:s, s:o}", "source_workspace_id", origin->workspace_id, "source_workspace_name",
                         origin->workspace_name, "snapshot_name", view_text_or_null(origin->snapshot_name));
}

json_t *view_time(int64_t realtime_ms) {
        char text[TIME_TEXT_LEN + 1];

        time_text(realtime_ms, text);
        return json_string(text);
}

json_t *view_policy(const struct ws_row *row) {
        _cleanup_json_ json_t *ports = json_array();
        uint16_t list[NETWORK_PORTS_MAX];
        size_t n = ports_parse(row->allowed_ports, list);

        for (size_t i = 0; i < n; i++)
                if (!ports || json_push(ports, json_integer(list[i])) < 0)
                        return NULL;
        return json_pack("{s:b, s:b, s:O}", "allow_internet", (int) row->allow_internet, "allow_inter_vm",
                         (int) row->allow_inter_vm, "allowed_ports", ports);
}

json_t *view_url(const struct core *core, uint16_t host_port) {
        char address[16], url[URL_MAX];

        core_forward_bind(core, address);
        snprintf(url, sizeof(url), "http://%s:%u", str_eq(address, "0.0.0.0") ? "127.0.0.1" : address, host_port);
        return json_string(url);
}

json_t *view_forwards(const struct core *core, const struct ws_forward *list, size_t n) {
        _cleanup_json_ json_t *array = json_array();

        for (size_t i = 0; i < n; i++) {
                json_t *entry = json_pack("{s:i, s:i, s:o, s:b}", "guest_port", list[i].guest_port, "host_port",
                                          list[i].host_port, "url", view_url(core, list[i].host_port), "listening",
                                          (int) list[i].listening);
                if (!array || json_push(array, entry) < 0)
                        return NULL;
        }
        return TAKE_PTR(array);
}

json_t *view_text_or_null(const char *text) {
        return text ? json_string(text) : json_null();
}
