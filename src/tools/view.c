/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/view.h"

#include "base/json.h"
#include "base/str.h"

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

json_t *view_text_or_null(const char *text) {
        return text ? json_string(text) : json_null();
}
