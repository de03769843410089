/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/toml.h"

#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include <toml++/toml.h>

namespace {

/* Tables and arrays inside each other; the configuration needs two levels. */
constexpr unsigned DEPTH_MAX = 32;

/* What the JSON form cannot say, and where it stands. */
struct refused {
        toml::source_position at;
        std::string why;
};

json_t *checked(json_t *value) {
        if (!value)
                throw std::bad_alloc();
        return value;
}

void put(json_t *object, const std::string &key, json_t *value) {
        if (json_object_setn_new(object, key.data(), key.size(), checked(value)) < 0)
                throw std::bad_alloc();
}

void put_position(json_t *positions, const std::string &path, const toml::source_position &at) {
        put(positions, path, json_pack("[I, I]", (json_int_t) at.line, (json_int_t) at.column));
}

json_t *convert(const toml::node &node, const std::string &path, json_t *positions, unsigned depth);

json_t *convert_table(const toml::table &table, const std::string &path, json_t *positions, unsigned depth) {
        json_t *object = checked(json_object());
        try {
                for (auto &&[key, value] : table) {
                        const std::string name{key.str()};
                        const std::string below = path.empty() ? name : path + "." + name;
                        put_position(positions, below, key.source().begin);
                        put(object, name, convert(value, below, positions, depth + 1));
                }
        } catch (...) {
                json_decref(object);
                throw;
        }
        return object;
}

json_t *convert_array(const toml::array &array, const std::string &path, json_t *positions, unsigned depth) {
        json_t *list = checked(json_array());
        try {
                for (auto &&value : array)
                        if (json_array_append_new(list, convert(value, path, positions, depth + 1)) < 0)
                                throw std::bad_alloc();
        } catch (...) {
                json_decref(list);
                throw;
        }
        return list;
}

json_t *convert(const toml::node &node, const std::string &path, json_t *positions, unsigned depth) {
        if (depth > DEPTH_MAX)
                throw refused{node.source().begin, "'" + path + "' is nested too deep"};
        if (const auto *table = node.as_table())
                return convert_table(*table, path, positions, depth);
        if (const auto *array = node.as_array())
                return convert_array(*array, path, positions, depth);
        if (const auto *text = node.as_string())
                return checked(json_stringn((*text)->data(), (*text)->size()));
        if (const auto *integer = node.as_integer())
                return checked(json_integer(integer->get()));
        if (const auto *boolean = node.as_boolean())
                return checked(json_boolean(boolean->get()));
        if (const auto *real = node.as_floating_point()) {
                if (!std::isfinite(real->get()))
                        throw refused{node.source().begin, "'" + path + "' is not a finite number"};
                return checked(json_real(real->get()));
        }
        throw refused{node.source().begin, "'" + path + "' is a date or a time; no key takes one"};
}

int fail(char **ret_message, unsigned *ret_line, unsigned *ret_column, std::string_view why,
         const toml::source_position &at) {
        char *message = strndup(why.data(), why.size());
        if (!message)
                return -2;
        *ret_message = message;
        *ret_line = at.line;
        *ret_column = at.column;
        return -1;
}

} // namespace

extern "C" int toml_to_json(const char *text, size_t len, json_t **ret_json, json_t **ret_positions, char **ret_message,
                            unsigned *ret_line, unsigned *ret_column) {
        json_t *positions = json_object();
        if (!positions)
                return -2;
        int r;
        try {
                const toml::table table = toml::parse(std::string_view{text, len});
                *ret_json = convert_table(table, std::string{}, positions, 0);
                *ret_positions = positions;
                return 0;
        } catch (const toml::parse_error &e) {
                r = fail(ret_message, ret_line, ret_column, e.description(), e.source().begin);
        } catch (const refused &e) {
                r = fail(ret_message, ret_line, ret_column, e.why, e.at);
        } catch (...) {
                r = -2;
        }
        json_decref(positions);
        return r;
}
