#include "sqlite.h"

namespace ddm {
namespace {

[[noreturn]] void fail(sqlite3* handle, int code) {
    const int found = handle ? sqlite3_extended_errcode(handle) : code;
    throw SqliteError{found & 0xFF, handle ? sqlite3_errmsg(handle) : sqlite3_errstr(code)};
}

}  // namespace

Connection::Connection(const std::string& path, bool create, double timeout_s) {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (create ? SQLITE_OPEN_CREATE : 0);
    const int code = sqlite3_open_v2(path.c_str(), &handle_, flags, nullptr);
    if (code == SQLITE_OK) {
        sqlite3_busy_timeout(handle_, static_cast<int>(timeout_s * 1000));
        return;
    }
    const SqliteError error{code & 0xFF, handle_ ? sqlite3_errmsg(handle_) : sqlite3_errstr(code)};
    sqlite3_close_v2(handle_);
    throw error;
}

void Connection::run(const std::string& script) {
    if (const int code = sqlite3_exec(handle_, script.c_str(), nullptr, nullptr, nullptr)) fail(handle_, code);
}

Statement::Statement(Connection& connection, const char* sql, std::nullptr_t) : connection_(connection.handle_) {
    check(sqlite3_prepare_v2(connection_, sql, -1, &handle_, nullptr));
}

bool Statement::step() {
    const int code = sqlite3_step(handle_);
    if (code != SQLITE_ROW && code != SQLITE_DONE) fail(connection_, code);
    return code == SQLITE_ROW;
}

std::string Statement::text(int column) const {
    const auto* found = reinterpret_cast<const char*>(sqlite3_column_text(handle_, column));
    return found ? std::string(found, static_cast<size_t>(sqlite3_column_bytes(handle_, column))) : std::string();
}

void Statement::bind(int place, const std::string& value) {
    check(sqlite3_bind_text64(handle_, place, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
}

void Statement::bind(int place, int64_t value) { check(sqlite3_bind_int64(handle_, place, value)); }

void Statement::check(int code) const {
    if (code != SQLITE_OK) fail(connection_, code);
}

}  // namespace ddm
